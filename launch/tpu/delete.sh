#!/usr/bin/env bash
# Deletes a TPU: the request and its machines. The work directory in the bucket stays.
#
#   bash launch/tpu/delete.sh --name NAME --zone ZONE [OPTIONS]
#
# Does not ask. Training that is running is not saved first: stop.sh does that.
#
# --name NAME        name of the queued resource (LAVIT_TPU_NAME)
# --zone ZONE        its zone, e.g. us-east5-a (LAVIT_TPU_ZONE)
# --project PROJECT  its Google Cloud project (LAVIT_TPU_PROJECT; default: of gcloud)
# --dry-run          print every command, run none
set -euo pipefail

# shellcheck source=launch/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project" "$@"
check_place

assumed=ACTIVE
look_once
if [ "$state" = ABSENT ]; then
  say "there is no $opt_name in $opt_zone"
  exit 0
fi
delete
