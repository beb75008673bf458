"""run.json: what was run, on what, by which command, and how it went."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("rlrun", "torch", "numpy", "gymnasium", "ale-py", "hydra-core", "omegaconf", "Box2D", "mujoco")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """Return code, versions and machine, as far as they can be found out."""
    return {"code": code(), "packages": packages(), "python": platform.python_version(), "machine": machine()}


# Both are asked for several times a run; what a process runs is what it has loaded.
@cache
def packages() -> dict[str, str]:
    """Return {package: version} of what a result may depend on, as far as it is installed."""
    return installed(PACKAGES)


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return {package: version} of those that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def code() -> dict[str, Any]:
    """Return a hash of rlrun's own source, and in a checkout the commit and the uncommitted difference."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    facts: dict[str, Any] = {"sha256": digest.hexdigest()}
    commit = _git("rev-parse", "HEAD") if (package.parent / ".git").exists() else None
    if commit:
        facts["commit"] = commit.strip()
        facts["dirty_diff"] = _git("diff", "HEAD") or ""
    return facts


def machine() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def command() -> str:
    """Return the command line of this process, as one would type it."""
    import shlex

    typed = [a for a in sys.argv[1:] if not a.startswith("hydra.sweep.dir=")]  # which rlrun itself adds
    return shlex.join(["rlrun", *typed])


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
