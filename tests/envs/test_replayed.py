from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rlrun.envs.base import EnvSpec
from rlrun.envs.gym import Gym
from rlrun.envs.replayed import ReplayedEnvs

Disk = Callable[[Any], Any]
SEEDS = range(1000)


def replayed(spec: EnvSpec, *, rng_seed: int = 0, num_envs: int = 2, reseed_after: int = 25) -> ReplayedEnvs:
    """Return started environments that take a new seed at the first episode's end after 25 steps."""
    envs = ReplayedEnvs(spec.make(num_envs), np.random.default_rng(rng_seed), SEEDS, reseed_after)
    envs.start()
    return envs


def actions_for(envs: ReplayedEnvs, count: int, seed: int) -> list[Any]:
    envs.action_space.seed(seed)
    return [np.stack([envs.action_space.sample() for _ in range(envs.num_envs)]) for _ in range(count)]


def advance(envs: ReplayedEnvs, action: Any) -> tuple[Any, ...]:
    """Do what the collector does in one step; return all that it gets to see, as bytes."""
    t = envs.step(action)
    seen = [t.obs, t.reward, t.terminated, t.truncated, t.over]
    if t.over.any():
        seen.append(envs.next_episode(t.over))
    return tuple(array.tobytes() for array in seen)


def lengths(envs: ReplayedEnvs) -> list[int]:
    return [len(log) for log in envs.state_dict()["log"]]


ENVIRONMENTS = {
    # id: (limit of an episode, steps before, steps after the restore)
    "CartPole-v1": (None, 150, 60),
    "Pendulum-v1": (13, 150, 60),
    "BipedalWalker-v3": (14, 150, 60),
    "FrozenLake-v1": (None, 150, 60),
    "HalfCheetah-v5": (17, 150, 60),
    "LunarLander-v3": (15, 120, 60),
    "Taxi-v4": (19, 120, 60),
}


@pytest.fixture(params=[*ENVIRONMENTS, "breakout"])
def case(request: Any, gym_spec: Callable[..., Gym], atari_spec: Callable[..., EnvSpec]) -> tuple[EnvSpec, int, int]:
    """Return an environment, the steps before the last snapshot and the steps compared after each."""
    if request.param == "breakout":
        # Games of 15 agent steps, so that several end and some take a new seed.
        return atari_spec("breakout", repeat_action_probability=0.25, max_frames=60, noop_max=7), 50, 35
    limit, before, after = ENVIRONMENTS[request.param]
    return gym_spec(request.param, max_episode_steps=limit), before, after


def test_a_restored_environment_goes_on_bit_for_bit(case: tuple[EnvSpec, int, int], through_disk: Disk) -> None:
    spec, before, after = case
    undisturbed = replayed(spec)
    actions = actions_for(undisturbed, before + after, seed=1)
    snapshots: dict[str, tuple[int, Any]] = {"at the start": (0, undisturbed.state_dict())}
    seen = []
    for t, action in enumerate(actions):
        old = lengths(undisturbed)
        seen.append(advance(undisturbed, action))
        if t >= before:
            continue
        new = lengths(undisturbed)
        ended, reseeded = len(seen[-1]) == 6, any(n == 0 for n in new)
        kind = "after a reseed" if reseeded else "after an episode's end" if ended else "within an episode"
        if kind not in snapshots or t == before - 1:
            snapshots["at last" if t == before - 1 else kind] = (t + 1, undisturbed.state_dict())
        assert all(n in (0, o + 1) for n, o in zip(new, old, strict=True))
    expected_kinds = {"at the start", "after a reseed", "after an episode's end", "within an episode", "at last"}
    assert snapshots.keys() == expected_kinds

    restored = replayed(spec, rng_seed=99)
    for kind, (t, state) in snapshots.items():
        # The same object takes up every snapshot: what it did before must not matter.
        restored.load_state_dict(through_disk(state))
        assert restored.drift is None, kind
        assert [advance(restored, action) for action in actions[t : t + after]] == seen[t : t + after], kind


def test_fire_is_pressed_when_a_restore_comes_right_after_a_lost_life(
    atari_spec: Callable[..., EnvSpec], through_disk: Disk
) -> None:
    undisturbed = replayed(atari_spec("breakout"), num_envs=1)
    idle = np.zeros(1, np.int64)
    while not undisturbed.step(idle).terminated[0]:
        pass
    restored = replayed(atari_spec("breakout"), rng_seed=9, num_envs=1)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    seen = [advance(undisturbed, idle) for _ in range(60)]
    assert [advance(restored, idle) for _ in range(60)] == seen
    assert any(np.frombuffer(terminated, bool)[0] for _, _, terminated, _, _ in seen)  # the next ball fell, too


@pytest.mark.parametrize("game", ["breakout", "CartPole-v1"])
def test_environments_of_different_age_are_restored_together(
    game: str, atari_spec: Callable[..., EnvSpec], gym_spec: Callable[..., Gym], through_disk: Disk
) -> None:
    """The younger ones wait while the older ones are replayed: each must come out as if it were alone."""
    if game == "breakout":
        spec = atari_spec(game, repeat_action_probability=0.25, max_frames=60, noop_max=7)
    else:
        spec = gym_spec(game, max_episode_steps=15)
    singles = [replayed(spec, rng_seed=i, num_envs=1, reseed_after=10**6) for i in range(3)]
    together = replayed(spec, num_envs=3, reseed_after=10**6)
    state = together.state_dict()
    for i, (single, age) in enumerate(zip(singles, (22, 0, 5), strict=True)):
        for action in actions_for(single, age, seed=i):
            advance(single, action)
        state["seed"][i], state["log"][i] = single.state_dict()["seed"][0], single.state_dict()["log"][0]
    together.load_state_dict(through_disk(state))
    for action in actions_for(together, 20, seed=9):
        transition = together.step(action)
        alone = [single.step(action[i : i + 1]) for i, single in enumerate(singles)]
        assert np.array_equal(transition.obs, np.concatenate([t.obs for t in alone]))
        assert transition.over.tolist() == [bool(t.over[0]) for t in alone]
        if transition.over.any():
            together.next_episode(transition.over)
        for single, t in zip(singles, alone, strict=True):
            if t.over.any():
                single.next_episode(t.over)


def test_the_state_after_a_restore_is_the_state_before(gym_spec: Callable[..., Gym], through_disk: Disk) -> None:
    envs = replayed(gym_spec("CartPole-v1"))
    for action in actions_for(envs, 70, seed=1):
        advance(envs, action)
    state = through_disk(envs.state_dict())
    other = replayed(gym_spec("CartPole-v1"), rng_seed=5)
    other.load_state_dict(state)
    again = other.state_dict()
    assert [log.tolist() for log in again.pop("log")] == [log.tolist() for log in state.pop("log")]
    assert again == state


def test_continuous_actions_are_logged_exactly(gym_spec: Callable[..., Gym], through_disk: Disk) -> None:
    envs = replayed(gym_spec("Pendulum-v1"))
    actions = [np.random.default_rng(t).normal(0, 9, (2, 1)).astype(np.float32) for t in range(20)]
    for action in actions:
        envs.step(action)
    for i, log in enumerate(through_disk(envs.state_dict())["log"]):
        assert np.array_equal(log.numpy(), np.stack(actions)[:, i])


def test_logged_actions_do_not_change_with_the_callers_buffer(gym_spec: Callable[..., Gym]) -> None:
    envs = replayed(gym_spec("Pendulum-v1"))
    buffer = np.zeros((2, 1), np.float32)
    for value in (1.0, 2.0):
        buffer[:] = value
        envs.step(buffer)
    assert envs.state_dict()["log"][0].flatten().tolist() == [1.0, 2.0]


def test_an_environment_takes_a_new_seed_at_the_first_end_after_so_many_steps(gym_spec: Callable[..., Gym]) -> None:
    envs = replayed(gym_spec("Pendulum-v1", max_episode_steps=10), reseed_after=25)
    seeds, at = [envs.state_dict()["seed"]], []
    for t, action in enumerate(actions_for(envs, 95, seed=0), start=1):
        advance(envs, action)
        if envs.state_dict()["seed"] != seeds[-1]:
            seeds.append(envs.state_dict()["seed"])
            at.append(t)
    assert at == [30, 60, 90]
    everything = [seed for pair in seeds for seed in pair]
    assert len(set(everything)) == len(everything)
    assert all(seed in SEEDS for seed in everything)


def test_a_restored_run_reseeds_like_an_undisturbed_one(gym_spec: Callable[..., Gym], through_disk: Disk) -> None:
    spec = gym_spec("Pendulum-v1", max_episode_steps=10)
    undisturbed, restored = replayed(spec), replayed(spec, rng_seed=9)
    actions = actions_for(undisturbed, 80, seed=0)
    for action in actions[:17]:
        advance(undisturbed, action)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    for action in actions[17:]:
        advance(undisturbed, action)
        advance(restored, action)
    assert restored.state_dict()["seed"] == undisturbed.state_dict()["seed"]
    assert restored.state_dict()["rng"] == undisturbed.state_dict()["rng"]


class Drifting(gymnasium.Env):
    """Its observations count the steps of all objects of the class: no seed can bring them back."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2)
    steps_of_all = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Drifting.steps_of_all += 1
        return np.array([float(Drifting.steps_of_all)]), 0.0, False, False, {}


@pytest.fixture
def drifting() -> Iterator[str]:
    gymnasium.register("Drifting-v0", Drifting)
    yield "Drifting-v0"
    del gymnasium.registry["Drifting-v0"]


def test_an_environment_that_is_not_deterministic_is_found_out(drifting: str, gym_spec: Callable[..., Gym]) -> None:
    envs = replayed(gym_spec(drifting))
    for action in actions_for(envs, 5, seed=0):
        advance(envs, action)
    restored = replayed(gym_spec(drifting))
    restored.load_state_dict(envs.state_dict())
    assert restored.drift is not None
    assert "seed and actions" in restored.drift
    advance(restored, np.zeros(2, np.int64))  # and the run can go on


def test_drift_is_not_reported_where_nothing_was_stepped(drifting: str, gym_spec: Callable[..., Gym]) -> None:
    restored = replayed(gym_spec(drifting))
    restored.load_state_dict(replayed(gym_spec(drifting)).state_dict())
    assert restored.drift is None
