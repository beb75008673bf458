"""The folder of one run: its name, its files, its lock. Imports nothing heavy."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rlrun.config import completed, make_importable, slug
from rlrun.errors import UserError
from rlrun.files import write_atomically, write_json

LONGEST_VARIANT = 100  # characters; file systems end at 255

# Descriptors of the locks that this process holds. A forked process lets go of them, or it would hold the run, too,
# while its parent is gone and the same command is given again.
_held: set[int] = set()


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)


os.register_at_fork(after_in_child=_let_go)


class RunFolder:
    """config.yaml, run.json and result.json of a run, and who is writing to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """Return the folder of a stored run. Raises UserError if it is not one."""
        folder = cls(Path(path))
        if not folder.exists():
            reason = "has no config.yaml and run.json" if folder.path.is_dir() else "does not exist"
            raise UserError(f"RUN={path} is not a run folder: it {reason}; `rlrun ls` shows the runs")
        make_importable(folder.record().get("import_paths", []))
        return folder

    def exists(self) -> bool:
        return (self.path / "config.yaml").exists() and (self.path / "run.json").exists()

    def config(self) -> dict[str, Any]:
        """Return the run's configuration, completed where it is older than one of its keys."""
        return completed(yaml.safe_load((self.path / "config.yaml").read_text()))

    def write_config(self, config: dict[str, Any]) -> None:
        write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())

    def record(self) -> dict[str, Any]:
        return json.loads((self.path / "run.json").read_text())

    def write_record(self, record: dict[str, Any]) -> None:
        write_json(self.path / "run.json", record)

    def update_record(self, **changes: Any) -> None:
        self.write_record({**self.record(), **changes})

    def result(self) -> dict[str, Any] | None:
        path = self.path / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def status(self) -> str:
        """Return running, finished, interrupted or failed. A killed run cannot say so: the lock does."""
        stored = self.record()["status"]
        return "interrupted" if stored == "running" and not self.locked() else stored

    def locked(self) -> bool:
        """Say whether a living process holds the run."""
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that one who only looks does not keep a starting run out.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run while the block runs; the kernel lets go of it when the process dies."""
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(
                f"{self.path} is being written by another process; wait for it, or stop it, or give this run "
                "another name=..."
            ) from error
        _held.add(descriptor)
        try:
            yield
        finally:
            _held.remove(descriptor)
            os.close(descriptor)


def variant(changes: Iterable[str]) -> str:
    """Return the folder's name for the overrides that change learning; "default" where there are none."""
    name = "_".join(slug(change.removeprefix("algo.")) for change in sorted(changes))
    if not name:
        return "default"
    if len(name) <= LONGEST_VARIANT:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_VARIANT - 9]}-{digest}"


def find_runs(root: Path) -> list[RunFolder]:
    """Return all runs below a folder, sorted by path; those set aside are left out."""
    paths = sorted(path.parent for path in root.rglob("run.json") if ".aside" not in path.parts)
    return [folder for folder in map(RunFolder, paths) if folder.exists()]
