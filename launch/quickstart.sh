#!/usr/bin/env bash
# From nothing to a trained model and its report, on a laptop's CPU.
#
#   bash launch/quickstart.sh [WORKDIR]
#
# Makes a virtual environment, installs lavit_jax and runs `lavit quickstart`. Stopped half-way, it
# goes on where it was when it is run again. WORKDIR defaults to workdir/quickstart in the current
# directory and gets everything: data, checkpoints, metrics and report/index.html.
#
# LAVIT_VENV  where the environment goes (default: .venv in the repository)
# PYTHON      the Python to make it from (default: the first python3 of at least 3.11)
set -euo pipefail

case ${1:-} in
  -h | --help)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${LAVIT_VENV:-$repo/.venv}
workdir=${1:-workdir/quickstart}
# shellcheck source=launch/venv.sh
. "$repo/launch/venv.sh"

ensure_venv "$repo" "$venv" ""
exec "$venv/bin/lavit" quickstart --workdir "$workdir" "${@:2}"
