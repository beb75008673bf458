"""`rlrun clean [PATHS ...]`: show what finished runs no longer need, and free it. Imports no torch."""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from rlrun.arguments import key_values, split_paths, with_defaults
from rlrun.console import table_console
from rlrun.errors import UserError, nearest
from rlrun.files import beside, human_bytes
from rlrun.run_folder import RunFolder, find_runs

KNOWN: dict[str, Any] = {"yes": False, "keep": ""}
DEFAULT_PATH = Path("outputs")
KINDS = {
    "checkpoints": "of finished runs, older than the last; the last and the best policy stay",
    "replay": "of finished runs; without it they cannot be extended (rlrun resume RUN total_steps=...)",
    "corrupt": "checkpoints that were found damaged and set aside",
    "temporary": "what a killed process had not finished writing or removing",
    "aside": "whole runs that fresh=true set aside",
    "sweeps": "notes of sweeps that were killed, untouched for a week",
    "scratch": f"folders in {tempfile.gettempdir()} of processes that were killed",
}
SWEEP = re.compile(r"\d+-\d+-(?P<process>\d+)-.+")  # below outputs/.sweeps: see sweep.conduct.scratch_folder
SWEEP_IS_OVER = 7 * 86_400.0  # seconds without a note; its process may live on another machine
SCRATCH = re.compile(r"rlrun-[a-z]+-(?P<process>\d+)-.+")  # see files.scratch_prefix


@dataclass(frozen=True)
class Item:
    """One thing that can go. `paths`: files or folders in the order of their removal."""

    kind: str
    paths: tuple[Path, ...]

    def bytes(self) -> int:
        return sum(_bytes(path) for path in self.paths)


def clean(arguments: list[str]) -> int:
    """rlrun clean [PATHS ...] [yes=false] [keep=KIND,...]: show what finished runs no longer need, and free it.

    Looks at nothing outside PATHS; without any, at outputs and at what killed processes left in the folder of temporary
    files. Asks before it frees anything; where nobody can answer, yes=true says so. What can be kept: checkpoints,
    replay, corrupt, temporary, aside, sweeps, scratch. Runs that are going on are left alone, and unfinished ones keep
    what they need to go on.
    """
    given, options = _parsed(arguments)
    paths = given or [DEFAULT_PATH]
    runs = list({run.path.resolve(): run for path in paths for run in find_runs(path)}.values())
    idle = [run for run in runs if not run.locked()]
    found = {run: [item for item in freeable(run) if item.kind not in options["keep"]] for run in idle}
    others = [*set_aside(paths), *left_sweeps(paths), *left_scratch(given)]
    others = [item for item in others if item.kind not in options["keep"]]
    items = [item for group in found.values() for item in group] + others
    if len(idle) < len(runs):
        _say(f"{len(runs) - len(idle)} of {len(runs)} runs are going on and are left alone")
    if not items:
        print(f"nothing to free: {len(runs)} runs looked at")
        return 0
    total = show(items)
    if not (options["yes"] or confirmed(total)):
        return 0
    problems = [problem for run, group in found.items() for problem in free_of_run(run, group)]
    problems += [problem for item in others for problem in free(item)]
    for problem in problems:
        _say(f"not freed: {problem}")
    print(f"freed {human_bytes(total - sum(item.bytes() for item in items))}")
    return 1 if problems else 0


def show(items: list[Item]) -> int:
    """Print how much of each kind can go; return the bytes of all."""
    table = Table("what", box=None, pad_edge=False)
    table.add_column("number", justify="right")
    table.add_column("size", justify="right")
    table.add_column("")
    total = 0
    for kind, why in KINDS.items():
        members = [item for item in items if item.kind == kind]
        size = sum(item.bytes() for item in members)
        total += size
        if members:
            table.add_row(kind, f"{len(members):,}", human_bytes(size), why)
    table.add_row("all", f"{len(items):,}", human_bytes(total), "")
    table_console().print(table)
    return total


def confirmed(total: int) -> bool:
    """Ask the person at the terminal; where there is none, say how to free it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("nothing is freed yet: yes=true frees it, keep=replay,aside leaves kinds out")
        return False
    try:
        return input(f"Free {human_bytes(total)}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


# --- What can go ----------------------------------------------------------------------------------------


def freeable(run: RunFolder) -> list[Item]:
    """Return what a run that nobody writes to can do without."""
    folder = run.path / "checkpoints"
    items = [Item("corrupt", (path,)) for path in sorted(folder.glob("*.corrupt"))]
    items += [Item("temporary", (path,)) for path in unfinished_files(run.path)]
    if run.record()["status"] == "finished" and run.result() is not None:
        items += [Item("checkpoints", (path, path.with_suffix(".pt"))) for path in superseded(folder)]
        if any(path.is_file() for path in (run.path / "replay").rglob("*")):
            items.append(Item("replay", (run.path / "replay",)))
    return items


def unfinished_files(run: Path) -> Iterator[Path]:
    """Yield what a killed process left of files that it had not finished, or had half removed."""
    yield from sorted([*run.glob("*.tmp"), *run.glob("images/**/*.tmp")])
    folder = run / "checkpoints"
    for path in sorted(folder.glob("*.tmp")):
        manifest = path.with_suffix("")
        # Killed between the two renames of a step saved twice: this one is the manifest of what is there.
        if not (manifest.suffix == ".json" and manifest.exists() and not whole(manifest)):
            yield path
    yield from (path for path in sorted(folder.glob("*.pt")) if not path.with_suffix(".json").exists())


def superseded(folder: Path) -> Iterator[Path]:
    """Yield the manifests of all checkpoints but the last, and of all best policies but the last.

    If the last is damaged, an older one is what the run can be taken up from: then all stay.
    """
    for kind in ("step", "best"):
        manifests = sorted(folder.glob(f"{kind}-*.json"), key=lambda path: int(path.stem.partition("-")[2]))
        if len(manifests) > 1 and whole(manifests[-1]):
            yield from manifests[:-1]


def whole(manifest: Path) -> bool:
    """Say whether a checkpoint has the checksum that its manifest states."""
    try:
        with open(manifest.with_suffix(".pt"), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return bool(json.loads(manifest.read_text())["sha256"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def set_aside(paths: Iterable[Path]) -> Iterator[Item]:
    """Yield the folders of runs that fresh=true set aside, unless one of these runs is going on."""
    for path in paths:
        for folder in sorted(path.rglob(".aside")):
            if not any(RunFolder(record.parent).locked() for record in folder.rglob("run.json")):
                yield Item("aside", (folder,))


def left_sweeps(paths: Iterable[Path]) -> Iterator[Item]:
    """Yield the folders of notes of sweeps that nobody conducts any more."""
    for folder in sorted({sweep for path in paths for sweep in path.glob("**/.sweeps/*")}):
        named = SWEEP.fullmatch(folder.name)
        latest = max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])
        if named and not _lives(int(named["process"])) and time.time() - latest > SWEEP_IS_OVER:
            yield Item("sweeps", (folder,))


def left_scratch(within: Sequence[Path]) -> Iterator[Item]:
    """Yield the temporary folders of this user's processes that live no more; only those `within` folders, if given."""
    for path in sorted(Path(tempfile.gettempdir()).resolve().glob("rlrun-*")):
        named = SCRATCH.fullmatch(path.name)
        if within and not any(path.is_relative_to(folder.resolve()) for folder in within):
            continue
        if named and path.is_dir() and path.stat().st_uid == os.getuid() and not _lives(int(named["process"])):
            yield Item("scratch", (path,))


# --- Freeing it -----------------------------------------------------------------------------------------


def free_of_run(run: RunFolder, items: list[Item]) -> list[str]:
    """Remove what was shown and still can go, while no other process may take the run up; return what failed."""
    if not items:
        return []
    try:
        with run.lock():
            return [problem for item in freeable(run) if item in items for problem in free(item)]
    except UserError as error:
        return [str(error)]


def free(item: Item) -> list[str]:
    """Remove an item; return what failed. What a kill leaves of it counts for nothing and is found again."""
    try:
        for path in item.paths:
            if item.kind == "replay":  # half a replay must not pass for a whole one
                path = path.rename(beside(path))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        return [str(error)]
    return []


def _parsed(arguments: list[str]) -> tuple[list[Path], dict[str, Any]]:
    paths, rest = split_paths(arguments, KNOWN)
    options = with_defaults(key_values(rest), KNOWN, "clean")
    options["keep"] = [kind for kind in re.split(r"[\s,\[\]']+", options["keep"]) if kind]
    for kind in options["keep"]:
        if kind not in KINDS:
            raise UserError(f"keep={kind} names nothing to keep.{nearest(kind, KINDS)} Known: {', '.join(KINDS)}")
    for path in paths or [DEFAULT_PATH]:
        if not path.is_dir():
            raise UserError(f"PATHS: {path} is not a folder; give run folders or folders of runs, such as outputs")
    return paths, options


def _bytes(path: Path) -> int:
    """Return the disk that a file, or all files in a folder, take."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_blocks * 512 for file in files if file.is_symlink() or file.is_file())


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is somebody else's
        return True
    return True


def _say(text: str) -> None:
    print(text, file=sys.stderr)
