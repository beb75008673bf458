"""The base of all algorithms: a dataclass whose fields are its hyperparameters."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.data.collector import Batch, Collector, State
from rlrun.data.remote_collector import RemoteCollector
from rlrun.data.replay import Replay
from rlrun.data.tabular_collector import TabularCollector
from rlrun.device import Device
from rlrun.distributed import LONE, World
from rlrun.envs.normalizer import Normalizer
from rlrun.envs.tabular import Model
from rlrun.errors import UserError
from rlrun.networks.actor_critic import ActorCritic
from rlrun.networks.torsos import Torso
from rlrun.seeding import Seeds
from rlrun.stateful import Stateful

Metrics = dict[str, float | Tensor]


@dataclass(kw_only=True, eq=False)
class Setup:
    """What an algorithm is given besides its numbers."""

    obs_space: spaces.Space
    action_space: spaces.Space
    make_torso: Callable[..., Torso]  # (space=obs_space): a new torso; its out_features says how wide
    make_actor_critic: Callable[..., ActorCritic]  # (share_torso, log_std_init): on torsos with a memory or without
    recurrent: bool  # whether the network has a memory
    # (num_envs, raw=False, name=None): see Collector; the name is that of the environments' generator
    make_collector: Callable[..., Collector]
    make_tabular_collector: Callable[[], TabularCollector]  # for Discrete spaces
    make_model: Callable[[], Model]  # raises UserError where the environment brings none
    make_replay: Callable[..., Replay]  # see build._make_replay
    normalizer: Normalizer
    normalized: list[str]  # of the keys normalize_obs and normalize_reward those that are on
    seeds: Seeds
    device: Device
    total_steps: int
    world: World = LONE  # the processes that share the environments and the minibatches
    # all that were made
    collectors: list[Collector | RemoteCollector | TabularCollector] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)  # all that make_replay made


@dataclass(kw_only=True, eq=False)
class Algorithm(Stateful, ABC):
    """One algorithm, as its paper's pseudocode states it.

    The fields are hyperparameters, in the order of conf/algo/<name>.yaml, without defaults here: each number
    has one home. `__post_init__` makes networks, optimizers, generators and a collector; whatever it puts
    on `self` is saved and restored without further ado (see `Stateful`). `step` is one iteration of the
    paper's outer loop, and `act` is the policy that evaluation plays. `batch` is what the update at hand
    learns from, kept for the record when a loss turns out not to be finite.
    """

    action_spaces: ClassVar[tuple[str, ...]]  # the Gymnasium spaces that it can act in
    obs_spaces: ClassVar[tuple[str, ...] | None] = None  # those that it can observe; None: whatever its network can
    recurrent: ClassVar[bool] = False  # whether it takes networks with a memory
    distributed: ClassVar[bool] = False  # whether a run can be split over several processes
    transient: ClassVar[frozenset[str]] = frozenset({"batch"})

    setup: Setup

    def __post_init__(self) -> None:
        self.batch: Batch = {}

    @property
    def steps(self) -> int:
        """Environment steps so far, over all environments."""
        return sum(collector.steps for collector in self.setup.collectors)

    @property
    def progress(self) -> float:
        """The part of the run that is done, in [0, 1], for schedules."""
        return min(self.steps / self.setup.total_steps, 1.0)

    @property
    def num_actions(self) -> int:
        """How many actions there are, of an algorithm whose spaces are Discrete."""
        assert isinstance(self.setup.action_space, spaces.Discrete)
        return int(self.setup.action_space.n)

    @abstractmethod
    def step(self) -> Metrics:
        """Do one iteration and return numbers worth logging, under Stable-Baselines3's names."""

    @abstractmethod
    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        """Choose actions as evaluation does: obs [B, *obs] -> actions [B, *act].

        `state` is a recurrent policy's memory (None at first), `first`: [B] bool marks new episodes.
        Random choices draw from torch's global generator, which evaluation seeds and puts back.
        """

    def converged(self) -> str | None:
        """Return the key that says that there is nothing left to learn, once there is not; it ends the run."""
        return None

    def pictures(self) -> dict[str, bytes]:
        """Return PNGs of what was learned so far, by name; they are kept at each evaluation and at the end."""
        return {}

    def stored_steps(self) -> int:
        """Return how many environment steps are held in memory at once, for the estimate before a run."""
        return 0

    def saved_steps(self) -> int:
        """Return how many environment steps a checkpoint holds, besides those of a replay."""
        return 0

    def copies(self) -> int:
        """Return how many more copies of the weights than `networks` tells of are in memory and in a checkpoint."""
        return 0

    def threads_at_once(self) -> int:
        """Return how many threads of its own compute at the same time; the processor's cores are shared out."""
        return 1

    def threads_meanwhile(self) -> int:
        """Return how many threads do something else while torch's compute."""
        return 0

    def must_save(self) -> bool:
        """Say whether a checkpoint is due now, whatever the cadence, because a replay's slack runs out."""
        return any(replay.ring.must_save() for replay in self.setup.replays)

    def notices(self) -> list[str]:
        """Return what is worth knowing before the first step, because a number makes the others idle."""
        return []

    def unrepeatable(self) -> str | None:
        """Return what keeps two runs of one configuration from being bit-identical, if anything does."""
        return None

    def close(self) -> None:
        """End what outlives a `step`, such as processes."""

    def policy_state_dict(self) -> dict[str, Any]:
        """Return what `act` needs: its networks, without optimizers, generators and counters."""
        return {name: module.state_dict() for name, module in self.acting_networks().items()}

    def load_policy_state_dict(self, state: dict[str, Any]) -> None:
        for name, module in self.acting_networks().items():
            module.load_state_dict(state[name])

    def begin(self, *, new: bool) -> dict[str, Any]:
        """Get from elsewhere what training takes, and acting does not; called before a run's first step and on resume.

        Return {configuration key: which stored run}, for the record, where something is taken from one. Only a `new`
        run may do so: what was taken is state from then on, and the other run may be gone later.
        """
        return {}

    def warm_start(self, state: dict[str, Any]) -> None:
        """Begin with a policy from elsewhere. A network `target_x` is a copy of the network `x`, and follows it."""
        self.load_policy_state_dict(state)
        networks = self.networks()
        for name, network in networks.items():
            if (target := networks.get(f"target_{name}")) is not None:
                target.load_state_dict(network.state_dict())

    def acting_networks(self) -> dict[str, nn.Module]:
        """Return the networks that `act` uses: all of them, unless an algorithm says otherwise."""
        return self.networks()

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks among the attributes, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, nn.Module)}


def check_range(key: str, value: float | None, low: float, high: float = float("inf")) -> None:
    """Raise UserError unless low <= value <= high; None passes (the key is switched off)."""
    if value is not None and not (low <= value <= high and math.isfinite(value)):
        expected = f"in [{low:g}, {high:g}]" if high != float("inf") else f"at least {low:g}"
        raise UserError(f"{key}={value} is out of range: expected a number {expected}")


def check_minibatch(batch_size: int, rollout: int, sequence: int = 1, processes: int = 1) -> None:
    """Raise UserError unless minibatches of `batch_size` split a rollout of so many steps evenly.

    A larger minibatch than the rollout is the whole of it, so that num_envs can be lowered alone. `sequence` is how
    many steps stay together, because a network with a memory learns from all of them in turn; each of some processes
    takes an equal share of a minibatch.
    """
    check_range("algo.batch_size", batch_size, 1)
    unit = sequence * processes
    if batch_size >= rollout or (rollout % batch_size == 0 and batch_size % unit == 0):
        return
    divisors = [d for d in range(max(2, unit), rollout + 1) if rollout % d == 0 and d % unit == 0]
    best = min(divisors, key=lambda d: abs(d - batch_size), default=rollout)
    whole = f" and be a multiple of num_steps = {sequence}, as the network has a memory" if sequence > 1 else ""
    if processes > 1:
        whole += f" and give each of {processes} processes as many {'sequences' if sequence > 1 else 'steps'}"
    raise UserError(f"algo.batch_size={batch_size} must divide num_envs * num_steps = {rollout}{whole}; try {best}")


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, max_grad_norm: float | None, world: World = LONE) -> None:
    """Take one step of the optimizer down the gradient of the loss by its weights.

    The loss is the mean over this process's share of the minibatch; the step is that of the whole.
    """
    weights = derive(loss, optimizer)
    world.average_gradients(weights)
    clip_gradients(weights, max_grad_norm)
    optimizer.step()


def derive(loss: Tensor, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Give the optimizer's weights, which are all that the loss is to be derived by, its gradient; return them."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight in weights:
        weight.grad = None
    loss.backward()
    return weights


@np.errstate(all="ignore")  # what is not a number is reported where it is looked at
def clip_gradients(weights: Iterable[Tensor], max_norm: float | None) -> None:
    """Scale the gradients down to a total norm of `max_norm`; null leaves them alone.

    As torch's clip_grad_norm_, but on the CPU only where it is necessary, and with a norm of NumPy's, which for the
    gradients of a small network takes a third of the time.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if max_norm is None or not gradients:
        return
    if any(gradient.device.type != "cpu" for gradient in gradients):
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return
    arrays = [gradient.numpy() for gradient in gradients]
    length = math.sqrt(sum(float(np.vdot(array, array)) for array in arrays))
    if not length + 1e-6 <= max_norm:  # nor if it is not a number
        torch._foreach_mul_(gradients, max_norm / (length + 1e-6))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
