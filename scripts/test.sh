#!/bin/sh
# Set up, then lint, types and all tests. `scripts/test.sh fast` leaves out those that train or kill for minutes.
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh dev
# The report's page is looked at in a browser. Where there is none, root (as in CI) gets one; else those tests are skipped.
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null && [ "$(id -u)" = 0 ]; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 ||
        echo "note: no chromium, and apt-get cannot install it: tests that need a browser are skipped" >&2
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
if [ "${1:-all}" = fast ]; then
    exec .venv/bin/python -m pytest -n 2
fi
exec .venv/bin/python -m pytest -n 2 -m ""
