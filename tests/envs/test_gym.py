from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rlrun.envs.base import NO_SEED, Array
from rlrun.envs.gym import Gym
from rlrun.errors import UserError

Spec = Callable[..., Gym]


class Recorder(gymnasium.Env):
    """Remembers the actions it gets. The observation space, the action space and the episode's length are given."""

    def __init__(self, observation_space: Any = None, action_space: Any = None, length: int = 10**9) -> None:
        self.observation_space = observation_space or spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = action_space or spaces.Discrete(3)
        self.length, self.actions = length, []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(0)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        return self.observation_space.sample(), 1.0, len(self.actions) >= self.length, False, {}


@pytest.fixture
def recorder() -> Iterator[str]:
    gymnasium.register("Recorder-v0", Recorder)
    yield "Recorder-v0"
    del gymnasium.registry["Recorder-v0"]


def all_of(num_envs: int) -> Array:
    return np.ones(num_envs, bool)


def only(index: int, num_envs: int) -> Array:
    return np.arange(num_envs) == index


def recorded(envs: Any, index: int = 0) -> list[Any]:
    return list(envs._envs[index].unwrapped.actions)


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_steps_are_those_of_gymnasium_with_the_same_seeds(id: str, gym_spec: Spec) -> None:
    envs = gym_spec(id).make(2)
    singles = [gymnasium.make(id) for _ in range(2)]
    obs = envs.reset(all_of(2), np.array([11, 12]))
    expected = np.array([env.reset(seed=11 + i)[0] for i, env in enumerate(singles)])
    assert obs.dtype == expected.dtype
    assert np.array_equal(obs, expected)
    envs.action_space.seed(0)
    for _ in range(30):
        action = np.stack([envs.action_space.sample() for _ in singles])
        transition = envs.step(action)
        for i, env in enumerate(singles):
            single_obs, reward, terminated, truncated, _ = env.step(action[i])
            assert np.array_equal(transition.obs[i], single_obs)
            flags = (transition.reward[i], transition.terminated[i], transition.truncated[i], transition.over[i])
            assert flags == (reward, terminated, truncated, terminated or truncated)
            if terminated or truncated:
                expected_obs = env.reset()[0]
                assert np.array_equal(envs.reset(only(i, 2), np.full(2, NO_SEED))[i], expected_obs)


def test_a_truncated_episode_is_over_but_not_terminated(gym_spec: Spec) -> None:
    envs = gym_spec("Pendulum-v1", max_episode_steps=3).make(1)
    envs.reset(all_of(1), np.array([0]))
    flags = []
    for _ in range(3):
        t = envs.step(np.zeros((1, 1), np.float32))
        flags.append((bool(t.terminated[0]), bool(t.truncated[0]), bool(t.over[0])))
    assert flags == [(False, False, False), (False, False, False), (False, True, True)]


def test_a_masked_reset_leaves_the_other_environments_where_they_are(gym_spec: Spec) -> None:
    envs = gym_spec("CartPole-v1").make(3)
    envs.reset(all_of(3), np.array([1, 2, 3]))
    before = envs.step(np.zeros(3, np.int64)).obs
    after = envs.reset(only(1, 3), np.array([NO_SEED, 9, NO_SEED]))
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert not np.array_equal(after[1], before[1])


@pytest.mark.parametrize("id", ["CartPole-v1", "BipedalWalker-v3", "HalfCheetah-v5", "FrozenLake-v1"])
def test_a_seed_makes_a_used_environment_as_good_as_new(id: str, gym_spec: Spec) -> None:
    spec = gym_spec(id)
    space = spec.make(1).action_space

    def play(envs: Any, seed: int, steps: int) -> list[bytes]:
        space.seed(seed)
        obs = [envs.reset(all_of(1), np.array([seed])).tobytes()]
        for _ in range(steps):
            transition = envs.step(np.expand_dims(space.sample(), 0))
            obs.append(transition.obs.tobytes())
            if transition.over[0]:
                obs.append(envs.reset(all_of(1), np.array([NO_SEED])).tobytes())
        return obs

    used = spec.make(1)
    play(used, 5, 60)
    assert play(used, 7, 60) == play(spec.make(1), 7, 60)


def test_gymnasiums_old_model_files_are_not_the_users_trouble_and_an_unstable_simulation_is(
    gym_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes a log
    envs = gym_spec("HalfCheetah-v5").make(2)
    envs.reset(all_of(2), np.array([0, 1]))
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    envs._envs[0].unwrapped.data.qvel[:] = 1e12
    envs.step(np.zeros((2, 6), np.float32))
    assert "simulation is unstable" in capfd.readouterr().err


def test_observations_are_copies_that_later_steps_do_not_change(gym_spec: Spec) -> None:
    envs = gym_spec("CartPole-v1").make(1)
    first = envs.reset(all_of(1), np.array([0]))
    kept = first.copy()
    second = envs.step(np.zeros(1, np.int64)).obs
    second_kept = second.copy()
    envs.step(np.zeros(1, np.int64))
    assert np.array_equal(first, kept)
    assert np.array_equal(second, second_kept)


def test_an_inactive_environment_is_not_stepped(gym_spec: Spec, recorder: str) -> None:
    envs = gym_spec(recorder, kwargs={"length": 1}).make(2)
    envs.reset(all_of(2), np.array([0, 0]))
    transition = envs.step(np.array([1, 2]), active=np.array([False, True]))
    assert (recorded(envs, 0), recorded(envs, 1)) == ([], [2])
    assert transition.over.tolist() == [False, True]
    assert transition.reward.tolist() == [0.0, 1.0]


def test_continuous_actions_are_clipped_to_the_space(gym_spec: Spec, recorder: str) -> None:
    space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 2], np.float32))
    envs = gym_spec(recorder, kwargs={"action_space": space}).make(1)
    envs.reset(all_of(1), np.array([0]))
    envs.step(np.array([[-7.0, 0.5]], np.float32))
    envs.step(np.array([[0.25, 7.0]], np.float32))
    assert np.array_equal(recorded(envs), [[-1, 0.5], [0.25, 2]])


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_flat_actions_take_the_shape_of_the_space(shape: tuple[int, ...], gym_spec: Spec, recorder: str) -> None:
    space = spaces.Box(-10, 10, shape, np.float32)
    envs = gym_spec(recorder, kwargs={"action_space": space}).make(1)
    envs.reset(all_of(1), np.array([0]))
    flat = np.arange(spaces.flatdim(space), dtype=np.float32)
    envs.step(flat[None])
    assert np.array_equal(recorded(envs)[0], flat.reshape(shape))
    assert space.contains(np.asarray(recorded(envs)[0], np.float32))


def test_discrete_actions_are_counted_from_the_start_of_the_space(gym_spec: Spec, recorder: str) -> None:
    envs = gym_spec(recorder, kwargs={"action_space": spaces.Discrete(3, start=5)}).make(1)
    envs.reset(all_of(1), np.array([0]))
    for action in range(3):
        envs.step(np.array([action]))
    assert recorded(envs) == [5, 6, 7]


OBS_SPACES = [
    spaces.Discrete(4),
    spaces.Discrete(4, start=2),
    spaces.Box(-1, 1, (2, 3), np.float64),
    spaces.Box(0, 255, (5,), np.uint8),
    spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (2,), np.float32)}),
    spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
]


@pytest.mark.parametrize("space", OBS_SPACES, ids=str)
def test_every_common_observation_space_gives_rows_of_that_space(space: Any, gym_spec: Spec, recorder: str) -> None:
    envs = gym_spec(recorder, kwargs={"observation_space": space}).make(2)
    obs = envs.reset(all_of(2), np.array([0, 1]))
    for row in (*obs, *envs.step(np.zeros(2, np.int64)).obs):
        assert envs.obs_space.contains(row)


def test_the_time_limit_can_be_set_and_stands_in_the_protocol(gym_spec: Spec) -> None:
    assert gym_spec("CartPole-v1").protocol()["max_episode_steps"] == 500
    assert gym_spec("CartPole-v1", max_episode_steps=7).protocol()["max_episode_steps"] == 7


def test_an_unknown_id_names_the_nearest(gym_spec: Spec) -> None:
    with pytest.raises(UserError, match=r"env\.id=CartPol-v1.*CartPole-v1"):
        gym_spec("CartPol-v1").make(1)


def test_a_module_that_does_not_exist_is_named(gym_spec: Spec) -> None:
    with pytest.raises(UserError, match=r"env\.module=no_such_module_here"):
        gym_spec("CartPole-v1", module="no_such_module_here").make(1)


def test_arguments_that_the_environment_does_not_take_are_named(gym_spec: Spec) -> None:
    with pytest.raises(UserError, match=r"env\.kwargs=.*colour"):
        gym_spec("CartPole-v1", kwargs={"colour": "red"}).make(1)
