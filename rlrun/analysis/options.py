"""What was asked of `rlrun compare`: the arguments after the verb."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrun.analysis.metric import METRICS
from rlrun.analysis.summary import EVERYWHERE
from rlrun.arguments import key_values, split_paths, with_defaults
from rlrun.errors import UserError, nearest

KNOWN: dict[str, Any] = {
    "by": "algo",
    "metric": "final",
    "threshold": None,
    "out": "report",
    "mix": False,
    "into": None,
    "section": "results",
}
THRESHOLD = "threshold."  # threshold.<environment>=
DEFAULT_PATH = Path("outputs")


@dataclass(frozen=True)
class Options:
    """The parsed arguments."""

    paths: list[Path]
    by: str
    metric: str
    thresholds: dict[str, float]  # {environment: value}, EVERYWHERE for all
    out: Path
    mix: bool
    into: Path | None
    section: str


def parse(arguments: Sequence[str]) -> Options:
    """Return the options. Raises UserError for a key or a value that has no meaning."""
    keys = [argument.partition("=")[0] for argument in arguments]
    paths, rest = split_paths(list(arguments), {*KNOWN, *(key for key in keys if key.startswith(THRESHOLD))})
    given = key_values(rest)
    thresholds = {key.removeprefix(THRESHOLD): given.pop(key) for key in list(given) if key.startswith(THRESHOLD)}
    values = with_defaults(given, KNOWN, "compare")
    if values["threshold"] is not None:
        thresholds[EVERYWHERE] = values["threshold"]
    for env, value in thresholds.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            key = f"{THRESHOLD}{env}" if env else "threshold"
            raise UserError(f"{key}={value} is no return to reach: expected a number, such as {key}=475")
    for key in ("by", "out", "metric", "section"):
        _check_text(key, values[key])
    if values["into"] is None and "section" in given:
        raise UserError(f"section={values['section']} is a part of a Markdown file: name that with into=FILE.md")
    return Options(
        paths=_paths(paths),
        by=values["by"],
        metric=_metric(values["metric"]),
        thresholds={env: float(value) for env, value in thresholds.items()},
        out=Path(values["out"]),
        mix=values["mix"],
        into=None if values["into"] is None else Path(str(values["into"])),
        section=values["section"],
    )


def _paths(paths: list[Path]) -> list[Path]:
    if paths or DEFAULT_PATH.is_dir():
        return paths or [DEFAULT_PATH]
    raise UserError("rlrun compare needs PATHS: folders of runs, such as outputs, or run folders")


def _metric(name: str) -> str:
    """Return the metric if it is one, or may be the tag of a logged number, which has a slash."""
    if name in METRICS or "/" in name:
        return name
    raise UserError(
        f"metric={name} does not exist.{nearest(name, METRICS)} Known: {', '.join(METRICS)}, and any tag in "
        "metrics.jsonl, such as rollout/ep_rew_mean"
    )


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip() or "-->" in value:
        raise UserError(f"{key}={value} has no meaning; expected for example {key}={KNOWN[key]}")
