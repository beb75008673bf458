"""`rlrun -m ...`: many runs by one command, and at its end a table that says what became of each.

Each job writes its outcome into the sweep's scratch folder, whatever launcher runs it and wherever; the table
is made from those files. Nothing is inferred from the launcher, whose own report stops at the first failure.
"""

import json
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rlrun.errors import UserError

Place = tuple[str, str, str, int]  # env, algo, variant, seed
UNKNOWN: Place = ("?", "?", "?", -1)  # of a point whose configuration is refused
FINISHED, SKIPPED, INTERRUPTED, FAILED = "finished", "skipped", "interrupted", "failed"
OWN_FOLDER = ("seed", "env", "algo")  # what a run's folder tells apart even under one name=
SCRATCH = "RLRUN_SWEEP"  # the environment variable that tells jobs, also in other processes, the folder


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    env: str
    algo: str
    variant: str
    seed: int
    status: str
    exit_code: int
    error: str = ""  # its first line


def points(arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the overrides of each job that a command line asks for.

    Raises UserError for a sweep without points, or with one point twice.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    jobs = [tuple(job) for batch in batches for job in batch]
    if not jobs:
        raise UserError("the sweep has no points: one of its ranges or lists is empty")
    twice = [job for job, count in Counter(jobs).items() if count > 1]
    if twice:
        raise UserError(f"the sweep has a point twice: {' '.join(twice[0])}; take out the repeated value")
    named = any(a.startswith("name=") for a in overrides)
    swept = [o.key_or_group for o in parsed if o.is_sweep_override()]
    shared = [key for key in swept if key not in OWN_FOLDER]
    if named and shared:
        raise UserError(
            f"name= gives one folder to all values of {shared[0]}: leave it out, and each gets a folder that names them"
        )
    return jobs


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give the jobs of a sweep a folder for their outcomes."""
    with tempfile.TemporaryDirectory(prefix=f"rlrun-sweep-{uuid.uuid4().hex[:8]}-") as folder:
        os.environ[SCRATCH] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[SCRATCH]


def note_outcome(place: Place, status: str, exit_code: int, error: str = "") -> None:
    """Write what became of a job, if it is one of a sweep."""
    folder = os.environ.get(SCRATCH)
    if folder is None:
        return
    outcome = Outcome(*place, status, exit_code, error.splitlines()[0] if error else "")
    (Path(folder) / f"{uuid.uuid4().hex}.json").write_text(json.dumps(asdict(outcome)))


def must_stop(on_error: str) -> bool:
    """Say whether an earlier failure in this sweep keeps its other jobs from being run."""
    folder = os.environ.get(SCRATCH)
    return on_error == "stop" and folder is not None and any(o.status == FAILED for o in outcomes(Path(folder)))


def outcomes(folder: Path) -> list[Outcome]:
    """Return what the jobs have written so far, in the order of their names."""
    found = [Outcome(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(found, key=lambda o: (o.env, o.algo, o.variant, o.seed))


def report(found: Sequence[Outcome], num_points: int) -> int:
    """Print the table of a sweep and return its exit code: 0 if every point is finished."""
    from rich.table import Table

    from rlrun.console import table_console

    console = table_console(stderr=True)
    table = Table("env", "algo", "variant", "seeds", "finished", "skipped", "interrupted", "failed", box=None)
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in found:
        groups.setdefault((outcome.env, outcome.algo, outcome.variant), []).append(outcome)
    for group, members in groups.items():
        count = Counter(o.status for o in members)
        done = count[FINISHED] + count[SKIPPED]
        cells = [str(count[s]) if count[s] else "" for s in (FINISHED, SKIPPED, INTERRUPTED, FAILED)]
        table.add_row(*group, f"{done} of {len(members)}", *cells)
    console.print(table)
    for outcome in found:
        if outcome.error:
            where = f"{outcome.env}/{outcome.algo}/{outcome.variant}/seed={outcome.seed}"
            console.print(f"failed: {where}: {outcome.error}", markup=False, highlight=False, soft_wrap=True)
    counts = Counter(o.status for o in found)
    missing = num_points - sum(counts[s] for s in (FINISHED, SKIPPED, INTERRUPTED, FAILED))
    done = counts[FINISHED] + counts[SKIPPED]
    rest = f", {missing} not run" if missing else ""
    console.print(
        f"{done} of {num_points} points finished{rest}; the same command runs what is missing", highlight=False
    )
    worst = max((o.exit_code for o in found), default=0)
    return worst or (1 if missing else 0)
