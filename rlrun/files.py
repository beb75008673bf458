"""Files that are either there as a whole or not at all."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from rlrun.errors import RunFailed

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, sync, rename. A kill leaves the old file or the new one; RunFailed if the disk is full."""
    write_together({path: content})


def write_together(contents: dict[Path, bytes]) -> None:
    """Write several files of one folder; rename them, in order, only when all are on disk.

    A full disk leaves all the old files. A kill between two renames leaves the rest under their temporary
    names (`beside`), for a reader that finds the first new and the second old.
    """
    for path, content in contents.items():
        try:
            with open(beside(path), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            for written in contents:
                beside(written).unlink(missing_ok=True)
            raise disk_full(path, len(content), error) from error
    for path in contents:
        os.replace(beside(path), path)
    _sync_folder(path.parent)


def beside(path: Path) -> Path:
    """Return the temporary name of a file that is being written."""
    return path.with_name(path.name + ".tmp")


def scratch_prefix(purpose: str) -> str:
    """Return how a temporary folder's name begins: with its process, so that `rlrun clean` knows what was left."""
    return f"rlrun-{purpose}-{os.getpid()}-"


def disk_full(path: Path, needed: int, error: OSError) -> Exception:
    """Return RunFailed, which says how much was needed, for a full disk; any other error as it is."""
    if error.errno not in DISK_FULL:
        return error
    free = shutil.disk_usage(path.parent).free
    return RunFailed(
        f"{path} needs {human_bytes(needed)} of disk and {human_bytes(free)} are free there; "
        "make room and give the same command again"
    )


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def human_bytes(count: float) -> str:
    """Return a size as people write it: 7.3 GB."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration as people write it: 1h 05m."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d {seconds % 86400 // 3600:02d}h"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
