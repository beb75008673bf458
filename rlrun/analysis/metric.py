"""The number that each run is judged by."""

import numpy as np

from rlrun.analysis.runs import Run

METRICS = {
    "final": "mean return of the last policy on episodes that nothing was chosen by",
    "best": "mean return of each run's best policy on episodes other than those that chose it",
    "auc": "mean return over training: the area under the curve of evaluations, divided by its length in steps",
}
RETURN_TAGS = ("rollout/ep_rew_mean", "eval/mean_reward")  # logged numbers that are returns, and have their scales


def about(metric: str) -> str:
    """Return what the metric is, for people."""
    return METRICS.get(metric, f"the last logged value of {metric} in metrics.jsonl")


def is_tag(metric: str) -> bool:
    """Say whether a metric is not one of ours but a tag that runs have logged."""
    return metric not in METRICS


def is_return(metric: str) -> bool:
    """Say whether the metric is a return, so that thresholds and human scores are about it."""
    return metric in METRICS or metric in RETURN_TAGS


def score(run: Run, metric: str) -> float | None:
    """Return the metric of a finished run; None for others, whose budget was another one, and for NaN."""
    if not run.finished or run.result is None:
        return None
    if metric == "final":
        value = float(run.result["mean_return"])
    elif metric == "best":
        value = float("nan") if run.best is None else run.best.mean_return
    elif not len(run.curve):
        return None
    else:
        value = float(run.curve[-1, 1]) if is_tag(metric) else area(run.curve)
    return value if np.isfinite(value) else None


def area(curve: np.ndarray) -> float:
    """Return the mean height of a curve [N, 2] over its span, with straight lines between its points."""
    span = float(curve[-1, 0] - curve[0, 0])
    return float(np.trapezoid(curve[:, 1], curve[:, 0]) / span) if span else float(curve[-1, 1])
