"""`rlrun compare`: which is better, and how sure one may be. Reads run folders; imports no torch."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from rlrun.analysis.groups import METRICS, group_notices, grouped
from rlrun.analysis.protocol import check_same
from rlrun.analysis.runs import read_runs
from rlrun.analysis.summary import Comparison, summarize
from rlrun.analysis.tables import as_csv, as_json, markdown, print_tables
from rlrun.arguments import key_values, with_defaults
from rlrun.errors import UserError, nearest
from rlrun.files import write_atomically, write_json

KNOWN: dict[str, Any] = {"by": "algo", "metric": "final", "out": "report", "mix": False}
DEFAULT_PATH = Path("outputs")


def compare(arguments: list[str]) -> int:
    """rlrun compare [PATHS ...] [by=algo] [metric=final|best|auc] [out=report] [mix=false]"""
    paths, options = _parsed(arguments)
    runs, notices = read_runs(paths)
    notices += check_same(runs, options["metric"], options["mix"])
    groups = grouped(runs, options["by"], options["metric"])
    notices += group_notices(groups, options["by"], options["metric"])
    comparison = summarize(groups, options["by"], options["metric"], notices)
    console = Console()
    # Where the output goes to a file or another program, lines are not broken.
    print_tables(comparison, console if console.is_terminal else Console(width=400))
    write_report(comparison, Path(options["out"]))
    return 0


def write_report(comparison: Comparison, out: Path) -> None:
    """Write report.json, report.csv, report.md, report.html and the figures into a folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures = _figures(comparison, out)
        write_json(out / "report.json", as_json(comparison, out))
        write_atomically(out / "report.csv", as_csv(comparison).encode())
        write_atomically(out / "report.md", markdown(comparison, figures).encode())
        from rlrun.analysis.report_html import page

        write_atomically(out / "report.html", page(comparison, out).encode())
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error}); choose another folder with out=...") from error
    print(f"report.html, .md, .csv and .json{', figures' if figures else ''} in {out}/")


def _figures(comparison: Comparison, out: Path) -> list[str]:
    """Draw the figures and return their names; say what to install where that is not possible."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("note: no figures, the extra plot is not installed: pip install 'rlrun[plot]'", file=sys.stderr)
        return []
    from rlrun.analysis.figures import draw_all

    return draw_all(comparison, out)


def _parsed(arguments: list[str]) -> tuple[list[Path], dict[str, Any]]:
    """Split paths from key=value. Run folders hold `=` themselves: what exists, or has a slash, is a path."""
    paths: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        is_option = equals and (key in KNOWN or not (Path(argument).exists() or "/" in key))
        (rest if is_option else paths).append(argument)
    options = with_defaults(key_values(rest), KNOWN, "compare")
    if options["metric"] not in METRICS:
        raise UserError(
            f"metric={options['metric']} does not exist.{nearest(str(options['metric']), METRICS)} "
            f"Known: {', '.join(METRICS)}"
        )
    for key in ("by", "out"):
        if not isinstance(options[key], str) or not options[key].strip():
            raise UserError(f"{key}={options[key]} has no meaning; expected for example {key}={KNOWN[key]}")
    if paths or DEFAULT_PATH.is_dir():
        return [Path(path) for path in paths] or [DEFAULT_PATH], options
    raise UserError("rlrun compare needs PATHS: folders of runs, such as outputs, or run folders")
