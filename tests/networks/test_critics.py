from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.networks import linear as linear_module
from rlrun.networks.critics import ContinuousCritics, DiscreteCritics, Separate, Stacked, ensemble
from rlrun.networks.torsos import MLP, NatureCNN, Torso, orthogonal

VECTORS = spaces.Box(-np.inf, np.inf, (5,), np.float32)
PICTURES = spaces.Box(0, 255, (4, 36, 36), np.uint8)
ACTIONS = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))


def mlp(*hidden: int, activation: str = "relu", layer_norm: bool = False) -> Callable[..., Torso]:
    return lambda space=VECTORS: MLP(space, list(hidden), activation, layer_norm)  # type: ignore[arg-type]


def nature(space: spaces.Space = PICTURES) -> Torso:
    return NatureCNN(space, [4, 4], [8, 4], [4, 2], 16, "relu", False)


class Skip(MLP):
    """A torso that is more than its layers in a row."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


TORSOS: dict[str, Callable[..., Torso]] = {
    "relu": mlp(16, 8),
    "tanh": mlp(16, 8, activation="tanh"),
    "layer norm": mlp(16, 8, layer_norm=True),
    "one layer": mlp(16),
    "no layer": mlp(),
    "convolutions": nature,
    "third party": lambda space=VECTORS: Skip(space, [16], "relu", False),
}


def members(name: str, count: int, num_outputs: int = 3) -> list[nn.Sequential]:
    torch.manual_seed(0)
    made = []
    for _ in range(count):
        torso = TORSOS[name]()
        layers = [torso] if name == "third party" else list(torso)
        made.append(nn.Sequential(*layers, orthogonal(nn.Linear(torso.out_features, num_outputs))))
    for p in (p for member in made for p in member.parameters()):
        nn.init.normal_(p, std=0.5)  # biases and scales, too, differ from member to member
    return made


def observations(name: str, count: int = 9) -> Tensor:
    if name == "convolutions":
        return torch.randint(0, 256, (count, 4, 36, 36), dtype=torch.uint8)
    return torch.randn(count, 5)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", TORSOS)
def test_an_ensemble_computes_what_its_members_do_with_the_same_gradients(
    name: str, count: int, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "WORTH_ONEDNN", 0)
    monkeypatch.setattr(linear_module, "_mkl_is_slow", lambda: onednn)
    single, obs = members(name, count), observations(name)
    together = ensemble(deepcopy(single))
    assert isinstance(together, Separate if name in ("convolutions", "third party") else Stacked)
    out, expected = together(obs), torch.stack([member(obs) for member in single])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    along = torch.randn_like(out)
    out.backward(along)
    expected.backward(along)
    wanted = [torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in single]
    if isinstance(together, Stacked):
        grads = [p.grad for p in together.parameters() if p.grad is not None]
        got = [torch.cat([g[e].flatten() for g in grads]) for e in range(count)]
    else:
        got = [torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in together.members]
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["layer norm", "convolutions"])
def test_the_first_of_several_can_be_asked_alone(name: str) -> None:
    together, obs = ensemble(members(name, 3)), observations(name)
    torch.testing.assert_close(together(obs, 1), together(obs)[:1])
    torch.testing.assert_close(together(obs, 2), together(obs)[:2])
    together(obs, 1).sum().backward()
    assert any(p.grad is not None for p in together.parameters())


def critics(make_torso: Callable[..., Torso] = TORSOS["relu"], obs_space: spaces.Space = VECTORS) -> ContinuousCritics:
    torch.manual_seed(0)
    return ContinuousCritics(make_torso, obs_space, ACTIONS, num_critics=2)


def test_critics_begin_with_different_weights() -> None:
    first, second = critics()(torch.randn(9, 5), torch.rand(9, 2))
    assert not torch.allclose(first, second)
    first, second = DiscreteCritics(TORSOS["relu"], 3, 2)(torch.randn(9, 5))
    assert not torch.allclose(first, second)


def test_actions_enter_in_half_widths_behind_the_observation() -> None:
    net = critics(mlp())
    seen: list[Tensor] = []
    net.members.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    obs = torch.randn(2, 5)
    values = net(obs, torch.tensor([[2.0, 0.0], [-1.0, 0.75]]))
    assert values.shape == (2, 2)
    torch.testing.assert_close(seen[0], torch.cat([obs, torch.tensor([[1.0, -1.0], [-0.5, 0.5]])], 1))


def test_numbered_observations_enter_one_hot_and_bytes_scaled() -> None:
    for space, obs, expected in (
        (spaces.Discrete(3), torch.tensor([2]), [0.0, 0.0, 1.0]),
        (spaces.Box(0, 255, (3,), np.uint8), torch.tensor([[0, 51, 255]], dtype=torch.uint8), [0.0, 0.2, 1.0]),
    ):
        net = critics(mlp(4), space)
        seen: list[Tensor] = []
        net.members.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        net(obs, torch.tensor([[0.0, 0.5]]))
        assert seen[0][0].tolist() == pytest.approx([*expected, 0.0, 0.0])


def test_convolutions_cannot_take_an_action_and_say_so() -> None:
    with pytest.raises(ValueError, match="try network=mlp"):
        critics(nature, PICTURES)


def test_discrete_critics_value_all_actions_on_any_torso() -> None:
    for name in ("relu", "convolutions"):
        assert DiscreteCritics(TORSOS[name], 3, 2)(observations(name)).shape == (2, 9, 3)


def test_values_are_float32_under_autocast_too() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert critics()(torch.randn(2, 5), torch.rand(2, 2)).dtype == torch.float32
        assert DiscreteCritics(TORSOS["relu"], 3, 2)(torch.randn(2, 5)).dtype == torch.float32
