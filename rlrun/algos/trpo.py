"""Trust region policy optimisation: the largest step uphill that changes the policy by no more than delta.

    for iteration = 1, 2, ...:
        run the policy for T steps in B environments, and compute the advantages A
        g = the gradient of   L(theta) = E[pi_theta(a|s) / pi_old(a|s) A]
        x = F^-1 g            by conjugate gradient, F the Fisher matrix of the policy
        step = x sqrt(2 delta / (x F x))
        shorten it until   L improves   and   E[KL(pi_old || pi_theta)] <= delta
        fit V to the returns

Schulman et al. (2015), "Trust Region Policy Optimization", arXiv:1502.05477, with the advantages and the value
function of Schulman et al. (2016), arXiv:1506.02438; the value function is fitted by Adam, as in Baselines' trpo_mpi.
T time, B environments, N = T B states, M minibatch, P parameters.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlrun.algos.algorithm import Metrics, check_minibatch, check_range, descend
from rlrun.algos.on_policy import OnPolicy, minibatches, normalized
from rlrun.data.collector import Batch
from rlrun.errors import UserError
from rlrun.math.distributions import Distribution
from rlrun.math.natural_gradient import VectorProduct, assign, conjugate_gradient, fisher_vector_product, flatten
from rlrun.math.returns import explained_variance
from rlrun.networks.actor_critic import ActorCritic
from rlrun.networks.optimizers import Adam


@dataclass(kw_only=True, eq=False)
class TRPO(OnPolicy):
    draws: ClassVar[str] = "trpo"

    target_kl: float
    num_cg_iterations: int
    cg_damping: float
    fisher_fraction: float
    num_backtracks: int
    backtrack_ratio: float
    batch_size: int
    num_epochs: int
    learning_rate: float
    normalize_advantage: bool
    adam_eps: float

    def make_net(self) -> ActorCritic:
        # Two torsos: a step of V must not move the policy out of its trust region.
        return self.setup.make_actor_critic(share_torso=False, log_std_init=self.log_std_init)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer of V; the policy needs none."""
        value_params = [*self.net.value_torso.parameters(), *self.net.value_head.parameters()]
        return Adam(value_params, lr=self.learning_rate, eps=self.adam_eps)

    def step(self) -> Metrics:
        self.batch = self.rollout()
        data = self.learning_data(self.batch)
        metrics = self.improve_policy(data)
        value_loss = self.fit_value(data)
        self.num_updates += 1
        return metrics | {
            "train/loss": value_loss - metrics["train/policy_objective"],
            "train/value_loss": value_loss,
            "train/explained_variance": explained_variance(data["old_value"], data["target"]),
            "train/n_updates": self.num_updates,
        }

    def learning_data(self, batch: Batch) -> Batch:
        """Return what the update needs for each of the N steps, flat: [N, ...]."""
        advantage = self.advantages(batch)
        target = advantage + batch["value"]
        if self.normalize_advantage:
            advantage = normalized(advantage)
        data = {
            "obs": batch["obs"],
            "action": batch["action"],
            "old_value": batch["value"],
            "advantage": advantage,
            "target": target,
        }
        return {name: tensor.flatten(0, 1) for name, tensor in data.items()}

    def improve_policy(self, data: Batch) -> Metrics:
        """Take one step along the natural gradient, if one helps. All of data: [N, ...].

        In float32 whatever device.precision says: second derivatives and small divergences need the digits.
        """
        with torch.no_grad():
            old = self.net.distribution(data["obs"])
        improvement, _ = self.surrogate(data, old)
        gradient = flatten(torch.autograd.grad(improvement, self.policy_params()))
        fisher = self.fisher(data["obs"])
        direction = conjugate_gradient(fisher, gradient, self.num_cg_iterations)
        # Where KL is delta if it is the parabola x F x / 2. A gradient of zero has no direction and gets no step.
        scale = (2 * self.target_kl / (direction @ fisher(direction)).clamp(min=1e-30)).sqrt()
        return self.line_search(scale * direction, data, old) | {"train/entropy_loss": -old.entropy().mean()}

    def surrogate(self, data: Batch, old: Distribution) -> tuple[Tensor, Tensor]:
        """Return how much more advantage the present policy promises than the old one, and its mean KL from there."""
        new = self.net.distribution(data["obs"])
        log_ratio = new.log_prob(data["action"]) - old.log_prob(data["action"])
        return (log_ratio.expm1() * data["advantage"]).mean(), old.kl(new).mean()  # Eq. (14), less its value at old

    def fisher(self, obs: Tensor) -> VectorProduct:
        """Return the product with the policy's damped Fisher matrix over a part of the states obs: [N, *obs]."""
        if self.fisher_fraction < 1:
            order = torch.randperm(len(obs), generator=self.generator, device=obs.device)
            obs = obs[order[: max(1, round(self.fisher_fraction * len(obs)))]]
        with torch.no_grad():
            old = self.net.distribution(obs)
        return fisher_vector_product(
            old.kl(self.net.distribution(obs)).mean(), self.policy_params(), damping=self.cg_damping
        )

    @torch.no_grad()
    def line_search(self, step: Tensor, data: Batch, old: Distribution) -> Metrics:
        """Take the longest of step, ratio step, ratio^2 step ... that helps and stays near, or none. step: [P]."""
        params = self.policy_params()
        start = flatten(params)
        for i in range(self.num_backtracks):
            assign(params, start + self.backtrack_ratio**i * step)
            improvement, kl = self.surrogate(data, old)
            accepted = bool((improvement > 0) & (kl <= self.target_kl))
            if accepted:
                break
        else:
            assign(params, start)
            improvement, kl = torch.zeros_like(improvement), torch.zeros_like(kl)
        return {
            "train/policy_objective": improvement,
            "train/kl_divergence_loss": kl,
            "train/is_line_search_success": float(accepted),
        }

    def policy_params(self) -> list[Tensor]:
        return [*self.net.policy_torso.parameters(), *self.net.policy_head.parameters()]

    def fit_value(self, data: Batch) -> Tensor:
        """Regress V on the returns for some epochs, and return the mean loss. All of data: [N, ...]."""
        returns = {name: data[name] for name in ("obs", "target")}
        losses = []
        for _ in range(self.num_epochs):
            for minibatch in minibatches(returns, self.batch_size, self.generator):
                with self.setup.device.autocast():
                    value = self.net.value(minibatch["obs"])
                loss = (minibatch["target"] - value).square().mean()
                descend(loss, self.optimizer, max_grad_norm=None)
                losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _check(self) -> None:
        super()._check()
        for key in ("num_cg_iterations", "num_backtracks", "num_epochs"):
            check_range(f"algo.{key}", getattr(self, key), 1)
        for key in ("target_kl", "cg_damping", "learning_rate", "adam_eps"):
            check_range(f"algo.{key}", getattr(self, key), 0)
        check_range("algo.backtrack_ratio", self.backtrack_ratio, 0, 1)
        check_range("algo.fisher_fraction", self.fisher_fraction, 0.001, 1)
        rollout = self.num_envs * self.num_steps
        check_minibatch(self.batch_size, rollout)
        if self.normalize_advantage and rollout == 1:
            raise UserError("algo.num_envs * algo.num_steps = 1 leaves nothing to normalise; try algo.num_steps=1024")
