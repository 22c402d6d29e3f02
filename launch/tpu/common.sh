# shellcheck shell=bash
# Sourced by the scripts beside it: arguments, messages, and the gcloud commands they share. Keeps to
# what bash 3.2 knows, which is what macOS has.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# What the options say; `parse` sets them, `opt_dry_run=1` is --dry-run. Not every script reads all.
opt_name=${LAVIT_TPU_NAME:-} opt_zone=${LAVIT_TPU_ZONE:-} opt_project=${LAVIT_TPU_PROJECT:-}
opt_type=${LAVIT_TPU_TYPE:-} opt_slices=${LAVIT_TPU_SLICES:-1} opt_dry_run=
# shellcheck disable=SC2034
opt_spot='' opt_reserved='' opt_runtime='' opt_wait='' opt_config='' opt_workdir='' opt_poll=60
create_args=() ssh_args=() rest=()

# usage: the comment on top of the script that was called.
usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "$0"
}

say() {
  echo "$*" >&2
}

# fail MESSAGE: a mistake of the user's, in one line.
fail() {
  say "error: $*"
  exit 2
}

# quote WORD...: the words as one line that a shell reads back as the same words.
quote() {
  local word line=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/$escaped_quote}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}
escaped_quote="'\\''"

# run COMMAND...: shows a command that changes something and runs it; --dry-run only prints it.
run() {
  if [ -n "$opt_dry_run" ]; then
    quote "$@"
  else
    say "+ $(quote "$@")"
    "$@"
  fi
}

# parse ALLOWED ARGUMENT...: sets opt_NAME for each --NAME VALUE. In ALLOWED, a name with `!` takes no
# value, one with `*` may come many times, and `--` lets everything after a `--` through, into `rest`.
parse() {
  local allowed=" $1 help! dry-run! " key value
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --)
        case $allowed in *" -- "*) ;; *) fail "nothing goes after -- here (see --help)" ;; esac
        shift
        rest=("$@")
        return
        ;;
      --*) ;;
      *) fail "unexpected argument '$1' (see --help)" ;;
    esac
    key=${1%%=*}
    key=${key#--}
    case $allowed in
      *" $key! "*)
        [ "$1" = "--$key" ] || fail "--$key takes no value, got '$1'"
        printf -v "opt_${key//-/_}" %s 1
        shift
        continue
        ;;
      *" $key "* | *" $key* "*) ;;
      *) fail "unknown option '--$key' (see --help)" ;;
    esac
    if [ "$1" != "--$key" ]; then
      value=${1#*=}
      shift
    else
      [ $# -ge 2 ] || fail "--$key needs a value"
      value=$2
      shift 2
    fi
    case $key in
      create-arg) create_args+=("$value") ;;
      ssh-arg) ssh_args+=("$value") ;;
      *)
        case $value in '' | --*) fail "--$key needs a value, got '$value'" ;; esac
        printf -v "opt_${key//-/_}" %s "$value"
        ;;
    esac
  done
}

# check_place [TOOL LINK]: --name, --zone and --project, which every script has, and what it calls.
check_place() {
  local tool=${1:-gcloud} link=${2:-https://cloud.google.com/sdk/docs/install}
  [ -n "$opt_name" ] || fail "--name NAME is needed (or LAVIT_TPU_NAME)"
  [ -n "$opt_zone" ] || fail "--zone ZONE is needed (or LAVIT_TPU_ZONE), e.g. us-east5-a"
  matches "$opt_name" '[a-z]([-a-z0-9]{0,46}[a-z0-9])?' ||
    fail "--name: expected small letters, digits and hyphens, at most 48, got '$opt_name'"
  matches "$opt_zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' ||
    fail "--zone: expected a zone such as us-east5-a, got '$opt_zone'"
  where=("--zone=$opt_zone" "--quiet")
  [ -z "$opt_project" ] || where+=("--project=$opt_project")
  [ -n "$opt_dry_run" ] || command -v "$tool" >/dev/null ||
    fail "$tool was not found; install it: $link"
}

matches() {
  printf '%s' "$1" | grep -Eqx -- "$2"
}

check_count() {
  matches "$2" '[1-9][0-9]{0,5}' || fail "--$1: expected a positive number, got '$2'"
}

# check_type: --type, --slices and --runtime, what to create. `v5e-256` is what people say and
# `v5litepod-256` what Google Cloud calls it.
check_type() {
  local default
  [ -n "$opt_type" ] || fail "--type TYPE is needed (or LAVIT_TPU_TYPE), e.g. v5p-128"
  opt_type=${opt_type/#v5e-/v5litepod-}
  case $opt_type in
    v4-*) default=tpu-ubuntu2204-base ;;
    v5p-*) default=v2-alpha-tpuv5 ;;
    v5litepod-*) default=v2-alpha-tpuv5-lite ;;
    v6e-*) default=v2-alpha-tpuv6e ;;
    *) default= ;;
  esac
  { [ -n "$default" ] && matches "${opt_type#*-}" '[1-9][0-9]{0,4}'; } ||
    fail "--type: expected v4-N, v5e-N, v5p-N or v6e-N, e.g. v5p-128, got '$opt_type'"
  opt_runtime=${opt_runtime:-$default}
  check_count slices "$opt_slices"
  [ -z "$opt_spot" ] || [ -z "$opt_reserved" ] || fail "--spot and --reserved exclude each other"
}

# check_training: --config and --workdir, as workers will see them.
check_training() {
  local file
  [ -n "$opt_config" ] || fail "--config FILE.py[:ARG] is needed"
  [ -n "$opt_workdir" ] || fail "--workdir gs://BUCKET/FOLDER is needed"
  file=${opt_config%%:*}
  case $file in
    configs/*.py) ;;
    *) fail "--config: expected configs/FILE.py, which setup.sh copies, got '$opt_config'" ;;
  esac
  [ -f "$repo/$file" ] || fail "--config: there is no $file in $repo"
  matches "$opt_workdir" 'gs://[a-z0-9][-_.a-z0-9]*/.+' ||
    fail "--workdir: expected gs://BUCKET/FOLDER, as a machine's own disk goes with it, got '$opt_workdir'"
  train=(train --config "$opt_config" --workdir "$opt_workdir" ${rest[@]+"${rest[@]}"})
}

queued=(gcloud compute tpus queued-resources)

# look: sets `state` to the state of the queued resource: ABSENT when there is none, UNKNOWN when
# gcloud could not say (then `reason` is what it said instead). A dry run assumes `assumed`.
look() {
  local out describe=("${queued[@]}" describe "$opt_name" "${where[@]}" "--format=value(state.state)")
  if [ -n "$opt_dry_run" ]; then
    quote "${describe[@]}"
    state=$assumed
    return
  fi
  if out=$("${describe[@]}" 2>&1); then
    # gcloud adds notices of its own before and after.
    state=$(printf '%s\n' "$out" | grep -Ex '[A-Z_]+' | tail -n 1) || state=UNKNOWN
    reason=$out
  else
    case $out in
      *NOT_FOUND*) state=ABSENT ;;
      *) state=UNKNOWN ;;
    esac
    reason=$(printf '%s\n' "$out" | grep -v '^ *$' | tail -n 1)
  fi
}
assumed=ABSENT

# look_once: for a script that does one thing; not knowing ends it.
look_once() {
  look
  [ "$state" != UNKNOWN ] || {
    say "error: gcloud could not say what $opt_name is doing: $reason"
    exit 1
  }
}

# create: asks for the machines. Several slices are nodes NAME-0, NAME-1, ... of one request.
create() {
  local nodes=("--node-id=$opt_name")
  [ "$opt_slices" -eq 1 ] || nodes=("--node-count=$opt_slices" "--node-prefix=$opt_name")
  run "${queued[@]}" create "$opt_name" "${where[@]}" "${nodes[@]}" \
    "--accelerator-type=$opt_type" "--runtime-version=$opt_runtime" \
    ${opt_spot:+--spot} ${opt_reserved:+--reserved} ${create_args[@]+"${create_args[@]}"}
}

delete() {
  run "${queued[@]}" delete "$opt_name" "${where[@]}" --force
}

# on NODE WORKER COMMAND: runs a shell command on one machine of a slice or on `all`. gcloud goes
# through many machines in batches, so a command must never wait for what another machine does.
on() {
  ssh_command "$@"
  run "${ssh_line[@]}"
}

ssh_command() {
  ssh_line=("${queued[@]}" ssh "$opt_name" "${where[@]}" "--node=$1" "--worker=$2"
    ${ssh_args[@]+"${ssh_args[@]}"} "--command=$3")
}

worker=lavit_jax/launch/tpu/worker.sh # in the home directory of every machine

# setup_workers: copies this repository to every machine and installs it there.
setup_workers() {
  local folder=${TMPDIR:-/tmp}/lavit_tpu status=0
  [ -n "$opt_dry_run" ] || folder=$(mktemp -d) || return
  pack "$folder/lavit_jax.tar.gz" && send "$folder/lavit_jax.tar.gz" || status=$?
  [ -n "$opt_dry_run" ] || rm -rf "$folder"
  return "$status"
}

# pack FILE: what an installation needs, as it lies here, with changes that are not committed.
pack() {
  COPYFILE_DISABLE=1 run tar -czf "$1" --exclude=__pycache__ -C "$repo" \
    configs launch lavit_jax pyproject.toml setup.py README.md
}

send() {
  run "${queued[@]}" scp "$1" "$opt_name:lavit_jax.tar.gz" "${where[@]}" --node=all --worker=all \
    ${ssh_args[@]+"${ssh_args[@]}"} || return
  on all all "rm -rf lavit_jax.new && mkdir lavit_jax.new && tar -xzf lavit_jax.tar.gz -C lavit_jax.new && bash lavit_jax.new/launch/tpu/worker.sh setup"
}

start_workers() {
  on all all "bash $worker start $(quote "${train[@]}")"
}

# stop_workers: every machine is told first and waited for afterwards, as they save together.
stop_workers() {
  on all all "if [ -f $worker ]; then bash $worker stop; fi"
  on all all "if [ -f $worker ]; then bash $worker wait; fi"
}

# ask_worker: sets `doing` to what the first machine's training does (see worker.sh), or to `unreachable`.
# When one machine of a run fails, jax ends the others, and when one is told to end, all save and end
# `interrupted`: the first speaks for all.
ask_worker() {
  local out
  ssh_command 0 0 "if [ -f $worker ]; then bash $worker status; else echo lavit-status: absent; fi"
  if [ -n "$opt_dry_run" ]; then
    quote "${ssh_line[@]}"
    return
  fi
  out=$("${ssh_line[@]}" 2>/dev/null) || true
  doing=$(printf '%s\n' "$out" | sed -n 's/^lavit-status: //p' | tail -n 1)
  doing=${doing:-unreachable}
}
