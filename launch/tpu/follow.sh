#!/usr/bin/env bash
# Shows what training on a TPU writes, as it comes. Ctrl-C ends the showing, not the training.
#
#   bash launch/tpu/follow.sh --name NAME --zone ZONE [OPTIONS]
#
# --name NAME        name of the queued resource (LAVIT_TPU_NAME)
# --zone ZONE        its zone, e.g. us-east5-a (LAVIT_TPU_ZONE)
# --project PROJECT  its Google Cloud project (LAVIT_TPU_PROJECT; default: of gcloud)
# --slice I          of which slice (default: 0)
# --worker W         of which of its machines, or all (default: 0)
# --lines N          how many earlier lines to begin with (default: 100)
# --ssh-arg ARG      one more argument for `gcloud ... ssh`, e.g. --ssh-arg=--tunnel-through-iap; may
#                    come many times
# --dry-run          print every command, run none
set -euo pipefail

# shellcheck source=launch/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_slice=0 opt_worker=0 opt_lines=100
parse "name zone project slice worker lines ssh-arg*" "$@"
check_place
matches "$opt_slice" '[0-9]+' || fail "--slice: expected a number, got '$opt_slice'"
matches "$opt_worker" '[0-9]+|all' || fail "--worker: expected a number or all, got '$opt_worker'"
check_count lines "$opt_lines"

on "$opt_slice" "$opt_worker" "tail -n $opt_lines -F lavit_run/train.log"
