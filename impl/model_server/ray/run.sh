#!/bin/sh
# Starts Ray Serve with serve_app.py: run.sh cpu | gaudi | gpu [arguments of docker compose up, such as -d]
set -eu
case $0 in */*) cd "${0%/*}" ;; esac
. ../checks.sh
case ${1:-}:${LLM_NAME:-SmolLM2-135M-Instruct} in
gaudi:*/* | gpu:*/* | cpu:* | :*) ;;
gaudi:* | gpu:*) fail "LLM_NAME = ${LLM_NAME:-SmolLM2-135M-Instruct}: vLLM serves a Hugging Face repository, owner/name" ;;
esac
start "cpu gaudi gpu" nvidia "$@"
