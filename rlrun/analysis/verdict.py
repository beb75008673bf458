"""Which is better, and how sure one may be, in a sentence.

A difference counts as shown where the whole 95% interval of P(X > Y) lies above a half, the criterion of
Bouthillier et al. (2021), "Accounting for Variance in Machine Learning Benchmarks", arXiv:2103.03098, without their
second threshold. Nothing is corrected for the number of pairs.
"""

import math
from collections.abc import Sequence

from rlrun.analysis.model import Environment, Overall, Pair, Row
from rlrun.analysis.notices import FEW_SEEDS
from rlrun.analysis.numbers import shown

MOST_NAMED = 4
OVERALL = "overall"


def verdicts(environments: Sequence[Environment], together: Overall) -> dict[str, str]:
    """Return {"overall" or an environment's name: sentence}, overall first; only where several groups compete.

    What is said of one environment is not said again of all.
    """
    found = {}
    if len(together.rows) > 1 and len(together.tasks) > 1:
        found[OVERALL] = verdict(together.rows, together.pairs, together.mixed, len(together.tasks))
    for env in environments:
        rows = [row for row in env.rows if row.num_scored]
        if len(rows) > 1:
            found[env.name] = verdict(rows, env.pairs, env.mixed)
    return found


def verdict(rows: Sequence[Row], pairs: Sequence[Pair], mixed: Sequence[str] = (), num_tasks: int = 1) -> str:
    """Return the sentence about groups of one environment, or of several together. `pairs` are sorted by IQM."""
    leader = pairs[0].better
    against = [pair for pair in pairs if pair.better == leader]
    row = next(row for row in rows if row.label == leader)
    text = f"{leader} has the highest IQM, {shown(row.estimates['iqm'])}; a run of it beats "
    beats = [f"one of {pair.than} with probability {shown(pair.probability)}: {_word(pair)}" for pair in against]
    more = [f"and so on for {len(beats) - MOST_NAMED} more"] if len(beats) > MOST_NAMED else []
    text += "; ".join([*beats[:MOST_NAMED], *more])
    if all(_equal(pair) for pair in against):
        text = f"all groups are alike, with an IQM of {shown(row.estimates['iqm'])}"
    if min(row.num_scored for row in rows) < FEW_SEEDS * num_tasks:
        text += f". Fewer than {FEW_SEEDS} seeds: a hint, not a result"
    if mixed:
        text += f". Protocols are mixed ({', '.join(mixed)}): more than the groups differs"
    return text + "."


def _word(pair: Pair) -> str:
    p = pair.probability
    if math.isnan(p.low):
        return "one run says nothing about the next"
    if p.low > 0.5:
        return "better"
    if p.high < 0.5:  # of another order than the IQM: a few runs far apart pull the two in two directions
        return "worse, though its IQM is higher"
    return "no difference" if _equal(pair) else "may be chance"


def _equal(pair: Pair) -> bool:
    """Say whether all runs of both groups have the same score."""
    return all(math.isclose(end, 0.5) for end in (pair.probability.value, pair.probability.low, pair.probability.high))
