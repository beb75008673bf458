"""A comparison as tables: in the terminal, in Markdown, as CSV, as JSON."""

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlrun.analysis.groups import METRICS, score
from rlrun.analysis.runs import Run
from rlrun.analysis.summary import Comparison, Environment, Estimate, Pair, Row
from rlrun.files import human_seconds

ESTIMATES = {"mean": "mean", "median": "median", "iqm": "IQM", "optimality_gap": "optimality gap"}
HEADER = ["group", "finished", *ESTIMATES.values(), "steps to threshold", "wall clock"]
MOST_PAIRS = 15  # in the terminal; the files have all


def sections(comparison: Comparison) -> list[tuple[str, str, list[Row], list[Pair]]]:
    """Return (title, explanation, rows, pairs) of each environment, then of all together."""
    parts = [(e.name, about(e), e.rows, e.pairs) for e in comparison.environments]
    if comparison.overall:
        tasks = comparison.tasks
        text = f"normalised scores over {len(tasks)} environment{'s' if len(tasks) > 1 else ''}: {', '.join(tasks)}"
        parts.append(("overall", text, comparison.overall, comparison.pairs))
    return parts


def about(env: Environment) -> str:
    goal = "" if env.scale.threshold is None else f"; threshold {env.scale.threshold:g}"
    return f"returns{goal}; the optimality gap is {env.scale}"


def cells(row: Row) -> list[str]:
    """Return what a person reads of a row, in the order of HEADER."""
    steps = "-"
    if row.steps_to_threshold is not None:
        median = "not reached" if math.isinf(row.steps_to_threshold) else f"{row.steps_to_threshold:,.0f}"
        steps = f"{median} ({row.num_reached} of {row.num_finished})"
    return [
        row.label,
        f"{row.num_finished} of {row.num_runs}",
        *(shown(row.estimates.get(key)) for key in ESTIMATES),
        steps,
        "-" if row.wall_seconds is None else human_seconds(row.wall_seconds),
    ]


def shown(estimate: Estimate | None) -> str:
    """Return "473.1 [460.2, 490.0]"; without the interval where there is none."""
    if estimate is None:
        return "-"
    if math.isnan(estimate.low):
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def number(value: float) -> str:
    """Return three decimals of small numbers, one of large ones."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"


def probability(pair: Pair) -> str:
    return f"P({pair.better} > {pair.than}) = {shown(pair.probability)}"


def print_tables(comparison: Comparison, console: Console) -> None:
    """Print what the comparison says, the notices last, where they are seen."""
    console.print(f"metric={comparison.metric}: {METRICS[comparison.metric]}", highlight=False)
    for title, text, rows, pairs in sections(comparison):
        table = Table(box=None, pad_edge=False)
        used = used_columns(rows)
        for i in used:
            table.add_column(HEADER[i], justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*(escape(cells(row)[i]) for i in used))
        console.print(f"\n[bold]{escape(title)}[/]: {escape(text)}", highlight=False)
        console.print(table)
        for pair in pairs[:MOST_PAIRS]:
            console.print(f"  {escape(probability(pair))}", highlight=False)
        if len(pairs) > MOST_PAIRS:
            console.print(f"  and {len(pairs) - MOST_PAIRS} more pairs in report.md")
    console.print()
    for notice in comparison.notices:
        console.print(f"[yellow]note:[/] {escape(notice)}", highlight=False, soft_wrap=True)


def markdown(comparison: Comparison, figures: Iterable[str] = ()) -> str:
    """Return report.md: a table to paste for each environment, and the figures."""
    lines = [
        f"metric={comparison.metric}: {METRICS[comparison.metric]}. Brackets hold 95% stratified-bootstrap intervals."
    ]
    for title, text, rows, pairs in sections(comparison):
        used = used_columns(rows)
        lines += ["", f"### {_md(title)}", "", f"{_md(text)}.", ""]
        lines += [_md_line([HEADER[i] for i in used]), _md_line(["---"] + ["---:"] * (len(used) - 1))]
        lines += [_md_line([_md(cells(row)[i]) for i in used]) for row in rows]
        lines += [""] if pairs else []
        lines += [f"- {_md(probability(pair))}" for pair in pairs]
    if comparison.notices:
        lines += ["", "### Notes", "", *(f"- {_md(notice)}" for notice in comparison.notices)]
    for name in figures:
        lines += ["", f"![{name.replace('_', ' ')}]({name}.png)"]
    return "\n".join(lines) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return report.csv: one line for each group of each environment and one for each overall."""
    keys = [f"{key}{end}" for key in ESTIMATES for end in ("", "_low", "_high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fixed = ["environment", "group", "metric", "normalisation", "runs", "finished"]
    writer.writerow([*fixed, *keys, "steps_to_threshold", "reached_threshold", "wall_seconds"])
    rules = {env.name: env.scale.rule for env in comparison.environments}
    for title, _, rows, _ in sections(comparison):
        for row in rows:
            values = _flat(row)
            writer.writerow(
                [title, row.label, comparison.metric, rules.get(title, "per environment"), row.num_runs]
                + [row.num_finished, *(values.get(key, "") for key in keys)]
                + ["" if v is None else v for v in (_finite(row.steps_to_threshold), row.num_reached, row.wall_seconds)]
            )
    return out.getvalue()


def as_json(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Return report.json: all numbers, and the runs that they come from; paths are relative to `out`."""
    return {
        "metric": comparison.metric,
        "by": comparison.by,
        "notices": comparison.notices,
        "environments": {
            env.name: {
                "normalisation": {"rule": env.scale.rule, "zero": env.scale.zero, "one": env.scale.one},
                "threshold": env.scale.threshold,
                "groups": {row.label: _row_json(row) for row in env.rows},
                "probability_of_improvement": [_pair_json(pair) for pair in env.pairs],
            }
            for env in comparison.environments
        },
        "overall": {
            "environments": comparison.tasks,
            "groups": {row.label: _row_json(row) for row in comparison.overall},
            "probability_of_improvement": [_pair_json(pair) for pair in comparison.pairs],
            "performance_profile": {
                "tau": comparison.taus.tolist(),
                **{
                    label: {"fraction": p.fraction.tolist(), "low": p.low.tolist(), "high": p.high.tolist()}
                    for label, p in comparison.profiles.items()
                },
            },
        },
        "runs": [
            _run_json(run, group.label, comparison.metric, out)
            for env in comparison.environments
            for group in env.groups
            for run in group.runs
        ],
    }


def _run_json(run: Run, label: str, metric: str, out: Path) -> dict[str, Any]:
    return {
        "path": os.path.relpath(run.path, out),
        "environment": run.env,
        "group": label,
        "algo": run.algo,
        "variant": run.variant,
        "seed": run.seed,
        "tuned": run.tuned,
        "status": run.status,
        "steps": run.steps,
        "total_steps": run.total_steps,
        "score": score(run, metric),
        "wall_seconds": run.wall_seconds,
        "protocol": run.protocol,
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "runs": row.num_runs,
        "finished": row.num_finished,
        **{key: _estimate_json(estimate) for key, estimate in row.estimates.items()},
        "steps_to_threshold": _finite(row.steps_to_threshold),
        "reached_threshold": row.num_reached,
        "wall_seconds": row.wall_seconds,
    }


def _pair_json(pair: Pair) -> dict[str, Any]:
    return {"x": pair.better, "y": pair.than, **_estimate_json(pair.probability)}


def _estimate_json(estimate: Estimate) -> dict[str, float | None]:
    return {"value": _finite(estimate.value), "low": _finite(estimate.low), "high": _finite(estimate.high)}


def _finite(value: float | None) -> float | None:
    """Return None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None


def _flat(row: Row) -> dict[str, float | str]:
    flat: dict[str, float | str] = {}
    for key, estimate in row.estimates.items():
        for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
            flat[f"{key}{end}"] = "" if math.isnan(value) else value
    return flat


def used_columns(rows: Sequence[Row]) -> list[int]:
    """Return the columns that say something: overall there are no steps to a threshold."""
    table = [cells(row) for row in rows]
    return [i for i in range(len(HEADER)) if i < 2 or any(line[i] != "-" for line in table)]


def _md(text: str) -> str:
    """Return text that Markdown shows as it is: names come from folders that others may have made."""
    for sign in "\\`*_|":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")


def _md_line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"
