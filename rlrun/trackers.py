"""Weights & Biases and MLflow, each behind the same four methods. They live in a process of their own (mirror.py).

A tracker shall have each number once, however often a run was killed. So each knows what it was given already,
and is asked before it is given more: after a resume the run's whole history is offered to it again.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from rlrun.config import flatten
from rlrun.errors import UserError, nearest
from rlrun.facts import FAILED, FINISHED, INTERRUPTED, Facts

MLFLOW_STATUS = {FINISHED: "FINISHED", INTERRUPTED: "KILLED", FAILED: "FAILED"}
MOST_PARAMS = 100  # in one request to MLflow
LONGEST_PARAM = 6000  # characters of a value that MLflow takes


class Tracker(Protocol):
    """Where numbers are shown besides the run's folder. Any method may raise; the tracker is then dropped."""

    def start(self, facts: Facts) -> str:
        """Begin the run there, or take it up again; return where it can be seen."""

    def has(self, step: int, tag: str) -> bool:
        """Say whether a number was given before."""

    def row(self, step: int, values: Mapping[str, float], unix: float) -> None:
        """Take the numbers of a step; `unix`: when they were measured."""

    def finish(self, status: str) -> None:
        """End the session; an interrupted run goes on in another one."""


class WandB:
    """https://docs.wandb.ai. What cannot be sent is kept in RUN/wandb, for `wandb sync`."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._folder, self._options = folder, options
        # W&B itself can say what it has only while it can be reached.
        self._note = folder / "wandb" / "last_step"
        self._run: Any = None
        self._teardown: Any = None
        self._last_step = -1

    def start(self, facts: Facts) -> str:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._teardown = wandb.teardown
        try:
            self._run = self._init(wandb, facts, self._options["mode"])
        except Exception as error:
            if self._options["mode"] == "offline":
                raise
            print(f"W&B: {error}; going on offline", file=sys.stderr)
            self._run = self._init(wandb, facts, "offline")
        self._run.config.update(facts.config, allow_val_change=True)
        if not self._run.offline:
            self._last_step = self._run.starting_step - 1
            return str(self._run.url or "disabled")
        self._last_step = int(self._note.read_text()) if self._note.exists() else -1
        return f"offline; this sends it: wandb sync '{self._folder}'/wandb/offline-run-*"

    def has(self, step: int, tag: str) -> bool:
        return step <= self._last_step  # W&B takes no number for a step before its last

    def row(self, step: int, values: Mapping[str, float], unix: float) -> None:
        self._run.log({**values, "_timestamp": unix}, step=step, commit=True)
        self._last_step = step
        unfinished = self._note.with_suffix(".tmp")
        unfinished.parent.mkdir(exist_ok=True)
        unfinished.write_text(str(step))
        unfinished.replace(self._note)

    def finish(self, status: str) -> None:
        if status == INTERRUPTED and not self._run.offline:
            self._run.mark_preempting()
        self._run.finish(exit_code=int(status in (FAILED, INTERRUPTED)))
        self._teardown()  # returns when everything is in W&B's file

    def _init(self, wandb: Any, facts: Facts, mode: str | None) -> Any:
        return wandb.init(
            project=self._options["project"],
            entity=self._options["entity"],
            mode=mode,
            dir=str(self._folder),
            id=facts.id,
            resume="allow",
            name=facts.name,
            group=facts.group,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )


class MLflow:
    """https://mlflow.org/docs. The server is asked what it has."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._options = options
        self._client: Any = None
        self._run_id = ""
        self._last_step: dict[str, int] = {}

    def start(self, facts: Facts) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        uri = self._options["tracking_uri"]
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = self._experiment()
        runs = self._client.search_runs([experiment], f"tags.`rlrun.id` = '{facts.id}'", max_results=1)
        if runs:
            self._run_id = runs[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            self._last_step = {tag: self._newest(tag) for tag in runs[0].data.metrics}
        else:
            tags = {"rlrun.id": facts.id, "group": facts.group}
            started = int(1000 * facts.started_unix)
            made = self._client.create_run(experiment, start_time=started, tags=tags, run_name=facts.name)
            self._run_id = made.info.run_id
        self._log_params(facts, known=runs[0].data.params if runs else {})
        return f"run {self._run_id} at {uri or mlflow.get_tracking_uri()}"

    def has(self, step: int, tag: str) -> bool:
        return step <= self._last_step.get(tag, -1)

    def row(self, step: int, values: Mapping[str, float], unix: float) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(tag, value, int(1000 * unix), step) for tag, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, status: str) -> None:
        self._client.set_terminated(self._run_id, status=MLFLOW_STATUS.get(status, "FINISHED"))

    def _experiment(self) -> str:
        """Return the id of the experiment, made where there is none."""
        from mlflow.exceptions import MlflowException

        name = self._options["experiment"]
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # another run of a sweep was faster
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _newest(self, tag: str) -> int:
        return max(metric.step for metric in self._client.get_metric_history(self._run_id, tag))

    def _log_params(self, facts: Facts, known: Mapping[str, str]) -> None:
        """Log the configuration. MLflow changes no value afterwards: an override on resume is in config.yaml only."""
        from mlflow.entities import Param

        values = {key: str(value)[:LONGEST_PARAM] for key, value in flatten(facts.config)}
        missing = [Param(key, value) for key, value in values.items() if key not in known]
        for i in range(0, len(missing), MOST_PARAMS):
            self._client.log_batch(self._run_id, params=missing[i : i + MOST_PARAMS])


KINDS: dict[str, type[WandB] | type[MLflow]] = {"wandb": WandB, "mlflow": MLflow}  # name, package, section and extra


def check(config: Mapping[str, Any]) -> None:
    """Raise UserError for a tracker that is not known or not installed, and for a secret in the configuration."""
    names = config["log"]["trackers"]
    for name in names:
        if name not in KINDS:
            raise UserError(f"log.trackers: {name} is not known.{nearest(name, KINDS)} Known: {', '.join(KINDS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f'log.trackers: {name} is an extra, and it is not installed: pip install "rlrun[{name}]", or leave it '
                "out with log.trackers=[]"
            )
    if urlsplit(config["mlflow"]["tracking_uri"] or "").password:
        raise UserError(
            "mlflow.tracking_uri holds a password, which would be stored in config.yaml: leave it out, and give it in "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
