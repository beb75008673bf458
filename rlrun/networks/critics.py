"""Several action values at once. E critics, B batch, A actions.

Each critic is a torso of its own with a linear head. Where torsos consist of linear layers, E of them are computed
as one network of stacked weights: half as many operations on the way forward and back, and in the optimizer, as two
networks would take.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.networks.bounded import ActionBounds
from rlrun.networks.chain import Chained, Form, Run, Views, chains, worth_a_chain
from rlrun.networks.linear import Head, Linear, StackedHead, StackedLinear, first
from rlrun.networks.torsos import ACTIVATIONS, Torso, entry, orthogonal

MakeTorso = Callable[..., Torso]


class ContinuousCritics(nn.Module):
    """Q_1 ... Q_E of an observation and an action, which enter concatenated, the action in [-1, 1]."""

    def __init__(
        self, make_torso: MakeTorso, obs_space: spaces.Space, action_space: spaces.Box, num_critics: int
    ) -> None:
        super().__init__()
        self.entry = entry(obs_space)
        self.bounds = ActionBounds(action_space)
        width = spaces.flatdim(obs_space) + spaces.flatdim(action_space)
        both = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.members = ensemble([_with_head(make_torso(both), 1) for _ in range(num_critics)])

    def forward(self, obs: Tensor, action: Tensor, count: int | None = None) -> Tensor:
        """obs: [B, *obs], action: [B, *act] in the environment's units -> the first `count` values, [E, B] float32."""
        inputs = torch.cat([self.entry(obs), self.bounds.to_unit(action)], dim=-1)
        return self.members(inputs, count).squeeze(-1).float()


class DiscreteCritics(nn.Module):
    """Q_1(s, .) ... Q_E(s, .) of all actions."""

    def __init__(self, make_torso: MakeTorso, num_actions: int, num_critics: int) -> None:
        super().__init__()
        self.members = ensemble([_with_head(make_torso(), num_actions) for _ in range(num_critics)])

    def forward(self, obs: Tensor) -> Tensor:
        """obs: [B, *obs] -> [E, B, A] float32."""
        return self.members(obs).float()


def ensemble(members: Sequence[nn.Sequential]) -> nn.Module:
    """Return networks of one form as one: [B, *in] -> [E, B, out], stacked if they can be."""
    layers = list(zip(*members, strict=True))
    start = next((i for i, row in enumerate(layers) if isinstance(row[0], nn.Linear)), 0)
    stackable = all(type(row[0]) in STACKED or type(row[0]) in ACTIVATIONS.values() for row in layers[start:])
    if stackable and not any(list(row[0].parameters()) for row in layers[:start]):
        return Stacked(members, start)
    return Separate(members)


class Stacked(nn.Module):
    """E networks whose weights are stacked. The layers before `start`, the first linear one, have no weights."""

    def __init__(self, members: Sequence[nn.Sequential], start: int) -> None:
        super().__init__()
        self.num_members = len(members)
        self.entry = members[0][:start]
        rows = list(zip(*members, strict=True))[start:]
        self.layers = nn.Sequential(*(STACKED.get(type(row[0]), _shared)(row) for row in rows))
        run = Run.first_of(list(self.layers))
        self.run = run if run is not None and len(run) == len(self.layers) else None
        if self.run is not None:
            form = Form(self.run.activation, self.run.activated, None)
            self.views = {count: Views(form) for count in range(1, self.num_members + 1)}

    def forward(self, inputs: Tensor, count: int | None = None) -> Tensor:
        """inputs: [B, *in] -> the outputs of the first `count` networks, all if None: [count, B, out]."""
        x, count = self.entry(inputs), count or self.num_members
        if self.run is not None:
            weights = [first(weight, count) for weight in self.run.weights()]
            if worth_a_chain(x, weights, count):
                return chains(x, weights, self.views[count])[0]
        return self.layers(x.expand(count, -1, -1))


class Separate(nn.Module):
    """E networks of any kind, one after the other."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor, count: int | None = None) -> Tensor:
        return torch.stack([member(inputs) for member in self.members[:count]])


class StackedLayerNorm(nn.Module):
    """[E, B, F] -> [E, B, F], each with a scale and an offset of its own."""

    def __init__(self, layers: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.shape, self.eps = layers[0].normalized_shape, layers[0].eps
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]).unsqueeze(1))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        normalized = nn.functional.layer_norm(x, self.shape, eps=self.eps)
        return torch.addcmul(first(self.bias, len(x)), normalized, first(self.weight, len(x)))


STACKED: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: StackedLinear,
    Linear: StackedLinear,
    Head: StackedHead,
    nn.LayerNorm: StackedLayerNorm,
}


def _shared(row: Sequence[nn.Module]) -> nn.Module:
    return row[0]


def _with_head(torso: Torso, num_outputs: int) -> nn.Sequential:
    """Return the torso with a linear layer on top, flat if the torso is no more than its layers."""
    layers = list(torso) if type(torso).forward is Torso.forward else [torso]
    return Chained(*layers, orthogonal(Head(torso.out_features, num_outputs), gain=1.0))
