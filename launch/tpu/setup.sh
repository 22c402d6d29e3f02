#!/usr/bin/env bash
# Copies this repository to all machines of a TPU and installs it there.
#
#   bash launch/tpu/setup.sh --name NAME --zone ZONE [OPTIONS]
#
# The first time takes a few minutes, again only a few seconds: what is installed stays, and the code
# is replaced by what lies here, committed or not. Refuses while training is running.
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

setup_workers
