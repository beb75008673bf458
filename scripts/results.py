"""Summarise finished runs: a Markdown table over seeds, and a picture of their learning curves.

    python scripts/results.py outputs --picture docs/images/curves.png

Each row is one algorithm on one environment: the mean over seeds of the reported result (the last policy on
episodes that nothing was chosen by), a 95% bootstrap interval of that mean, and the worst seed.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rlrun.run_folder import RunFolder, find_runs

Group = tuple[str, str, str]  # env, algo, variant
RESAMPLES = 10_000


def groups(root: Path) -> dict[Group, list[RunFolder]]:
    """Return the finished runs below `root`, grouped over seeds."""
    found: dict[Group, list[RunFolder]] = defaultdict(list)
    for run in find_runs(root):
        if run.result() is not None:
            record = run.record()
            found[record["env"], record["algo"], record["variant"]].append(run)
    return dict(sorted(found.items()))


def interval(scores: np.ndarray) -> tuple[float, float]:
    """Return the 95% percentile-bootstrap interval of the mean over seeds."""
    rng = np.random.default_rng(0)
    means = rng.choice(scores, (RESAMPLES, len(scores))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def row(group: Group, runs: list[RunFolder]) -> str:
    env, algo, variant = group
    results: list[dict[str, Any]] = [run.result() or {} for run in runs]
    scores = np.array([r["mean_return"] for r in results])
    low, high = interval(scores)
    between = f"{low:.1f} to {high:.1f}" if len(scores) > 1 else "one seed"
    speed = np.median([r["steps"] / r["time/wall_seconds"] for r in results])
    name = algo if variant == "default" else f"{algo}, {variant}"
    steps = f"{results[0]['steps']:,}"
    return (
        f"| {env} | {name} | {steps} | {len(runs)} | {scores.mean():.1f} | {between} | {scores.min():.1f} | "
        f"{speed:,.0f} |"
    )


def picture(found: dict[Group, list[RunFolder]], path: Path) -> None:
    """Draw the evaluations of each group over steps: the mean over seeds, and each seed faintly."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    envs = sorted({env for env, _, _ in found})
    columns = min(3, len(envs))
    lines = -(-len(envs) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns, 3 * lines), squeeze=False)
    for axis in axes.flat[len(envs) :]:
        axis.axis("off")
    for axis, env in zip(axes.flat, envs, strict=False):
        members = [(group, runs) for group, runs in found.items() if group[0] == env]
        for color, ((_, algo, _), runs) in zip(plt.cm.tab10.colors, members, strict=False):  # type: ignore[attr-defined]
            curves = [curve(run) for run in runs]
            shortest = min(len(c) for c in curves)
            for c in curves:
                axis.plot(c[:, 0], c[:, 1], color=color, alpha=0.25, linewidth=0.8)
            mean = np.mean([c[:shortest] for c in curves], axis=0)
            label = f"{algo}, {len(runs)} seed{'s' if len(runs) > 1 else ''}"
            axis.plot(mean[:, 0], mean[:, 1], color=color, linewidth=2, label=label)
        axis.set_title(env)
        axis.set_xlabel("environment steps")
        axis.set_ylabel("return in evaluation")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def curve(run: RunFolder) -> np.ndarray:
    """Return [N, 2]: step and mean return of each evaluation."""
    lines = (run.path / "evaluations.jsonl").read_text().splitlines()
    return np.array([(e["step"], e["mean_return"]) for e in map(json.loads, lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    found = groups(arguments.outputs)
    print("| environment | algorithm | steps | seeds | return | 95% interval | worst seed | steps/s |")
    print("|---|---|---|---|---|---|---|---|")
    for group, runs in found.items():
        print(row(group, runs))
    if arguments.picture:
        picture(found, arguments.picture)


if __name__ == "__main__":
    main()
