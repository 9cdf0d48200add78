#!/usr/bin/env bash
# Makes the Python environment that every script of this project uses, once, and names its interpreter in $PYTHON.
#
#   bash scripts/env.sh                     build .venv with uv (a second call does nothing)
#   PYTHON=/path/to/python bash scripts/... use an environment that you already have (conda, container, no internet)
#   UNLOCKED=1 bash scripts/env.sh          newest versions that requirements.txt allows instead of the locked ones
#
# Other scripts source this file and call "$PYTHON".
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
STAMP="$VENV/.requirements.sha256"

wanted_stamp() {
    (cd "$ROOT" && cat requirements.txt requirements-dev.txt requirements-lock.txt && echo "${UNLOCKED:-0}") | sha256sum
}

find_uv() {
    command -v uv && return
    python3 -m uv --version >/dev/null 2>&1 || python3 -m pip install --quiet --user uv >&2 \
        || python3 -m pip install --quiet uv >&2 \
        || { echo "env.sh: uv could not be installed; install it, or set PYTHON to an environment with requirements.txt" >&2; exit 1; }
    python3 -c 'import uv; print(uv.find_uv_bin())'
}

build_venv() {
    local uv lock=(--constraint "$ROOT/requirements-lock.txt")
    [ "${UNLOCKED:-0}" = 1 ] && lock=()
    echo "env.sh: building $VENV (about 5 GB with the CUDA packages)" >&2
    uv="$(find_uv)"
    rm -rf "$VENV"
    "$uv" venv --quiet --python "${BASE_PYTHON:-python3}" "$VENV" >&2
    "$uv" pip install --quiet --python "$VENV/bin/python" "${lock[@]}" \
        -r "$ROOT/requirements.txt" -r "$ROOT/requirements-dev.txt" >&2
    wanted_stamp >"$STAMP"
}

check_own_python() {
    "$PYTHON" - "$ROOT/requirements.txt" <<'PY'
import importlib.metadata as metadata, re, sys
names = [re.match(r"[\w.-]+", line)[0] for line in open(sys.argv[1]) if re.match(r"\w", line)]
installed = {re.sub(r"[-_.]+", "-", d.name).lower() for d in metadata.distributions() if d.name}
missing = [n for n in names if re.sub(r"[-_.]+", "-", n).lower() not in installed]
if {"decord", "decord2"} <= installed:
    sys.exit("env.sh: decord and decord2 are both installed and overwrite each other: uninstall both, then install decord2")
if missing:
    sys.exit(f"env.sh: {sys.executable} lacks {', '.join(missing)}: install requirements.txt there, or unset PYTHON")
PY
}

if [ -n "${PYTHON:-}" ]; then
    check_own_python
else
    [ "$(cat "$STAMP" 2>/dev/null)" = "$(wanted_stamp)" ] || build_venv
    PYTHON="$VENV/bin/python"
fi
export PYTHON
