import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlrun.algos.ppo import PPO, summary
from rlrun.build import Agent
from rlrun.errors import UserError
from rlrun.math.schedules import linear

MakeAgent = Callable[..., Agent]
Disk = Callable[[Any], Any]
SMALL = ("tuned=none", "algo=ppo", "network.hidden=[16]", "algo.num_envs=2", "algo.num_steps=8")


def make_ppo(make_agent: MakeAgent, *overrides: str, env: str = "cartpole") -> PPO:
    algorithm = make_agent(*SMALL, f"env={env}", "algo.batch_size=16", *overrides).algorithm
    assert isinstance(algorithm, PPO)
    return algorithm


def rollout(ppo: PPO) -> dict[str, Tensor]:
    """Return the data of one rollout, as the losses get it."""
    return ppo.learning_data(ppo.rollout())


def gradient(ppo: PPO, loss: Tensor) -> Tensor:
    ppo.optimizer.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in ppo.net.parameters()])


ENVS = ["cartpole", "pendulum"]


@pytest.mark.parametrize("env", ENVS)
def test_before_the_first_update_the_gradient_is_the_vanilla_policy_gradient(env: str, make_agent: MakeAgent) -> None:
    ppo = make_ppo(make_agent, "algo.clip_value=false", "algo.normalize_advantage=false", env=env)
    data = rollout(ppo)
    loss, parts = ppo.loss(data, clip_range=0.2)
    actual = gradient(ppo, loss)

    policy, value = ppo.net(data["obs"])
    policy_gradient = -(policy.log_prob(data["action"]) * data["advantage"]).mean()
    value_loss = 0.5 * (value - data["target"]).square().mean()
    expected = gradient(ppo, policy_gradient - 0.01 * policy.entropy().mean() + 0.5 * value_loss)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)
    metrics = summary([parts], clip_range=0.2)
    assert float(metrics["train/approx_kl"]) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["train/clip_fraction"]) == 0.0


def test_one_epoch_of_one_minibatch_takes_exactly_that_step(make_agent: MakeAgent) -> None:
    options = ("algo.num_epochs=1", "algo.max_grad_norm=null", "algo.clip_value=false")
    ppo, twin = make_ppo(make_agent, *options), make_ppo(make_agent, *options)
    metrics = ppo.step()
    assert float(metrics["train/clip_fraction"]) == 0.0
    data = rollout(twin)
    advantage = (data["advantage"] - data["advantage"].mean()) / (data["advantage"].std() + 1e-8)
    policy, value = twin.net(data["obs"])
    loss = -(policy.log_prob(data["action"]) * advantage).mean() - 0.01 * policy.entropy().mean()
    loss = loss + 0.25 * (value - data["target"]).square().mean()
    gradient(twin, loss)
    twin.optimizer.step()
    for a, b in zip(ppo.net.parameters(), twin.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("clip_value", [True, False])
@pytest.mark.parametrize("env", ENVS)
def test_the_clipped_objective_by_hand(env: str, clip_value: bool, make_agent: MakeAgent) -> None:
    ppo = make_ppo(make_agent, f"algo.clip_value={clip_value}", env=env)
    data, clip = rollout(ppo), 0.1
    generator = torch.Generator().manual_seed(0)
    data["old_log_prob"] = data["old_log_prob"] + 0.3 * torch.randn(16, generator=generator)
    data["old_value"] = data["old_value"] + 0.3 * torch.randn(16, generator=generator)
    loss, parts = ppo.loss(data, clip)

    policy, value = ppo.net(data["obs"])
    new = policy.log_prob(data["action"]).tolist()
    old, advantage, target = (data[name].tolist() for name in ("old_log_prob", "advantage", "target"))
    mean = sum(advantage) / 16
    deviation = math.sqrt(sum((a - mean) ** 2 for a in advantage) / 15)
    surrogate = value_loss = clipped = kl = 0.0
    for i, v in enumerate(value.tolist()):
        ratio, a = math.exp(new[i] - old[i]), (advantage[i] - mean) / (deviation + 1e-8)
        surrogate += min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a) / 16
        error, old_value = (v - target[i]) ** 2, float(data["old_value"][i])
        if clip_value:
            error = max(error, (old_value + min(max(v - old_value, -clip), clip) - target[i]) ** 2)
        value_loss += 0.5 * error / 16
        clipped += (abs(ratio - 1) > clip) / 16
        kl += (ratio - 1 - (new[i] - old[i])) / 16
    entropy = float(policy.entropy().mean().detach())
    expected = {
        "train/policy_gradient_loss": -surrogate,
        "train/value_loss": value_loss,
        "train/entropy_loss": -entropy,
        "train/clip_fraction": clipped,
        "train/approx_kl": kl,
        "train/loss": -surrogate - 0.01 * entropy + 0.5 * value_loss,
    }
    assert 0 < clipped < 1
    assert {name: float(value) for name, value in summary([parts], clip).items()} == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )
    assert float(loss.detach()) == pytest.approx(expected["train/loss"], rel=1e-4, abs=1e-6)


def test_a_step_that_moved_too_far_in_the_advantages_favour_gets_no_gradient(make_agent: MakeAgent) -> None:
    """Eq. (7): the minimum is flat where the ratio has left the range on the side that pays."""
    ppo = make_ppo(make_agent, "algo.entropy_coef=0", "algo.value_coef=0", "algo.normalize_advantage=false")
    data = rollout(ppo)
    data["advantage"] = torch.ones(16)
    data["old_log_prob"] = data["old_log_prob"] - 1.0  # ratio e
    assert not gradient(ppo, ppo.loss(data, 0.2)[0]).any()
    data["advantage"] = -torch.ones(16)
    assert gradient(ppo, ppo.loss(data, 0.2)[0]).any()


def test_advantages_bootstrap_through_truncation_and_not_through_termination(make_agent: MakeAgent) -> None:
    ppo = make_ppo(make_agent, "env.max_episode_steps=5", "algo.gae_lambda=0")
    batch = ppo.rollout()
    data = ppo.learning_data(batch)
    with torch.no_grad():
        final_value, last_value = ppo.net.value(batch["final_obs"]), ppo.net.value(batch["next_obs"])
    assert batch["truncated"].nonzero().tolist() == [[4, 0], [4, 1]]
    advantage = data["advantage"].view(8, 2)
    torch.testing.assert_close(advantage[4], 1 + 0.99 * final_value - batch["value"][4])
    torch.testing.assert_close(advantage[3], 1 + 0.99 * batch["value"][4] - batch["value"][3])
    torch.testing.assert_close(advantage[7], 1 + 0.99 * last_value - batch["value"][7])


def test_learning_rate_and_clip_range_anneal_to_their_ends(make_agent: MakeAgent) -> None:
    ends = ("algo.learning_rate=1e-3", "algo.learning_rate_end=1e-4", "algo.clip_range=0.3", "algo.clip_range_end=0.1")
    ppo = make_ppo(make_agent, "total_steps=64", *ends)
    for i in range(6):  # two more than planned: an overshooting run stays at the end
        metrics, progress = ppo.step(), min(i / 4, 1)
        assert metrics["train/learning_rate"] == pytest.approx(linear(1e-3, 1e-4, progress))
        assert metrics["train/clip_range"] == pytest.approx(linear(0.3, 0.1, progress))
        assert {group["lr"] for group in ppo.optimizer.param_groups} == {metrics["train/learning_rate"]}


def test_a_learning_rate_of_zero_changes_no_weight(make_agent: MakeAgent) -> None:
    ppo = make_ppo(make_agent, "algo.learning_rate=0", "algo.learning_rate_end=0")
    before = [p.clone() for p in ppo.net.parameters()]
    ppo.step()
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.net.parameters(), strict=True))


def test_target_kl_ends_an_update_early(make_agent: MakeAgent) -> None:
    eager = ("algo.learning_rate=0.1", "algo.num_epochs=10")
    assert make_ppo(make_agent, *eager).step()["train/n_updates"] == 10
    assert int(make_ppo(make_agent, *eager, "algo.target_kl=0.01").step()["train/n_updates"]) < 10


def test_a_batch_larger_than_the_rollout_is_all_of_it(make_agent: MakeAgent) -> None:
    large, whole = (make_agent(*SMALL, "env=cartpole", f"algo.batch_size={size}") for size in (64, 16))
    assert large.algorithm.step()["train/loss"] == whole.algorithm.step()["train/loss"]


@pytest.mark.parametrize("batch_size", [0, -16])
def test_a_batch_of_nothing_is_refused(batch_size: int, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match="at least 1"):
        make_agent(*SMALL, "env=cartpole", f"algo.batch_size={batch_size}")


@pytest.mark.parametrize(("rollout_size", "batch_size"), [(16, 5), (16, 12)])
def test_a_batch_size_that_does_not_divide_the_rollout_is_refused_with_one_that_does(
    rollout_size: int, batch_size: int, make_agent: MakeAgent
) -> None:
    with pytest.raises(UserError, match=rf"algo\.batch_size={batch_size} must divide .* = 16; try (\d+)") as caught:
        make_agent(*SMALL, "env=cartpole", f"algo.batch_size={batch_size}")
    proposed = int(str(caught.value).rpartition(" ")[2])
    assert rollout_size % proposed == 0


def test_a_batch_of_one_step_cannot_be_normalised(make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match="normalize_advantage=false"):
        make_agent(*SMALL, "env=cartpole", "algo.batch_size=1")
    make_agent(*SMALL, "env=cartpole", "algo.batch_size=1", "algo.normalize_advantage=false")


@pytest.mark.parametrize(
    "override",
    ["algo.gamma=1.5", "algo.gae_lambda=-0.1", "algo.learning_rate=-1", "algo.num_envs=0", "algo.clip_range=-0.1"],
)
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=override.replace(".", r"\.")):
        make_agent(*SMALL, "env=cartpole", "algo.batch_size=16", override)


def test_greedy_actions_are_modes_and_draw_no_random_number(make_agent: MakeAgent) -> None:
    ppo, obs = make_ppo(make_agent), torch.randn(50, 4)
    before = torch.get_rng_state(), ppo.generator.get_state()
    action, _ = ppo.act(obs, None, torch.ones(50, dtype=torch.bool))
    assert torch.equal(action, ppo.net.distribution(obs).mode())
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], ppo.generator.get_state())


RESUMED = [
    ("env=cartpole",),
    ("env=pendulum", "env.normalize_obs=true", "env.normalize_reward=true", "env.max_episode_steps=7"),
    ("env=frozenlake", "algo.share_torso=true", "algo.target_kl=0.01"),
]


def weights_and_metrics(ppo: PPO, steps: int) -> list[Any]:
    metrics = [{name: float(value) for name, value in ppo.step().items()} for _ in range(steps)]
    return [metrics, [p.detach().numpy().tobytes() for p in ppo.net.parameters()]]


@pytest.mark.parametrize("overrides", RESUMED)
def test_a_restored_ppo_goes_on_bit_for_bit(
    overrides: tuple[str, ...], make_agent: MakeAgent, through_disk: Disk
) -> None:
    def make(seed: int) -> PPO:
        numbers = ("algo.batch_size=8", f"seed={seed}", "total_steps=200", *overrides[1:])
        return make_ppo(make_agent, *numbers, env=overrides[0].removeprefix("env="))

    undisturbed, restored = make(0), make(1)
    weights_and_metrics(undisturbed, 3)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert restored.steps == undisturbed.steps == 48
    assert weights_and_metrics(restored, 4) == weights_and_metrics(undisturbed, 4)


def test_an_override_on_resume_wins_over_what_was_stored(make_agent: MakeAgent, through_disk: Disk) -> None:
    old, new = make_ppo(make_agent), make_ppo(make_agent, "algo.entropy_coef=0.5", "algo.learning_rate=0.125")
    old.step()
    new.load_state_dict(through_disk(old.state_dict()))
    assert (new.entropy_coef, new.learning_rate) == (0.5, 0.125)


def test_the_policy_alone_is_enough_to_act(make_agent: MakeAgent, through_disk: Disk) -> None:
    trained, other, obs = make_ppo(make_agent), make_ppo(make_agent, "seed=1"), torch.randn(50, 4)
    trained.step()
    other.load_policy_state_dict(through_disk(trained.policy_state_dict()))
    first = torch.ones(50, dtype=torch.bool)
    assert torch.equal(trained.act(obs, None, first)[0], other.act(obs, None, first)[0])
    assert trained.policy_state_dict().keys() == {"net"}
