#!/bin/sh
# Starts llama.cpp's server: run.sh cpu | gpu [arguments of docker compose up, such as -d]
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
. ../checks.sh
[ "${1:-}" != gaudi ] || fail "llama.cpp does not run on Gaudi: ../vllm and ../tgi do"
start "cpu gpu" nvidia "$@"
