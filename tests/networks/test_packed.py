"""Convolutional networks as they act: the features of the modules, by weights that are packed once."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.device import Device
from rlrun.networks.actor_critic import DRAWN_AT_ONCE, ActorCritic
from rlrun.networks.bounded import BoundedActor
from rlrun.networks.packed import WORTH_PACKING, Packed, worth_packing
from rlrun.networks.torsos import MLP, NatureCNN

BYTES = spaces.Box(0, 255, (4, 36, 36), np.uint8)
FLOATS = spaces.Box(0, 1, (4, 36, 36), np.float32)
Precision = Literal["float32", "bf16"]


def device(precision: Precision = "float32", **options: Any) -> Device:
    defaults = {"kind": "cpu", "threads": 1, "compile": False, "deterministic": True, "replay_on_device": False}
    return Device(**{**defaults, **options}, precision=precision)


def torso(space: spaces.Space = BYTES, activation: Any = "relu", layer_norm: bool = False) -> NatureCNN:
    torch.manual_seed(0)
    network = NatureCNN(space, [8, 16, 16], [8, 4, 3], [4, 2, 1], 32, activation, layer_norm)
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.bias is not None
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return network


def images(space: spaces.Space, count: int = 5) -> Tensor:
    space.seed(1)
    return torch.from_numpy(np.stack([space.sample() for _ in range(count)]))


def features(network: NatureCNN, obs: Tensor, place: Device) -> Tensor:
    with torch.no_grad(), place.autocast():
        return network(obs).float()


needs_onednn = pytest.mark.skipif(
    not worth_packing([*torso()], WORTH_PACKING, device()), reason="nothing is packed on this processor"
)


@needs_onednn
@pytest.mark.parametrize("space", [BYTES, FLOATS], ids=["bytes", "floats"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_packed_layers_give_the_features_of_the_modules_each_time(precision: Precision, space: spaces.Box) -> None:
    place, network = device(precision), device(precision).place(torso(space))
    packed, obs = Packed([*network], place), images(space)
    expected = features(network, obs, place)
    assert expected.any()
    for _ in range(2):
        torch.testing.assert_close(packed(obs), expected, atol=1e-5 if precision == "float32" else 2e-2, rtol=1e-2)
    other = images(space).flip(0)
    assert torch.equal(packed(other), packed(obs).flip(0))


@needs_onednn
def test_packed_layers_keep_the_weights_of_the_time_when_they_were_packed() -> None:
    network, obs = torso(), images(BYTES)
    packed = Packed([*network], device())
    before = packed(obs)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1)
    assert torch.equal(packed(obs), before)
    assert not torch.allclose(Packed([*network], device())(obs), before)


def test_what_is_not_known_or_seldom_used_is_not_packed() -> None:
    assert not worth_packing([*torso()], WORTH_PACKING - 1, device())
    assert not worth_packing([*torso(activation="tanh")], WORTH_PACKING, device())
    assert not worth_packing([*torso(layer_norm=True)], WORTH_PACKING, device())
    assert not worth_packing([*torso()], WORTH_PACKING, device(compile=True))
    watched = torso()
    watched[1].register_forward_pre_hook(lambda module, args: None)
    assert not worth_packing([*watched], WORTH_PACKING, device())
    assert not worth_packing([nn.Flatten(), nn.Linear(3, 4), nn.ReLU()], WORTH_PACKING, device())


@needs_onednn
@pytest.mark.parametrize("share_torso", [False, True])
def test_a_packed_policy_acts_as_the_modules_do(share_torso: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = ActorCritic(torso, spaces.Discrete(4), share_torso=share_torso, log_std_init=0.0)
    with torch.no_grad():
        net.policy_head.last.weight.mul_(300)  # so that features decide, and not the noise
    obs, first = images(BYTES, 3 * WORTH_PACKING).unflatten(0, (WORTH_PACKING, 3)), torch.zeros(3, dtype=torch.bool)

    def played() -> list[dict[str, Tensor]]:
        act = net.player(WORTH_PACKING, 3, torch.Generator().manual_seed(0), device())
        with torch.no_grad():
            return [act(row, None, first)[0] for row in obs]

    def actions(rows: list[dict[str, Tensor]]) -> Tensor:
        return torch.stack([row["action"] for row in rows])

    packed = played()
    with monkeypatch.context() as patch:
        patch.setattr(net, "packable", False)
        plain = played()
    assert torch.equal(actions(packed), actions(plain))
    assert actions(packed).unique().numel() > 1
    for one, other in zip(packed, plain, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"action"}:
            torch.testing.assert_close(one[name], other[name], atol=1e-3, rtol=1e-3)
    monkeypatch.setattr(Packed, "__call__", lambda self, obs: torch.zeros(len(obs), 32))
    assert not torch.equal(actions(played()), actions(plain))


def test_a_torso_that_does_more_than_its_layers_is_asked_itself() -> None:
    class Doubled(NatureCNN):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class DoubledMLP(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    vectors = spaces.Box(-1, 1, (3,), np.float32)
    pictures = ActorCritic(
        lambda: Doubled(BYTES, [8, 16, 16], [8, 4, 3], [4, 2, 1], 32, "relu", False),
        spaces.Discrete(2),
        share_torso=True,
        log_std_init=0.0,
    )
    assert not pictures.packable
    net = ActorCritic(
        lambda: DoubledMLP(vectors, [8, 8], "tanh", False), spaces.Discrete(2), share_torso=False, log_std_init=0.0
    )
    obs = torch.randn(20, 3)
    expected = net.policy_head(net.policy_torso(obs)).log_probs
    torch.testing.assert_close(net.distribution(obs).log_probs, expected)
    torch.testing.assert_close(net(obs)[0].log_probs, expected)
    actor = BoundedActor(DoubledMLP(vectors, [8, 8], "relu", False), spaces.Box(-1, 1, (2,), np.float32), 2)
    assert actor.head.weight.any()
    torch.testing.assert_close(actor.outputs(obs), actor.head(actor.torso(obs)))


def test_noise_is_drawn_for_as_many_steps_as_are_asked_for() -> None:
    net = ActorCritic(torso, spaces.Discrete(2), share_torso=True, log_std_init=0.0)
    generator = torch.Generator().manual_seed(0)
    rows = list(net._noises(2 * DRAWN_AT_ONCE + 1, 3, generator, device()))
    assert len(rows) == 2 * DRAWN_AT_ONCE + 1
    assert {row.shape for row in rows} == {(3, 2)}
    assert torch.stack(rows).unique().numel() > 0.99 * len(rows) * 6
