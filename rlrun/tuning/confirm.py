"""The best trial on seeds that chose nothing: what it is worth, and by how much the search flattered it."""

from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial

from rlrun.analysis import statistics
from rlrun.analysis.notices import FEW_SEEDS
from rlrun.errors import RunFailed
from rlrun.facts import FINISHED, INTERRUPTED
from rlrun.tuning.board import Board
from rlrun.tuning.plan import Plan
from rlrun.tuning.study import PRESENT
from rlrun.tuning.workers import Job, Outcome, Pool

SEED = 0  # of the bootstrap: the same runs give the same intervals


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval, None where too few runs leave it unknown."""

    value: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        low_high = f" [{self.interval[0]:.2f}, {self.interval[1]:.2f}]" if self.interval else ""
        return f"{self.value:.2f}{low_high}"


@dataclass(frozen=True)
class Confirmation:
    """Returns of the best trial and of the present configuration, trained with the same fresh seeds.

    `present` is None where the best trial is the present configuration itself.
    """

    seeds: list[int]
    search_scores: list[float]  # of the best trial, one for each of its seeds
    tuned: list[float]
    present: list[float] | None

    @property
    def tuned_mean(self) -> Estimate:
        return mean(self.tuned)

    @property
    def optimism_gap(self) -> Estimate:
        """Return what the search promised more than fresh seeds keep."""
        return difference(self.search_scores, self.tuned)

    @property
    def improvement(self) -> Estimate | None:
        return None if self.present is None else difference(self.tuned, self.present)

    def summary(self) -> str:
        """Return the mean on fresh seeds and the optimism gap in words."""
        known = " (95% intervals)" if self.tuned_mean.interval else ""
        return f"{self.tuned_mean}, optimism gap {self.optimism_gap}{known}"

    def verdict(self) -> str:
        """Say in words whether the best trial is better than the present configuration."""
        improvement = self.improvement
        if improvement is None:
            return "the present configuration came out best"
        if improvement.interval is None:
            return f"one seed does not tell it from the present configuration (difference {improvement}); try confirm=5"
        low, high = improvement.interval
        few = f"; intervals from fewer than {FEW_SEEDS} seeds are too narrow to trust" * (len(self.seeds) < FEW_SEEDS)
        if low > 0:
            return f"better than the present configuration by {improvement}{few}"
        if high < 0:
            return f"worse than the present configuration: the difference is {improvement}{few}"
        return f"not told apart from the present configuration: the difference is {improvement}{few}"


def mean(scores: list[float]) -> Estimate:
    values = [np.array(scores)]
    return _estimate(float(statistics.mean(values)), statistics.stratified_interval(statistics.mean, values, _rng()))


def difference(a: list[float], b: list[float]) -> Estimate:
    """Return mean(a) - mean(b) with its interval; both are drawn again, independently."""

    def gap(scores: statistics.Scores) -> statistics.Array:
        return np.asarray(statistics.mean([scores[0]]) - statistics.mean([scores[1]]))

    values = [np.array(a), np.array(b)]
    return _estimate(float(gap(values)), statistics.stratified_interval(gap, values, _rng()))


def confirm(plan: Plan, best: FrozenTrial, pool: Pool, board: Board) -> Confirmation | None:
    """Train the best trial and the present configuration with fresh seeds. Returns None if a signal came."""
    configurations = {f"best-{best.number:03d}": best.params}
    if best.user_attrs["origin"] != PRESENT:
        configurations["present"] = {}
    wanted = [(name, seed) for seed in plan.fresh_seeds for name in configurations]
    waiting = [key for key in wanted if _return(plan, *key) is None]
    left = len(waiting)
    failed: list[str] = []

    def next_job() -> Job | None:
        if not waiting or failed:
            return None
        name, seed = waiting.pop(0)
        return Job((name, seed), [plan.confirmation_run(name, configurations[name], seed)])

    def evaluated(key: tuple[str, int], run: int, step: int, mean_return: float) -> bool:
        board.show(f"confirming, {key[0]}, fresh seed {key[1]}, step {step:,}: return {mean_return:.2f}")
        return False

    def done(key: tuple[str, int], outcome: Outcome) -> None:
        if outcome.status == FINISHED:
            board.say(f"fresh seed {key[1]}, {key[0]}: {_return(plan, *key):.2f}")
        elif outcome.status == INTERRUPTED:
            waiting.insert(0, key)
        else:
            failed.append(f"{plan.confirmation_folder(*key).path} failed: {outcome.error}")

    if left:
        board.say(f"confirming trial {best.number} on fresh seeds {plan.fresh_seeds[0]} to {plan.fresh_seeds[-1]}")
        pool.run(next_job, evaluated, done)
    if failed:
        raise RunFailed(f"{failed[0]}\nThe same command tries it again")
    returns = {key: value for key in wanted if (value := _return(plan, *key)) is not None}
    if len(returns) < len(wanted):
        return None
    of = {name: [returns[name, seed] for seed in plan.fresh_seeds] for name in configurations}
    tuned, *present = of.values()
    return Confirmation(plan.fresh_seeds, best.user_attrs["scores"], tuned, present[0] if present else None)


def _return(plan: Plan, name: str, seed: int) -> float | None:
    """Return what a finished confirmation run reports, None for another."""
    folder = plan.confirmation_folder(name, seed)
    result = folder.result() if folder.exists() and folder.status() == FINISHED else None
    return None if result is None else float(result["mean_return"])


def _estimate(value: float, interval: statistics.Interval) -> Estimate:
    return Estimate(value, None if np.isnan(interval[0]) else interval)


def _rng() -> np.random.Generator:
    return np.random.default_rng(SEED)
