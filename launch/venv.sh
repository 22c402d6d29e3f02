# shellcheck shell=bash
# Sourced by the scripts beside it: a virtual environment with this package in it.

# find_python: prints a Python of at least 3.11, $PYTHON first if that is set.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or newer (with venv) is needed and was not found; set PYTHON=/path/to/python3" >&2
  return 1
}

# ensure_venv REPO VENV EXTRAS: makes VENV and installs REPO[EXTRAS] into it, editable. Does nothing
# when that was done before with the same requirements; goes on where an earlier try was stopped.
ensure_venv() {
  local repo=$1 venv=$2 extras=$3 python stamp wanted
  stamp=$venv/.lavit_installed
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || return 1
    echo "making the virtual environment $venv" >&2
    "$python" -m venv "$venv" || return 1
  fi
  wanted=$(cd "$repo" && "$venv/bin/python" - "$repo" "$extras" <<'PY'
import hashlib, pathlib, sys
digest = hashlib.sha256(repr((sys.version, sys.argv[1:])).encode())
for name in ("setup.py", "pyproject.toml", "launch/constraints.txt"):
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
  ) || return 1
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    return 0
  fi
  echo "installing lavit_jax and what it needs into $venv (a few minutes the first time)" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$repo/launch/constraints.txt" --editable "$repo${extras:+[$extras]}" || return 1
  echo "$wanted" >"$stamp"
}
