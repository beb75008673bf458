import pytest
import torch
from small_off_policy import MakeAgent, make, run, weights
from torch import Tensor

from rlrun.algos.td3 import TD3
from rlrun.errors import UserError


def make_td3(make_agent: MakeAgent, *overrides: str) -> TD3:
    td3 = make(make_agent, "td3", *overrides)
    assert isinstance(td3, TD3)
    return td3


@pytest.mark.parametrize("policy_every", [1, 2, 3])
def test_policy_and_targets_wait_for_their_turn(policy_every: int, make_agent: MakeAgent) -> None:
    td3 = make_td3(make_agent, f"algo.policy_every={policy_every}")
    slow = (td3.actor, td3.target_actor, td3.target_critics)
    moved = 0
    for _ in range(120):
        before, critics = [weights(net) for net in slow], weights(td3.critics)
        done = td3.updates
        td3.step()
        changed = [not torch.equal(weights(net), old) for net, old in zip(slow, before, strict=True)]
        turn = td3.updates > done and td3.updates % policy_every == 0
        assert changed == [turn] * 3
        assert (td3.updates > done) == (not torch.equal(weights(td3.critics), critics))
        moved += turn
    assert moved == 81 // policy_every


def test_each_row_of_metrics_tells_of_the_latest_policy_update(make_agent: MakeAgent) -> None:
    td3 = run(make_td3(make_agent), 45)
    rows = [td3.step() for _ in range(4)]
    assert all("train/actor_loss" in row for row in rows)
    losses = [float(row["train/actor_loss"]) for row in rows]
    assert len(set(losses)) in (2, 3)  # of four updates two were the policy's


def valued_actions(td3: TD3, obs: Tensor) -> Tensor:
    """Return the actions that the targets value."""
    seen: list[Tensor] = []
    hook = td3.target_critics.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        td3.next_value(obs)
    hook.remove()
    return seen[0]


def test_the_targets_value_actions_near_those_of_the_target_policy(make_agent: MakeAgent) -> None:
    td3 = run(make_td3(make_agent, "algo.target_noise=0.2", "algo.target_noise_clip=0.5"), 60)
    torch.nn.init.zeros_(td3.target_actor.head.weight)
    obs = torch.randn(20_000, 3)
    away = (valued_actions(td3, obs) - td3.target_actor(obs).detach()) / 2  # half the width of the bounds
    assert float(away.std()) == pytest.approx(0.2, rel=0.05)
    assert float(away.abs().max()) == pytest.approx(0.5, abs=1e-5)
    share = float((away.abs() > 0.5 - 1e-5).float().mean())
    assert share == pytest.approx(0.0124, abs=0.004)  # beyond 2.5 deviations


def test_smoothed_actions_keep_within_the_bounds(make_agent: MakeAgent) -> None:
    td3 = make_td3(make_agent, "algo.target_noise=9.0", "algo.target_noise_clip=9.0")
    actions = valued_actions(td3, torch.randn(1000, 3))
    assert (float(actions.min()), float(actions.max())) == (-2.0, 2.0)


def test_without_noise_it_is_the_target_policys_action_and_the_smaller_of_twins(make_agent: MakeAgent) -> None:
    td3 = run(make_td3(make_agent, "algo.target_noise=0.0"), 60)
    obs = torch.randn(50, 3)
    with torch.no_grad():
        action = td3.target_actor(obs)
        first, second = td3.target_critics(obs, action)
        torch.testing.assert_close(td3.next_value(obs), torch.minimum(first, second))
    assert torch.equal(valued_actions(td3, obs), action)
    assert 0 < int((first < second).sum()) < 50


def test_the_policy_goes_up_the_first_of_the_twins_alone(make_agent: MakeAgent) -> None:
    td3 = run(make_td3(make_agent), 60)
    batch = td3.replay.sample(16)
    expected = -float(td3.critics(batch["obs"], td3.actor(batch["obs"]))[0].mean().detach())
    assert float(td3.update_actor(batch)["train/actor_loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("override", ["policy_every=0", "target_noise=-1.0", "target_noise_clip=-1.0"])
def test_numbers_out_of_range_are_refused(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=f"algo.{override} is out of range"):
        make_td3(make_agent, f"algo.{override}")
