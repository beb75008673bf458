from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import rlrun.envs.three_state_mdp  # noqa: F401  (registers it)
from rlrun.envs.gym import Gym
from rlrun.envs.tabular import Model, model_of
from rlrun.errors import UserError

Spec = Callable[..., Gym]


def known(spec: Gym) -> Model:
    model = spec.model()
    assert model is not None
    return model


class TwoStates(gymnasium.Env):
    """From state 0, action 1 leads to state 1, which has no way out. `table` replaces the dynamics."""

    observation_space: Any = spaces.Discrete(2)
    action_space: Any = spaces.Discrete(2)
    initial_state_distrib = np.array([1.0, 0.0])

    def __init__(self, table: Any = None) -> None:
        self.P = table or {0: {0: [(1.0, 0, -1.0, False)], 1: [(1.0, 1, 5.0, True)]}, 1: {}}


@pytest.mark.parametrize("id", ["FrozenLake-v1", "FrozenLake8x8-v1", "Taxi-v4", "CliffWalking-v1"])
def test_a_model_looks_ahead_as_a_loop_over_the_environments_own_table_does(id: str, gym_spec: Spec) -> None:
    model, table = known(gym_spec(id)), gymnasium.make(id).unwrapped.P  # type: ignore[attr-defined]
    value = np.random.default_rng(0).normal(size=model.num_states)
    ahead = model.lookahead(value, 0.9)
    for s in range(model.num_states):
        for a in range(model.num_actions):
            expected = sum(p * (r + 0.9 * (0 if end else value[s2])) for p, s2, r, end in table[s][a])
            assert ahead[s, a] == pytest.approx(expected)


def test_the_limit_is_that_of_the_registry_or_of_the_key(gym_spec: Spec) -> None:
    assert known(gym_spec("FrozenLake8x8-v1")).max_episode_steps == 200
    assert known(gym_spec("Taxi-v4", max_episode_steps=7)).max_episode_steps == 7
    assert known(gym_spec("CliffWalking-v1")).max_episode_steps is None


def test_arguments_of_the_environment_are_in_its_model(gym_spec: Spec) -> None:
    dry = known(gym_spec("FrozenLake-v1", kwargs={"is_slippery": False}))
    assert len(dry.pair) == 16 * 4
    small = known(gym_spec("FrozenLake-v1", kwargs={"desc": ["SF", "FG"]}))
    assert small.num_states == 4
    assert small.maps[0].shape == (2, 2)


def test_a_state_without_a_way_out_is_worth_nothing() -> None:
    model = model_of(TwoStates())
    assert model is not None
    assert model.available.all()
    value = np.zeros(2)
    for _ in range(5):
        value = model.lookahead(value, 1.0).max(axis=1)
    assert value.tolist() == [5.0, 0.0]


def test_probabilities_that_do_not_add_up_are_refused_by_state_and_action() -> None:
    with pytest.raises(UserError, match=r"P\[0\]\[1\] add up to 0.6, not to 1"):
        model_of(TwoStates({0: {0: [(1.0, 0, 0.0, False)], 1: [(0.6, 1, 5.0, True)]}, 1: {}}))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"id": "CartPole-v1"}, "it has no table"),
        ({"id": "Blackjack-v1"}, "it has no table"),
        ({"id": "Taxi-v4", "kwargs": {"fickle_passenger": True}}, "the passenger's change of mind is not in it"),
    ],
)
def test_an_environment_whose_table_does_not_tell_all_has_no_model(
    spec: dict[str, Any], why: str, gym_spec: Spec
) -> None:
    assert gym_spec(**spec).model() is None, why


def test_a_wrapper_that_may_change_anything_leaves_no_model() -> None:
    lake = gymnasium.make("FrozenLake-v1")
    assert model_of(lake) is not None
    assert model_of(gymnasium.wrappers.TransformReward(lake, lambda r: -r)) is None


def test_states_that_are_not_counted_from_zero_have_no_model() -> None:
    env = TwoStates()
    env.observation_space = spaces.Discrete(2, start=1)
    assert model_of(env) is None


# --- The three-state MDP --------------------------------------------------------------------------------


def three_states() -> gymnasium.Env:
    return gymnasium.make("rlrun/ThreeStateMDP-v0")


@pytest.fixture
def three_state_spec(gym_spec: Spec) -> Gym:
    return gym_spec("rlrun/ThreeStateMDP-v0", module="rlrun.envs.three_state_mdp")


def test_not_every_state_has_every_action(three_state_spec: Gym) -> None:
    model = known(three_state_spec)
    assert model.available.tolist() == [[True, True, True], [True, False, True], [False, True, False]]
    env = three_states()
    assert env.reset()[1]["action_mask"].tolist() == [1, 1, 1]


def test_its_steps_are_drawn_from_its_table(three_state_spec: Gym) -> None:
    table = known(three_state_spec).outcomes
    env = three_states()
    rng = np.random.default_rng(0)
    counts: dict[tuple[int, int], dict[tuple[int, float], int]] = {}
    state = env.reset(seed=0)[0]
    for _ in range(6_000):
        action = int(rng.choice(np.flatnonzero([bool(outcomes) for outcomes in table[state]])))
        following, reward, terminated, truncated, _ = env.step(action)
        assert not terminated
        seen = counts.setdefault((state, action), {})
        seen[(following, float(reward))] = seen.get((following, float(reward)), 0) + 1
        state = env.reset()[0] if truncated else following
    for (s, a), seen in counts.items():
        total = sum(seen.values())
        assert set(seen) == {(s2, r) for _, s2, r, _ in table[s][a]}
        for p, s2, r, _ in table[s][a]:
            assert seen[(s2, r)] / total == pytest.approx(p, abs=5 * (p * (1 - p) / total) ** 0.5 + 1e-12)


def test_an_action_that_a_state_does_not_have_changes_nothing(three_state_spec: Gym) -> None:
    env = three_states()
    env.reset(seed=0)
    env.unwrapped.state = 2  # type: ignore[attr-defined]
    assert env.step(0)[:4] == (2, 0.0, False, False)
