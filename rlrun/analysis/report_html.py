"""report.html: one file that needs no network. Names come from run folders, so all of them are escaped."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rlrun.analysis import provenance
from rlrun.analysis.metric import about
from rlrun.analysis.model import Comparison, Estimate, Pair, Row
from rlrun.analysis.numbers import probability, shown
from rlrun.analysis.palette import DARK, LIGHT
from rlrun.analysis.report_data import chart_data
from rlrun.analysis.report_runs import run_rows
from rlrun.analysis.tables import HEADER, Section, cells, sections, used_columns, value_name
from rlrun.files import human_seconds

FOLDER = Path(__file__).parent
BAR_WIDTH, BAR_HEIGHT, BAR_MARGIN = 80, 16, 4  # pixels
MOST_PAIRS = 30  # in the page; report.json has all
IQM, DRAWN = "iqm", "IQM, drawn"


def page(comparison: Comparison, out: Path) -> str:
    """Return the page; its links are relative to the folder `out`."""
    parts = {
        "style": _style(),
        "script": (FOLDER / "report.js").read_text(),
        "metric": escape(f"metric={comparison.metric}: {about(comparison.metric)}"),
        "verdicts": _verdicts(comparison),
        "chips": _chips(comparison),
        "notices": "".join(f"<li>{escape(text)}</li>" for text in comparison.notices),
        "tables": "".join(_table(section, comparison.labels) for section in _overall_first(comparison)),
        "curves": escape(_about_curves(comparison)),
        "runs": "".join(run_rows(comparison, out)),
        "origin": escape(_origin(comparison)),
        "data": chart_data(comparison),
    }
    return _filled((FOLDER / "report.html").read_text(), parts)


def _filled(template: str, parts: dict[str, str]) -> str:
    """Return the template with its places filled.

    In one pass, so that what a run folder says is never taken for a place to fill.
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _style() -> str:
    parts = {
        name: " ".join(f"--c{i}: {color};" for i, color in enumerate(colors))
        for name, colors in (("light", LIGHT), ("dark", DARK))
    }
    return _filled((FOLDER / "report.css").read_text(), parts)


def _overall_first(comparison: Comparison) -> list[Section]:
    found = sections(comparison)
    return [*found[len(comparison.environments) :], *found[: len(comparison.environments)]]


def _verdicts(comparison: Comparison) -> str:
    """Return the verdict on all environments, and those on each behind a fold."""
    lines = [f"<b>{escape(name)}</b>: {escape(verdict)}" for name, verdict in comparison.verdicts.items()]
    first = f"<p>{lines[0]}</p>" if lines else ""
    more = "".join(f"<p>{line}</p>" for line in lines[1:])
    return first + (f"<details><summary>each environment</summary>{more}</details>" if more else "")


def _chips(comparison: Comparison) -> str:
    groups = [group for env in comparison.environments for group in env.groups]
    runs = [run for group in groups for run in group.runs]
    failed = sum(run.status == "failed" for run in runs)
    chips = [
        ("runs finished", f"{sum(run.finished for run in runs)} of {len(runs)}"),
        *([("runs failed", str(failed))] if failed else []),
        ("environments", str(len(comparison.environments))),
        ("groups", str(len(comparison.labels))),
    ]
    if rows := comparison.overall.rows:
        best = max(rows, key=lambda row: row.estimates[IQM].value)
        chips.append(("highest IQM, normalised", f"{best.label}: {shown(best.estimates[IQM])}"))
    if comparison.overall.pairs:
        chips.append(("probability of improvement", probability(comparison.overall.pairs[0])))
    if seconds := sum(run.wall_seconds or 0 for run in runs):
        chips.append(("training time", human_seconds(seconds)))
    warning = [("protocols", "mixed")] if comparison.mixed else []
    return "".join([*(_chip(*chip) for chip in chips), *(_chip(*chip, kind="chip warn") for chip in warning)])


def _chip(name: str, value: str, kind: str = "chip") -> str:
    return f"<div class='{kind}'><b>{escape(value)}</b><span>{escape(name)}</span></div>"


def _table(section: Section, labels: Sequence[str]) -> str:
    used = used_columns(section.rows)
    head = "".join(
        [f"<th>{escape(HEADER[0])}</th><th>{DRAWN}</th>", *(f"<th>{escape(HEADER[i])}</th>" for i in used[1:])]
    )
    body = "".join(
        f"<tr>{_cell(HEADER[0], row.label)}<td data-label='{DRAWN}'>{bar}</td>"
        + "".join(_cell(HEADER[i], cells(row)[i]) for i in used[1:])
        + "</tr>"
        for row, bar in zip(section.rows, _bars(section.rows, labels), strict=True)
    )
    protocol = f"<br>Protocol: {escape(section.protocol)}" if section.protocol else ""
    return (
        f"<h3>{escape(section.title)}</h3><p class=quiet>{escape(section.text)}{protocol}</p><div class=wide>"
        f"<table class=numbers><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{_pairs(section.pairs)}"
    )


def _cell(name: str, text: str) -> str:
    return f"<td data-label='{escape(name)}'>{escape(text)}</td>"


def _bars(rows: Sequence[Row], labels: Sequence[str]) -> list[str]:
    """Return the IQM of each row with its interval as a small picture; all rows share the scale."""
    estimates = [row.estimates.get(IQM) for row in rows]
    ends = [end for e in estimates if e is not None for end in (e.value, e.low, e.high) if end == end]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    scale = (BAR_WIDTH - 2 * BAR_MARGIN) / ((high - low) or 1.0)
    return [
        "" if e is None else _bar(e, low, scale, labels.index(row.label) % len(LIGHT))
        for row, e in zip(rows, estimates, strict=True)
    ]


def _bar(estimate: Estimate, low: float, scale: float, color: int) -> str:
    value = BAR_MARGIN + (estimate.value - low) * scale
    middle = BAR_HEIGHT / 2
    interval = ""
    if estimate.low == estimate.low:  # it is NaN where there is none
        begin, end = (BAR_MARGIN + (bound - low) * scale for bound in (estimate.low, estimate.high))
        interval = (
            f"<rect class=interval x={begin:.1f} y=3 width={max(end - begin, 1):.1f} height={BAR_HEIGHT - 6} "
            f"style='fill:var(--c{color})'/>"
        )
    return (
        f"<svg class=bar width={BAR_WIDTH} height={BAR_HEIGHT} aria-hidden=true>"
        f"<line class=axis x1=0 x2={BAR_WIDTH} y1={middle:g} y2={middle:g} />{interval}"
        f"<rect class=value x={value - 1:.1f} y=1 width=2 height={BAR_HEIGHT - 2} /></svg>"
    )


def _pairs(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return ""
    items = "".join(f"<li>{escape(probability(pair))}</li>" for pair in pairs[:MOST_PAIRS])
    more = f"<li>{len(pairs) - MOST_PAIRS} more pairs in report.json</li>" if len(pairs) > MOST_PAIRS else ""
    return f"<details><summary>probability of improvement</summary><ul>{items}{more}</ul></details>"


def _about_curves(comparison: Comparison) -> str:
    if not any(env.over_steps for env in comparison.environments):
        return "These runs have no evaluations during training."
    return (
        f"Mean over the finished runs of the {value_name(comparison.metric)} during training, with 95% bands; over "
        "several environments the IQM of normalised scores. Point at a curve for its numbers. Dotted: the threshold."
    )


def _origin(comparison: Comparison) -> str:
    runs = [run.made for env in comparison.environments for group in env.groups for run in group.runs]
    facts = provenance.about(runs)
    return (
        f"Runs ended {facts['ended']}. Machine: {facts['machine']}. Versions: {facts['versions']}. "
        f"rlrun: {facts['rlrun']}."
    )
