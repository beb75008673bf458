"""Deep Q-network: Q-learning with a neural network, experience replay and a target network.

    for t = 1, 2, ...:
        draw a minibatch of steps from the replay D
        at the same time:
            act epsilon-greedily on Q
            y = r + gamma max_a' Q_target(s', a'),  d = gradient of (y - Q(s, a))^2
        move Q by d, store the step in D
        every C steps: Q_target = Q

Mnih et al. (2015), "Human-level control through deep reinforcement learning", Algorithm 1, but for the order: there
the minibatch is drawn after the step is stored. Acting and the gradient see the same weights either way, and so one
need not wait for the other. Switches, which combine freely, add what came after it:

- double: the action is chosen by Q, and valued by Q_target (van Hasselt et al. 2016, arXiv:1509.06461)
- dueling: separate streams for value and advantages (Wang et al. 2016, arXiv:1511.06581)
- priority_alpha: prioritized replay (Schaul et al. 2016, arXiv:1511.05952)
- n_steps: n-step returns (Sutton 1988; Hessel et al. 2018, arXiv:1710.02298)
- noisy_sigma: exploration by noise on the weights (Fortunato et al. 2018, arXiv:1706.10295)

C51, QR-DQN and IQN extend this class by what they predict; Rainbow is C51 with all switches on. M minibatch,
A actions, Z numbers for each action (here 1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from rlrun.algos.algorithm import Algorithm, Metrics, check_range, clip_gradients, derive, set_learning_rate
from rlrun.algos.meanwhile import Meanwhile
from rlrun.algos.off_policy import OffPolicy
from rlrun.data.collector import Batch, State
from rlrun.data.prioritized import PrioritizedReplay
from rlrun.data.replay import Replay
from rlrun.errors import UserError
from rlrun.math.schedules import crossed, linear
from rlrun.networks.noisy import quiet, resample
from rlrun.networks.optimizers import Adam, RMSpropTF
from rlrun.networks.q_network import QNetwork
from rlrun.networks.target import make_target, rounded


@dataclass(kw_only=True, eq=False)
class DQN(OffPolicy):
    draws: ClassVar[str] = "dqn"
    action_spaces: ClassVar[tuple[str, ...]] = ("Discrete",)
    own_loss: ClassVar[str | None] = None  # what takes the place of loss_name
    transient: ClassVar[frozenset[str]] = Algorithm.transient | {"meanwhile"}

    learning_rate: float
    learning_rate_end: float | None
    optimizer_name: Literal["adam", "rmsprop_centered"]
    optimizer_eps: float
    target_every: int
    loss_name: Literal["huber", "mse"] | None
    max_grad_norm: float | None
    epsilon_start: float
    epsilon_end: float
    epsilon_steps: int
    eval_epsilon: float
    double: bool
    dueling: bool
    n_steps: int
    priority_alpha: float | None
    priority_beta: float
    noisy_sigma: float | None

    def __post_init__(self) -> None:
        self._check()
        super().__post_init__()
        self.net = self.setup.device.place(self.make_network())
        self.target_net = rounded(make_target(self.net), self.setup.device)
        self.optimizer = self.make_optimizer()
        self.meanwhile = Meanwhile([self.net, self.target_net], self.setup.device)

    def make_replay(self) -> Replay:
        return self.replay_of_returns(self.n_steps, self.priority_alpha)

    def make_optimizer(self) -> torch.optim.Optimizer:
        weights = self.net.parameters()
        if self.optimizer_name == "adam":
            return Adam(weights, lr=self.learning_rate, eps=self.optimizer_eps)
        return RMSpropTF(
            weights, lr=self.learning_rate, alpha=0.95, eps=self.optimizer_eps, square_init=0.0, centered=True
        )

    # --- What it predicts; the distributional algorithms differ here alone ------------------------------

    def make_network(self) -> nn.Module:
        return self.make_q_network(1)

    def q_values(self, net: nn.Module, obs: Tensor) -> Tensor:
        """obs: [B, *obs] -> Q(s, .): [B, A]."""
        return net(obs).squeeze(-1)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Return what Q(s, a) shall become, [M]."""
        next_q = self.q_values(self.target_net, batch["next_obs"])
        next_action = self.greedy(batch["next_obs"], next_q)
        next_value = next_q.gather(1, next_action[:, None]).squeeze(1)
        return batch["reward"] + batch["discount"] * next_value

    def losses(self, batch: Batch, targets: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss and the surprise (for priorities) of each sample, [M] both, and the mean of Q.

        targets: waits for what `targets` returns.
        """
        q = self.q_values(self.net, batch["obs"])
        chosen = q.gather(1, batch["action"][:, None]).squeeze(1)
        target = targets()
        loss = nn.functional.smooth_l1_loss if self.loss_name == "huber" else nn.functional.mse_loss
        return loss(chosen, target, reduction="none"), (target - chosen).abs(), q.mean()

    def greedy(self, obs: Tensor, target_q: Tensor) -> Tensor:
        """Return the action that the target values, [M]: by the target itself, or by Q if `double`."""
        return (self.q_values(self.net, obs) if self.double else target_q).argmax(1)

    def make_q_network(self, num_outputs: int) -> QNetwork:
        return QNetwork(
            self.setup.make_torso,
            self.num_actions,
            num_outputs,
            dueling=self.dueling,
            noisy_sigma=self.noisy_sigma,
        )

    # --- The loop ---------------------------------------------------------------------------------------

    def step(self) -> Metrics:
        before = self.steps
        metrics = self.act_and_learn() if self.ready else super().step()
        if crossed(self.target_every, before, self.steps):
            self.target_net.load_state_dict(self.net.state_dict())
        return metrics | {"rollout/exploration_rate": self.epsilon()}

    def act_and_learn(self) -> Metrics:
        """Do an iteration, of which the first gradient is computed while acting."""
        batch = self.prepare()
        with self.meanwhile.round():
            targets = self.meanwhile.start(lambda: self.cast_targets(batch))
            steps = self.meanwhile.start(self.collect)
            metrics = self.differentiate(batch, targets)
            taken = steps()
        self.optimizer.step()
        self.replay.add(taken)
        for _ in range(1, self.num_updates):
            metrics = self.update()
        self.updates += self.num_updates
        return metrics | {"train/n_updates": self.updates}

    def update(self) -> Metrics:
        """Draw a minibatch and step down the gradient of its loss."""
        batch = self.prepare()
        metrics = self.differentiate(batch, lambda: self.cast_targets(batch))
        self.optimizer.step()
        return metrics

    def prepare(self) -> Batch:
        """Draw all that the next gradient depends on."""
        if self.learning_rate_end is not None:
            set_learning_rate(self.optimizer, linear(self.learning_rate, self.learning_rate_end, self.progress))
        self.batch = self.sample()
        self.draw_noise(self.net, self.target_net)
        return self.batch

    def cast_targets(self, batch: Batch) -> Tensor:
        with self.setup.device.autocast():
            return self.targets(batch)

    def differentiate(self, batch: Batch, targets: Callable[[], Tensor]) -> Metrics:
        """Give the weights the gradient of a minibatch's loss, clipped, and the minibatch its new priorities."""
        # Acting casts the same weights meanwhile.
        with self.setup.device.autocast(keep_casts=self.setup.device.spare_threads == 0):
            losses, surprise, q_value = self.losses(batch, targets)
        loss = (losses * batch["weight"]).mean() if "weight" in batch else losses.mean()
        with self.meanwhile.helping():
            weights = derive(loss, self.optimizer)
        clip_gradients(weights, self.max_grad_norm)
        if isinstance(self.replay, PrioritizedReplay):
            self.replay.update(batch["place"], surprise)
        return {"train/loss": loss.detach(), "train/q_value": q_value.detach()}

    def sample(self) -> Batch:
        if isinstance(self.replay, PrioritizedReplay):
            return self.replay.sample(self.batch_size, linear(self.priority_beta, 1.0, self.progress))
        return self.replay.sample(self.batch_size)

    def policy(self, obs: Tensor, state: State, first: Tensor) -> tuple[Batch, State]:
        """Choose as the learner does: at random during the warm-up, then epsilon-greedily."""
        explore = self.coins(len(obs), self.epsilon(), self.generator)
        seen = obs.device.type == "cpu"  # elsewhere to look at the coins is to wait for them, longer than it can save
        if self.warming_up or (seen and explore.all()):
            return {"action": self.random_actions(len(obs), self.generator)}, state
        self.draw_noise(self.net)
        with self.setup.device.autocast():
            greedy = self.q_values(self.net, obs).argmax(1)
        if not seen or explore.any():
            greedy = torch.where(explore, self.random_actions(len(obs), self.generator), greedy)
        return {"action": greedy}, state

    def act(self, obs: Tensor, state: State, first: Tensor) -> tuple[Tensor, State]:
        with self.setup.device.autocast(), quiet(self.net):
            action = self.q_values(self.net, obs).argmax(1)
        if self.eval_epsilon > 0:
            explore = self.coins(len(obs), self.eval_epsilon, None)
            action = torch.where(explore, self.random_actions(len(obs), None), action)
        return action, state

    def epsilon(self) -> float:
        """Return the probability of a random action now."""
        if self.warming_up:
            return 1.0
        return linear(self.epsilon_start, self.epsilon_end, self.steps / max(self.epsilon_steps, 1))

    def draw_noise(self, *nets: nn.Module) -> None:
        if self.noisy_sigma is not None:
            for net in nets:
                resample(net, self.generator)

    def coins(self, count: int, probability: float, generator: torch.Generator | None) -> Tensor:
        return torch.rand(count, generator=generator, device=self.setup.device.torch) < probability

    @property
    def apart(self) -> bool:
        """Say whether acting and a gradient share neither noise nor a generator."""
        return self.noisy_sigma is None and not self.setup.device.compile

    def threads_meanwhile(self) -> int:
        return 1 if self.apart else 0

    def close(self) -> None:
        self.meanwhile.close()

    def acting_networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def _check(self) -> None:
        for key in ("target_every", "n_steps"):
            check_range(f"algo.{key}", getattr(self, key), 1)
        for key in ("learning_rate", "learning_rate_end", "optimizer_eps", "epsilon_steps", "max_grad_norm"):
            check_range(f"algo.{key}", getattr(self, key), 0)
        for key in ("epsilon_start", "epsilon_end", "eval_epsilon", "priority_alpha", "priority_beta"):
            check_range(f"algo.{key}", getattr(self, key), 0, 1)
        check_range("algo.noisy_sigma", self.noisy_sigma, 0)
        if self.own_loss is None and self.loss_name is None:
            raise UserError("algo.loss_name=null: expected huber or mse")
        if self.own_loss is not None and self.loss_name is not None:
            raise UserError(
                f"algo.loss_name={self.loss_name} is not for this algorithm, which has {self.own_loss}: null"
            )
