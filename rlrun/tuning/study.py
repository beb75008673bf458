"""Trials and their values: Optuna, so used that a study which is killed goes on as if nothing had happened.

A trial's parameters are a function of the finished trials before it, the study's seed and its own number: each is
drawn by a new sampler on a copy of the study in memory, so that no sampler's state needs to be stored. Only then the
trial is added, in one write, with all of its parameters: it is there as a whole or not at all.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from rlrun.tuning.space import Space, distribution, located

NAME = "rlrun"  # of the one study in a storage
SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "none")
STORAGES = {"journal": "trials.log", "sqlite": "trials.db"}
JUDGED_FROM = 0.25  # of a run: evaluations before that prune nothing
FEWEST_TRIALS = 5  # that are complete, before any is pruned
PRESENT = "present configuration"  # where the parameters of trial 0 are from
DONE = (TrialState.COMPLETE, TrialState.PRUNED)

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass
class Trial:
    """A trial in progress. `curves` holds for each of its runs {index: mean return of that evaluation}."""

    number: int
    params: dict[str, Any]
    curves: dict[int, dict[int, float]] = field(default_factory=dict)

    def mean(self, run: int, index: int) -> float:
        """Return the mean over the runs up to `run` of each one's latest evaluation, up to `index`.

        A run that ended early (stop.at_return) counts with its last one.
        """
        latest = []
        for curve in (self.curves.get(i, {}) for i in range(run + 1)):
            known = [i for i in curve if i <= index]
            if known:
                latest.append(curve[max(known)])
        return float(np.mean(latest))


class Study:
    """The trials of one search. `per_run`: evaluations of a whole run, one each `every` steps."""

    def __init__(
        self, folder: Path, storage: str, space: Space, sampler: str, pruner: str, seed: int, every: int, per_run: int
    ) -> None:
        self.space = {key: distribution(domain) for key, domain in space.items()}
        self.domains, self.sampler, self.seed = space, sampler, seed
        self.every, self.per_run = every, per_run
        self.optuna = optuna.create_study(
            storage=_storage(folder / STORAGES[storage], storage),
            sampler=optuna.samplers.RandomSampler(seed=0),  # never asked
            study_name=NAME,
            direction="maximize",
            load_if_exists=True,
        )
        self.pruner = (
            optuna.pruners.MedianPruner(n_startup_trials=FEWEST_TRIALS, n_min_trials=3)
            if pruner == "median"
            else optuna.pruners.NopPruner()
        )

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def unfinished(self) -> list[Trial]:
        """Return the trials that were running when the study was last left."""
        return [Trial(t.number, dict(t.params)) for t in self.trials(TrialState.RUNNING)]

    def best(self) -> FrozenTrial | None:
        """Return the complete trial of the highest value, of several the first."""
        complete = self.trials(TrialState.COMPLETE)
        return max(complete, key=lambda t: (t.value, -t.number), default=None)

    def propose(self, known: Mapping[str, Any]) -> Trial:
        """Add a trial. The first has the parameters of the present configuration `known`, if the space holds it."""
        number = len(self.trials())
        present = self._present(known) if number == 0 else None
        params = self._sampled(number) if present is None else present
        origin = {"origin": self.sampler if present is None else PRESENT}
        self.optuna.add_trial(
            create_trial(state=TrialState.RUNNING, params=params, distributions=self.space, user_attrs=origin)
        )
        return Trial(number, params)

    def evaluated(self, trial: Trial, run: int, step: int, mean_return: float) -> bool:
        """Note an evaluation of a trial's run; say whether the trial shall be pruned.

        Told again what it knows already (by a run that went back to its checkpoint), it says the same again.
        """
        index = min(step // self.every, self.per_run)
        trial.curves.setdefault(run, {})[index] = mean_return
        frozen, start = self._frozen(trial), run * (self.per_run + 1)
        if start + index not in frozen.intermediate_values:
            reporter = optuna.trial.Trial(self.optuna, frozen._trial_id)
            reporter.report(trial.mean(run, index), start + index)
        if index < JUDGED_FROM * self.per_run:
            return False
        # Judged by this run's evaluations so far: those of an earlier run shall not speak for it.
        judged = copy.copy(self._frozen(trial))
        values = judged.intermediate_values.items()
        judged.intermediate_values = {i: value for i, value in values if start <= i <= start + index}
        return self.pruner.prune(self.optuna, judged)

    def finish(self, trial: Trial, state: TrialState, scores: list[float], error: str = "") -> None:
        """End a trial with the mean of its runs' scores, or as pruned or failed."""
        frozen = self._frozen(trial)
        for key, value in {"scores": scores, "error": error}.items():
            if value:
                optuna.trial.Trial(self.optuna, frozen._trial_id).set_user_attr(key, value)
        self.optuna.tell(trial.number, float(np.mean(scores)) if state == TrialState.COMPLETE else None, state=state)

    def importances(self) -> dict[str, float]:
        """Return each parameter's share in what made trials good; {} where too few trials are complete."""
        complete = self.trials(TrialState.COMPLETE)
        if len(complete) < 2 * FEWEST_TRIALS or len({t.value for t in complete}) < 2:
            return {}
        return optuna.importance.get_param_importances(self.optuna)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.trials()[trial.number]

    def _present(self, known: Mapping[str, Any]) -> dict[str, Any] | None:
        found = {key: located(domain, known.get(key), known) for key, domain in self.domains.items()}
        return {key: value[0] for key, value in found.items()} if all(found.values()) else None

    def _sampled(self, number: int) -> dict[str, Any]:
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        sampler = (
            optuna.samplers.TPESampler(seed=seed) if self.sampler == "tpe" else optuna.samplers.RandomSampler(seed=seed)
        )
        mirror = optuna.create_study(sampler=sampler, direction="maximize")
        mirror.add_trials(_as_bad(trial) if trial.state == TrialState.FAIL else trial for trial in self.trials())
        return dict(mirror.ask(self.space).params)


def _as_bad(failed: FrozenTrial) -> FrozenTrial:
    """Return a failed trial as one pruned before its first evaluation: the worst there is.

    Samplers pass over failed trials, and TPE would propose what cannot be built again and again.
    """
    bad = copy.copy(failed)
    bad.state, bad.intermediate_values = TrialState.PRUNED, {}
    return bad


def _storage(path: Path, kind: str) -> BaseStorage:
    if kind == "journal":
        _mend(path)
        return JournalStorage(JournalFileBackend(str(path)))
    new = path.with_name(path.name + ".new")
    if not path.exists():
        # Made beside and renamed: a kill among its tables would leave one that cannot be opened.
        new.unlink(missing_ok=True)
        made = optuna.storages.RDBStorage(f"sqlite:///{new.resolve()}")
        made.remove_session()
        made.engine.dispose()
        new.rename(path)
    return optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")


def _mend(journal: Path) -> None:
    """Cut off a line that a kill left half written, and open the lock of a process that is gone.

    The caller holds the study's own lock, so no other process writes here.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with open(journal, "r+b") as file:
                file.truncate(whole)
