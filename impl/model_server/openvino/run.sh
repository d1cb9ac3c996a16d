#!/bin/sh
# Starts OpenVINO Model Server: run.sh cpu | gpu (Intel's) [arguments of docker compose up, such as -d]
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
. ../checks.sh
[ "${1:-}" != gaudi ] || fail "OpenVINO does not run on Gaudi: ../vllm and ../tgi do"
start "cpu gpu" intel "$@"
