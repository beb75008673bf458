"""A comparison in Markdown: a report with all tables, and one table for the results file of a project."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlrun.analysis import provenance
from rlrun.analysis.metric import about
from rlrun.analysis.model import Comparison
from rlrun.analysis.numbers import probability
from rlrun.analysis.tables import HEADER, cells, sections, used_columns
from rlrun.errors import UserError
from rlrun.files import write_atomically

BRACKETS = "Brackets hold 95% stratified-bootstrap intervals over seeds."
MOST_COMMANDS = 12


def report(comparison: Comparison, figures: Iterable[str] = ()) -> str:
    """Return report.md: the verdicts, a table to paste for each environment, and the figures."""
    lines = [f"metric={comparison.metric}: {about(comparison.metric)}. {BRACKETS}"]
    lines += ["", *_verdicts(comparison)]
    for section in sections(comparison):
        used = used_columns(section.rows)
        protocol = f" Protocol: {text(section.protocol)}." if section.protocol else ""
        lines += ["", f"### {text(section.title)}", "", f"{text(section.text)}.{protocol}", ""]
        lines += _table([HEADER[i] for i in used], [[cells(row)[i] for i in used] for row in section.rows])
        lines += [""] if section.pairs else []
        lines += [f"- {text(probability(pair))}" for pair in section.pairs]
    if comparison.notices:
        lines += ["", "### Notes", "", *(f"- {text(notice)}" for notice in comparison.notices)]
    for name in figures:
        lines += ["", f"![{name.replace('_', ' ')}]({name}.png)"]
    return "\n".join(lines) + "\n"


def results(comparison: Comparison, command: str, figure: str | None = None) -> str:
    """Return one table of all environments, with where its numbers come from. The same runs give the same text."""
    parts = sections(comparison)
    if len(comparison.environments) == 1:
        parts = parts[:1]  # overall would be the same again, normalised
    rows = [(section.title, row) for section in parts for row in section.rows]
    used = used_columns([row for _, row in rows])
    table = _table(
        ["environment", *(HEADER[i] for i in used)], [[title, *(cells(row)[i] for i in used)] for title, row in rows]
    )
    scales = [f"{env.name}: {env.scale}" for env in comparison.environments]
    lines = [*table, "", f"metric={comparison.metric}: {about(comparison.metric)}. {BRACKETS}"]
    lines += [text(f"Optimality gaps and overall numbers are normalised; {'; '.join(scales)}.")]
    lines += ["Protocol: " + text("; ".join(f"{s.title}: {s.protocol}" for s in parts if s.protocol)) + "."]
    lines += ["", *_verdicts(comparison)] if comparison.verdicts else []
    lines += ["", *(f"- Note: {text(notice)}" for notice in comparison.notices)] if comparison.notices else []
    lines += ["", f"![Learning curves]({figure})"] if figure else []
    return "\n".join([*lines, "", *_origin(comparison, command)]) + "\n"


def fill(path: Path, section: str, block: str) -> None:
    """Put a block between the markers of a section of a Markdown file; all other text stays.

    Raises UserError, and changes nothing, if the file or its markers are not there.
    """
    before, after = around(path, section)
    newline = "\r\n" if "\r\n" in before + after else "\n"
    begin, end = _markers(section)
    filled = f"{begin}\n\n{block}\n{end}".replace("\n", newline)
    write_atomically(path, f"{before}{filled}{after}".encode())


def around(path: Path, section: str) -> tuple[str, str]:
    """Return the text before and after a section of a Markdown file. Raises UserError where it has none."""
    begin, end = _markers(section)
    remedy = f"put these two lines where the table shall stand:\n{begin}\n{end}"
    if not path.is_file():
        raise UserError(f"into={path} is no file: make it, and {remedy}")
    content = path.read_bytes().decode()  # as it is: reading as text would change the ends of its lines
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        known = re.findall(r"<!-- rlrun compare: (.*?) -->", content)
        there = f" Its sections: {', '.join(known)}." if known else ""
        raise UserError(
            f"into={path} does not have the markers of section={section} once each, in order.{there} "
            f"Choose another section=, or {remedy}"
        )
    return content.split(begin)[0], content.split(end)[1]


def _markers(section: str) -> tuple[str, str]:
    return f"<!-- rlrun compare: {section} -->", f"<!-- end of {section} -->"


def link(path: Path, beside: Path) -> str:
    """Return the link from a Markdown file to another file."""
    return os.path.relpath(path, beside.parent).replace(" ", "%20")


def text(words: str) -> str:
    """Return words that Markdown shows as they are: names come from folders that others may have made."""
    for sign in "\\`*_|":
        words = words.replace(sign, f"\\{sign}")
    return words.replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")


def _verdicts(comparison: Comparison) -> list[str]:
    return [f"- **{text(name)}**: {text(verdict)}" for name, verdict in comparison.verdicts.items()]


def _origin(comparison: Comparison, command: str) -> list[str]:
    """Return what made the numbers: commands, date, machine, versions, commit."""
    runs = [run.made for env in comparison.environments for group in env.groups for run in group.runs]
    facts = provenance.about(runs)
    trained = provenance.commands(runs)
    more = f", and {len(trained) - MOST_COMMANDS} more" if len(trained) > MOST_COMMANDS else ""
    return [
        f"Made by `{_code(command)}` from {len(runs)} run{'s' if len(runs) > 1 else ''} that ended {facts['ended']}.",
        text(f"Machine: {facts['machine']}. Versions: {facts['versions']}. rlrun: {facts['rlrun']}."),
        *([f"Trained by {', '.join(f'`{_code(c)}`' for c in trained[:MOST_COMMANDS])}{more}."] if trained else []),
    ]


def _code(command: str) -> str:
    return command.replace("`", "'").replace("\n", " ").replace("-->", "-- >")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    # What is not a number stands on the left.
    numbers = ["---" if name in ("environment", "group") else "---:" for name in header]
    return [_line(header), _line(numbers), *(_line([text(cell) for cell in row]) for row in rows)]


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"
