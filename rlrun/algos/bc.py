"""Behavioural cloning: learn what to do from someone who can do it, as a pupil learns from a teacher.

    for iteration = 1, 2, ...:
        run the expert for T steps in B environments (on a share 1 - beta of the steps the clone acts)
        note for each observation s the expert's action a*
        ascend  log pi(a*|s)  for K epochs, in minibatches of M <= T B

Pomerleau (1989), "ALVINN: An Autonomous Land Vehicle in a Neural Network"; the name is from Bain and Sammut (1995),
"A Framework for Behavioural Cloning". Cloned from the expert's steps alone, errors lead to where the clone has never
been told what to do; beta < 1 shows it such places, too: Ross, Gordon and Bagnell (2011), "A Reduction of Imitation
Learning and Structured Prediction to No-Regret Online Learning", arXiv:1011.0686. Deviation from their DAgger: the
expert never tires, so that each iteration learns from new steps instead of from all of them so far.

For continuous actions the policy is a Gaussian. With a fixed deviation the likelihood is greatest where the squared
error is least; a learned one (learn_std) falls to 0 as the clone gets exact. The network has a value, too, which
learns nothing here, so that PPO and its kin can begin with all of it (init_from).

T time, B environments, M minibatch.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlrun.algos.algorithm import Algorithm, Metrics, check_minibatch, check_range, descend, set_learning_rate
from rlrun.algos.expert import Expert, make_expert
from rlrun.algos.on_policy import means, minibatches
from rlrun.data.collector import Batch, State
from rlrun.math.distributions import Distribution
from rlrun.math.schedules import linear
from rlrun.networks.optimizers import Adam


@dataclass(kw_only=True, eq=False)
class BC(Algorithm):
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete", "MultiDiscrete", "Box")

    expert: str | None
    expert_checkpoint: str
    expert_greedy: bool
    env_id: str | None
    beta: float
    num_envs: int
    num_steps: int
    batch_size: int
    num_epochs: int
    learning_rate: float
    learning_rate_end: float
    max_grad_norm: float | None
    adam_eps: float
    share_torso: bool
    log_std_init: float
    learn_std: bool
    eval_greedy: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check()
        setup = self.setup
        self.generator = setup.seeds.torch("bc", setup.device.torch)
        self.net = setup.device.place(
            setup.make_actor_critic(share_torso=self.share_torso, log_std_init=self.log_std_init)
        )
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(self.learn_std or not name.endswith("log_std"))
        self.optimizer = Adam(self.net.parameters(), lr=self.learning_rate, eps=self.adam_eps)
        self.collector = setup.make_collector(self.num_envs)
        self.teacher: Expert = make_expert(self.expert, self.expert_checkpoint, self.expert_greedy, self.env_id, setup)
        self.num_updates = 0

    def begin(self, *, new: bool) -> dict[str, Any]:
        return self.teacher.begin(new=new)

    def step(self) -> Metrics:
        learning_rate = linear(self.learning_rate, self.learning_rate_end, self.progress)
        set_learning_rate(self.optimizer, learning_rate)

        self.batch = self.collect()
        data = {name: self.batch[name].flatten(0, 1) for name in ("obs", "wanted")}  # [T B, ...]
        metrics = self.agreement(data)
        seen: list[dict[str, Tensor]] = []
        for _ in range(self.num_epochs):
            for minibatch in minibatches(data, self.batch_size, self.generator):
                loss, parts = self.loss(minibatch)
                descend(loss, self.optimizer, self.max_grad_norm)
                seen.append(parts)
            self.num_updates += 1
        return means(seen) | metrics | {"train/learning_rate": learning_rate, "train/n_updates": self.num_updates}

    def collect(self) -> Batch:
        """Act for T steps in B environments."""
        return self.collector.collect(self.policy, self.num_steps)

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        """Let the expert act, or the clone on its share of the steps; note what the expert would do in any case."""
        # The expert sees observations as the environment gives them, and the clone perhaps normalised ones.
        wanted, state = self.teacher.act(self.collector.obs, state, first)
        wanted = self.executed(wanted)
        if self.beta == 1:
            return {"action": wanted, "wanted": wanted}, state
        with self.setup.device.autocast():
            own = self.executed(self.choose(self.net.distribution(obs), self.generator))
        clone_acts = torch.rand(len(obs), generator=self.generator, device=obs.device) >= self.beta
        return {"action": torch.where(_like(clone_acts, wanted), own, wanted), "wanted": wanted}, state

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        with self.setup.device.autocast():
            return self.choose(self.net.distribution(obs), None), state

    def choose(self, policy: Distribution, generator: torch.Generator | None) -> Tensor:
        return policy.mode() if self.eval_greedy else policy.sample(generator)

    def executed(self, action: Tensor) -> Tensor:
        """Return actions as the environment executes them, continuous ones within their bounds: [B, *act] -> [B, D]."""
        space = self.setup.action_space
        if not isinstance(space, spaces.Box):
            return action
        low, high = (torch.as_tensor(np.ravel(bound), device=action.device) for bound in (space.low, space.high))
        return action.reshape(-1, len(low)).clamp(low, high).float()

    @torch.no_grad()
    def agreement(self, data: Batch) -> Metrics:
        """Say how well the clone does what the expert did on steps that it has not learned from yet."""
        with self.setup.device.autocast():
            own = self.net.distribution(data["obs"]).mode()
        if isinstance(self.setup.action_space, spaces.Box):
            return {"train/mse": (self.executed(own) - data["wanted"]).square().mean()}
        return {"train/accuracy": (own == data["wanted"]).float().mean()}

    def loss(self, data: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one minibatch and what is logged of it. All of data: [M, ...]."""
        with self.setup.device.autocast():
            policy = self.net.distribution(data["obs"])
        loss = -policy.log_prob(data["wanted"]).mean()
        return loss, {"train/loss": loss.detach(), "train/entropy_loss": -policy.entropy().mean().detach()}

    def stored_steps(self) -> int:
        return self.num_envs * self.num_steps

    def _check(self) -> None:
        for key in ("num_envs", "num_steps", "num_epochs"):
            check_range(f"algo.{key}", getattr(self, key), 1)
        for key in ("learning_rate", "learning_rate_end", "max_grad_norm", "adam_eps"):
            check_range(f"algo.{key}", getattr(self, key), 0)
        check_range("algo.beta", self.beta, 0, 1)
        check_minibatch(self.batch_size, self.num_envs * self.num_steps)


def _like(mask: Tensor, action: Tensor) -> Tensor:
    """Return a mask [B] with as many axes as actions [B, ...] have."""
    return mask.view(-1, *([1] * (action.ndim - 1)))
