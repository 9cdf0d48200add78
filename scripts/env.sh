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
    (cd "$ROOT" && cat requirements.txt requirements-tools.txt requirements-dev.txt requirements-lock.txt && echo "${UNLOCKED:-0}") | sha256sum
}

# Makes an empty environment and names a uv in $UV: the machine's, or one that pip installs inside it (a
# system's Python may be closed to pip).
make_venv() {
    local base="${BASE_PYTHON:-python3}"
    rm -rf "$VENV"
    if UV="$(command -v uv)"; then
        "$UV" venv --quiet --python "$base" "$VENV" >&2
    else
        UV="$VENV/bin/uv"
        "$base" -m venv "$VENV" >&2 && "$VENV/bin/python" -m pip install --quiet uv >&2 || {
            echo "env.sh: $base cannot make an environment with uv: install uv (or python3-venv)," \
                "or set PYTHON to an environment with requirements.txt" >&2
            exit 1
        }
    fi
}

build_venv() {
    echo "env.sh: building $VENV (about 5 GB with the CUDA packages)" >&2
    make_venv
    local pins="$ROOT/requirements-lock.txt"
    [ "${UNLOCKED:-0}" = 1 ] && pins=/dev/null
    "$UV" pip install --quiet --python "$VENV/bin/python" --constraint "$pins" \
        -r "$ROOT/requirements.txt" -r "$ROOT/requirements-tools.txt" -r "$ROOT/requirements-dev.txt" >&2
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
