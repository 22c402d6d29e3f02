#!/usr/bin/env bash
# Stops training on all machines of a TPU after it has saved; the machines stay, and cost.
#
#   bash launch/tpu/stop.sh --name NAME --zone ZONE [OPTIONS]
#
# start.sh goes on from there, delete.sh gives the machines back. What has not ended after five
# minutes is killed; then the newest checkpoint is an earlier one.
#
# --name NAME        name of the queued resource (LAVIT_TPU_NAME)
# --zone ZONE        its zone, e.g. us-east5-a (LAVIT_TPU_ZONE)
# --project PROJECT  its Google Cloud project (LAVIT_TPU_PROJECT; default: of gcloud)
# --ssh-arg ARG      one more argument for `gcloud ... ssh`, e.g. --ssh-arg=--tunnel-through-iap; may
#                    come many times
# --dry-run          print every command, run none
set -euo pipefail

# shellcheck source=launch/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project ssh-arg*" "$@"
check_place

stop_workers
