"""What the tables of scale.py and gpu.py share: their form, and how large they are measured."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarking.goals import Limit
from benchmarking.processes import Window
from benchmarking.report import number, table, verdict

Row = dict[str, Any]  # column: number, or text


@dataclass(frozen=True)
class Size:
    """How large: sizes for a real measurement, or those that only show that it runs."""

    quick: bool
    rounds: int
    window: Window


@dataclass
class ScaleTable:
    """A table that grows row by row; `column` of each row, in `unit`, is judged by `limit`."""

    title: str
    note: str
    column: str = ""
    unit: str = ""
    limit: Limit | None = None
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        print(", ".join(f"{column}: {_cell(value)}" for column, value in row.items()), file=sys.stderr, flush=True)
        self.rows.append({**row, **self._judged(row)})

    def as_json(self) -> dict[str, Any]:
        return {"title": self.title, "note": self.note, "rows": self.rows}

    def markdown(self) -> str:
        columns = list(self.rows[0])
        cells = [[_cell(row[column]) for column in columns] for row in self.rows]
        return f"### {self.title}\n\n{self.note}\n\n{table(columns, cells)}"

    def _judged(self, row: Row) -> Row:
        if self.limit is None:
            return {}
        measured = row[self.column]
        if measured is None:  # the others are held against this row
            return {"goal": None, "met": None}
        judged = self.limit.verdict(measured, self.unit)
        return {"goal": judged["goal"], "met": judged["met"]}


Maker = Callable[[Size], ScaleTable]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return verdict(value)
    return number(value) if isinstance(value, int | float) else str(value)
