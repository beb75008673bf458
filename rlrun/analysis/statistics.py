"""Statistics over few runs, after Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", arXiv:2108.13264, and equal to their library rliable where tasks have equally many runs.
Where they have not, each task counts once in means and profiles, and each run once in the IQM.

`scores` is a list with one array for each task, [..., N]: N runs of that task (N may differ between tasks);
leading axes are bootstrap resamples. A generator is always an argument, so that a report repeats exactly.
"""

from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Scores = Sequence[Array]
Interval = tuple[float, float]

RESAMPLES = 2000
CONFIDENCE = 0.95
TRIM = 0.25  # of the pooled scores, cut from each end
NO_INTERVAL = (float("nan"), float("nan"))  # one run a task says nothing about the spread


def mean(scores: Scores) -> Array:
    """Return the mean over tasks of the mean over runs, [...]."""
    return np.mean(_task_means(scores), axis=0)


def median(scores: Scores) -> Array:
    """Return the median over tasks of the mean over runs, [...]."""
    return np.median(_task_means(scores), axis=0)


def median_run(scores: Scores) -> Array:
    """Return the median over all runs, [...]: with one task, `median` would be its mean."""
    return np.median(_pooled(scores), axis=-1)


def iqm(scores: Scores) -> Array:
    """Return the interquartile mean of the pooled scores, [...]: a quarter is cut from each end (section 4.3)."""
    pooled = np.sort(_pooled(scores), axis=-1)
    num_cut = int(TRIM * pooled.shape[-1])
    return np.mean(pooled[..., num_cut : pooled.shape[-1] - num_cut], axis=-1)


def optimality_gap(scores: Scores) -> Array:
    """Return by how much normalised scores miss 1 on average, [...]; what exceeds 1 counts as 1 (section 4.3)."""
    return 1.0 - mean([np.minimum(task, 1.0) for task in scores])


def stratified_interval(
    statistic: Callable[[Scores], Array],
    scores: Scores,
    rng: np.random.Generator,
    num_resamples: int = RESAMPLES,
) -> Interval:
    """Return the 95% percentile-bootstrap interval; runs are drawn again within each task (section 4.1)."""
    if all(task.shape[-1] < 2 for task in scores):
        return NO_INTERVAL
    return _percentiles(statistic(resampled(scores, rng, num_resamples)))


def resampled(scores: Scores, rng: np.random.Generator, num_resamples: int = RESAMPLES) -> list[Array]:
    """Draw the N runs of each task anew, with replacement: one [R, N] for each task."""
    return [task[rng.integers(0, len(task), (num_resamples, len(task)))] for task in scores]


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """Return P(X > Y): the Mann-Whitney U / (N M) of each task, ties counting half, averaged (section 4.3)."""
    _check_same_tasks(x, y)
    return float(np.mean([_wins(a, b).mean() for a, b in zip(x, y, strict=True)]))


def improvement_interval(x: Scores, y: Scores, rng: np.random.Generator, num_resamples: int = RESAMPLES) -> Interval:
    """Return the 95% stratified-bootstrap interval of P(X > Y); X and Y are drawn independently."""
    _check_same_tasks(x, y)
    if any(all(len(task) < 2 for task in scores) for scores in (x, y)):
        return NO_INTERVAL  # one side has no spread to know
    values = np.zeros(num_resamples)
    for a, b in zip(x, y, strict=True):
        # How often each run was drawn is all that U depends on.
        share_x, share_y = draws(len(a), rng, num_resamples), draws(len(b), rng, num_resamples)
        values += (_weighted(share_x, _wins(a, b)) * share_y).sum(axis=1)
    return _percentiles(values / len(x))


def performance_profile(scores: Scores, taus: Array) -> Array:
    """Return the fraction of runs above each tau, averaged over tasks: [T] (section 4.2, run scores)."""
    return np.mean([_above(task, taus).mean(axis=0) for task in scores], axis=0)


def profile_band(
    scores: Scores, taus: Array, rng: np.random.Generator, num_resamples: int = RESAMPLES
) -> tuple[Array, Array]:
    """Return the pointwise 95% band of the performance profile: low [T], high [T]."""
    profiles = np.zeros((num_resamples, len(taus)))
    for task in scores:
        profiles += _weighted(draws(len(task), rng, num_resamples), _above(task, taus))
    return mean_percentiles(profiles / len(scores))


def iqm_band(curves: Scores, rng: np.random.Generator, num_resamples: int = RESAMPLES) -> tuple[Array, Array, Array]:
    """Return the IQM of curves, one [N, T] for each task, at each of T points: value [T], low [T], high [T].

    A run is drawn with its whole curve.
    """
    picks = [rng.integers(0, len(task), (num_resamples, len(task))) for task in curves]
    value = iqm([task.T for task in curves])
    ends = [
        _percentiles(iqm([task[:, t][pick] for task, pick in zip(curves, picks, strict=True)]))
        for t in range(len(value))
    ]
    low, high = np.array(ends).T
    return value, low, high


def median_of_times(times: Array) -> Array:
    """Return the median over runs of times [..., N] that are infinite where a run never got there: [...].

    Infinity counts as the largest time: if most runs never got there, so did the median one.
    """
    ordered, half = np.sort(times, axis=-1), times.shape[-1] // 2
    return (ordered[..., half] + ordered[..., (times.shape[-1] - 1) // 2]) / 2


def time_interval(times: Array, rng: np.random.Generator, num_resamples: int = RESAMPLES) -> Interval:
    """Return the 95% bootstrap interval of the median of times [N]; its ends may be infinite."""
    if len(times) < 2:
        return NO_INTERVAL
    medians = np.sort(median_of_times(resampled([times], rng, num_resamples)[0]))
    tail = (1 - CONFIDENCE) / 2 * (num_resamples - 1)  # no interpolation: between infinities there is none
    return float(medians[int(np.floor(tail))]), float(medians[int(np.ceil(num_resamples - 1 - tail))])


def mean_band(values: Array, rng: np.random.Generator, num_resamples: int = RESAMPLES) -> tuple[Array, Array]:
    """Return the pointwise 95% bootstrap band of the mean of N curves [N, T]: low [T], high [T]."""
    return mean_percentiles(_weighted(draws(len(values), rng, num_resamples), values))


def draws(num_runs: int, rng: np.random.Generator, num_resamples: int) -> Array:
    """Return each run's share of a resample, [R, N]; the weighted sum of values is the resample's mean."""
    picks = rng.integers(0, num_runs, (num_resamples, num_runs))
    # Each resample counts in bins of its own; rng.multinomial is the same, ten times slower.
    bins = (picks + num_runs * np.arange(num_resamples)[:, None]).ravel()
    return np.bincount(bins, minlength=num_resamples * num_runs).reshape(num_resamples, num_runs) / num_runs


def mean_percentiles(values: Array) -> tuple[Array, Array]:
    """Return the ends of the central 95% over the first axis: low [T], high [T]."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return low, high


def _weighted(shares: Array, values: Array) -> Array:
    """Return the weighted sums [R, T] of values [N, T] by shares [R, N].

    Not with `@`: on matrices this small, BLAS's threads wait for one another, four times as long as they work
    where another process keeps a core busy.
    """
    return np.einsum("rn,nt->rt", shares, values)


def _percentiles(values: Array) -> Interval:
    low, high = mean_percentiles(values)
    return float(low), float(high)


def _task_means(scores: Scores) -> Array:
    return np.stack([np.mean(task, axis=-1) for task in scores])


def _pooled(scores: Scores) -> Array:
    return np.concatenate(list(scores), axis=-1)


def _wins(x: Array, y: Array) -> Array:
    """Return [N, M]: 1 where run n of X beats run m of Y, 1/2 where they are equal."""
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)


def _above(task: Array, taus: Array) -> Array:
    return (task[:, None] > taus).astype(float)


def _check_same_tasks(x: Scores, y: Scores) -> None:
    if len(x) != len(y):
        raise ValueError(f"X has {len(x)} tasks and Y has {len(y)}: give both the same tasks, in the same order")
