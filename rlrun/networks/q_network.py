"""Networks that give a value to each action. B batch, A actions, Z numbers for each action."""

from collections.abc import Callable
from copy import deepcopy

from torch import Tensor, nn

from rlrun.networks.chain import Chained
from rlrun.networks.linear import Head
from rlrun.networks.noisy import NoisyLinear
from rlrun.networks.torsos import Torso, orthogonal


class QNetwork(nn.Module):
    """Q(s, .), as Z numbers for each action: 1 for its mean, more for its distribution.

    The torso's last hidden layer belongs to the head, because two papers change it: with `dueling` there is
    one for the state's value and one for the actions' advantages, whose mean is taken off (Wang et al. 2016,
    arXiv:1511.06581, Eq. 9); with `noisy_sigma` its layers are noisy (see `NoisyLinear`).
    """

    def __init__(
        self,
        make_torso: Callable[[], Torso],
        num_actions: int,
        num_outputs: int,
        *,
        dueling: bool,
        noisy_sigma: float | None,
    ) -> None:
        super().__init__()
        self.num_actions, self.num_outputs = num_actions, num_outputs
        torso = make_torso()
        self.body, hidden = torso.split()
        self.num_features: int = next((x.in_features for x in hidden if isinstance(x, nn.Linear)), torso.out_features)

        def stream(out_features: int) -> Chained:
            layers = [_fresh(layer, noisy_sigma) for layer in hidden]
            return Chained(*layers, _linear(torso.out_features, out_features, noisy_sigma, gain=1.0, last=True))

        self.advantage = stream(num_actions * num_outputs)
        self.value = stream(num_outputs) if dueling else None

    def forward(self, obs: Tensor) -> Tensor:
        """obs: [B, *obs] -> [B, A, Z] float32."""
        return self.head(self.body(obs))

    def head(self, features: Tensor) -> Tensor:
        """features: [B, F] -> [B, A, Z] float32."""
        outputs = self.advantage(features).unflatten(-1, (self.num_actions, self.num_outputs)).float()
        if self.value is None:
            return outputs
        value = self.value(features).unsqueeze(-2).float()
        return value + outputs - outputs.mean(-2, keepdim=True)


def _fresh(layer: nn.Module, noisy_sigma: float | None) -> nn.Module:
    """Return a layer like this one, with weights of its own."""
    if isinstance(layer, nn.Linear):
        return _linear(layer.in_features, layer.out_features, noisy_sigma)
    return deepcopy(layer)


def _linear(
    in_features: int, out_features: int, noisy_sigma: float | None, gain: float = 2**0.5, last: bool = False
) -> nn.Module:
    if noisy_sigma is not None:
        return NoisyLinear(in_features, out_features, noisy_sigma)
    return orthogonal((Head if last else nn.Linear)(in_features, out_features), gain)
