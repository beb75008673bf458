"""`rlrun compare`: which is better, and how sure one may be. Reads run folders; imports no torch."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlrun.analysis.export import as_csv, as_json
from rlrun.analysis.groups import grouped
from rlrun.analysis.markdown import around, fill, link, report, results
from rlrun.analysis.metric import is_tag
from rlrun.analysis.model import Comparison
from rlrun.analysis.notices import group_notices
from rlrun.analysis.options import parse
from rlrun.analysis.protocol import check_same
from rlrun.analysis.rows import tags
from rlrun.analysis.runs import Run, read_runs
from rlrun.analysis.summary import summarize
from rlrun.analysis.tables import print_tables
from rlrun.console import table_console
from rlrun.errors import UserError, nearest
from rlrun.files import write_atomically, write_json

CURVES = "sample_efficiency"
MOST_TAGGED = 50  # runs that are asked for their tags


def compare(arguments: list[str]) -> int:
    """rlrun compare [PATHS ...]: which is better, and how sure one may be.

    by=algo             what tells groups apart: algo, variant, outputs, algo,variant, or any key of the
                        configuration, such as algo.learning_rate or network
    metric=final        last policy; best: best policy, after `rlrun eval RUN checkpoint=best`; auc: during
                        training; or a logged tag, such as rollout/ep_rew_mean
    threshold=475       return whose first reaching is timed; threshold.cartpole=475 for one environment
    mix=true            compare runs of different protocols or budgets all the same
    out=report          folder of report.html, .md, .csv, .json and the figures
    into=FILE.md        fill one table into a Markdown file as well, between the markers of
    section=results     <!-- rlrun compare: results --> and <!-- end of results -->
    """
    options = parse(arguments)
    if options.into is not None:
        around(options.into, options.section)  # raises before anything is written
    comparison = comparison_of(
        options.paths, by=options.by, metric=options.metric, thresholds=options.thresholds, mix=options.mix
    )
    figures = write_report(comparison, options.out)
    print_tables(comparison, table_console())
    print(f"report.html, .md, .csv and .json{', figures' if figures else ''} in {options.out}/")
    if options.into is not None:
        command = shlex.join(["rlrun", "compare", *arguments])
        fill(options.into, options.section, results(comparison, command, _figure(options.out, options.into, figures)))
        print(f"section {options.section} of {options.into} filled")
    return 0


def _figure(out: Path, into: Path, figures: Sequence[str]) -> str | None:
    """Return the link from a Markdown file to the learning curves, if they lie beside or below it."""
    if CURVES not in figures or not out.resolve().is_relative_to(into.resolve().parent):
        return None
    return link(out / f"{CURVES}.png", into)


def comparison_of(
    paths: Sequence[Path],
    *,
    by: str = "algo",
    metric: str = "final",
    thresholds: Mapping[str, float] | None = None,
    mix: bool = False,
) -> Comparison:
    """Return the comparison of the runs at or below the paths. Raises UserError where they do not compare."""
    runs, unreadable = read_runs(paths, tag=metric if is_tag(metric) else None, best=metric == "best")
    if is_tag(metric):
        _check_tag(metric, runs)
    checked = check_same(runs, metric, mix)
    groups = grouped(runs, by, metric)
    found = summarize(groups, by, metric, checked, thresholds, mix)
    return replace(found, notices=[*unreadable, *group_notices(groups, by, metric), *found.notices])


def write_report(comparison: Comparison, out: Path) -> list[str]:
    """Write report.html, .md, .csv and .json and the figures into a folder; return the figures' names."""
    from rlrun.analysis.report_html import page

    try:
        out.mkdir(parents=True, exist_ok=True)
        figures = _figures(comparison, out)
        write_json(out / "report.json", as_json(comparison, out))
        write_atomically(out / "report.csv", as_csv(comparison).encode())
        write_atomically(out / "report.md", report(comparison, figures).encode())
        write_atomically(out / "report.html", page(comparison, out).encode())
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error}); choose another folder with out=...") from error
    return figures


def _figures(comparison: Comparison, out: Path) -> list[str]:
    """Draw the figures and return their names; say what to install where that is not possible."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("note: no figures, the extra plot is not installed: pip install 'rlrun[plot]'", file=sys.stderr)
        return []
    from rlrun.analysis.figures import draw_all

    return draw_all(comparison, out)


def _check_tag(tag: str, runs: Sequence[Run]) -> None:
    """Raise UserError if no run has logged a tag."""
    if any(len(run.curve) for run in runs):
        return
    known = sorted(set().union(*(tags(run.path / "metrics.jsonl") for run in runs[:MOST_TAGGED])))
    raise UserError(f"metric={tag} was logged by none of these runs.{nearest(tag, known)} Logged: {', '.join(known)}")
