#!/usr/bin/env bash
# Trains on a TPU until training is done, whatever happens to the machines.
#
#   bash launch/tpu/resume.sh --name NAME --zone ZONE --type TYPE [--slices N] [--spot] \
#       --config FILE.py[:ARG] --workdir gs://BUCKET/FOLDER [OPTIONS] [-- --config.FIELD=VALUE ...]
#
# Looks every minute and does what is missing: asks for machines, deletes the request and asks again
# when they were taken away (SUSPENDED, FAILED), sets them up, starts training, starts it again when
# a machine failed. Training goes on from the newest checkpoint in the work directory. Keeps nothing
# itself: stopped at any time (training runs on), it picks up when it is called again.
#
# Ends when training is done (0), was stopped with stop.sh (0), has a mistake in its arguments or
# config (2), or keeps failing (1). The machines stay, and cost, unless --delete-when-done deletes them;
# it says so.
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
# --config FILE.py[:ARG]   the experiment, in configs/
# --workdir gs://BUCKET/FOLDER   gets everything; a run goes on from the checkpoints in it
# --ssh-arg ARG      one more argument for `gcloud ... ssh`, e.g. --ssh-arg=--tunnel-through-iap; may
#                    come many times
# --poll SECONDS     how often to look (default: 60)
# --max-failures N   steps or requests that may fail one after the other (default: 10)
# --max-crashes N    crashes of training within 30 minutes of its start (default: 3)
# --delete-when-done delete the machines when training is done
# --dry-run          print every command, run none
# -- ARGUMENTS       handed to `lavit train`
set -euo pipefail

# shellcheck source=launch/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

opt_max_failures=10 opt_max_crashes=3 opt_delete_when_done=''
parse "name zone project type slices spot! reserved! runtime create-arg* config workdir ssh-arg* \
poll max-failures max-crashes delete-when-done! --" "$@"
check_place
check_type
check_training
check_count poll "$opt_poll"
check_count max-failures "$opt_max_failures"
check_count max-crashes "$opt_max_crashes"

if [ -n "$opt_dry_run" ]; then
  look
  create
  assumed=ACTIVE
  look
  ask_worker
  setup_workers
  start_workers
  echo "# every $opt_poll seconds:"
  look
  ask_worker
  echo "# when training failed, before it is set up and started again:"
  stop_workers
  echo "# when the machines were taken away, before they are created again:"
  delete
  exit 0
fi

note() {
  say "$(date '+%Y-%m-%d %H:%M:%S') $opt_name: $*"
}

failures=0 refusals=0 crashes=0 requests=0 seen='' launched='' existed='' started=0

# leave: says what still costs, whatever ended this, Ctrl-C too.
leave() {
  case $state in
    '' | ABSENT) ;;
    ACTIVE) note "the machines are still there and cost; delete.sh deletes them" ;;
    *) note "the request may still be there, and its machines cost; delete.sh deletes both" ;;
  esac
}
state=''
trap leave EXIT

# failed WHAT: counts a step that did not work; the next look tries again.
failed() {
  failures=$((failures + 1))
  note "$* ($failures of $opt_max_failures)"
  if [ "$failures" -ge "$opt_max_failures" ]; then
    say "error: giving up; training goes on from its newest checkpoint when this is run again"
    exit 1
  fi
}

launch() {
  setup_workers || {
    failed "setting up failed"
    return
  }
  start_workers || {
    failed "starting failed"
    return
  }
  launched=1 started=$SECONDS
}

# request: asks for machines. What is wrong with the first request will not pass by asking again.
request() {
  requests=$((requests + 1))
  create || {
    [ "$requests" -gt 1 ] || exit 1
    failed "creating failed"
    return
  }
  state=ACCEPTED
}

give_back() {
  delete || return
  state=ABSENT
}

finish() {
  [ -z "$opt_delete_when_done" ] || give_back || exit 1
  exit 0
}

# crash STATUS: training ended with an error, on machines that are there.
crash() {
  on 0 0 'tail -n 20 lavit_run/train.log' || true
  if [ "$1" = 2 ]; then
    say "error: lavit train has a mistake in its arguments or config, told in the lines above"
    exit 2
  fi
  [ $((SECONDS - started)) -lt 1800 ] || crashes=0
  crashes=$((crashes + 1))
  note "training failed with status $1 ($crashes of $opt_max_crashes)"
  if [ "$crashes" -ge "$opt_max_crashes" ]; then
    say "error: giving up; training keeps failing soon after its start"
    exit 1
  fi
}

# adopt: training runs that this did not start; it is ours when `start` finds the same command.
adopt() {
  local code=0
  start_workers || code=$?
  case $code in
    0) launched=1 started=$SECONDS ;;
    2) exit 2 ;;
    *) failed "starting failed" ;;
  esac
}

# tend: the machines are there; does what training needs.
tend() {
  ask_worker
  [ "$doing" = "$seen" ] || note "training is $doing"
  seen=$doing
  case $doing in
    unreachable) failed "the first machine does not answer" ;;
    running)
      failures=0 refusals=0
      [ -n "$launched" ] || adopt
      ;;
    *)
      # What an earlier call of this left behind is no answer to this one.
      if [ -n "$launched" ]; then
        case $doing in
          done) finish ;;
          stopped) exit 0 ;;
          failed*) crash "${doing#failed }" ;;
        esac
        stop_workers || failed "stopping failed"
      fi
      launch
      ;;
  esac
}

last=''
while :; do
  look
  [ "$state" = "$last" ] || note "$state"
  last=$state
  case $state in ABSENT | UNKNOWN) ;; *) existed=1 ;; esac
  case $state in
    ACTIVE) tend ;;
    ABSENT)
      if [ -n "$existed" ]; then
        note "was deleted; that ends this"
        exit 0
      fi
      request
      ;;
    SUSPENDED | FAILED)
      if [ "$state" = FAILED ]; then
        refusals=$((refusals + 1))
        failed "there were no machines"
      fi
      launched=''
      if give_back; then
        existed=''
        request
      else
        failed "deleting failed"
      fi
      ;;
    UNKNOWN) failed "gcloud could not say its state: $reason" ;;
    *) failures=$refusals ;; # waiting undoes no request that came to nothing
  esac
  sleep "$opt_poll"
done
