#!/bin/sh
# Set up, then lint, types and all tests. `scripts/test.sh fast` leaves out those that train or kill for minutes.
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
if [ "${1:-all}" = fast ]; then
    exec .venv/bin/python -m pytest -n 2
fi
exec .venv/bin/python -m pytest -n 2 -m ""
