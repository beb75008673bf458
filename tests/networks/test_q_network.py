from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rlrun.networks.noisy import NoisyLinear, resample
from rlrun.networks.q_network import QNetwork
from rlrun.networks.torsos import MLP, ImpalaCNN, NatureCNN, Torso

PICTURES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTORS = spaces.Box(-1, 1, (5,), np.float32)
MakeTorso = Callable[[], Torso]


def mlp(*hidden: int, layer_norm: bool = False) -> MakeTorso:
    return lambda: MLP(VECTORS, list(hidden), "relu", layer_norm)


def nature() -> NatureCNN:
    return NatureCNN(PICTURES, [32, 64, 64], [8, 4, 3], [4, 2, 1], 512, "relu", False)


TORSOS: dict[str, MakeTorso] = {
    "mlp": mlp(16, 8),
    "one layer": mlp(16),
    "no layer": mlp(),
    "layer norm": mlp(16, 8, layer_norm=True),
    "nature": nature,
    "impala": lambda: ImpalaCNN(PICTURES, [4, 8], 32, "relu", False),
}


def network(
    make_torso: MakeTorso, num_outputs: int = 1, *, dueling: bool = False, noisy_sigma: float | None = None
) -> QNetwork:
    torch.manual_seed(0)
    return QNetwork(make_torso, 3, num_outputs, dueling=dueling, noisy_sigma=noisy_sigma)


def observations(make_torso: MakeTorso, count: int = 2) -> torch.Tensor:
    pictures = make_torso in (TORSOS["nature"], TORSOS["impala"])
    return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8) if pictures else torch.randn(count, 5)


def num_weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", TORSOS)
def test_a_split_torso_put_together_again_is_the_torso(name: str) -> None:
    torso = TORSOS[name]()
    obs = observations(TORSOS[name])
    body, last = torso.split()
    expected = torso(obs)
    assert torch.equal(nn.Sequential(body, *last)(obs), expected)
    assert sum(isinstance(layer, nn.Linear) for layer in last) <= 1
    assert len(body) + len(last) == len(list(torso))


@pytest.mark.parametrize("noisy_sigma", [None, 0.5])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("num_outputs", [1, 7])
@pytest.mark.parametrize("name", TORSOS)
def test_each_action_gets_its_numbers_on_any_torso(
    name: str, num_outputs: int, dueling: bool, noisy_sigma: float | None
) -> None:
    net = network(TORSOS[name], num_outputs, dueling=dueling, noisy_sigma=noisy_sigma)
    obs = observations(TORSOS[name])
    assert net(obs).shape == (2, 3, num_outputs)
    assert net.body(obs).shape == (2, net.num_features)
    assert torch.equal(net.head(net.body(obs)), net(obs))


def test_without_switches_it_is_the_network_of_mnih() -> None:
    convolutions = (4 * 8 * 8 + 1) * 32 + (32 * 4 * 4 + 1) * 64 + (64 * 3 * 3 + 1) * 64
    assert num_weights(network(nature)) == convolutions + (7 * 7 * 64 + 1) * 512 + (512 + 1) * 3


def test_dueling_has_a_hidden_layer_for_the_value_and_one_for_the_advantages() -> None:
    convolutions = (4 * 8 * 8 + 1) * 32 + (32 * 4 * 4 + 1) * 64 + (64 * 3 * 3 + 1) * 64
    streams = 2 * (7 * 7 * 64 + 1) * 512 + (512 + 1) * 3 * 51 + (512 + 1) * 51
    assert num_weights(network(nature, 51, dueling=True)) == convolutions + streams


@pytest.mark.parametrize("num_outputs", [1, 7])
def test_the_mean_over_the_actions_is_the_value(num_outputs: int) -> None:
    """Eq. (9) of Wang et al.: the advantages' mean is taken off, for each atom by itself."""
    net = network(mlp(16, 8), num_outputs, dueling=True)
    obs = torch.randn(6, 5)
    assert net.value is not None
    features = net.body(obs)
    value = net.value(features)
    torch.testing.assert_close(net(obs).mean(1), value)
    advantage = net.advantage(features).view(6, 3, num_outputs)
    expected = value[:, None] + advantage - advantage.mean(1, keepdim=True)
    torch.testing.assert_close(net(obs), expected)


def test_actions_and_their_numbers_are_not_mixed_up() -> None:
    """The last layer's output a * Z + z belongs to number z of action a, as a reshape of the paper's layer has it."""
    net = network(mlp(16, 8), 7)
    last = net.advantage[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.arange(21.0))
    assert net(torch.randn(1, 5))[0].tolist() == torch.arange(21.0).view(3, 7).tolist()


@pytest.mark.parametrize("dueling", [False, True])
def test_all_layers_of_the_head_are_noisy_and_none_of_the_body(dueling: bool) -> None:
    net = network(nature, 7, dueling=dueling, noisy_sigma=0.5)
    heads = [net.advantage] + ([net.value] if net.value is not None else [])
    assert not any(isinstance(layer, NoisyLinear) for layer in net.body.modules())
    for head in heads:
        assert not any(isinstance(layer, nn.Linear) for layer in head.modules())
        assert sum(isinstance(layer, NoisyLinear) for layer in head.modules()) == 2
    obs = observations(TORSOS["nature"])
    before = net(obs)
    resample(net, torch.Generator().manual_seed(1))
    assert not torch.equal(net(obs), before)


def test_the_streams_of_value_and_advantages_share_no_weights() -> None:
    net = network(mlp(16, 8, layer_norm=True), dueling=True)
    assert net.value is not None
    ids = [{id(p) for p in part.parameters()} for part in (net.body, net.advantage, net.value)]
    assert not ids[0] & ids[1]
    assert not ids[1] & ids[2]
    hidden = [next(iter(part.parameters())) for part in (net.advantage, net.value)]
    assert not torch.equal(*hidden)


@pytest.mark.parametrize("dueling", [False, True])
def test_values_are_float32_under_autocast_too(dueling: bool) -> None:
    net = network(mlp(16, 8), 7, dueling=dueling)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.randn(2, 5)).dtype == torch.float32


NORMALIZED: dict[str, tuple[MakeTorso, int]] = {  # and the number of their activations
    "mlp": (mlp(16, 8, layer_norm=True), 2),
    "nature": (lambda: NatureCNN(PICTURES, [32, 64, 64], [8, 4, 3], [4, 2, 1], 512, "relu", True), 4),
    "impala": (lambda: ImpalaCNN(PICTURES, [4, 8], 32, "relu", True), 10),
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_layer_norm_stands_before_each_activation(name: str) -> None:
    make, count = NORMALIZED[name]
    torso = make()
    entering: list[torch.Tensor] = []
    for layer in torso.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0].flatten(1)))
    torso(torch.randn(2, 5) if name == "mlp" else torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8))
    assert len(entering) == count
    for x in entering:
        torch.testing.assert_close(x.mean(1), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(x.var(1, unbiased=False), torch.ones(2), atol=0.05, rtol=0)
