"""Twin delayed deep deterministic policy gradient: DDPG that does not believe its own optimism.

    for each step:
        act by mu(s) + noise, store the step in the replay D, draw a minibatch from D
        a' = clip(mu_target(s') + clip(noise', -c, c))                 target policy smoothing
        y = r + gamma min_i Q_target_i(s', a')                         the smaller of twins
        step down the gradient of  sum_i (Q_i(s, a) - y)^2
        every d updates:                                               delayed policy updates
            step up the gradient of  Q_1(s, mu(s)), by the policy's weights
            Q_target = tau Q + (1 - tau) Q_target, and mu_target likewise

Fujimoto et al. (2018), "Addressing Function Approximation Error in Actor-Critic Methods", arXiv:1802.09477,
Algorithm 1. All noise is in half widths of the action space's bounds. M minibatch.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlrun.algos.algorithm import Metrics, check_range
from rlrun.algos.ddpg import DDPG


@dataclass(kw_only=True, eq=False)
class TD3(DDPG):
    draws: ClassVar[str] = "td3"
    num_critics: ClassVar[int] = 2

    policy_every: int
    target_noise: float
    target_noise_clip: float

    def __post_init__(self) -> None:
        check_range("algo.policy_every", self.policy_every, 1)
        check_range("algo.target_noise", self.target_noise, 0)
        check_range("algo.target_noise_clip", self.target_noise_clip, 0)
        super().__post_init__()
        self.actor_metrics: Metrics = {}  # of the last update that was not left out

    def update(self) -> Metrics:
        self.batch = self.replay.sample(self.batch_size)
        metrics = self.update_critics(self.batch)
        if (self.updates + 1) % self.policy_every == 0:
            self.actor_metrics = self.update_actor(self.batch)
            self.update_targets()
        return metrics | self.actor_metrics

    def next_value(self, next_obs: Tensor) -> Tensor:
        with self.setup.device.autocast():
            action = self.target_actor(next_obs)
            noise = (self.target_noise * self.white_noise(action)).clamp(
                -self.target_noise_clip, self.target_noise_clip
            )
            smoothed = self.target_actor.bounds.add_noise(action, noise)
            return self.target_critics(next_obs, smoothed).amin(0)
