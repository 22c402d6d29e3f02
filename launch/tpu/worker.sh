#!/usr/bin/env bash
# Runs on the TPU's own machines, called by the scripts beside it; setup.sh brings it there.
#
#   bash worker.sh setup           install ~/lavit_jax.new as ~/lavit_jax, with its environment
#   bash worker.sh start ARGS...   run `lavit ARGS...` in the background, log in ~/lavit_run/train.log
#   bash worker.sh status          print `lavit-status: ` and one of: ready, running, done, stopped,
#                                  interrupted, lost, failed STATUS
#   bash worker.sh stop            let it save and end
#   bash worker.sh wait            until it has ended; kill it after LAVIT_STOP_SECONDS (default: 300)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=$HOME/lavit_jax
venv=$HOME/lavit_venv
state=$HOME/lavit_run # command, pid, status, train.log
# shellcheck source=launch/venv.sh
. "$here/../venv.sh"
# shellcheck source=launch/tpu/supervise.sh
. "$here/supervise.sh"

fail() {
  echo "error: $(hostname): $*" >&2
  exit 2
}

# running: whether the process that `start` began is alive; after a reboot another may have its number.
running() {
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) || return
  case $pid in '' | 0 | 1 | *[!0-9]*) return 1 ;; esac # kill would reach others
  kill -0 "$pid" 2>/dev/null &&
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$home/launch/tpu/worker.sh run "
}

setup() {
  if running; then
    fail "training is running; stop.sh stops it"
  fi
  if [ -d "$HOME/lavit_jax.new" ]; then
    rm -rf "$HOME/lavit_jax.old"
    [ ! -d "$home" ] || mv "$home" "$HOME/lavit_jax.old"
    mv "$HOME/lavit_jax.new" "$home"
    rm -rf "$HOME/lavit_jax.old"
  fi
  # The machines' images have Python 3.10.
  if ! find_python >/dev/null 2>&1 && [ ! -x "$venv/bin/python" ]; then
    python3 -m pip install --quiet --user --disable-pip-version-check uv || fail "cannot install uv with pip"
    python3 -m uv python install --quiet 3.12 || fail "cannot get Python 3.12"
    PYTHON=$(python3 -m uv python find 3.12)
  fi
  ensure_venv "$home" "$venv" tpu || fail "cannot install lavit_jax"
  [ -x "$venv/bin/lavit" ] || fail "there is no $venv/bin/lavit after installing"
  echo "$(hostname): set up"
}

start() {
  [ $# -gt 0 ] || fail "nothing to start"
  [ -x "$venv/bin/lavit" ] || fail "not set up; setup.sh does that"
  mkdir -p "$state"
  if running; then
    [ "$(cat "$state/command")" = "$*" ] || fail "running something else: lavit $(cat "$state/command")"
    echo "$(hostname): running already"
    return
  fi
  # Left by a process that was killed; the next one would take the TPU for occupied.
  rm -f /tmp/libtpu_lockfile 2>/dev/null || true
  rm -f "$state/status" "$state/stopping"
  printf '%s\n' "$*" >"$state/command"
  setsid nohup bash "$home/launch/tpu/worker.sh" run "$@" >>"$state/train.log" 2>&1 </dev/null &
  echo $! >"$state/pid"
  echo "$(hostname): started"
}

# run: the process in the background.
run() {
  local code=0 outcome
  cd "$home"
  echo "--- $(date -u '+%Y-%m-%d %H:%M:%S') lavit $*"
  tpu_environment "$venv/bin/python"
  supervise "$venv/bin/lavit" "$@" || code=$?
  case $code in
    0) outcome="done" ;;
    143) outcome=interrupted ;;
    *) outcome="failed $code" ;;
  esac
  [ ! -f "$state/stopping" ] || outcome=stopped
  echo "--- $(date -u '+%Y-%m-%d %H:%M:%S') $outcome"
  echo "$outcome" >"$state/status.new"
  mv "$state/status.new" "$state/status"
}

status() {
  if running; then
    echo "lavit-status: running"
  elif [ -f "$state/status" ]; then
    echo "lavit-status: $(cat "$state/status")"
  elif [ -f "$state/pid" ]; then
    echo "lavit-status: lost" # the machine went down under it
  elif [ -x "$venv/bin/lavit" ]; then
    echo "lavit-status: ready"
  else
    echo "lavit-status: absent"
  fi
}

stop() {
  if ! running; then
    echo "$(hostname): nothing is running"
    return
  fi
  touch "$state/stopping"
  kill -TERM "$(cat "$state/pid")"
  echo "$(hostname): saving"
}

await() {
  local left=${LAVIT_STOP_SECONDS:-300}
  while running; do
    if [ "$left" -le 0 ]; then
      # `setsid` made it the leader of a group of its own.
      kill -KILL -- "-$(cat "$state/pid")" 2>/dev/null || true
      echo stopped >"$state/status"
      echo "$(hostname): killed, as it took too long"
      return
    fi
    sleep 1
    left=$((left - 1))
  done
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  setup | start | status | stop | run) "$command" "$@" ;;
  wait) await ;;
  -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" ;;
  *) fail "worker.sh: expected setup, start, status, stop or wait, got '$command'" ;;
esac
