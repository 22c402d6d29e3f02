#!/usr/bin/env bash
# Asks for a TPU: a queued resource of one slice or several.
#
#   bash launch/tpu/create.sh --name NAME --zone ZONE --type TYPE [--slices N] [--spot] [OPTIONS]
#
# A request waits in a queue until there are machines; status.sh says where it is, --wait waits for
# it. When NAME exists already, nothing is changed.
#
# --name NAME        name of the queued resource (LAVIT_TPU_NAME)
# --zone ZONE        its zone, e.g. us-east5-a (LAVIT_TPU_ZONE)
# --project PROJECT  its Google Cloud project (LAVIT_TPU_PROJECT; default: of gcloud)
# --type TYPE        v4-N, v5e-N, v5p-N or v6e-N, e.g. v5p-128 (LAVIT_TPU_TYPE)
# --slices N         several slices of that type (LAVIT_TPU_SLICES; default: 1)
# --spot             cheaper machines that can be taken away at any time
# --reserved         machines of a reservation
# --runtime VERSION  software of the machines (default: the one for TYPE)
# --create-arg ARG   one more argument for `gcloud ... create`, e.g. --create-arg=--internal-ips;
#                    may come many times
# --wait             wait until the machines are there
# --poll SECONDS     how often to look while waiting (default: 60)
# --dry-run          print every command, run none
set -euo pipefail

# shellcheck source=launch/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "name zone project type slices spot! reserved! runtime create-arg* wait! poll" "$@"
check_place
check_type
check_count poll "$opt_poll"

look_once
case $state in
  ABSENT) create ;;
  SUSPENDING | SUSPENDED | FAILED | DELETING)
    fail "$opt_name exists and is $state; delete.sh deletes it, resume.sh does that and creates it anew"
    ;;
  *) say "$opt_name exists already: $state" ;;
esac

[ -n "$opt_wait" ] || exit 0
assumed=ACTIVE
while look; do
  case $state in
    ACTIVE) break ;;
    SUSPENDING | SUSPENDED | FAILED | DELETING | ABSENT)
      say "error: $opt_name is $state; there will be no machines"
      exit 1
      ;;
    *) say "$(date '+%H:%M:%S') $opt_name: $state" ;;
  esac
  sleep "$opt_poll"
done
[ -n "$opt_dry_run" ] || say "$opt_name: $state"
