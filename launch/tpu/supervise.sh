# shellcheck shell=bash
# Sourced by what starts `lavit` on a TPU, on a machine (worker.sh) or in a container (entrypoint.sh).

# tpu_environment PYTHON: the environment of a training process.
tpu_environment() {
  # Without this a machine whose TPU does not come up would train on its CPU, silently.
  export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}
  if [ -z "${LIBTPU_INIT_ARGS+set}" ]; then
    LIBTPU_INIT_ARGS=$("$1" -m lavit_jax.parallel.xla_flags) || return
    export LIBTPU_INIT_ARGS
  fi
}

# supervise lavit ARGS...: runs it and returns its status; passes SIGTERM on and waits for it to save.
# Returns 143 after a SIGTERM, here or on any other machine of the run: there `lavit` ends with 0, and an
# interrupted run must not look like a finished one, which writes the file LAVIT_COMPLETED.
supervise() {
  local interrupted='' code=0 child='' completed
  completed=$(mktemp) || return
  trap 'interrupted=1; kill -TERM "$child" 2>/dev/null' TERM INT HUP
  LAVIT_COMPLETED=$completed "$@" &
  child=$!
  [ -z "$interrupted" ] || kill -TERM "$child" 2>/dev/null
  while :; do
    code=0
    wait "$child" || code=$?
    # A signal ends `wait` before the command has ended.
    kill -0 "$child" 2>/dev/null || break
  done
  trap - TERM INT HUP
  [ "$code" -ne 0 ] || [ -s "$completed" ] || interrupted=1
  rm -f "$completed"
  [ -z "$interrupted" ] || return 143
  return "$code"
}
