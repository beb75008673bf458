"""The one loop: it trains, logs, evaluates, checkpoints, and stops where it may be taken up again."""

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rlrun import schema
from rlrun.algos.algorithm import Algorithm, Metrics
from rlrun.checkpoint import Checkpoints, misfit
from rlrun.console import Console
from rlrun.data.collector import RECENT
from rlrun.envs.normalizer import Normalizer
from rlrun.errors import RunFailed
from rlrun.evaluation import Evaluation, Evaluator
from rlrun.facts import FINISHED, INTERRUPTED, PRUNED
from rlrun.files import human_seconds, write_atomically, write_json
from rlrun.logger import METRICS, Logger
from rlrun.math.schedules import crossed
from rlrun.run_folder import RunFolder
from rlrun.seeding import REPORT_SEEDS, SELECTION_SEEDS, GlobalGenerators, Seeds
from rlrun.signals import Signals
from rlrun.stateful import Stateful, StateMismatch

if TYPE_CHECKING:
    from rlrun.followers import Followers

OTHERS = "others"  # the part of a checkpoint that is of the processes besides the first


class Clock:
    """Wall time of a run over all of its sessions."""

    def __init__(self) -> None:
        self.earlier = 0.0  # seconds of the sessions before this one, up to the restored checkpoint
        self.started = time.monotonic()

    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self.started


@dataclass(kw_only=True, eq=False)
class Experiment(Stateful):
    """A run: what it needs are fields, what it remembers are the attributes set in __post_init__."""

    transient: ClassVar[frozenset[str]] = frozenset({"clock", "last_row", "pruned", "restored_from", "window"})

    normalizer: Normalizer  # before the algorithm, whose collectors share it: shared state is saved where first met
    algorithm: Algorithm
    logger: Logger
    checkpoints: Checkpoints
    evaluator: Evaluator
    console: Console
    folder: RunFolder
    signals: Signals
    seeds: Seeds
    total_steps: int
    eval: schema.Eval
    checkpoint: schema.Checkpoint
    log: schema.Log
    at_return: float | None
    after_seconds: float | None
    protocol: dict[str, Any]
    fingerprint: dict[str, Any]
    followers: "Followers | None" = None  # the other processes of a run that is split
    prune: Callable[[int, float], bool] | None = None  # a search's verdict on (step, mean return) of an evaluation
    save_first: bool = False  # before the first step: what it begins with is of other runs, which may change or go

    def __post_init__(self) -> None:
        self.generators = GlobalGenerators()
        self.pending_evaluation: int | None = None  # the step whose evaluation has not been finished
        self.best_return: float | None = None
        self.latest_return: float | None = None
        self.clock = Clock()
        self.window = (0.0, 0)  # (seconds, steps) at the last row, for steps/s
        self.last_row: dict[str, Any] = {}
        self.pruned = False
        self.restored_from: dict[str, Any] | None = None  # the manifest of the checkpoint that was taken up

    def run(self) -> str:
        """Train from where `restore` has left off to the end; return the status it ends with."""
        if self.restored_from is not None:
            self.report_dropped_promises(self.restored_from.get("fingerprint", {}))
        elif self.save_first:
            self.save()
        self.report_unrepeatable()
        for notice in self.algorithm.notices():
            self.console.notice(notice)
        self.window = (self.clock.seconds(), self.algorithm.steps)
        self.evaluate_pending()
        while not self.done() and not self.signals.received:
            before = self.algorithm.steps
            metrics = self.iterate()
            now = self.algorithm.steps
            self.check_finite(metrics)
            self.write_log(before, now, metrics)
            if crossed(self.eval.every, before, now):
                self.pending_evaluation = now
                self.evaluate_pending()
            if crossed(self.checkpoint.every, before, now) or self.algorithm.must_save():
                self.save()
        self.save()
        if self.signals.received:
            return INTERRUPTED
        return PRUNED if self.pruned else self.finish()

    def iterate(self) -> Metrics:
        """Let the algorithm do one iteration, in all processes of the run."""
        if self.followers is not None:
            self.signals.pass_on(self.followers.step())
        return self.algorithm.setup.world.averaged(self.algorithm.step())

    def done(self) -> bool:
        return self.algorithm.steps >= self.total_steps or self.pruned or self.stopped_early() is not None

    def stopped_early(self) -> str | None:
        """Return the key that ends the run before total_steps, if one does now."""
        if (key := self.algorithm.converged()) is not None:
            return key
        if self.at_return is not None and self.latest_return is not None and self.latest_return >= self.at_return:
            return "stop.at_return"
        if self.after_seconds is not None and self.clock.seconds() >= self.after_seconds:
            return "stop.after_time"
        return None

    # --- State ------------------------------------------------------------------------------------------

    def save(self) -> None:
        step = self.algorithm.steps
        self.check_weights()
        facts = {"fingerprint": self.fingerprint, "time": {"wall_seconds": self.clock.seconds()}}
        state = self.state_dict()
        if self.followers is not None:
            state[OTHERS] = self.followers.parts()
        self.checkpoints.save(step, state, facts)
        self.folder.update_record(steps=step)

    def restore(self) -> None:
        """Take up the newest usable checkpoint; without one, begin at the beginning."""
        others = self.take_up()
        if self.followers is not None:
            self.followers.restore(self.state_dict(), others)

    def take_up(self) -> list[dict[str, Any]]:
        """Take up the first process's part of a checkpoint, and return those of the others."""
        found = self.checkpoints.newest(self.console.notice)
        if found is None:
            if self.folder.record()["steps"] or (self.folder.path / METRICS).stat().st_size:
                self.console.notice("no checkpoint was written yet: beginning at step 0")
            self.logger.load_state_dict({})
            self.checkpoints.discard_best_after(0)
            return []
        state, manifest = found
        others: list[dict[str, Any]] = state.pop(OTHERS, [])
        try:
            self.load_state_dict(state)
        except StateMismatch as error:
            raise misfit(manifest["step"], error) from error
        except RunFailed as error:
            raise RunFailed(f"checkpoint of step {manifest['step']} cannot be gone on from: {error}") from error
        self.checkpoints.discard_best_after(manifest["step"])
        self.clock.earlier = manifest.get("time", {}).get("wall_seconds", 0.0)
        self.restored_from = manifest
        self.console.notice(f"continuing from step {manifest['step']:,} of {self.total_steps:,}")
        return others

    def report_dropped_promises(self, stored: dict[str, Any]) -> None:
        """Say in what this session differs from the one that wrote the checkpoint."""
        names = sorted(stored.keys() | self.fingerprint.keys())
        changed = [n for n in names if stored.get(n) != self.fingerprint.get(n)]
        for name in changed:
            self.console.notice(
                f"not bit-identical to an undisturbed run from here on: {name} was "
                f"{stored.get(name, 'not recorded')}, is {self.fingerprint.get(name, 'not recorded')}"
            )
        drifts = {c.envs.drift for c in self.algorithm.setup.collectors if c.envs.drift}
        drifts |= self.followers.drifts if self.followers is not None else set()
        for drift in sorted(drifts):
            self.console.notice(f"not bit-identical to an undisturbed run from here on: {drift}")
        if changed or drifts:
            self.drop_promise([*changed, *sorted(drifts)])

    def report_unrepeatable(self) -> None:
        """Say so if the algorithm is one that no two runs of end alike."""
        if (because := self.algorithm.unrepeatable()) is not None:
            self.console.notice(f"not bit-identical to another run of the same command: {because}")
            self.drop_promise([because])

    def drop_promise(self, because: list[str]) -> None:
        """Record from which step on, and why, this run may end otherwise than an undisturbed one."""
        event = {"event": "promise dropped", "step": self.algorithm.steps, "because": because}
        self.folder.update_record(lineage=[*self.folder.record()["lineage"], event])

    # --- Numbers ----------------------------------------------------------------------------------------

    def write_log(self, before: int, now: int, metrics: Metrics) -> None:
        for collector in self.algorithm.setup.collectors:
            for episode in collector.pop_episodes():
                self.logger.episode(episode)
        if not (crossed(self.log.every, before, now) or now >= self.total_steps):
            return
        seconds, (last_seconds, last_steps) = self.clock.seconds(), self.window
        speed = (now - last_steps) / max(seconds - last_seconds, 1e-9)
        self.window = (seconds, now)
        collectors = self.algorithm.setup.collectors
        share = -max(1, RECENT // max(1, len(collectors)))  # of the latest episodes, for each of several collectors
        returns = [r for c in collectors for r in list(c.recent_returns)[share:]]
        lengths = [n for c in collectors for n in list(c.recent_lengths)[share:]]
        rollout = (
            {
                "rollout/ep_rew_mean": sum(returns) / len(returns),
                "rollout/ep_len_mean": sum(lengths) / len(lengths),
            }
            if returns
            else {}
        )
        timing = {"time/fps": round(speed, 1), "time/time_elapsed": round(seconds, 3)}
        self.last_row = self.logger.metrics(now, metrics | rollout | timing)
        self.console.progress(now, self.last_row, speed)

    def check_finite(self, metrics: Metrics) -> None:
        """Halt on a loss that is not finite, keeping the batch that led to it. Raises RunFailed."""
        loss = metrics.get("train/loss")
        if loss is None or math.isfinite(float(loss)):
            return
        path = self.folder.path / "not_finite.pt"
        batch = {name: t.cpu() for name, t in self.algorithm.batch.items() if isinstance(t, Tensor)}
        buffer = io.BytesIO()
        torch.save({"step": self.algorithm.steps, "batch": batch}, buffer)
        write_atomically(path, buffer.getvalue())
        raise RunFailed(
            f"train/loss={float(loss)} at step {self.algorithm.steps:,}: the run is halted, its last good "
            f"checkpoint is kept, and the batch is in {path}. This reproduces it:\n  rlrun resume "
            f"'{self.folder.path}'"
        )

    def check_weights(self) -> None:
        """Keep weights that are not finite from taking the place of good ones. Raises RunFailed."""
        weights = [p for net in self.algorithm.networks().values() for p in net.parameters()]
        if weights and not torch.stack([p.isfinite().all() for p in weights]).all():
            raise RunFailed(
                f"weights at step {self.algorithm.steps:,} are not finite: the run is halted and its last good "
                f"checkpoint kept. This reproduces it:\n  rlrun resume '{self.folder.path}'"
            )

    # --- Evaluation -------------------------------------------------------------------------------------

    def evaluate_pending(self) -> None:
        """Evaluate the present policy if that is due; an interruption leaves it due."""
        step = self.pending_evaluation
        if step is None:
            return
        started = self.clock.seconds()
        evaluation = self.evaluator.evaluate(
            self.seeds.episodes(f"evaluation {step}", SELECTION_SEEDS, self.eval.episodes)
        )
        if evaluation is None:
            return
        seconds, steps = self.window  # steps/s are those of training
        self.window = (seconds + self.clock.seconds() - started, steps)
        self.pending_evaluation = None
        self.latest_return = evaluation.mean_return
        if self.best_return is None or evaluation.mean_return > self.best_return:
            self.best_return = evaluation.mean_return
            self.checkpoints.save_best(step, self.policy_state(), {"mean_return": evaluation.mean_return})
        self.logger.evaluation({"step": step, **evaluation.row()})
        self.logger.metrics(
            step, {"eval/mean_reward": evaluation.mean_return, "eval/mean_ep_length": evaluation.mean_length}
        )
        self.pruned = self.prune is not None and self.prune(step, evaluation.mean_return)

        if not self.done():  # finish draws the last ones
            self.draw_pictures(step)

    def draw_pictures(self, step: int) -> None:
        for name, png in self.algorithm.pictures().items():
            self.logger.image(step, name, png)

    def policy_state(self) -> dict[str, Any]:
        """Return what it takes to play the present policy."""
        return {"policy": self.algorithm.policy_state_dict(), "normalizer": self.normalizer.state_dict()}

    def finish(self) -> str:
        """Evaluate the last policy on episodes that chose nothing, and write the result."""
        started = time.monotonic()
        seeds = self.seeds.episodes("report", REPORT_SEEDS, self.eval.final_episodes)
        final = self.evaluator.evaluate(seeds)
        if final is None:
            return INTERRUPTED
        steps, wall = self.algorithm.steps, self.clock.seconds()
        early = self.stopped_early() if steps < self.total_steps else None
        self.draw_pictures(steps)
        write_json(
            self.folder.path / "result.json",
            {
                **final.row(),
                "steps": steps,
                "stopped_early": early,
                "best_evaluation": self.best_return,
                "protocol": self.protocol,
                "time/wall_seconds": round(wall, 3),
                "time/evaluation_seconds": round(time.monotonic() - started, 3),
            },
        )
        self.logger.result(steps, final.mean_return)
        self.console.notice(result_line(final, steps, wall) + (f", ended early by {early}" if early else ""))
        return FINISHED


def result_line(final: Evaluation, steps: int, wall: float) -> str:
    return (
        f"return {final.mean_return:.2f} ± {final.std_return:.2f} over {len(final.returns)} episodes "
        f"after {steps:,} steps in {human_seconds(wall)}"
    )
