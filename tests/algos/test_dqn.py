from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_dqn import ALGOS, SMALL, make_dqn
from small_off_policy import Compose, MakeAgent, check_exact_resume, run, weights
from torch import nn

from rlrun.algos.dqn import DQN
from rlrun.build import build_agent
from rlrun.errors import UserError
from rlrun.networks.chain import Chained
from rlrun.networks.linear import Linear
from rlrun.networks.target import make_target, rounded


def with_two_different_networks(dqn: DQN) -> DQN:
    """Give the target network weights of its own, so that the two can be told apart."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in dqn.target_net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return dqn


# --- The target ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "loss_name", "reason"),
    [
        ("dqn", "null", "expected huber or mse"),
        ("c51", "mse", "cross entropy"),
        ("iqn", "huber", "quantile Huber loss"),
    ],
)
def test_a_loss_that_would_be_ignored_is_refused(algo: str, loss_name: str, reason: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=f"algo.loss_name=.*{reason}"):
        make_agent(f"algo={algo}", "env=cartpole", f"algo.loss_name={loss_name}")


@pytest.mark.parametrize("loss_name", ["huber", "mse"])
@pytest.mark.parametrize("double", ["false", "true"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_loss_is_that_of_a_loop_over_the_minibatch(
    n_steps: int, double: str, loss_name: str, make_agent: MakeAgent
) -> None:
    options = (f"algo.double={double}", f"algo.loss_name={loss_name}", f"algo.n_steps={n_steps}", "algo.gamma=0.9")
    dqn = with_two_different_networks(run(make_dqn(make_agent, *options), 200))
    batch = dqn.sample()
    assert (batch["discount"] == 0).any()
    losses, surprise, q_mean = dqn.losses(batch, lambda: dqn.targets(batch))
    q, next_q, target_q = (
        net(obs).squeeze(-1).tolist()
        for net, obs in (
            (dqn.net, batch["obs"]),
            (dqn.net, batch["next_obs"]),
            (dqn.target_net, batch["next_obs"]),
        )
    )
    for m in range(16):
        chooser = next_q[m] if dqn.double else target_q[m]
        best = max(range(2), key=lambda a, chooser=chooser: chooser[a])  # type: ignore[misc]
        target = float(batch["reward"][m]) + float(batch["discount"][m]) * target_q[m][best]
        error = target - q[m][int(batch["action"][m])]
        expected = error**2 if loss_name == "mse" else (error**2 / 2 if abs(error) < 1 else abs(error) - 0.5)
        assert float(losses[m].detach()) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert float(surprise[m].detach()) == pytest.approx(abs(error), rel=1e-4, abs=1e-5)
    assert float(q_mean.detach()) == pytest.approx(sum(map(sum, q)) / 32, rel=1e-4)


def test_no_gradient_goes_into_the_target(make_agent: MakeAgent) -> None:
    dqn = run(make_dqn(make_agent, "algo.double=true"), 100)
    assert not any(p.requires_grad for p in dqn.target_net.parameters())
    batch = dqn.sample()
    batch["obs"] = torch.zeros_like(batch["obs"])
    dqn.losses(batch, lambda: dqn.targets(batch))[0].sum().backward()
    before = weights(dqn.target_net)
    dqn.optimizer.step()
    assert torch.equal(weights(dqn.target_net), before)


@pytest.mark.parametrize("algo", ALGOS)
def test_double_chooses_with_the_network_and_values_with_the_target(algo: str, make_agent: MakeAgent) -> None:
    obs, chosen = torch.randn(200, 4), {}
    for double in ("false", "true"):
        dqn = with_two_different_networks(make_dqn(make_agent, f"algo.double={double}", algo=algo))
        with torch.no_grad():
            target_q = dqn.q_values(dqn.target_net, obs)
            chosen[double] = dqn.greedy(obs, target_q)
            by = dqn.q_values(dqn.net, obs) if dqn.double else target_q
        assert torch.equal(chosen[double], by.argmax(1))
    assert not torch.equal(chosen["false"], chosen["true"])


@pytest.mark.parametrize("target_every", [4, 12, 13, 50])
def test_the_target_is_a_copy_as_old_as_it_is_said_to_be(target_every: int, make_agent: MakeAgent) -> None:
    dqn = make_dqn(make_agent, f"algo.target_every={target_every}", "algo.train_every=4", "algo.learning_starts=8")
    held, moved = weights(dqn.net), False
    for _ in range(60):
        before = dqn.steps
        dqn.step()
        if dqn.steps // target_every > before // target_every:
            held = weights(dqn.net)
        assert torch.equal(weights(dqn.target_net), held)
        moved = moved or not torch.equal(held, weights(dqn.net))
    assert moved == (target_every > 4)


class Casino(gymnasium.Env):
    """One state, ten actions, and whatever one does a reward of mean 0: every value is 0."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(10)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), float(self.np_random.normal()), False, False, {}


gymnasium.register("Casino-v0", Casino, max_episode_steps=20)


def mean_value_in_the_casino(make_agent: MakeAgent, double: bool) -> float:
    options = (
        "env.id=Casino-v0",
        f"algo.double={str(double).lower()}",
        "algo.gamma=0.9",
        "algo.buffer_size=300",
        "algo.batch_size=32",
        "algo.learning_rate=1e-2",
        "algo.target_every=500",  # long enough for the two networks' errors to be different ones
        "algo.loss_name=mse",
        "algo.max_grad_norm=null",
        "algo.epsilon_end=1.0",
    )
    dqn = make_dqn(make_agent, *options, env="gym")
    values = []
    while dqn.steps < 3000:
        metrics = dqn.step()
        if dqn.steps > 1500:
            values.append(float(metrics["train/q_value"]))
    return sum(values) / len(values)


def test_double_dqn_overestimates_less(make_agent: MakeAgent) -> None:
    """The maximum over noisy values is too large; a value that another network's noise chose is not."""
    single, double = (mean_value_in_the_casino(make_agent, double) for double in (False, True))
    assert single > 0.75
    assert abs(double) < single / 2


# --- Acting -------------------------------------------------------------------------------------------------


def test_epsilon_falls_on_a_straight_line_after_the_warm_up(make_agent: MakeAgent) -> None:
    options = ("algo.epsilon_start=0.9", "algo.epsilon_end=0.1", "algo.epsilon_steps=200", "algo.train_every=4")
    dqn = make_dqn(make_agent, *options)
    for _ in range(70):
        rate = dqn.step()["rollout/exploration_rate"]
        steps = dqn.steps
        line = 0.9 - 0.8 * min(steps / 200, 1)
        assert rate == pytest.approx(1.0 if steps < 40 else line)
    assert rate == pytest.approx(0.1)


def test_exploring_actions_are_as_frequent_as_epsilon(make_agent: MakeAgent) -> None:
    dqn = make_dqn(make_agent, "algo.epsilon_start=0.3", "algo.epsilon_end=0.3", "algo.learning_starts=0")
    obs = torch.randn(20_000, 4)
    action = dqn.policy(obs, None, torch.ones(20_000, dtype=torch.bool))[0]["action"]
    greedy = dqn.net(obs).squeeze(-1).argmax(1)
    other = float((action != greedy).float().mean())
    assert other == pytest.approx(0.15, abs=0.01)  # half of the random actions are the greedy one


def test_the_warm_up_acts_at_random_and_learns_nothing(make_agent: MakeAgent) -> None:
    dqn = make_dqn(make_agent, "algo.epsilon_start=0.0", "algo.epsilon_end=0.0", "algo.learning_starts=100")
    before = weights(dqn.net)
    while dqn.steps < 96:
        assert dqn.step()["train/n_updates"] == 0
    assert torch.equal(weights(dqn.net), before)
    actions = dqn.replay.ring.read("action", np.arange(96))
    assert 25 < actions.sum() < 71
    assert dqn.step()["train/n_updates"] == 1
    assert not torch.equal(weights(dqn.net), before)


@pytest.mark.parametrize(("train_every", "num_envs", "num_updates"), [(1, 1, 1), (4, 2, 3), (16, 4, 8)])
def test_updates_are_as_many_as_asked_for(
    train_every: int, num_envs: int, num_updates: int, make_agent: MakeAgent
) -> None:
    numbers = (f"algo.train_every={train_every}", f"algo.num_envs={num_envs}", f"algo.num_updates={num_updates}")
    dqn = run(make_dqn(make_agent, *numbers), 160)
    iterations = sum(step >= 40 for step in range(train_every, 161, train_every))
    assert dqn.steps == 160
    assert dqn.updates == iterations * num_updates


@pytest.mark.parametrize("algo", ALGOS)
def test_evaluation_plays_without_noise_and_without_chance(algo: str, make_agent: MakeAgent) -> None:
    dqn = run(make_dqn(make_agent, "algo.noisy_sigma=2.0", "algo.dueling=true", algo=algo), 80)
    obs, first = torch.randn(200, 4), torch.ones(200, dtype=torch.bool)
    before = torch.get_rng_state(), dqn.generator.get_state()
    actions = [dqn.act(obs, None, first)[0]]
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], dqn.generator.get_state())
    noisy = []
    for _ in range(2):
        dqn.draw_noise(dqn.net)
        actions.append(dqn.act(obs, None, first)[0])
        noisy.append(dqn.q_values(dqn.net, obs).argmax(1))
    assert torch.equal(actions[0], actions[1])
    assert torch.equal(actions[0], actions[2])
    assert not torch.equal(noisy[0], noisy[1])


def test_eval_epsilon_draws_from_the_generator_that_evaluation_lends(make_agent: MakeAgent) -> None:
    dqn = make_dqn(make_agent, "algo.eval_epsilon=0.5")
    obs, first, own = torch.randn(10_000, 4), torch.ones(10_000, dtype=torch.bool), dqn.generator.get_state()
    actions = []
    for _ in range(2):
        torch.manual_seed(7)
        actions.append(dqn.act(obs, None, first)[0])
    greedy = dqn.net(obs).squeeze(-1).argmax(1)
    assert torch.equal(*actions)
    assert torch.equal(own, dqn.generator.get_state())
    assert float((actions[0] != greedy).float().mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("algo", ALGOS)
def test_the_policy_alone_is_enough_to_act_and_holds_no_target(
    algo: str, make_agent: MakeAgent, through_disk: Callable[[Any], Any]
) -> None:
    trained = run(make_dqn(make_agent, algo=algo), 80)
    other, obs = make_dqn(make_agent, "seed=1", algo=algo), torch.randn(50, 4)
    assert trained.policy_state_dict().keys() == {"net"}
    assert trained.networks().keys() == {"net", "target_net"}
    other.load_policy_state_dict(through_disk(trained.policy_state_dict()))
    first = torch.ones(50, dtype=torch.bool)
    assert torch.equal(trained.act(obs, None, first)[0], other.act(obs, None, first)[0])


# --- Values that cannot be ----------------------------------------------------------------------------------

BAD = {
    "algo.num_envs=0": "at least 1",
    "algo.train_every=0": "at least 1",
    "algo.batch_size=0": "at least 1",
    "algo.n_steps=0": "at least 1",
    "algo.gamma=1.5": r"\[0, 1\]",
    "algo.epsilon_end=-0.1": r"\[0, 1\]",
    "algo.eval_epsilon=2.0": r"\[0, 1\]",
    "algo.priority_alpha=1.5": r"\[0, 1\]",
    "algo.priority_beta=-1.0": r"\[0, 1\]",
    "algo.noisy_sigma=-0.5": "at least 0",
    "algo.learning_starts=-1": "at least 0",
    "algo.target_every=0": "at least 1",
    "algo.max_grad_norm=-1.0": "at least 0",
}


@pytest.mark.parametrize("override", BAD)
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    shown = override.replace(".", r"\.").removesuffix(r"\.0")
    with pytest.raises(UserError, match=f"{shown}.*{BAD[override]}"):
        make_dqn(make_agent, override)


@pytest.mark.parametrize(("train_every", "num_envs", "proposed"), [(4, 3, 3), (4, 8, 8), (10, 4, 8)])
def test_environments_that_do_not_divide_the_steps_between_updates_are_refused_with_a_number_that_does(
    train_every: int, num_envs: int, proposed: int, make_agent: MakeAgent
) -> None:
    with pytest.raises(UserError, match=rf"algo\.train_every={train_every} .*num_envs = {num_envs}.*try {proposed}$"):
        make_dqn(make_agent, f"algo.train_every={train_every}", f"algo.num_envs={num_envs}")


@pytest.mark.parametrize(
    ("buffer_size", "others"),
    [
        (10, ()),
        (16, ()),  # the newest step of a full replay still waits for its next observation
        (17, ()),
        (30, ("algo.n_steps=20",)),
        (32, ("algo.num_envs=16", "algo.train_every=16")),  # two steps of each environment
        (100, ("algo.train_every=128", "algo.num_envs=128")),
    ],
)
def test_a_replay_that_could_never_give_a_minibatch_is_refused(
    buffer_size: int, others: tuple[str, ...], make_agent: MakeAgent
) -> None:
    with pytest.raises(UserError, match=rf"algo\.buffer_size={buffer_size} must hold"):
        make_dqn(make_agent, f"algo.buffer_size={buffer_size}", *others)


@pytest.mark.parametrize(("buffer_size", "others"), [(18, ()), (48, ("algo.num_envs=16", "algo.train_every=16"))])
def test_the_smallest_replay_that_is_not_refused_learns(
    buffer_size: int, others: tuple[str, ...], make_agent: MakeAgent
) -> None:
    dqn = run(make_dqn(make_agent, f"algo.buffer_size={buffer_size}", *others), 160)
    assert dqn.updates > 0


# --- Resume -------------------------------------------------------------------------------------------------

RESUMED = {
    "dqn": ("algo.n_steps=3", "algo.train_every=8", "algo.num_updates=2"),
    "dqn with priorities": ("algo.priority_alpha=0.6", "algo.double=true", "algo.optimizer_name=rmsprop_centered"),
    "rainbow": ("algo=rainbow", "algo.num_envs=2", "algo.noisy_sigma=0.5"),
    "qr_dqn": ("algo=qr_dqn", "algo.dueling=true"),
    "iqn": ("algo=iqn", "algo.num_taus=8", "env.normalize_obs=true", "env.normalize_reward=true"),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_restored_run_goes_on_bit_for_bit(
    case: str, compose: Compose, through_disk: Callable[[Any], Any], tmp_path: Path
) -> None:
    def make(name: str, seed: int) -> DQN:
        base = (*SMALL, "algo=dqn", "env=cartpole", "env.max_episode_steps=19", f"seed={seed}", "algo.buffer_size=60")
        overrides = dict(o.split("=", 1) for o in (*base, *RESUMED[case]))
        algorithm = build_agent(compose(*(f"{k}={v}" for k, v in overrides.items())), tmp_path / name).algorithm
        torch.set_num_threads(1)
        assert isinstance(algorithm, DQN)
        return algorithm

    check_exact_resume(make, through_disk, before=30)


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("env", ["cartpole", "breakout"])
def test_a_target_that_is_rounded_once_says_what_autocast_makes_of_one_that_is_not(
    algo: str, env: str, make_agent: MakeAgent
) -> None:
    frames = ["env.image_size=36", "network.channels=[8,8,8]", "network.hidden=16"]
    small = frames if env == "breakout" else ["network.hidden=[16,16]"]
    dqn = make_dqn(make_agent, "device.precision=bf16", "algo.num_envs=1", *small, algo=algo, env=env)
    types = {weight.dtype for weight in dqn.target_net.parameters()}
    assert types == {torch.float32, torch.bfloat16}
    hidden = [layer.weight.dtype for layer in dqn.target_net.modules() if type(layer) in (nn.Linear, Linear)]
    assert hidden.count(torch.bfloat16) >= (1 if env == "breakout" else 2)
    assert {weight.dtype for weight in dqn.net.parameters()} == {torch.float32}
    run(dqn, 200)
    dqn.target_net.load_state_dict(dqn.net.state_dict())
    assert {weight.dtype for weight in dqn.target_net.parameters()} == types
    batch, state = dqn.sample(), dqn.generator.get_state()
    found = dqn.cast_targets(batch)
    dqn.target_net = make_target(dqn.net)
    dqn.generator.set_state(state)
    assert torch.equal(dqn.cast_targets(batch), found)
    assert found.dtype == torch.float32


def test_a_layer_that_is_in_no_chain_is_not_rounded(make_agent: MakeAgent) -> None:
    device = make_dqn(make_agent, "device.precision=bf16").setup.device
    alone = nn.Sequential(nn.Linear(2, 2), Chained(nn.Linear(2, 2), nn.ReLU()))
    types = [weight.dtype for weight in rounded(alone, device).parameters()]
    assert types == [torch.float32] * 2 + [torch.bfloat16] * 2
    plain = make_dqn(make_agent).setup.device
    assert {weight.dtype for weight in rounded(Chained(nn.Linear(2, 2)), plain).parameters()} == {torch.float32}
