import pytest
import torch
from small_off_policy import MakeAgent, first, make, run, weights

from rlrun.algos.ddpg import DDPG
from rlrun.algos.td3 import TD3
from rlrun.errors import UserError


def make_ddpg(make_agent: MakeAgent, *overrides: str) -> DDPG:
    ddpg = make(make_agent, "ddpg", *overrides)
    assert isinstance(ddpg, DDPG)
    assert not isinstance(ddpg, TD3)
    return ddpg


def test_the_critic_learns_the_value_of_what_the_target_policy_does_next(make_agent: MakeAgent) -> None:
    ddpg = run(make_ddpg(make_agent), 60)
    batch = ddpg.replay.sample(16)
    with torch.no_grad():
        next_action = ddpg.target_actor(batch["next_obs"])
        next_q = ddpg.target_critics(batch["next_obs"], next_action)[0].tolist()
        q = ddpg.critics(batch["obs"], batch["action"])[0].tolist()
    reward, discount = batch["reward"].tolist(), batch["discount"].tolist()
    expected = sum((reward[m] + discount[m] * next_q[m] - q[m]) ** 2 for m in range(16)) / 16
    assert float(ddpg.update_critics(batch)["train/loss"]) == pytest.approx(expected, rel=1e-4)


def test_the_policy_goes_up_the_critic_and_leaves_it_alone(make_agent: MakeAgent) -> None:
    ddpg = run(make_ddpg(make_agent, "algo.learning_rate=0.01"), 60)
    batch, critics = ddpg.replay.sample(16), weights(ddpg.critics)
    gradient = [p.grad.clone() for p in ddpg.critics.parameters() if p.grad is not None]
    values = [-float(ddpg.update_actor(batch)["train/actor_loss"]) for _ in range(30)]
    assert values[-1] > values[0]
    assert torch.equal(weights(ddpg.critics), critics)
    now = [p.grad for p in ddpg.critics.parameters()]
    assert all(g is not None and torch.equal(g, h) for g, h in zip(now, gradient, strict=True))


def test_both_targets_follow_by_tau_at_each_update(make_agent: MakeAgent) -> None:
    ddpg = run(make_ddpg(make_agent, "algo.tau=0.1"), 60)
    for _ in range(3):
        held = [(net, target, weights(target).clone()) for net, target in targets(ddpg)]
        ddpg.update()
        for net, target, before in held:
            torch.testing.assert_close(weights(target), 0.1 * weights(net) + 0.9 * before)


def targets(ddpg: DDPG) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
    return [(ddpg.critics, ddpg.target_critics), (ddpg.actor, ddpg.target_actor)]


@pytest.mark.parametrize("noise", [0.0, 0.1, 5.0])
def test_it_explores_by_noise_in_half_widths_clipped_to_the_bounds(noise: float, make_agent: MakeAgent) -> None:
    ddpg = make_ddpg(make_agent, f"algo.exploration_noise={noise}", "algo.learning_starts=0")
    obs = torch.randn(1, 3).expand(20_000, 3)
    with torch.no_grad():
        action = ddpg.policy(obs, None, first(20_000))[0]["action"]
        away = action - ddpg.actor(obs)
    assert float(action.min()) >= -2
    assert float(action.max()) <= 2
    if noise == 0.1:
        assert float(away.std()) == pytest.approx(0.2, rel=0.03)
        assert float(away.mean()) == pytest.approx(0, abs=0.01)
    if noise == 5.0:
        assert float((action.abs() == 2).float().mean()) > 0.7
    if noise == 0.0:
        assert not away.any()


def test_a_negative_noise_is_refused(make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=r"algo\.exploration_noise=-0\.1 is out of range"):
        make_ddpg(make_agent, "algo.exploration_noise=-0.1")
