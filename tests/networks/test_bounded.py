import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlrun.networks.bounded import ActionBounds, DeterministicActor, GaussianActor
from rlrun.networks.torsos import MLP

OBS = spaces.Box(-np.inf, np.inf, (5,), np.float32)
BOX = spaces.Box(np.array([-2.0, 0.0, -0.3], np.float32), np.array([2.0, 1.0, 0.9], np.float32))


def torso() -> MLP:
    return MLP(OBS, [16], "tanh", False)


def inside(action: torch.Tensor, space: spaces.Box) -> bool:
    low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
    return bool(((action >= low - 1e-6) & (action <= high + 1e-6)).all())


def test_units_are_those_of_the_environment_outside_and_half_widths_inside() -> None:
    bounds = ActionBounds(BOX)
    corners = torch.tensor([[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    expected = torch.stack([torch.from_numpy(BOX.low), torch.tensor([0.0, 0.5, 0.3]), torch.from_numpy(BOX.high)])
    torch.testing.assert_close(bounds.from_unit(corners), expected)
    torch.testing.assert_close(bounds.to_unit(expected), corners)
    assert bounds.num_dims == 3
    assert bounds.log_volume == pytest.approx(np.log(2.0 * 0.5 * 0.6))


def test_actions_of_any_shape_become_vectors() -> None:
    bounds = ActionBounds(spaces.Box(-2, 2, (2, 3), np.float32))
    assert bounds.to_unit(torch.ones(4, 2, 3)).tolist() == [[0.5] * 6] * 4
    assert ActionBounds(spaces.Box(-2, 2, (), np.float32)).to_unit(torch.ones(4)).tolist() == [[0.5]] * 4


def test_noise_is_in_half_widths_and_the_result_within_bounds() -> None:
    bounds, action = ActionBounds(BOX), torch.tensor([[1.0, 0.5, 0.3]])
    torch.testing.assert_close(bounds.add_noise(action, torch.full((1, 3), 0.1)), torch.tensor([[1.2, 0.55, 0.36]]))
    assert torch.equal(bounds.add_noise(action, torch.full((1, 3), 99.0)), bounds.center + bounds.scale + 0 * action)
    assert inside(bounds.add_noise(action, torch.full((1, 3), -99.0)), BOX)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (2,), np.float32),
        spaces.Box(np.array([0.0, -np.inf], np.float32), np.array([1.0, 1.0], np.float32)),
        spaces.Box(np.array([0.0, 1.0], np.float32), np.array([1.0, 1.0], np.float32)),
    ],
)
def test_a_space_without_bounds_or_without_width_is_refused(space: spaces.Box) -> None:
    with pytest.raises(ValueError, match="squashed between bounds"):
        ActionBounds(space)


def test_policies_keep_within_the_bounds_whatever_they_see() -> None:
    torch.manual_seed(0)
    obs, noise = 1000 * torch.randn(500, 5), 3 * torch.randn(500, 3)
    for layer in (deterministic := DeterministicActor(torso(), BOX), gaussian := GaussianActor(torso(), BOX, -20, 2)):
        torch.nn.init.normal_(layer.head.weight, std=5.0)
    actions = [deterministic(obs), gaussian(obs).sample(noise), gaussian(obs).mode()]
    for action in actions:
        assert action.shape == (500, 3)
        assert inside(action, BOX)
        assert float(action.detach().std(0).min()) > 0.01


def test_the_deviation_keeps_within_its_bounds_and_depends_on_the_state() -> None:
    actor = GaussianActor(torso(), BOX, -3.0, 0.5)
    torch.nn.init.normal_(actor.head.weight, std=5.0)
    log_std = actor(torch.randn(500, 5)).log_std
    assert (float(log_std.detach().min()), float(log_std.detach().max())) == (-3.0, 0.5)
    assert len(log_std.unique()) > 100


def test_the_first_policy_is_nearly_the_same_everywhere() -> None:
    policy = GaussianActor(torso(), BOX, -20, 2)(torch.randn(100, 5))
    assert float(policy.mean.detach().abs().max()) < 0.1
    assert float(policy.log_std.detach().abs().max()) < 0.1


def test_policies_are_float32_under_autocast_too() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert DeterministicActor(torso(), BOX)(torch.randn(2, 5)).dtype == torch.float32
        assert GaussianActor(torso(), BOX, -20, 2)(torch.randn(2, 5)).mean.dtype == torch.float32
