"""What is written of measurements: when, on what and by which command, as JSON and as Markdown."""

import argparse
import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlrun import record
from rlrun.device import processor
from rlrun.files import write_atomically, write_json

BESIDE = ("stable-baselines3", "opencv-python-headless", "ale-py", "mujoco")  # besides those that a run records


def facts() -> dict[str, Any]:
    """Return command, date, versions, code and machine. No host name: results get published."""
    code = record.code()
    machine = {key: value for key, value in record.machine().items() if key != "host"}
    return {
        "command": shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": record.now(),
        "machine": {"processor": processor(), **machine},
        "versions": {"python": platform.python_version(), **record.packages(), **record.installed(BESIDE)},
        "load_at_start": round(os.getloadavg()[0], 2),
        "code": {"sha256": code["sha256"], "commit": code.get("commit"), "changed": bool(code.get("dirty_diff"))},
    }


def provenance(facts: dict[str, Any]) -> str:
    """Return the lines that stand above the tables."""
    machine, code = facts["machine"], facts["code"]
    commit = (code["commit"] or code["sha256"])[:12] + (" with changes" if code["changed"] else "")
    device = f"device: {facts['device']}" if "device" in facts else "no window sees a GPU"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"`{facts['command']}`, {facts['date'][:10]}, rlrun at {commit}.\n"
        f"Machine: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB of memory; {device}. "
        f"Load before the start: {facts['load_at_start']:.1f}.\n"
        f"Versions: {versions}."
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Return a measurement as people read it: 12,345, 503, 42.1, 0.0312."""
    if not math.isfinite(value):
        return "never"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(summary: dict[str, float]) -> str:
    """Return the median and, if there were several, the range."""
    low, high = summary["min"], summary["max"]
    return number(summary["median"]) + (f" ({number(low)} to {number(high)})" if low != high else "")


def verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def write(out: Path, report: dict[str, Any], markdown: str) -> None:
    """Write a report as JSON and, beside it, as Markdown. What is infinite or no number is null in JSON."""
    write_json(out, _finite(report))
    write_atomically(out.with_suffix(".md"), (markdown + "\n").encode())


def out_path(text: str) -> Path:
    """Return where to write. Refuses what cannot be written now and not after an hour of measuring."""
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} must be the path of a file that ends with .json")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: the folder {path.parent} does not exist; make it first")
    return path


def positive(kind: type[int] | type[float]) -> Any:
    """Return the function that reads a number above 0."""

    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} must be above 0")
        return value

    read.__name__ = kind.__name__  # which argparse names, where the text is no number at all
    return read


def some_of(names: Sequence[str]) -> Any:
    """Return the function that reads a list of some of these names."""

    def read(text: str) -> list[str]:
        chosen = list(dict.fromkeys(text.split(",")))
        for name in chosen:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(names)}")
        return chosen

    return read


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
