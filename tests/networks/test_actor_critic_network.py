from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlrun.device import Device
from rlrun.distributed import LONE, World
from rlrun.networks.actor_critic import ActorCritic, make_policy_head
from rlrun.networks.torsos import MLP
from rlrun.seeding import Seeds

CPU = Device(kind="cpu", threads=1, precision="float32", compile=False, deterministic=True, replay_on_device=False)
OBS = spaces.Box(-1, 1, (3,), np.float32)
ACTION_SPACES: dict[str, Any] = {
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "Box": spaces.Box(-1, 1, (2,), np.float32),
    "Box of rank 2": spaces.Box(-1, 1, (2, 3), np.float32),
}


def network(space: Any, *, share_torso: bool = False, log_std_init: float = -0.5, seed: int = 0) -> ActorCritic:
    torch.manual_seed(seed)
    return ActorCritic(
        lambda: MLP(OBS, [16, 16], "tanh", False), space, share_torso=share_torso, log_std_init=log_std_init
    )


def played(net: ActorCritic, obs: Tensor, seed: int = 0) -> list[dict[str, Tensor]]:
    """Return what the policy does on observations [T, B, *obs], step by step."""
    policy = net.player(*obs.shape[:2], torch.Generator().manual_seed(seed), CPU)
    with torch.no_grad():
        return [policy(row, None, torch.zeros(len(row), dtype=torch.bool))[0] for row in obs]


@pytest.fixture(params=ACTION_SPACES)
def space(request: Any) -> Any:
    return ACTION_SPACES[request.param]


@pytest.mark.parametrize("share_torso", [False, True])
def test_forward_agrees_with_distribution_and_value(share_torso: bool, space: Any) -> None:
    net, obs = network(space, share_torso=share_torso), torch.randn(7, 3)
    policy, value = net(obs)
    assert value.shape == (7,)
    assert torch.equal(value, net.value(obs))
    action = policy.mode()
    assert torch.equal(action, net.distribution(obs).mode())
    assert torch.equal(policy.log_prob(action), net.distribution(obs).log_prob(action))


@pytest.mark.parametrize("share_torso", [False, True])
def test_an_action_gets_its_own_log_prob_and_value_now_or_with_all_others(share_torso: bool, space: Any) -> None:
    net, obs = network(space, share_torso=share_torso), torch.randn(5, 300, 3)  # more than are judged at once
    rows = played(net, obs)
    acted = rows[0]
    assert ("value" in acted) == ("log_prob" in acted) == share_torso
    assert acted["action"].shape[0] == 300
    assert acted["action"][0].numel() == (
        spaces.flatdim(space) if isinstance(space, spaces.Box) else space.shape[0] if space.shape else 1
    )
    columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    batch = net.judged({"obs": obs, "first": torch.zeros(5, 300, dtype=torch.bool), **columns})
    policy, value = net(obs.flatten(0, 1))
    torch.testing.assert_close(batch["log_prob"].flatten(), policy.log_prob(batch["action"].flatten(0, 1)))
    torch.testing.assert_close(batch["value"].flatten(), value)
    assert batch["log_prob"].shape == batch["value"].shape == (5, 300)


def test_actions_are_drawn_from_the_given_generator_alone(space: Any) -> None:
    net, obs = network(space), torch.randn(7, 3)
    before = torch.get_rng_state()
    draws = [played(net, obs.unsqueeze(0), seed)[0]["action"] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("share_torso", [False, True])
def test_actions_follow_the_policy_whether_torch_or_numpy_computes_them(share_torso: bool, space: Any) -> None:
    net, obs = network(space, share_torso=share_torso), torch.randn(3).expand(200, 100, 3)
    with torch.no_grad():
        net.policy_head.last.weight.mul_(100)
    actions = torch.stack([row["action"] for row in played(net, obs)]).flatten(0, 1)
    net.policy_with_head = None
    same = torch.stack([row["action"] for row in played(net, obs)]).flatten(0, 1)
    torch.testing.assert_close(actions, same)
    policy: Any = net.distribution(obs[0, :1])
    if isinstance(space, spaces.Box):
        torch.testing.assert_close(actions.mean(0), policy.mean[0], atol=0.02, rtol=0)
        torch.testing.assert_close(actions.std(0), policy.log_std[0].exp(), atol=0.02, rtol=0)
        return
    parts = [policy] if space.shape == () else policy.parts
    for column, part in zip(actions.reshape(len(actions), -1).T, parts, strict=True):
        frequency = torch.bincount(column, minlength=part.log_probs.shape[-1]) / len(column)
        torch.testing.assert_close(frequency, part.log_probs[0].exp(), atol=0.02, rtol=0)


def test_noise_of_several_steps_is_that_of_the_rows_of_all_processes() -> None:
    """A split run acts as a whole one does: its processes draw for all environments and take their own."""
    net, obs = network(ACTION_SPACES["Discrete"]), torch.randn(6, 8, 3)

    def actions(world: World, rows: slice) -> Tensor:
        policy = net.player(6, rows.stop - rows.start, Seeds(0, world).torch("x"), CPU)
        first = torch.zeros(rows.stop - rows.start, dtype=torch.bool)
        return torch.stack([policy(row[rows], None, first)[0]["action"] for row in obs])

    parts = [actions(World(0, 2), slice(0, 4)), actions(World(1, 2), slice(4, 8))]
    assert torch.equal(torch.cat(parts, dim=1), actions(LONE, slice(0, 8)))


def test_the_first_policy_is_nearly_uniform_whatever_the_observation() -> None:
    policy: Any = network(spaces.Discrete(4)).distribution(100 * torch.randn(50, 3))
    probabilities = policy.log_probs.exp()
    torch.testing.assert_close(probabilities, torch.full((50, 4), 0.25), atol=0.02, rtol=0)


def test_the_standard_deviation_starts_as_configured_and_does_not_depend_on_the_state() -> None:
    policy: Any = network(spaces.Box(-1, 1, (2,), np.float32), log_std_init=-0.7).distribution(torch.randn(5, 3))
    assert torch.equal(policy.log_std, torch.full((5, 2), -0.7))


def test_a_distribution_stays_what_it_was_when_the_weights_move(space: Any) -> None:
    net, obs = network(space), torch.randn(5, 3)
    with torch.no_grad():
        policy = net.distribution(obs)
        action = policy.mode().clone()
        before = policy.log_prob(action).clone()
        for p in net.parameters():
            p.add_(1.0)
    assert torch.equal(policy.log_prob(action), before)


def test_a_shared_torso_is_one_and_is_counted_once() -> None:
    shared, apart = network(spaces.Discrete(4), share_torso=True), network(spaces.Discrete(4))
    assert shared.policy_torso is shared.value_torso
    torso = sum(p.numel() for p in shared.policy_torso.parameters())
    assert sum(p.numel() for p in apart.parameters()) == sum(p.numel() for p in shared.parameters()) + torso


@pytest.mark.parametrize("share_torso", [False, True])
def test_the_value_loss_reaches_the_policys_torso_only_if_it_is_shared(share_torso: bool) -> None:
    net = network(spaces.Discrete(4), share_torso=share_torso)
    net.value(torch.randn(7, 3)).sum().backward()
    assert all((p.grad is not None) == share_torso for p in net.policy_torso.parameters())


def test_two_torsos_do_not_start_with_the_same_weights() -> None:
    net = network(spaces.Discrete(4))
    weights = [next(torso.parameters()) for torso in (net.policy_torso, net.value_torso)]
    assert not torch.equal(*weights)


def test_values_and_logits_are_float32_under_autocast() -> None:
    net = network(spaces.Discrete(4))
    with torch.autocast("cpu", torch.bfloat16):
        policy, value = net(torch.randn(5, 3))
    assert value.dtype == policy.log_prob(policy.mode()).dtype == torch.float32


@pytest.mark.parametrize("space", [spaces.MultiBinary(3), spaces.MultiDiscrete([[2, 3], [2, 2]])])
def test_an_action_space_without_a_head_is_named(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=type(space).__name__):
        make_policy_head(space, 8, 0.0)
