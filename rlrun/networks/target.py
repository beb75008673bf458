"""Networks that hold still: targets that values are bootstrapped from, and what only passes gradients on."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rlrun.device import Device
from rlrun.networks.chain import Chained
from rlrun.networks.linear import Linear

Module = TypeVar("Module", bound=nn.Module)


def make_target(net: Module) -> Module:
    """Return a copy that no gradient goes into."""
    return deepcopy(net).requires_grad_(False)


def rounded(net: Module, device: Device) -> Module:
    """Give linear layers the weights that autocast makes of them for each forward pass, once and in place.

    Not for a network that moves in small steps, which would be rounded away. Layers that are in no `Chained` keep
    theirs: who knows how they are used.
    """
    if device.precision == "bf16":
        for chained in [module for module in net.modules() if isinstance(module, Chained)]:
            for layer in chained:
                if type(layer) in (nn.Linear, Linear):
                    for name, weight in layer.named_parameters():
                        setattr(layer, name, nn.Parameter(weight.to(torch.bfloat16), requires_grad=False))
    return net


@torch.no_grad()
def polyak_update(target: nn.Module, net: nn.Module, tau: float) -> None:
    """Move the target's weights towards the network's: target = tau net + (1 - tau) target.

    Lillicrap et al. (2016), "Continuous control with deep reinforcement learning", arXiv:1509.02971, Section 3.
    """
    torch._foreach_lerp_(_weights(target), _weights(net), tau)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Run the block with the network's weights as constants: gradients go through it and not into it."""
    weights = _weights(net)
    for weight in weights:
        weight.requires_grad = False
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad = True


_known: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()


def _weights(net: nn.Module) -> list[Tensor]:
    """Return the network's weights, whose number and names do not change: looking for them takes longer than a step."""
    if net not in _known:
        _known[net] = list(net.parameters())
    return _known[net]
