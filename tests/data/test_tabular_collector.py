import random
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from rlrun.data.tabular_collector import PlayedModel, Table, TabularCollector, cumulative, make_tabular_collector
from rlrun.envs.gym import Gym
from rlrun.envs.tabular import Model
from rlrun.seeding import Seeds
from rlrun.stateful import StateMismatch

Spec = Callable[..., Gym]
Disk = Callable[[Any], Any]
FICKLE = {"id": "Taxi-v4", "kwargs": {"fickle_passenger": True}}  # has no model


def known(spec: Gym) -> Model:
    model = spec.model()
    assert model is not None
    return model


def collector(spec: Gym, seed: int = 0) -> TabularCollector:
    return make_tabular_collector(spec, Seeds(seed), "environments")


@pytest.mark.parametrize(
    ("id", "kwargs", "limit"),
    [
        ("Taxi-v4", {}, None),
        ("Taxi-v4", {}, 30),
        ("CliffWalking-v1", {}, 50),
        ("FrozenLake-v1", {"is_slippery": False}, 6),
    ],
)
def test_a_played_model_goes_where_the_environment_goes(
    id: str, kwargs: dict[str, Any], limit: int | None, gym_spec: Spec
) -> None:
    spec = gym_spec(id, kwargs=kwargs, max_episode_steps=limit)
    model, env = PlayedModel(known(spec), random.Random(0)), spec.make_one()
    rng, ends = np.random.default_rng(0), set()
    for episode in range(40):
        state = model.next_episode()
        env.reset(seed=episode)
        env.unwrapped.s = state  # type: ignore[attr-defined]
        over = False
        while not over:
            action = int(rng.integers(env.action_space.n))  # type: ignore[attr-defined]
            ours, theirs = model.step(action), env.step(action)[:4]
            assert ours == theirs
            over = ours[2] or ours[3]
        ends.add(ours[2:])
    assert len(ends) > 1 or id != "FrozenLake-v1"  # falls, and cut episodes


def test_next_states_come_as_often_as_the_table_says(gym_spec: Spec) -> None:
    table = known(gym_spec("FrozenLake-v1", kwargs={"success_rate": 0.6}))
    model, draws = PlayedModel(table, random.Random(0)), 4_000
    for s, actions in enumerate(table.outcomes):
        for a, outcomes in enumerate(actions):
            drawn = []
            for _ in range(draws if len(outcomes) > 1 else 1):
                model.state = s
                drawn.append(model.step(a)[:3])
            expected: dict[Any, float] = {}
            for p, *what in outcomes:
                expected[tuple(what)] = expected.get(tuple(what), 0.0) + p
            assert set(drawn) <= set(expected)
            for what, p in expected.items():
                assert drawn.count(what) / len(drawn) == pytest.approx(p, abs=5 * (p * (1 - p) / draws) ** 0.5 + 1e-9)


def test_episodes_begin_as_the_environments_do(gym_spec: Spec) -> None:
    model = PlayedModel(known(gym_spec("Taxi-v4")), random.Random(0))
    starts = [model.next_episode() for _ in range(30_000)]
    env = gymnasium.make("Taxi-v4")
    possible = np.flatnonzero(env.unwrapped.initial_state_distrib)  # type: ignore[attr-defined]
    assert set(starts) == set(possible.tolist())
    counts = np.bincount(starts)[possible]
    assert (np.abs(counts - 100) < 6 * 10).all()


def test_a_draw_never_falls_on_what_is_impossible() -> None:
    from bisect import bisect

    almost_one = np.nextafter(1.0, 0.0)
    for row in ([0.1] * 10 + [0.0], [0.0, 1.0, 0.0], [0.3, 0.7]):
        (thresholds,) = cumulative(np.array([row]))
        for uniform in (0.0, almost_one):
            assert row[bisect(thresholds, uniform)] > 0


@pytest.mark.parametrize("spec", [{"id": "FrozenLake-v1"}, FICKLE])
def test_episodes_are_reported_once_with_their_return_and_length(spec: dict[str, Any], gym_spec: Spec) -> None:
    env = collector(gym_spec(**spec, max_episode_steps=8))
    rng = random.Random(0)
    episodes, score, length = [], 0.0, 0
    for step in range(1, 400):
        _, reward, terminated, truncated = env.step(rng.randrange(4))
        score, length = score + reward, length + 1
        if terminated or truncated:
            episodes.append({"step": step, "env": 0, "return": score, "length": length})
            score, length = 0.0, 0
    assert env.steps == 399
    assert len(episodes) > 40
    assert env.pop_episodes() == episodes
    assert env.pop_episodes() == []
    assert list(env.recent_returns) == [e["return"] for e in episodes][-100:]
    assert list(env.recent_lengths) == [e["length"] for e in episodes][-100:]


@pytest.mark.parametrize("spec", [{"id": "CliffWalking-v1"}, FICKLE])
def test_after_an_episodes_end_the_state_is_the_next_ones_first(spec: dict[str, Any], gym_spec: Spec) -> None:
    env = collector(gym_spec(**spec, max_episode_steps=3))
    start = env.state
    outcomes = [env.step(action) for action in (0, 0, 0)]  # away from the start
    assert [truncated for *_, truncated in outcomes] == [False, False, True]
    assert outcomes[-1][0] != start
    assert env.state != outcomes[-1][0]


@pytest.mark.parametrize("spec", [{"id": "FrozenLake-v1"}, {"id": "Taxi-v4"}, FICKLE])
def test_a_restored_environment_goes_on_bit_for_bit(spec: dict[str, Any], gym_spec: Spec, through_disk: Disk) -> None:
    gym = gym_spec(**spec, max_episode_steps=11)
    undisturbed, restored = collector(gym, seed=0), collector(gym, seed=1)
    for action in [1, 2] * 50:
        undisturbed.step(action)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert restored.state == undisturbed.state

    def go_on(env: TabularCollector) -> list[Any]:
        return [[env.step(action) for action in [2, 1, 0] * 60], env.pop_episodes(), list(env.recent_returns)]

    assert go_on(restored) == go_on(undisturbed)
    assert restored.envs.drift is None


def test_a_table_is_restored_in_place(through_disk: Disk) -> None:
    table, other = Table(np.array([[1.5, -np.inf], [0.1, 2.0]])), Table(np.zeros((2, 2)))
    row = other.rows[0]
    other.load_state_dict(through_disk(table.state_dict()))
    assert row == [1.5, -np.inf]
    assert other.rows == table.rows
    with pytest.raises(StateMismatch, match=r"\(2, 2\), expected \(3, 2\)"):
        Table(np.zeros((3, 2))).load_state_dict(table.state_dict())
