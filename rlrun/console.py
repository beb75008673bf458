"""What a person sees while a run goes on: one live line in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from rlrun.files import human_seconds
from rlrun.record import now

PLAIN_EVERY = 10.0  # seconds between plain lines


def table_console(*, stderr: bool = False) -> RichConsole:
    """Return a console that breaks no line where its output goes to a file or another program."""
    console = RichConsole(stderr=stderr)
    return console if console.is_terminal else RichConsole(stderr=stderr, width=400)


class Console:
    """Progress of one run. `enabled=False` keeps only notices, which `log_file` gets as well."""

    def __init__(self, name: str, total_steps: int, *, enabled: bool, log_file: Path | None = None) -> None:
        self.name, self.total_steps, self.enabled, self.log_file = name, total_steps, enabled, log_file
        self._rich = RichConsole(file=sys.stderr)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0

    def notice(self, text: str) -> None:
        """Print a line that stays, and keep it in the run's log."""
        if self.log_file is not None:
            # The log is a copy: a full disk must not keep the message from being printed.
            with suppress(OSError), open(self.log_file, "a") as file:
                file.write(f"{now()} {text}\n")
        printer = self._live.console if self._live is not None else self._rich
        printer.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, step: int, row: Mapping[str, Any], steps_per_second: float) -> None:
        """Show where the run stands. `row` is the latest row of metrics."""
        if not self.enabled:
            return
        left = (self.total_steps - step) / steps_per_second if steps_per_second > 0 else 0.0
        score = row.get("rollout/ep_rew_mean")
        shown: dict[str, Any] = {
            "steps": f"{step:,}/{self.total_steps:,}",
            "speed": f"{steps_per_second:,.0f} steps/s",
            "eta": f"{human_seconds(max(left, 0))} left",
            "score": "return -" if score is None else f"return {score:.2f}",
        }
        if self._rich.is_terminal:
            self._show_live(step, shown)
        elif time.monotonic() - self._last_line >= PLAIN_EVERY or step >= self.total_steps:
            self._last_line = time.monotonic()
            percent = min(100.0, 100 * step / self.total_steps)  # an iteration is finished, beyond total_steps
            self.notice(f"{self.name}  {percent:5.1f}%  " + "  ".join(shown.values()))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = None

    def _show_live(self, step: int, shown: dict[str, Any]) -> None:
        if self._live is None:
            columns = [TextColumn("{task.fields[%s]}" % name) for name in shown]  # noqa: UP031
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:>3.0f}%"),
                *columns,
                console=self._rich,
                refresh_per_second=4,
            )
            self._task = self._live.add_task(self.name, total=self.total_steps, **shown)
            self._live.start()
        assert self._task is not None
        self._live.update(self._task, completed=step, **shown)
