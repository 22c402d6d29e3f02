#!/usr/bin/env bash
# Starts training on all machines of a TPU, in the background.
#
#   bash launch/tpu/start.sh --name NAME --zone ZONE --config FILE.py[:ARG] --workdir gs://BUCKET/FOLDER \
#       [OPTIONS] [-- --config.FIELD=VALUE ...]
#
# Runs `lavit train` everywhere, with its output in ~/lavit_run/train.log. Goes on from the newest
# checkpoint in the work directory. Started again while the same is running, it changes nothing.
#
# --name NAME        name of the queued resource (LAVIT_TPU_NAME)
# --zone ZONE        its zone, e.g. us-east5-a (LAVIT_TPU_ZONE)
# --project PROJECT  its Google Cloud project (LAVIT_TPU_PROJECT; default: of gcloud)
# --config FILE.py[:ARG]   the experiment, in configs/
# --workdir gs://BUCKET/FOLDER   gets everything; a run goes on from the checkpoints in it
# --ssh-arg ARG      one more argument for `gcloud ... ssh`, e.g. --ssh-arg=--tunnel-through-iap; may
#                    come many times
# --dry-run          print every command, run none
# -- ARGUMENTS       handed to `lavit train`
set -euo pipefail

# shellcheck source=launch/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project config workdir ssh-arg* --" "$@"
check_place
check_training

start_workers
