#!/usr/bin/env bash
# Makes a virtual environment with the test requirements and runs the test suite.
#
#   bash launch/test.sh [PYTEST ARGUMENTS]
#
# LAVIT_VENV          where the environment goes (default: .venv-test in the repository)
# LAVIT_TEST_WORKERS  processes that run tests (default: 2; 0 for --pdb)
# PYTHON              the Python to make it from (default: the first python3 of at least 3.11)
set -euo pipefail

case ${1:-} in
  -h | --help)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${LAVIT_VENV:-$repo/.venv-test}
# shellcheck source=launch/venv.sh
. "$repo/launch/venv.sh"

ensure_venv "$repo" "$venv" test,dev
cd "$repo"
# A file's tests run in one process, so that what they share is made once.
exec "$venv/bin/python" -m pytest --numprocesses "${LAVIT_TEST_WORKERS:-2}" --dist loadfile "$@"
