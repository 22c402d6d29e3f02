#!/usr/bin/env bash
# Says what a TPU and the training on it are doing.
#
#   bash launch/tpu/status.sh --name NAME --zone ZONE [OPTIONS]
#
# Prints two words, e.g. `ACTIVE running`: the state of the queued resource and what the first
# machine does (absent: not set up, ready, running, done, stopped, interrupted, lost, failed STATUS,
# unreachable).
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

assumed=ACTIVE
look_once
doing=
[ "$state" != ACTIVE ] || ask_worker
[ -n "$opt_dry_run" ] || echo "$state${doing:+ $doing}"
