#!/bin/sh
# Make .venv with rlrun and everything it needs, at the versions of constraints.txt.
# usage: scripts/setup.sh [extras]     e.g. scripts/setup.sh box2d,mujoco,video
set -eu
cd "$(dirname "$0")/.."
extras=${1:-}

if [ ! -x .venv/bin/pip ]; then
    for python in ${PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
        if command -v "$python" >/dev/null 2>&1 &&
            "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' 2>/dev/null; then
            break
        fi
        python=
    done
    [ -n "$python" ] || { echo "error: no Python of 3.11 or later found; set PYTHON=/path/to/python" >&2; exit 2; }
    "$python" -m venv .venv || { echo "error: $python cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 2; }
fi

# torch first and pinned: asked for by another package, pip would take the newest build and gigabytes of CUDA.
.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".${extras:+[$extras]}"
