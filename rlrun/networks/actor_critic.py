"""A policy and a state value, on one torso or on two."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.device import Device
from rlrun.envs.base import Array
from rlrun.math.distributions import Categorical, DiagGaussian, Distribution, MultiCategorical
from rlrun.networks.chain import SideBySide
from rlrun.networks.linear import Head
from rlrun.networks.packed import Packed, worth_packing
from rlrun.networks.torsos import Torso, is_its_layers, orthogonal

MakeTorso = Callable[[], Torso]
Batch = dict[str, Tensor]
Memory = Tensor | None  # of a recurrent network, see recurrent.py
Policy = Callable[[Tensor, Memory, Tensor], tuple[Batch, Memory]]  # see data/collector.py

JUDGED_AT_ONCE = 1_024  # steps; all of a rollout of images would need much memory
DRAWN_AT_ONCE = 1_024  # steps' noise: for all of a long rollout no signal would be heard until it is drawn


class ActorCritic(nn.Module):
    """pi(a|s) and V(s).

    The policy's last layer starts 100 times smaller than the others, so that the first policy is nearly
    uniform whatever the observation; the value's starts with gain 1 (Huang et al. 2022, detail 2).
    """

    def __init__(
        self, make_torso: MakeTorso, action_space: spaces.Space, *, share_torso: bool, log_std_init: float
    ) -> None:
        super().__init__()
        self.policy_torso = make_torso()
        self.value_torso = self.policy_torso if share_torso else make_torso()
        self.policy_head = make_policy_head(action_space, self.policy_torso.out_features, log_std_init)
        self.value_head = orthogonal(Head(self.value_torso.out_features, 1), gain=1.0)
        # Networks of linear layers alone may be one operation, head included: see chain.py, which says when.
        self.policy_with_head = self.side_by_side = None
        self.packable = is_its_layers(self.policy_torso)
        if is_its_layers(self.policy_torso) and is_its_layers(self.value_torso):
            policy, value = [*self.policy_torso, self.policy_head.last], [*self.value_torso, self.value_head]
            self.policy_with_head = SideBySide.of([policy])
            self.side_by_side = None if share_torso else SideBySide.of([policy, value])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the torsos too, which acting, bootstrapping and evaluation use without each other."""
        self.policy_with_head = self.side_by_side = None
        super().compile(*args, **kwargs)
        for torso in {self.policy_torso, self.value_torso}:
            torso.compile(*args, **kwargs)

    def forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        """obs: [B, *obs] -> the action distribution and the value [B], both in float32."""
        if self.side_by_side is not None and (outputs := self.side_by_side(obs)) is not None:
            return self.policy_head.distribution(outputs[0]), outputs[1].squeeze(-1)
        features = self.policy_torso(obs)
        value_features = features if self.value_torso is self.policy_torso else self.value_torso(obs)
        return self.policy_head(features), self._value(value_features)

    def distribution(self, obs: Tensor) -> Distribution:
        if self.policy_with_head is not None and (outputs := self.policy_with_head(obs)) is not None:
            return self.policy_head.distribution(outputs[0])
        return self.policy_head(self.policy_torso(obs))

    def value(self, obs: Tensor) -> Tensor:
        """obs: [B, *obs] -> V [B]. B may be 0: most rollouts cut no episode short."""
        if len(obs) == 0:
            return torch.empty(0, device=obs.device)
        return self._value(self.value_torso(obs))

    def act(self, obs: Tensor, noise: Tensor) -> Batch:
        """Choose actions by noise, with their log-probability and V on a shared torso, where they cost next to nothing.

        obs: [B, *obs], noise: [B, K] -> columns [B, ...].
        """
        if self.value_torso is not self.policy_torso:
            return {"action": self.distribution(obs).perturbed(noise)}
        policy, value = self(obs)
        return sampled(policy, value, noise)

    @torch.no_grad()
    def player(self, num_steps: int, num_envs: int, generator: torch.Generator, device: Device) -> Policy:
        """Return the policy as it is for so many steps of B environments, meanwhile no weight may change.

        The noise that its actions are chosen by does not depend on them, and is drawn for many steps at once.
        """
        noises = self._noises(num_steps, num_envs, generator, device)
        with device.autocast():
            alone = self.value_torso is not self.policy_torso
            outputs = self.policy_with_head.fixed() if alone and self.policy_with_head is not None else None
        if outputs is None and self.packable and worth_packing([*self.policy_torso], num_steps, device):
            return self._packed_player(Packed([*self.policy_torso], device), noises)
        if outputs is None:

            def by_torch(obs: Tensor, memory: Memory, first: Tensor) -> tuple[Batch, Memory]:
                with device.autocast():
                    return self.step(obs, memory, first, next(noises))

            return by_torch

        head, rows = self.policy_head, (noise.numpy() for noise in noises)

        @np.errstate(all="ignore")  # what is not a number is reported where it is looked at
        def by_numpy(obs: Tensor, memory: Memory, first: Tensor) -> tuple[Batch, Memory]:
            return {"action": torch.from_numpy(head.perturbed(outputs(obs)[0], next(rows)))}, memory

        return by_numpy

    def _packed_player(self, features_of: Packed, noises: Iterator[Tensor]) -> Policy:
        def by_onednn(obs: Tensor, memory: Memory, first: Tensor) -> tuple[Batch, Memory]:
            features = features_of(obs)
            policy = self.policy_head(features)
            if self.value_torso is not self.policy_torso:
                return {"action": policy.perturbed(next(noises))}, memory
            return sampled(policy, self._value(features), next(noises)), memory

        return by_onednn

    def _noises(self, num_steps: int, num_envs: int, generator: torch.Generator, device: Device) -> Iterator[Tensor]:
        """Yield the noise of each step, [B, K]."""
        for start in range(0, num_steps, DRAWN_AT_ONCE):
            count = min(DRAWN_AT_ONCE, num_steps - start)
            with torch.no_grad():
                like = torch.zeros(num_envs, count, self.policy_head.last.out_features, device=device.torch)
                rows = self.policy_head.distribution(like).noise(generator).transpose(0, 1).contiguous()
            yield from rows

    # What follows is the same for networks with a memory and without; this one has none: its memory is None.

    def step(self, obs: Tensor, memory: Memory, first: Tensor, noise: Tensor) -> tuple[Batch, Memory]:
        """Return what `act` does and the memory after it; `first`: [B] bool marks new episodes."""
        return self.act(obs, noise), memory

    def policy(self, obs: Tensor, memory: Memory, first: Tensor) -> tuple[Distribution, Memory]:
        """Return the action distribution and the memory after it."""
        return self.distribution(obs), memory

    def judged(self, batch: Batch) -> Batch:
        """Return a rollout with log_prob and value of each step, [T, B]: all at once what acting has left out."""
        if "value" in batch:
            return batch
        judgements = []
        for obs, action in zip(
            batch["obs"].flatten(0, 1).split(JUDGED_AT_ONCE),
            batch["action"].flatten(0, 1).split(JUDGED_AT_ONCE),
            strict=True,
        ):
            policy, value = self(obs)
            judgements.append((policy.log_prob(action), value))
        log_prob, value = (torch.cat(parts).view(batch["first"].shape) for parts in zip(*judgements, strict=True))
        return {**batch, "log_prob": log_prob, "value": value}

    def bootstrap_values(self, batch: Batch, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return V after a rollout, [B], and V of the last observations of the K episodes cut short in it, [K].

        batch: what a collector returned for `step`; memory: the one after its last step.
        """
        return self.value(batch["next_obs"]), self.value(batch["final_obs"])

    def samples(self, batch: Batch, columns: Batch) -> Batch:
        """Arrange a rollout's observations and columns, all [T, B, ...], along a first axis of what may be shuffled.

        That are single steps here, [T B, ...], and whole sequences, [B, T, ...], where there is a memory.
        """
        steps = {name: t.flatten(0, 1) for name, t in {"obs": batch["obs"], **columns}.items()}
        if isinstance(self.policy_torso, Torso):
            steps["obs"] = self.policy_torso.laid_out(steps["obs"])
        return steps

    def unroll(self, samples: Batch) -> tuple[Distribution, Tensor]:
        """Return the action distribution and V for each step of some of the `samples`."""
        return self(samples["obs"])

    def _value(self, features: Tensor) -> Tensor:
        return self.value_head(features).squeeze(-1).float()


def sampled(policy: Distribution, value: Tensor, noise: Tensor) -> Batch:
    """Choose actions [B, *act] by noise; return them with their log-probabilities and values [B]."""
    action = policy.perturbed(noise)
    return {"action": action, "log_prob": policy.log_prob(action), "value": value}


class PolicyHead(nn.Module, ABC):
    """A linear layer, and the distribution that its outputs stand for."""

    def forward(self, features: Tensor) -> Distribution:
        return self.distribution(self.last(features))

    @property
    @abstractmethod
    def last(self) -> nn.Linear:
        """The linear layer."""

    @abstractmethod
    def distribution(self, outputs: Tensor) -> Distribution:
        """outputs: [B, K] -> the distribution of B actions, in float32."""

    @abstractmethod
    def perturbed(self, outputs: Array, noise: Array) -> Array:
        """Return the actions that the distribution's `perturbed` does, of arrays [B, K]."""


class CategoricalHead(PolicyHead):
    def __init__(self, in_features: int, num_actions: int) -> None:
        super().__init__()
        self.logits = orthogonal(Head(in_features, num_actions), gain=0.01)

    @property
    def last(self) -> nn.Linear:
        return self.logits

    def distribution(self, outputs: Tensor) -> Categorical:
        return Categorical(outputs.float())

    def perturbed(self, outputs: Array, noise: Array) -> Array:
        return (outputs + noise).argmax(-1)


class MultiCategoricalHead(PolicyHead):
    def __init__(self, in_features: int, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.logits = orthogonal(Head(in_features, sum(sizes)), gain=0.01)

    @property
    def last(self) -> nn.Linear:
        return self.logits

    def distribution(self, outputs: Tensor) -> MultiCategorical:
        return MultiCategorical(outputs.float(), self.sizes)

    def perturbed(self, outputs: Array, noise: Array) -> Array:
        parts = np.split(outputs + noise, np.cumsum(self.sizes)[:-1], axis=-1)
        return np.stack([part.argmax(-1) for part in parts], axis=-1)


class GaussianHead(PolicyHead):
    """A Gaussian whose standard deviation is learned but does not depend on the state."""

    def __init__(self, in_features: int, num_dims: int, log_std_init: float) -> None:
        super().__init__()
        self.mean = orthogonal(Head(in_features, num_dims), gain=0.01)
        self.log_std = nn.Parameter(torch.full((num_dims,), log_std_init))

    @property
    def last(self) -> nn.Linear:
        return self.mean

    def distribution(self, outputs: Tensor) -> DiagGaussian:
        # A copy: the distribution must stay what it was while a line search moves the weights.
        return DiagGaussian(outputs.float(), self.log_std.clone())

    def perturbed(self, outputs: Array, noise: Array) -> Array:
        return outputs + noise


def make_policy_head(action_space: spaces.Space, in_features: int, log_std_init: float) -> PolicyHead:
    """Return the head that maps features to a distribution over `action_space`."""
    if isinstance(action_space, spaces.Discrete):
        return CategoricalHead(in_features, int(action_space.n))
    if isinstance(action_space, spaces.MultiDiscrete) and action_space.nvec.ndim == 1:
        return MultiCategoricalHead(in_features, [int(n) for n in action_space.nvec])
    if isinstance(action_space, spaces.Box):
        return GaussianHead(in_features, spaces.flatdim(action_space), log_std_init)
    raise ValueError(f"no policy head for the action space {action_space}")


def make_actor(make_torso: MakeTorso, action_space: spaces.Space, log_std_init: float) -> nn.Sequential:
    """Return a policy alone, on a torso of its own and named as in ActorCritic: obs [B, *obs] -> Distribution."""
    torso = make_torso()
    head = make_policy_head(action_space, torso.out_features, log_std_init)
    return nn.Sequential(OrderedDict(policy_torso=torso, policy_head=head))


def make_critic(make_torso: MakeTorso) -> nn.Sequential:
    """Return a state value alone, on a torso of its own: obs [B, *obs] -> V [B]. B may be 0."""
    torso = make_torso()
    head = orthogonal(Head(torso.out_features, 1), gain=1.0)
    return nn.Sequential(OrderedDict(value_torso=torso, value_head=head, flat=nn.Flatten(0)))
