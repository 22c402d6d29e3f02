#!/usr/bin/env bash
# What a container on a TPU runs: `lavit` with the environment it wants there.
#
#   bash launch/tpu/entrypoint.sh train --config configs/FILE.py[:ARG] --workdir gs://BUCKET/FOLDER
#
# Ends with the status of `lavit`, or with 143 after a SIGTERM, here or on another machine of the run, so
# that Kubernetes does not take an interrupted run for a finished one.
set -euo pipefail

case ${1:-} in
  -h | --help)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/tpu/supervise.sh
. launch/tpu/supervise.sh

tpu_environment python3
supervise lavit "$@"
