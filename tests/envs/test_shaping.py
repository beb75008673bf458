"""Shaped rewards: what they add up to, what they leave as it was, and what is said about a potential that is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import rlrun, rlrun_here, the_run

from rlrun.algos.q_learning import QLearning
from rlrun.build import Agent
from rlrun.data.collector import Collector
from rlrun.data.tabular_collector import TableShaping, make_tabular_collector
from rlrun.envs import potentials
from rlrun.envs.atari import Atari
from rlrun.envs.base import Array, EnvSpec
from rlrun.envs.gym import Gym
from rlrun.envs.normalizer import Normalizer
from rlrun.envs.replayed import ReplayedEnvs
from rlrun.envs.scripts import mountaincar as expert
from rlrun.envs.shaping import Shaping
from rlrun.envs.tabular import Model
from rlrun.errors import UserError
from rlrun.seeding import Seeds

MakeAgent = Callable[..., Agent]
GymSpec = Callable[..., Gym]
MOUNTAINCAR = "rlrun.envs.potentials.mountaincar"
MY_POTENTIALS = """
import numpy as np

constant = 3

def pole(obs):
    return 5 - 20 * np.abs(obs[:, 2])

def states(obs):
    return 0.5 * obs

def one_for_all(obs):
    return 1.0

def column(obs):
    return obs[:, :1]

def not_a_number(obs):
    return np.log(obs[:, 2] - 9)

def later_not_a_number(obs):
    return np.where(np.abs(obs[:, 2]) > 0.1, np.nan, 0)

def other_obs(obs):
    return obs[:, 17]

def spoils(obs):
    values = pole(obs)
    obs[:] = 100.0
    return values
"""


def phi(obs: Array) -> Array:
    """Return something that depends on all of an observation."""
    flat = obs.reshape(len(obs), -1).astype(np.float64)
    return 3 + flat @ np.cos(np.arange(flat.shape[1]))


def shaping(gamma: float, potential: Callable[[Array], Array] = phi) -> Shaping:
    return Shaping("mine.potential", potential, gamma)


def collector(spec: EnvSpec, num_envs: int, shaped: Shaping | None, *, raw: bool = False) -> Collector:
    envs = ReplayedEnvs(spec.make(num_envs), np.random.default_rng(0), range(1000))
    return Collector(
        envs=envs,
        normalizer=Normalizer(envs.obs_space.shape or (), 0.9),
        normalize_obs=spec.normalize_obs,
        normalize_reward=spec.normalize_reward,
        clip_reward=spec.clip_reward,
        device=torch.device("cpu"),
        raw=raw,
        shaping=shaped,
    )


def rollout(spec: EnvSpec, shaped: Shaping | None, num_steps: int, *, raw: bool = False) -> tuple[Any, Collector]:
    """Act at random in 3 environments, the same way whatever the rewards are."""
    made, rng = collector(spec, 3, shaped, raw=raw), np.random.default_rng(0)
    num_actions = int(made.envs.action_space.n)  # type: ignore[attr-defined]

    def policy(obs: Any, state: Any, first: Any) -> Any:
        return {"action": torch.from_numpy(rng.integers(num_actions, size=len(obs)))}, state

    return made.collect(policy, num_steps), made


# --- What it adds up to ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("limit", [8, 500])
def test_the_extra_rewards_of_an_episode_telescope(gamma: float, raw: bool, limit: int, gym_spec: GymSpec) -> None:
    spec = gym_spec("CartPole-v1", max_episode_steps=limit)
    plain, _ = rollout(spec, None, 60)
    batch, _ = rollout(spec, shaping(gamma), 60, raw=raw)
    assert torch.equal(batch["obs"], plain["obs"])
    extra = (batch["reward"] - plain["reward"]).double().numpy()
    ends = {"terminated": 0, "truncated": 0}
    finals = dict(zip(batch["final_index"].tolist(), batch["final_obs"].numpy(), strict=True))
    for b in range(3):
        start = 0
        for end in np.flatnonzero(batch["over"][:, b]).tolist():
            total = sum(gamma ** (t - start) * extra[t, b] for t in range(start, end + 1))
            first = phi(batch["obs"][start, b][None].numpy())[0]
            terminated = bool(batch["terminated"][end, b])
            last = 0.0 if terminated else phi(finals[end * 3 + b][None])[0]
            assert total == pytest.approx(gamma ** (end + 1 - start) * last - first, abs=1e-4)
            ends["terminated" if terminated else "truncated"] += 1
            start = end + 1
    assert ends["truncated" if limit == 8 else "terminated"] > 3


def test_a_tables_rewards_telescope_and_its_episodes_report_true_returns(gym_spec: GymSpec) -> None:
    spec, gamma, potential = gym_spec("FrozenLake-v1", max_episode_steps=6), 0.9, np.sin
    shaped = make_tabular_collector(spec, Seeds(0), "e", shaping(gamma, potential))
    plain = make_tabular_collector(spec, Seeds(0), "e")
    ends, total, discount, first = set(), 0.0, 1.0, np.sin(shaped.state)
    for action in np.random.default_rng(0).integers(4, size=2000).tolist():
        before = shaped.state
        next_state, reward, terminated, truncated = shaped.step(action)
        assert plain.step(action)[2:] == (terminated, truncated)
        expected = (next_state == 15) + gamma * np.sin(next_state) * (not terminated) - np.sin(before)
        assert reward == pytest.approx(expected)
        total, discount = total + discount * (reward - (next_state == 15)), discount * gamma
        if terminated or truncated:
            assert total == pytest.approx(discount * np.sin(next_state) * (not terminated) - first)
            ends.add((terminated, truncated))
            total, discount, first = 0.0, 1.0, np.sin(shaped.state)
    assert len(ends) > 1
    assert shaped.pop_episodes() == plain.pop_episodes() != []


# --- What it leaves as it was ---------------------------------------------------------------------------


def random_model(rng: np.random.Generator, num_states: int = 6, num_actions: int = 3) -> Model:
    def outcomes() -> list[tuple[float, int, float, bool]]:
        chances = rng.dirichlet(np.ones(3))
        return [(float(p), int(rng.integers(num_states)), float(rng.normal()), rng.random() < 0.2) for p in chances]

    table = [[outcomes() for _ in range(num_actions)] for _ in range(num_states)]
    return Model(outcomes=table, start=np.full(num_states, 1 / num_states), max_episode_steps=None)


def best_values(model: Model, gamma: float) -> Array:
    """Return the optimal Q, [S, A]."""
    q = np.zeros((model.num_states, model.num_actions))
    for _ in range(400):  # 0.9^400 is far below what floats tell apart
        q = model.lookahead(q.max(axis=1), gamma)
    return q


@pytest.mark.parametrize("seed", range(20))
def test_the_best_policy_stays_the_best_and_its_values_fall_by_the_potential(seed: int) -> None:
    rng, gamma = np.random.default_rng(seed), 0.9
    model, values = random_model(rng), rng.normal(scale=10, size=6)
    table = TableShaping(shaping(gamma, lambda states: values[states]), np.arange(6))

    def shaped(s: int, outcome: tuple[float, int, float, bool]) -> tuple[float, int, float, bool]:
        p, next_state, reward, terminated = outcome
        return p, next_state, table.shaped(s, (next_state, reward, terminated, False))[1], terminated

    outcomes = [[[shaped(s, o) for o in action] for action in actions] for s, actions in enumerate(model.outcomes)]
    other = Model(outcomes=outcomes, start=model.start, max_episode_steps=None)
    q, shaped_q = best_values(model, gamma), best_values(other, gamma)
    np.testing.assert_allclose(shaped_q, q - values[:, None], atol=1e-9)
    assert (shaped_q.argmax(axis=1) == q.argmax(axis=1)).all()


def test_q_learning_with_a_potential_acts_as_without_it_from_a_table_that_begins_there(
    make_agent: MakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wiewiora (2003), "Potential-Based Shaping and Q-Value Initialization are Equivalent"."""
    (tmp_path / "wiewiora.py").write_text(MY_POTENTIALS)
    monkeypatch.syspath_prepend(tmp_path)
    options = ("algo=q_learning", "env=cliffwalking", "algo.gamma=0.9", "algo.learning_rate=0.3")
    shaped = make_agent(*options, "env.potential=wiewiora.states").algorithm
    plain = make_agent(*options).algorithm
    assert isinstance(shaped, QLearning)
    assert isinstance(plain, QLearning)
    for state, row in enumerate(plain.q.rows):
        row[:] = [0.5 * state] * len(row)
    offset = 0.5 * np.arange(48)[:, None]
    for _ in range(20):
        shaped.step()
        plain.step()
        assert shaped.collector.state == plain.collector.state
        np.testing.assert_allclose(shaped.q.array(), plain.q.array() - offset, atol=1e-9)
    assert np.ptp(shaped.visits.array()) > 10


@pytest.mark.parametrize("raw", [False, True])
def test_reported_episodes_hold_true_returns(raw: bool, gym_spec: GymSpec) -> None:
    spec = gym_spec("CartPole-v1", clip_reward=True, normalize_reward=True, normalize_obs=True)
    _, made = rollout(spec, shaping(0.9), 100, raw=raw)
    episodes = made.pop_episodes()
    assert episodes
    assert all(episode["return"] == episode["length"] for episode in episodes)


# --- Its place among clipping and normalising -----------------------------------------------------------


def test_it_comes_after_clipping_and_sees_raw_observations(gym_spec: GymSpec) -> None:
    options = {"max_episode_steps": 9, "clip_reward": True}
    batch, _ = rollout(gym_spec("MountainCar-v0", **options, normalize_obs=True), shaping(0.9), 9)
    plain, _ = rollout(gym_spec("MountainCar-v0", **options), None, 9)
    obs = plain["obs"].numpy()
    after = np.concatenate([obs[1:], plain["final_obs"].numpy()[None]])
    expected = -1 + 0.9 * phi(after.reshape(-1, 2)) - phi(obs.reshape(-1, 2))
    np.testing.assert_allclose(batch["reward"].numpy().ravel(), expected, atol=1e-5)


def test_normalisation_scales_the_shaped_reward(gym_spec: GymSpec) -> None:
    spec = gym_spec("CartPole-v1", normalize_reward=True)
    scaled, made = rollout(spec, shaping(0.9), 50)
    raw, other = rollout(spec, shaping(0.9), 50, raw=True)
    assert made.normalizer.return_moments.var == other.normalizer.return_moments.var
    deviation = np.sqrt(made.normalizer.return_moments.var)
    np.testing.assert_allclose(scaled["reward"][-1].numpy(), raw["reward"][-1].numpy() / deviation, rtol=0.01)
    assert abs(deviation - 1) > 0.2


def test_a_lost_life_that_ends_the_learners_episode_is_terminal(atari_spec: Callable[..., Atari]) -> None:
    def brightness(obs: Array) -> Array:
        return obs.reshape(len(obs), -1).mean(axis=1)

    batch, made = rollout(atari_spec("breakout", image_size=36), shaping(0.99, brightness), 150, raw=True)
    lost = (batch["terminated"] & ~batch["over"]).nonzero().tolist()
    assert lost
    for t, b in lost:
        assert batch["reward"][t, b] == pytest.approx(-brightness(batch["obs"][t, b][None].numpy())[0], abs=1.001)
        # The next one begins with what the screen is worth, which nobody has to pay back.
        assert batch["reward"][t, b] < -1.5
    assert made.steps == 450


# --- The potentials that come along ---------------------------------------------------------------------


def test_the_mountaincars_energy_rises_to_zero_on_the_way_to_the_goal(gym_spec: GymSpec) -> None:
    envs = gym_spec("MountainCar-v0").make(5)
    obs = envs.reset(np.ones(5, bool), np.arange(5))
    begin, over = potentials.mountaincar(obs), np.zeros(5, bool)
    assert (begin < -40).all()
    for _ in range(200):
        transition = envs.step(expert(obs), ~over)
        rises = potentials.mountaincar(transition.obs) > potentials.mountaincar(obs) - 1.5
        at_the_wall = transition.obs[:, 0] <= -1.2  # which takes all of the car's speed
        assert (rises | over | at_the_wall).all()
        obs, over = transition.obs, over | transition.over
        if over.all():
            break
    assert (potentials.mountaincar(obs) == 0).all()


@pytest.mark.learning
def test_dqn_climbs_the_mountain_with_a_potential_in_a_time_in_which_it_does_not_without(tmp_path: Path) -> None:
    options = ["algo=dqn", "env=mountaincar", "total_steps=6000", "eval.every=500", "stop.at_return=-130"]
    results = []
    for outputs, potential in (("shaped", MOUNTAINCAR), ("plain", "null")):
        done = rlrun([*options, f"env.potential={potential}", "log.console=false", f"outputs={outputs}"], tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((the_run(tmp_path / outputs) / "result.json").read_text()))
    with_it, without = results
    assert with_it["stopped_early"] == "stop.at_return"
    assert without["stopped_early"] is None
    assert with_it["protocol"] == without["protocol"]


# --- The configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["env.potential=no_such.function"], ["env.potential=no_such.function", "no_such cannot be imported"]),
        (["env.potential=mountaincar"], ["env.potential=mountaincar", "expected module.function"]),
        (["env.potential=bad_potentials.pol"], ["bad_potentials has no function pol", "Did you mean pole"]),
        (["env.potential=bad_potentials.constant"], ["a int, not a function"]),
        (["env.potential=bad_potentials.one_for_all"], ["shape ()", "expected 2 finite numbers"]),
        (["env.potential=bad_potentials.column"], ["shape (2, 1)"]),
        (["env.potential=bad_potentials.not_a_number"], ["returned nan at [", "shape (2, 4)"]),
        (["env.potential=bad_potentials.other_obs"], ["bad_potentials.other_obs fails: IndexError"]),
        (["algo=random", "env.potential=bad_potentials.pole"], ["Random has no gamma"]),
        (["algo=value_iteration", "env=frozenlake", "env.potential=bad_potentials.states"], ["plans with the model"]),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_no_potential_is_refused_by_name(
    options: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_agent: MakeAgent
) -> None:
    (tmp_path / "bad_potentials.py").write_text(MY_POTENTIALS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as raised:
        make_agent("env=cartpole", *options)
    for fragment in ["env.potential=", *expected]:
        assert fragment in str(raised.value)


def test_a_potential_may_spoil_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_agent: MakeAgent
) -> None:
    (tmp_path / "rough_potentials.py").write_text(MY_POTENTIALS)
    monkeypatch.syspath_prepend(tmp_path)
    batches = []
    for name in ("pole", "spoils"):
        algorithm = make_agent("algo=a2c", "env=cartpole", f"env.potential=rough_potentials.{name}").algorithm
        algorithm.step()
        batches.append({key: algorithm.batch[key].clone() for key in ("obs", "reward")})
    assert torch.equal(batches[0]["obs"], batches[1]["obs"])
    assert torch.equal(batches[0]["reward"], batches[1]["reward"])


SHORT = ["env=cartpole", "total_steps=600", "eval.episodes=2", "eval.final_episodes=2", "log.console=false"]


def test_a_users_potential_is_found_again_by_resume_and_not_needed_to_look_at_the_run(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "my_potentials.py").write_text(MY_POTENTIALS)
    trained = ["--config-dir", "mine", "algo=a2c", *SHORT, "env.potential=my_potentials.pole"]
    done = rlrun(trained, tmp_path)
    assert done.returncode == 0, done.stderr
    run = the_run(tmp_path)
    assert "env.potential=my_potentials.pole" in str(run)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = rlrun(["resume", str(run), "total_steps=900"], elsewhere)
    assert again.returncode == 0, again.stderr
    (mine / "my_potentials.py").unlink()
    assert rlrun(["eval", str(run), "episodes=2"], elsewhere).returncode == 0
    refused = rlrun(["resume", str(run), "total_steps=1200"], elsewhere)
    assert refused.returncode == 2
    assert "my_potentials cannot be imported" in refused.stderr


def test_a_refused_potential_leaves_nothing_behind(tmp_path: Path) -> None:
    done = rlrun_here(["algo=a2c", *SHORT, "env.potential=rlrun.envs.potentials.mountincar"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "Did you mean mountaincar?" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_potential_that_fails_later_ends_the_run_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(MY_POTENTIALS)
    done = rlrun(["algo=a2c", *SHORT, "env.potential=late.later_not_a_number"], tmp_path)
    assert done.returncode == 1
    assert "error: env.potential=late.later_not_a_number returned nan at [" in done.stderr
    assert "Traceback" not in done.stderr
