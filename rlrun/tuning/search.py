"""The search: proposes trials, has them run, and notes what became of them."""

import json
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from rlrun.config import flatten
from rlrun.errors import RunFailed
from rlrun.facts import FINISHED, INTERRUPTED, PRUNED
from rlrun.tuning.board import Board
from rlrun.tuning.plan import Plan
from rlrun.tuning.study import DONE, Study, Trial
from rlrun.tuning.workers import DIED, Job, Outcome, Pool

MOST_FAILURES = 10  # in a row, before the search stops: what is wrong is not the parameters
LONGEST_ERROR = 300  # characters that are kept of a failed trial's message


class Search:
    """One session of a search."""

    def __init__(self, plan: Plan, study: Study, board: Board) -> None:
        self.plan, self.study, self.board = plan, study, board
        self.known = dict(flatten(plan.config))
        self.waiting = study.unfinished()
        self.running: dict[int, Trial] = {}
        self.died: set[int] = set()
        self.failures = 0

    def run(self, pool: Pool) -> None:
        """Go on until as many trials as wanted are done, or a signal comes. Raises RunFailed if all fail."""
        for notice in self.plan.notices:
            self.board.say(notice)
        done = len(self.study.trials(*DONE))
        if done or self.waiting:
            self.board.say(f"{self.plan.folder}: going on after {done} of {self.plan.options.trials} trials")
        pool.run(self.next_job, self.evaluated, self.done)

    def next_job(self) -> Job | None:
        if self.waiting:
            trial = self.waiting.pop(0)
        elif len(self.study.trials(*DONE)) + len(self.running) < self.plan.options.trials:
            trial = self.study.propose(self.known)
        else:
            return None
        self.running[trial.number] = trial
        runs = self.plan.trial_runs(trial.number, trial.params)
        return Job(trial.number, runs, most_steps=self.plan.most_steps)

    def evaluated(self, number: int, run: int, step: int, mean_return: float) -> bool:
        best = self.study.best()
        self.board.show(
            f"trial {number} of {self.plan.options.trials}, seed {self.plan.search_seeds[run]}, step {step:,} of "
            f"{self.plan.config['total_steps']:,}: return {mean_return:.2f}{_best(best)}"
        )
        return self.study.evaluated(self.running[number], run, step, mean_return)

    def done(self, number: int, outcome: Outcome) -> None:
        trial = self.running.pop(number)
        if outcome.status == DIED and number not in self.died:
            self.died.add(number)
            outcome = Outcome(INTERRUPTED)
        if outcome.status == INTERRUPTED:
            # Its run goes on from its checkpoint: now, if something befell the worker alone, or in the next session.
            self.waiting.insert(0, trial)
            return
        state = {FINISHED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED}.get(outcome.status, TrialState.FAIL)
        error = outcome.error[:LONGEST_ERROR]
        self.study.finish(trial, state, outcome.scores, error)
        self._say(self.study.trials()[number], error)
        self.failures = self.failures + 1 if state == TrialState.FAIL else 0
        if self.failures == MOST_FAILURES:
            raise RunFailed(
                f"{MOST_FAILURES} trials in a row failed, the last with: {error}\n"
                f"{self.plan.folder}/workers.log has more; the same command goes on with the next trial"
            )

    def _say(self, trial: FrozenTrial, error: str) -> None:
        result = {TrialState.COMPLETE: "", TrialState.PRUNED: " (pruned)"}.get(trial.state, f"failed: {error}")
        value = "" if trial.value is None else f"{trial.value:.2f}"
        self.board.say(
            f"trial {trial.number} of {self.plan.options.trials}: {value}{result}{_best(self.study.best())}  "
            f"{shown(trial.params)}"
        )


def _best(trial: FrozenTrial | None) -> str:
    return "" if trial is None else f"; best {trial.value:.2f}, trial {trial.number}"


def shown(params: dict[str, Any]) -> str:
    """Return parameters as people read them: learning_rate=0.000312 gamma=0.98."""
    return " ".join(f"{key.removeprefix('algo.')}={shown_value(value)}" for key, value in params.items())


def shown_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, str):
        return value.removeprefix("${").removesuffix("}").removeprefix("algo.")  # another key's value
    return json.dumps(value)
