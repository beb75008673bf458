"""Asynchronous advantage actor-critic: workers improve one network, each at its own pace.

    every worker, over and over:
        theta' = theta
        run the policy pi(.|s; theta') for n steps
        R_t = r_t + gamma r_{t+1} + ... + gamma^k V(s_{t+k}; theta')
        d = gradient at theta' of   log pi(a_t|s_t) (R_t - V(s_t)) + beta H(pi(s_t)) - c (R_t - V(s_t))^2
        g = alpha g + (1 - alpha) d^2,   theta = theta + eta d / sqrt(g + epsilon)

Mnih et al. (2016), "Asynchronous Methods for Deep Reinforcement Learning", arXiv:1602.01783, Algorithm S3, with
the RMSProp whose squares g are shared like theta. What is asynchronous about it: while a worker computes d, others
have moved theta away from the theta' that d belongs to. Two clocks say by how much:

- logical: how long a rollout takes is drawn at random, and whoever is done first is next. One process does all of
  it, as if the others ran beside it, so that a run is repeated and resumed bit for bit. `step` is one update.
- wall: the workers are processes, theta and g lie in memory that they share, and the machine decides. As in the
  paper nobody waits for a lock. `step` is a number of rollouts, which the workers take one by one.

Gradients are means over the rollout, and their norm is clipped; the paper sums. T time, B environments of a worker.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from rlrun.algos.algorithm import Algorithm, Metrics, check_range, clip_gradients, set_learning_rate
from rlrun.data.collector import Batch, Collector, State
from rlrun.data.remote_collector import RemoteCollector
from rlrun.device import Device
from rlrun.envs.base import Array
from rlrun.errors import UserError
from rlrun.forked import SharedCounter, Workers, can_fork
from rlrun.math.policy_gradient import actor_critic_loss
from rlrun.math.returns import advantages, explained_variance
from rlrun.math.schedules import linear
from rlrun.networks.actor_critic import ActorCritic
from rlrun.networks.optimizers import RMSpropTF
from rlrun.seeding import seed_global_generators
from rlrun.stateful import Stateful


class Worker(Stateful):
    """What is a worker's own: environments, and a copy theta' of the parameters that it acts and learns with."""

    transient: ClassVar[frozenset[str]] = frozenset({"device"})

    def __init__(self, net: ActorCritic, collector: Collector, generator: torch.Generator, device: Device) -> None:
        self.net, self.collector, self.generator, self.device = net, collector, generator, device
        self.copied_at = 0  # how many updates theta had seen then
        self.done_at = 0.0  # when the logical clock ends its rollout

    def copy(self, net: ActorCritic, num_updates: int) -> None:
        """theta' = theta."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.net.parameters()), list(net.parameters()))
        self.copied_at = num_updates

    def collect(self, num_steps: int) -> Batch:
        """Run theta' for so many steps; return what a collector does."""
        policy = self.net.player(num_steps, self.collector.num_envs, self.generator, self.device)
        return self.collector.collect(policy, num_steps)


@dataclass
class Report:
    """What a worker process did in a step."""

    num_rollouts: int
    totals: dict[str, float]  # of the metrics of its rollouts
    episodes: list[dict[str, float]]
    bad_batch: dict[str, Array] | None  # the one whose loss was not finite


@dataclass(kw_only=True, eq=False)
class A3C(Algorithm):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete", "MultiDiscrete", "Box")
    recurrent: ClassVar[bool] = True
    transient: ClassVar[frozenset[str]] = Algorithm.transient | {"processes", "rollouts", "updates"}

    num_workers: int
    num_envs: int
    num_steps: int
    clock: Literal["logical", "wall"]
    duration_std: float
    rollouts_per_step: int
    learning_rate: float
    learning_rate_end: float
    gamma: float
    entropy_coef: float
    value_coef: float
    max_grad_norm: float | None
    rmsprop_alpha: float
    rmsprop_eps: float
    share_torso: bool
    log_std_init: float
    eval_greedy: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        self.net = self.make_net()
        self.optimizer = RMSpropTF(
            self.net.parameters(), lr=self.learning_rate, alpha=self.rmsprop_alpha, eps=self.rmsprop_eps
        )
        self.num_updates = 0
        self.durations = self.setup.seeds.numpy("a3c durations")
        self.workers: list[Worker] = []  # of the logical clock
        self.processes: Workers[float, Report] | None = None  # of the wall clock, from the first step on
        if self.clock == "logical":
            self.make_workers()
        else:
            self.collector = RemoteCollector()
            self.setup.collectors.append(self.collector)

    def make_net(self) -> ActorCritic:
        net = self.setup.make_actor_critic(share_torso=self.share_torso, log_std_init=self.log_std_init)
        return self.setup.device.place(net)

    def make_worker(self, name: str) -> Worker:
        setup = self.setup
        collector = setup.make_collector(self.num_envs, name=f"environments of {name}")
        worker = Worker(self.make_net(), collector, setup.seeds.torch(name, setup.device.torch), setup.device)
        worker.copy(self.net, self.num_updates)
        return worker

    def step(self) -> Metrics:
        learning_rate = linear(self.learning_rate, self.learning_rate_end, self.progress)
        metrics = self.event(learning_rate) if self.clock == "logical" else self.rush(learning_rate)
        return metrics | {"train/learning_rate": learning_rate, "train/n_updates": self.num_updates}

    def update(self, worker: Worker) -> Metrics:
        """Let a worker finish a rollout and move theta by its gradient."""
        batch = self.batch = worker.collect(self.num_steps)
        loss, metrics = self.loss(worker, batch)
        worker.net.zero_grad()
        loss.backward()
        clip_gradients(worker.net.parameters(), self.max_grad_norm)
        for shared, own in zip(self.net.parameters(), worker.net.parameters(), strict=True):
            shared.grad = own.grad
        self.optimizer.step()
        return metrics

    def loss(self, worker: Worker, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the loss of a rollout at theta', and its parts."""
        net = worker.net
        with torch.no_grad(), self.setup.device.autocast():
            batch = net.judged(batch)
            last_value, final_value = net.bootstrap_values(batch, worker.collector.policy_state)
        advantage = advantages(batch, last_value, final_value, gamma=self.gamma, gae_lambda=1.0)  # R_t - V(s_t)
        target = advantage + batch["value"]
        data = net.samples(batch, {"action": batch["action"], "advantage": advantage, "target": target})
        with self.setup.device.autocast():
            policy, value = net.unroll(data)
        loss, parts = actor_critic_loss(
            policy,
            value,
            data["action"],
            data["advantage"],
            data["target"],
            entropy_coef=self.entropy_coef,
            value_coef=self.value_coef,
        )
        return loss, {**parts, "train/explained_variance": explained_variance(batch["value"], target)}

    # --- The logical clock ------------------------------------------------------------------------------

    def make_workers(self) -> None:
        for number in range(self.num_workers):
            worker = self.make_worker(f"a3c worker {number}")
            worker.done_at = self.duration()
            self.workers.append(worker)

    def event(self, learning_rate: float) -> Metrics:
        """Let the worker that is done first apply its gradient and begin its next rollout."""
        set_learning_rate(self.optimizer, learning_rate)
        worker = min(self.workers, key=lambda worker: worker.done_at)
        metrics = self.update(worker)
        staleness = self.num_updates - worker.copied_at  # updates by others since then
        self.num_updates += 1
        worker.copy(self.net, self.num_updates)
        worker.done_at += self.duration()
        return metrics | {"train/staleness": staleness}

    def duration(self) -> float:
        """Draw how long a rollout takes: gamma-distributed, with mean 1."""
        variance = self.duration_std**2
        return float(self.durations.gamma(1 / variance, variance)) if variance else 1.0

    # --- The wall clock ---------------------------------------------------------------------------------

    def rush(self, learning_rate: float) -> Metrics:
        """Let the worker processes do rollouts_per_step rollouts, as fast as they can; return means over them."""
        if self.processes is None:
            self.processes = self.start_processes()
        self.rollouts.reset()
        reports = self.processes.run(learning_rate)
        done = sum(report.num_rollouts for report in reports)
        self.num_updates += done
        self.collector.add(done * self.num_envs * self.num_steps, [e for report in reports for e in report.episodes])
        for report in reports:
            if report.bad_batch is not None:
                self.batch = {name: torch.from_numpy(rows) for name, rows in report.bad_batch.items()}
        names = {name for report in reports for name in report.totals}
        return {name: sum(report.totals.get(name, 0.0) for report in reports) / done for name in names}

    def start_processes(self) -> Workers[float, Report]:
        """Fork the workers; only now, as a restored optimizer has other tensors than a new one."""
        self.net.share_memory()
        self.optimizer.share_memory()
        self.rollouts, self.updates = SharedCounter(0), SharedCounter(self.num_updates)
        return Workers(self.num_workers, self.make_work)

    def make_work(self, number: int) -> Callable[[float], Report]:
        """Make a worker, in its own process; its environments and generators are not those of earlier sessions."""
        name = f"a3c worker {number} from step {self.steps}"
        seed_global_generators(self.setup.seeds.entropy(name) % 2**63)
        worker = self.make_worker(name)
        worker.collector.first_env = number * self.num_envs
        return lambda learning_rate: self.work(worker, learning_rate)

    def work(self, worker: Worker, learning_rate: float) -> Report:
        """Do rollouts until there are no more of this step."""
        set_learning_rate(self.optimizer, learning_rate)
        report = Report(0, {}, [], None)
        while self.rollouts.next() < self.rollouts_per_step:
            metrics = self.update(worker)
            num_updates = self.updates.next()
            metrics["train/staleness"] = num_updates - worker.copied_at
            worker.copy(self.net, num_updates + 1)
            report.num_rollouts += 1
            for metric, value in metrics.items():
                report.totals[metric] = report.totals.get(metric, 0.0) + float(value)
            if not np.isfinite(float(metrics["train/loss"])):
                report.bad_batch = {name: rows.numpy() for name, rows in self.batch.items()}
                break
        report.episodes = worker.collector.pop_episodes()
        return report

    def unrepeatable(self) -> str | None:
        if self.clock == "logical":
            return None
        return "algo.clock=wall lets processes race: resuming keeps weights, optimizer and steps, and no bits"

    def close(self) -> None:
        if self.processes is not None:
            self.processes.close()
            self.processes = None

    # --- What it is to others ---------------------------------------------------------------------------

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        with self.setup.device.autocast():
            policy, state = self.net.policy(obs, state, first)
        return policy.mode() if self.eval_greedy else policy.sample(), state

    def warm_start(self, state: dict[str, Any]) -> None:
        super().warm_start(state)
        for worker in self.workers:
            worker.copy(self.net, self.num_updates)

    def copies(self) -> int:
        return len(self.workers)

    def stored_steps(self) -> int:
        return self.num_envs * self.num_steps

    def _check(self) -> None:
        if self.clock == "wall":
            self._check_wall_clock()
        check_range("algo.num_workers", self.num_workers, 1)
        check_range("algo.num_envs", self.num_envs, 1)
        check_range("algo.num_steps", self.num_steps, 1)
        check_range("algo.duration_std", self.duration_std, 0)
        check_range("algo.rollouts_per_step", self.rollouts_per_step, 1)
        check_range("algo.learning_rate", self.learning_rate, 0)
        check_range("algo.learning_rate_end", self.learning_rate_end, 0)
        check_range("algo.gamma", self.gamma, 0, 1)
        check_range("algo.entropy_coef", self.entropy_coef, 0)
        check_range("algo.value_coef", self.value_coef, 0)
        check_range("algo.max_grad_norm", self.max_grad_norm, 0)
        check_range("algo.rmsprop_alpha", self.rmsprop_alpha, 0, 1)
        check_range("algo.rmsprop_eps", self.rmsprop_eps, 0)

    def _check_wall_clock(self) -> None:
        """Raise UserError for what processes cannot share, or not exactly."""
        if self.setup.device.kind != "cpu":
            raise UserError(
                f"algo.clock=wall has its workers share weights on the CPU, and device={self.setup.device.kind}: add "
                "device=cpu, or take algo.clock=logical"
            )
        if not can_fork():
            raise UserError("algo.clock=wall forks its workers, which this platform cannot; take algo.clock=logical")
        if self.setup.normalized:
            keys = " and ".join(f"env.{key}=true" for key in self.setup.normalized)
            raise UserError(
                f"algo.clock=wall has no statistics that its workers share, which {keys} would need: leave it out, or "
                "take algo.clock=logical"
            )
