"""A comparison as tables: what stands in them, and how they look in a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlrun.analysis.metric import about, is_tag
from rlrun.analysis.model import Comparison, Environment, Pair, Row
from rlrun.analysis.numbers import finished, probability, shown, steps, times
from rlrun.analysis.runs import Run
from rlrun.files import human_seconds

ESTIMATES = {"mean": "mean", "median": "median", "iqm": "IQM", "optimality_gap": "optimality gap"}
HEADER = ["group", "finished", "steps", *ESTIMATES.values(), "steps to threshold", "wall clock"]
POLICY = "policy"  # the key of a protocol that says which policy acted, and how
MOST_PAIRS = 15  # in the terminal; the files have all
MOST_VERDICTS = 8


@dataclass(frozen=True)
class Section:
    """What is said of one environment, or overall."""

    title: str
    text: str
    rows: list[Row]
    pairs: list[Pair]
    protocol: str = ""  # of an environment


def sections(comparison: Comparison) -> list[Section]:
    """Return the section of each environment, then that of all together."""
    parts = [
        Section(_title(e.name, e.mixed), about_environment(e), e.rows, e.pairs, stamp(e, comparison.metric))
        for e in comparison.environments
    ]
    together = comparison.overall
    if together.rows:
        tasks = f"{len(together.tasks)} environment{'s' if len(together.tasks) > 1 else ''}"
        text = f"normalised scores over {tasks}: {', '.join(together.tasks)}"
        parts.append(Section(_title("overall", together.mixed), text, together.rows, together.pairs))
    return parts


def about_environment(env: Environment) -> str:
    """Return what the numbers of an environment are, where its threshold lies, and its scale."""
    goal = "" if env.threshold is None else f"threshold {env.threshold:g}; "
    frames = env.groups[0].runs[0].protocol.get("frame_skip")
    skipped = f"a step is {frames} frames; " if frames else ""
    return f"{goal}{skipped}the optimality gap is {env.scale}"


def stamp(env: Environment, metric: str) -> str:
    """Return the protocol that the numbers of an environment were made under; what differs is left to the notices."""
    runs = [run for group in env.groups for run in group.runs]
    alike = {
        key: value
        for key, value in runs[0].protocol.items()
        if key != POLICY and value not in (None, {}) and f"protocol.{key}" not in env.mixed
    }
    parts = [f"{key}={value}" for key, value in alike.items()]
    acts = sorted({str(run.protocol[POLICY]).rpartition(", ")[2] for run in runs if POLICY in run.protocol})
    episodes = sorted({number for run in runs if (number := _episodes(run, metric))})
    parts += [f"actions {' or '.join(acts)}"] if acts else []
    parts += [f"{' or '.join(map(str, episodes))} episodes a run"] if episodes else []
    return ", ".join(parts) or "not recorded"


def _episodes(run: Run, metric: str) -> int | None:
    """Return how many episodes a run's score is the mean of; None where it is a mean of other means."""
    if metric == "best":
        return run.best.episodes if run.best else None
    return run.result["episodes"] if metric == "final" and run.result else None


def cells(row: Row) -> list[str]:
    """Return what a person reads of a row, in the order of HEADER."""
    return [
        row.label,
        finished(row),
        steps(row),
        *(shown(row.estimates.get(key)) for key in ESTIMATES),
        times(row),
        "-" if row.wall_seconds is None else human_seconds(row.wall_seconds),
    ]


def used_columns(rows: Sequence[Row]) -> list[int]:
    """Return the columns that say something: overall there are no steps to a threshold."""
    table = [cells(row) for row in rows]
    return [i for i in range(len(HEADER)) if i < 2 or any(line[i] != "-" for line in table)]


def print_tables(comparison: Comparison, console: Console) -> None:
    """Print what the comparison says: the verdicts first, the notices last, where they are seen."""
    console.print(f"metric={comparison.metric}: {about(comparison.metric)}", highlight=False)
    for name, verdict in list(comparison.verdicts.items())[:MOST_VERDICTS]:
        console.print(f"[bold]{escape(name)}[/]: {escape(verdict)}", highlight=False, soft_wrap=True)
    for section in sections(comparison):
        _print_section(section, console)
    console.print()
    for notice in comparison.notices:
        console.print(f"[yellow]note:[/] {escape(notice)}", highlight=False, soft_wrap=True)


def _print_section(section: Section, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    used = used_columns(section.rows)
    for i in used:
        table.add_column(HEADER[i], justify="left" if i == 0 else "right")
    for row in section.rows:
        table.add_row(*(escape(cells(row)[i]) for i in used))
    console.print(f"\n[bold]{escape(section.title)}[/]: {escape(section.text)}", highlight=False)
    console.print(table)
    for pair in section.pairs[:MOST_PAIRS]:
        console.print(f"  {escape(probability(pair))}", highlight=False)
    if len(section.pairs) > MOST_PAIRS:
        console.print(f"  and {len(section.pairs) - MOST_PAIRS} more pairs in report.md")


def _title(name: str, mixed: Sequence[str]) -> str:
    return f"{name} (mixed protocols)" if mixed else name


def value_name(metric: str) -> str:
    """Return what the height of a curve is."""
    return metric if is_tag(metric) else "return in evaluation"
