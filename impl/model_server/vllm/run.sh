#!/bin/sh
# Starts vLLM: run.sh cpu | gaudi | gpu [arguments of docker compose up, such as -d]
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
. ../checks.sh
start "cpu gaudi gpu" nvidia "$@"
