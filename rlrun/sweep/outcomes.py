"""What became of each job of a sweep: files that the jobs write, and the table that is made from them.

Nothing is inferred from the launcher: a job writes its own file, wherever it runs, and one that says "running"
when its process is gone is that of a process that was killed.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

Place = tuple[str, str, str, int]  # env, algo, variant, seed
UNKNOWN: Place = ("?", "?", "?", -1)  # of a point whose configuration is refused
FINISHED, SKIPPED, INTERRUPTED, FAILED = "finished", "skipped", "interrupted", "failed"
RUNNING, NOT_RUN = "running", "not run"
COLUMNS = (FINISHED, SKIPPED, INTERRUPTED, FAILED, NOT_RUN)
MOST_ERRORS = 20  # lines of different errors below the table


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    env: str
    algo: str
    variant: str
    seed: int
    status: str
    exit_code: int
    error: str = ""
    overrides: str = ""  # as typed, where the configuration was refused and has no place

    @property
    def where(self) -> str:
        return self.overrides or f"{self.env}/{self.algo}/{self.variant}/seed={self.seed}"


Note = Callable[[Outcome], None]
_note: ContextVar[Note | None] = ContextVar("who hears what becomes of runs", default=None)


@contextmanager
def noting(note: Note) -> Iterator[None]:
    """Let `note` hear what becomes of the runs that the block launches."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


def note_outcome(place: Place, status: str, exit_code: int, error: str = "") -> None:
    """Tell what became of a run, if anybody listens."""
    note = _note.get()
    if note is not None:
        note(Outcome(*place, status, exit_code, error))


def write_outcome(file: Path, outcome: Outcome) -> None:
    """Write what became of a job so far; nothing if its sweep has ended, and the folder is gone."""
    if not file.parent.is_dir():
        return
    beside = file.with_suffix(".tmp")
    beside.write_text(json.dumps(asdict(outcome)))
    os.replace(beside, file)


def read_outcome(file: Path) -> Outcome | None:
    """Return what a job has written so far."""
    try:
        return Outcome(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None


def report(ends: Sequence[Outcome]) -> int:
    """Print the table of a sweep, one outcome for each point; return its exit code, 0 if all are finished."""
    from rich.table import Table

    from rlrun.console import table_console

    console = table_console(stderr=True)
    table = Table("env", "algo", "variant", "seeds", *COLUMNS, box=None)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for end in sorted(ends, key=lambda o: (o.env, o.algo, o.variant)):
        groups.setdefault((end.env, end.algo, end.variant), []).append(end.status)
    for group, statuses in groups.items():
        count = Counter(statuses)
        cells = [str(count[status]) if count[status] else "" for status in COLUMNS]
        table.add_row(*group, f"{count[FINISHED] + count[SKIPPED]} of {len(statuses)}", *cells)
    console.print(table)
    for line in _errors(ends):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    count = Counter(end.status for end in ends)
    done = count[FINISHED] + count[SKIPPED]
    missing = f", {count[NOT_RUN]} not run" if count[NOT_RUN] else ""
    hint = "; the same command runs what is missing" if done < len(ends) else ""
    console.print(f"{done} of {len(ends)} points finished{missing}{hint}", highlight=False)
    return max((end.exit_code for end in ends), default=0) or (1 if done < len(ends) else 0)


def _errors(ends: Sequence[Outcome]) -> Iterator[str]:
    """Yield a line for each different error, with the first point that it befell."""
    befallen: dict[str, list[Outcome]] = {}
    for end in sorted(ends, key=lambda o: (o.env, o.algo, o.variant, o.seed)):
        if end.error:
            befallen.setdefault(end.error.splitlines()[0], []).append(end)
    for i, (error, members) in enumerate(befallen.items()):
        if i == MOST_ERRORS:
            yield f"and {len(befallen) - MOST_ERRORS} other errors"
            return
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        yield f"{members[0].status}: {members[0].where}{more}: {error}"
