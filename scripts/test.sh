#!/usr/bin/env bash
# Makes the environment and runs the tests.
#
#   bash scripts/test.sh            all but the slow ones (minutes on 2 cores)
#   bash scripts/test.sh --all      the slow ones too
#   bash scripts/test.sh -k merge   any further arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

selection="not slow"
if [ "${1:-}" = --all ]; then
    selection=""
    shift
fi
exec "$PYTHON" -m pytest -m "$selection" "$@"
