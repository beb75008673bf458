"""What a search leaves: a table of trials, tune.json, and the best configuration as a tuned file."""

import shlex
import textwrap
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from rlrun import __version__, record
from rlrun.compose import NAMES_OF_ENV
from rlrun.config import conf_folder, flatten, is_learning_key, options
from rlrun.console import table_console
from rlrun.files import write_atomically, write_json
from rlrun.tuning.confirm import Confirmation, Estimate
from rlrun.tuning.plan import Plan
from rlrun.tuning.search import shown
from rlrun.tuning.study import Study
from rlrun.tuning.workers import composed

MOST_ROWS = 20  # of the printed table; tune.json has all trials
WIDTH = 118  # characters of a comment's line


class Report:
    """All that is said at the end of a search."""

    def __init__(self, plan: Plan, study: Study, best: FrozenTrial, confirmation: Confirmation | None) -> None:
        self.plan, self.study, self.best, self.confirmation = plan, study, best, confirmation
        self.name = f"{plan.names.algo}_{plan.names.env}_best"
        self.file = plan.folder / "tuned" / f"{self.name}.yaml"

    def write(self) -> None:
        """Write the tuned file and tune.json."""
        self.file.parent.mkdir(exist_ok=True)
        write_atomically(self.file, self.tuned_file().encode())
        write_json(self.plan.folder / "tune.json", self.as_json())

    def print(self) -> None:
        console = table_console()
        console.print(trial_table(self.ranked()))
        if importances := self.study.importances():
            shares = ", ".join(f"{key.removeprefix('algo.')} {share:.0%}" for key, share in importances.items())
            console.print(f"importance (PED-ANOVA, of these trials): {shares}", highlight=False, soft_wrap=True)
        for line in self.lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    def ranked(self) -> list[FrozenTrial]:
        """Return all trials, the best first, those without a value last."""
        rank = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1}
        return sorted(self.study.trials(), key=lambda t: (rank.get(t.state, 2), -(t.value or 0.0), t.number))

    def lines(self) -> list[str]:
        """Return what the search found, what that is worth, and how to use it."""
        plan, seeds = self.plan, self.plan.search_seeds
        found = [f"best: trial {self.best.number}, {self.best.value:.2f} over {_span(seeds)}, which it was chosen by"]
        if self.confirmation is not None:
            found += [
                f"on fresh {_span(self.confirmation.seeds)}: {self.confirmation.summary()}",
                self.confirmation.verdict(),
                f"compare: rlrun compare {shlex.quote(str(plan.folder / 'confirm'))} by=variant",
            ]
        return [*found, f"the best configuration: {self.file}", f"use it: {self.command()}", *self._adoption()]

    def command(self) -> str:
        """Return the command that trains with the tuned file."""
        place = self.plan.flags or ["--config-dir", str(self.plan.folder)]
        return shlex.join(["rlrun", *place, *self.plan.choices(), f"tuned={self.name}"])

    def _adoption(self) -> list[str]:
        if self.plan.flags:
            return [f"first copy it to the folder tuned/ of {self.plan.flags[-1].rpartition('=')[2]}"]
        env = self.plan.names.env
        if env not in options("env"):
            return []
        target = conf_folder() / "tuned" / f"{self.plan.names.algo}_{env}.yaml"
        return [f"adopt it, so that it is applied by itself: copy it to {target}"]

    def tuned_file(self) -> str:
        """Return the best configuration, as what it changes in the untuned one."""
        changed = self.changed()
        nested: dict[str, Any] = {}
        for key, value in changed.items():
            *sections, leaf = key.split(".")
            section = nested
            for name in sections:
                section = section.setdefault(name, {})
            section[leaf] = value
        comment = textwrap.wrap(self.origin(), WIDTH, break_long_words=False, break_on_hyphens=False)
        lines = ["# @package _global_", *(f"# {line}" for line in comment)]
        return "\n".join(lines) + "\n" + (yaml.safe_dump(nested, sort_keys=False) if nested else "")

    def changed(self) -> dict[str, Any]:
        """Return {dotted key: value} of all that was searched, and of what else differs from the untuned."""
        plan = self.plan
        best, _ = composed(plan.trial_runs(self.best.number, self.best.params)[0])
        untuned, _ = composed([*plan.flags, *plan.choices(), "tuned=none"])
        before = {key: value for key, value in flatten(untuned) if key not in self.best.params}
        return {
            key: value
            for key, value in flatten(best)
            if is_learning_key(key) and key not in ("seed", *NAMES_OF_ENV) and before.get(key, "-") != value
        }

    def origin(self) -> str:
        """Return where the numbers are from, as one paragraph."""
        study = yaml.safe_load(self.plan.file.read_text())
        done = sum(trial.state.is_finished() for trial in self.study.trials())
        text = (
            f"Found by `{study['command']}`, {record.now()[:10]}, rlrun {__version__}: trial {self.best.number}, the "
            f"best of {done} with {self.best.value:.2f} over {_span(self.plan.search_seeds)}."
        )
        if self.confirmation is None:
            return f"{text} Not confirmed on fresh seeds."
        return (
            f"{text} On fresh {_span(self.confirmation.seeds)}: {self.confirmation.summary()}; "
            f"{self.confirmation.verdict()}."
        )

    def as_json(self) -> dict[str, Any]:
        plan, confirmation = self.plan, self.confirmation
        return {
            "command": record.command(),
            "date": record.now(),
            "version": __version__,
            "algo": plan.names.algo,
            "env": plan.names.env,
            "total_steps": plan.config["total_steps"],
            "best": {"trial": self.best.number, "score": self.best.value, "changed": self.changed()},
            "search_seeds": plan.search_seeds,
            "confirmation": None if confirmation is None else _confirmation(confirmation),
            "importances": self.study.importances(),
            "tuned_file": str(self.file),
            "use": self.command(),
            "trials": [_trial(trial) for trial in self.study.trials()],
        }


def trial_table(trials: list[FrozenTrial]) -> Table:
    """Return the table of trials in their order."""
    table = Table(box=None, pad_edge=False)
    for name in ("trial", "score"):
        table.add_column(name, justify="right")
    table.add_column("state")
    table.add_column("parameters", overflow="fold")
    for trial in trials[:MOST_ROWS]:
        score = "-" if trial.value is None else f"{trial.value:.2f}"
        table.add_row(str(trial.number), score, trial.state.name.lower(), escape(shown(trial.params)))
    if len(trials) > MOST_ROWS:
        table.caption = f"and {len(trials) - MOST_ROWS} more in tune.json"
    return table


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "score": trial.value,
        "scores": trial.user_attrs.get("scores", []),
        "origin": trial.user_attrs.get("origin"),
        "error": trial.user_attrs.get("error"),
        "params": trial.params,
    }


def _confirmation(confirmation: Confirmation) -> dict[str, Any]:
    improvement = confirmation.improvement
    return {
        "seeds": confirmation.seeds,
        "tuned": {"returns": confirmation.tuned, **_estimate(confirmation.tuned_mean)},
        "present": confirmation.present,
        "optimism_gap": _estimate(confirmation.optimism_gap),
        "improvement": None if improvement is None else _estimate(improvement),
        "verdict": confirmation.verdict(),
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "interval_95": list(estimate.interval) if estimate.interval else None}


def _span(seeds: list[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
