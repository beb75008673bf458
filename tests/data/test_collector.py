from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from rlrun.data.collector import Collector, to_policy
from rlrun.envs.base import EnvSpec
from rlrun.envs.gym import Gym
from rlrun.envs.normalizer import Normalizer
from rlrun.envs.replayed import ReplayedEnvs
from rlrun.errors import RunFailed

Disk = Callable[[Any], Any]
CPU = torch.device("cpu")


def make_collector(spec: EnvSpec, num_envs: int = 3, *, gamma: float = 0.9, reseed_after: int = 40) -> Collector:
    envs = ReplayedEnvs(spec.make(num_envs), np.random.default_rng(0), range(1000), reseed_after)
    return Collector(
        envs=envs,
        normalizer=Normalizer(envs.obs_space.shape or (), gamma),
        normalize_obs=spec.normalize_obs,
        normalize_reward=spec.normalize_reward,
        clip_reward=spec.clip_reward,
        device=CPU,
    )


class RandomPolicy:
    """Acts at random from a generator of its own and keeps what it was shown."""

    def __init__(self, space: gymnasium.Space, seed: int = 0) -> None:
        self.space = space
        self.space.seed(seed)
        self.seen: list[Tensor] = []
        self.first: list[Tensor] = []

    def __call__(self, obs: Tensor, state: Any, first: Tensor) -> tuple[dict[str, Tensor], Any]:
        self.seen.append(obs.clone())
        self.first.append(first.clone())
        action = torch.from_numpy(np.stack([self.space.sample() for _ in range(len(obs))]))
        return {"action": action, "tag": torch.full((len(obs),), float(len(self.seen)))}, state


def naive_episodes(id: str, limit: int | None, collector: Collector, actions: Tensor) -> dict[str, np.ndarray]:
    """Replay the actions [T, B] in plain Gymnasium environments with the same seeds; return what happens.

    Valid until an environment takes a new seed.
    """
    num_steps, num_envs = actions.shape[:2]
    seeds = collector.envs.state_dict()["seed"]
    rows: dict[str, list[list[Any]]] = {name: [] for name in ("obs", "reward", "terminated", "truncated", "after")}
    envs = [gymnasium.make(id, max_episode_steps=limit) for _ in range(num_envs)]
    obs = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    for t in range(num_steps):
        row: dict[str, list[Any]] = {name: [] for name in rows}
        for b, env in enumerate(envs):
            action = actions[t, b].numpy()
            after, reward, terminated, truncated, _ = env.step(action if action.ndim else int(action))
            for name, value in zip(rows, (obs[b], reward, terminated, truncated, after), strict=True):
                row[name].append(value)
            obs[b] = env.reset()[0] if terminated or truncated else after
        for name in rows:
            rows[name].append(row[name])
    arrays = {name: np.array(values) for name, values in rows.items()}
    return {**arrays, "next_obs": np.array(obs)}


CASES = [("CartPole-v1", 15), ("Pendulum-v1", 12), ("FrozenLake-v1", 6), ("HalfCheetah-v5", 11)]


@pytest.mark.parametrize(("id", "limit"), CASES)
def test_a_rollout_is_what_a_hand_written_loop_sees(id: str, limit: int, gym_spec: Callable[..., Gym]) -> None:
    collector = make_collector(gym_spec(id, max_episode_steps=limit), reseed_after=10**6)
    batch = collector.collect(RandomPolicy(collector.envs.action_space), 40)
    expected = naive_episodes(id, limit, collector, batch["action"])

    def as_seen(obs: np.ndarray) -> np.ndarray:
        return obs.astype(np.float32) if obs.dtype == np.float64 else obs

    assert np.array_equal(batch["obs"].numpy(), as_seen(expected["obs"]))
    assert np.array_equal(batch["next_obs"].numpy(), as_seen(expected["next_obs"]))
    assert np.array_equal(batch["reward"].numpy(), expected["reward"].astype(np.float32))
    assert np.array_equal(batch["terminated"].numpy(), expected["terminated"])
    truncated = expected["truncated"] & ~expected["terminated"]
    assert truncated.any()
    cut = np.flatnonzero(truncated)
    # An episode that falls in its last allowed step is cut and has terminated: nothing reads its final value.
    kept = [i for i, k in enumerate(batch["final_index"].tolist()) if k in cut]
    assert batch["final_index"][kept].tolist() == cut.tolist()
    after = as_seen(expected["after"]).reshape(-1, *expected["after"].shape[2:])
    assert np.array_equal(batch["final_obs"][kept].numpy(), after[cut])


def test_final_obs_is_what_a_truncated_cartpole_ended_on(gym_spec: Callable[..., Gym]) -> None:
    collector = make_collector(gym_spec("CartPole-v1", max_episode_steps=5), num_envs=2)
    batch = collector.collect(RandomPolicy(collector.envs.action_space), 12)
    # Nobody falls within 5 steps: both are cut at t = 4 and t = 9.
    assert batch["final_index"].tolist() == [8, 9, 18, 19]
    assert batch["truncated"].nonzero().tolist() == [[4, 0], [4, 1], [9, 0], [9, 1]]
    assert not batch["terminated"].any()
    # The pole moves on from its last stored observation, and does not start again near zero.
    position, velocity = batch["obs"][4, :, 0], batch["obs"][4, :, 1]
    torch.testing.assert_close(batch["final_obs"][:2, 0], position + 0.02 * velocity)
    assert (batch["obs"][5].abs() <= 0.05).all()
    assert batch["first"].nonzero().tolist() == [[0, 0], [0, 1], [5, 0], [5, 1], [10, 0], [10, 1]]


def test_a_rollout_without_truncation_has_no_final_observations(gym_spec: Callable[..., Gym]) -> None:
    collector = make_collector(gym_spec("CartPole-v1"))
    batch = collector.collect(RandomPolicy(collector.envs.action_space), 8)
    assert batch["final_obs"].shape == (0, 4)
    assert batch["final_index"].shape == (0,)


def test_what_the_policy_saw_is_what_is_stored_beside_its_extras(gym_spec: Callable[..., Gym]) -> None:
    collector = make_collector(gym_spec("CartPole-v1", normalize_obs=True))
    policy = RandomPolicy(collector.envs.action_space)
    for call in range(2):
        policy.seen.clear()
        policy.first.clear()
        batch = collector.collect(policy, 30)
        assert torch.equal(batch["obs"], torch.stack(policy.seen)), call
        assert torch.equal(batch["first"], torch.stack(policy.first)), call
        assert batch["tag"][:, 0].tolist() == list(range(1, 31))


def test_rollouts_follow_each_other_without_a_gap(gym_spec: Callable[..., Gym]) -> None:
    spec = gym_spec("CartPole-v1", max_episode_steps=9)
    in_one, in_parts = make_collector(spec), make_collector(spec)
    whole = in_one.collect(RandomPolicy(in_one.envs.action_space), 24)
    policy = RandomPolicy(in_parts.envs.action_space)
    parts = []
    for _ in range(3):
        part = in_parts.collect(policy, 8)
        parts.append({name: tensor.clone() for name, tensor in part.items()})
        if len(parts) < 3:
            following = in_parts.obs.astype(np.float32)
            assert np.array_equal(part["next_obs"].numpy(), following)
    for name in ("obs", "action", "reward", "terminated", "truncated", "first"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts])), name


@pytest.mark.parametrize("room", [1, 1_000])
def test_whole_episodes_are_what_as_many_steps_would_have_been(
    room: int, gym_spec: Callable[..., Gym], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlrun.data.collector.FIRST_ROOM", room)
    spec = gym_spec("CartPole-v1", max_episode_steps=17)
    by_episodes, by_steps = make_collector(spec, num_envs=1), make_collector(spec, num_envs=1)
    policies = [RandomPolicy(c.envs.action_space) for c in (by_episodes, by_steps)]
    for count in (3, 5, 1):  # more room, then less
        whole = by_episodes.collect_episodes(policies[0], count)
        same = by_steps.collect(policies[1], len(whole["over"]))
        assert whole.keys() == same.keys()
        for name in whole:
            assert torch.equal(whole[name], same[name]), name
        assert int(whole["over"].sum()) == count
        assert bool(whole["over"][-1])
        assert len(by_episodes.pop_episodes()) == count
        assert by_episodes.steps == by_steps.steps
    assert len(by_episodes.recent_returns) == 9


def test_an_episode_that_does_not_end_is_an_error_with_a_remedy(
    gym_spec: Callable[..., Gym], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlrun.data.collector.LONGEST_EPISODE", 30)
    just_so = make_collector(gym_spec("Pendulum-v1", max_episode_steps=30), num_envs=1)
    assert len(just_so.collect_episodes(RandomPolicy(just_so.envs.action_space), 2)["over"]) == 60
    endless = make_collector(gym_spec("Pendulum-v1", max_episode_steps=31), num_envs=1)
    with pytest.raises(RunFailed, match=r"not ended after 30 steps.*env\.max_episode_steps"):
        endless.collect_episodes(RandomPolicy(endless.envs.action_space), 2)


def test_steps_count_every_environment_and_no_reset(gym_spec: Callable[..., Gym]) -> None:
    collector = make_collector(gym_spec("CartPole-v1", max_episode_steps=4), num_envs=3)
    assert collector.steps == 0
    collector.collect(RandomPolicy(collector.envs.action_space), 10)
    collector.collect(RandomPolicy(collector.envs.action_space), 7)
    assert collector.steps == 3 * 17


def test_episodes_are_reported_once_with_their_true_return_and_length(gym_spec: Callable[..., Gym]) -> None:
    collector = make_collector(gym_spec("CartPole-v1", max_episode_steps=5), num_envs=2)
    policy = RandomPolicy(collector.envs.action_space)
    collector.collect(policy, 7)
    collector.collect(policy, 4)
    expected = [{"step": step, "env": env, "return": 5.0, "length": 5} for step in (10, 20) for env in (0, 1)]
    assert collector.pop_episodes() == expected
    assert collector.pop_episodes() == []
    assert list(collector.recent_returns) == [5.0] * 4


def test_clipped_rewards_leave_the_logged_return_true(gym_spec: Callable[..., Gym]) -> None:
    spec = gym_spec("Pendulum-v1", max_episode_steps=6, clip_reward=True)
    collector = make_collector(spec, num_envs=2)
    batch = collector.collect(RandomPolicy(collector.envs.action_space), 6)
    truth = naive_episodes("Pendulum-v1", 6, collector, batch["action"])["reward"]
    assert np.array_equal(batch["reward"].numpy(), np.sign(truth))
    returns = [episode["return"] for episode in collector.pop_episodes()]
    assert returns == pytest.approx(truth.sum(axis=0).tolist())


def test_normalised_rewards_leave_the_logged_return_true(gym_spec: Callable[..., Gym]) -> None:
    spec = gym_spec("Pendulum-v1", max_episode_steps=6, normalize_reward=True)
    collector = make_collector(spec, num_envs=2)
    batch = collector.collect(RandomPolicy(collector.envs.action_space), 6)
    truth = naive_episodes("Pendulum-v1", 6, collector, batch["action"])["reward"]
    twin, returns = Normalizer((3,), 0.9), np.zeros(2)
    ended = np.zeros(2, bool)
    expected = np.stack([twin.reward(row, ended, returns) for row in truth]).astype(np.float32)
    assert np.array_equal(batch["reward"].numpy(), expected)
    assert [e["return"] for e in collector.pop_episodes()] == pytest.approx(truth.sum(axis=0).tolist())


def test_collectors_that_share_statistics_keep_the_discounted_returns_of_their_own_environments(
    gym_spec: Callable[..., Gym],
) -> None:
    spec = gym_spec("Pendulum-v1", max_episode_steps=6, normalize_reward=True)
    small, large = make_collector(spec, num_envs=1), make_collector(spec, num_envs=3)
    large.normalizer = small.normalizer
    twin, returns = Normalizer((3,), 0.9), {1: np.zeros(1), 3: np.zeros(3)}
    for _ in range(4):
        for collector in (small, large):
            # Of clipped rewards the sign is known beforehand: Pendulum's are costs.
            collector.clip_reward = True
            batch = collector.collect(RandomPolicy(collector.envs.action_space), 2)
            for t in range(2):
                ended = (batch["terminated"] | batch["truncated"])[t].numpy()
                reward = -np.ones(collector.num_envs)
                expected = twin.reward(reward, ended, returns[collector.num_envs]).astype(np.float32)
                assert np.array_equal(batch["reward"][t].numpy(), expected)


def test_episodes_are_dated_and_numbered_over_all_collectors(gym_spec: Callable[..., Gym]) -> None:
    collector = make_collector(gym_spec("CartPole-v1", max_episode_steps=5), num_envs=2)
    collector.first_env, collector.steps_elsewhere = 6, lambda: 1000
    collector.collect(RandomPolicy(collector.envs.action_space), 5)
    assert [(e["step"], e["env"]) for e in collector.pop_episodes()] == [(1010, 6), (1010, 7)]
    assert collector.steps == 10


def test_observation_statistics_are_those_of_all_observations_acted_on(gym_spec: Callable[..., Gym]) -> None:
    spec = gym_spec("Pendulum-v1", max_episode_steps=9, normalize_obs=True)
    collector = make_collector(spec, num_envs=3, reseed_after=10**6)
    batch = collector.collect(RandomPolicy(collector.envs.action_space), 20)
    raw = naive_episodes("Pendulum-v1", 9, collector, batch["action"])
    rows = np.concatenate([raw["obs"].reshape(-1, 3), raw["next_obs"]])
    moments = collector.normalizer.obs_moments
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(moments.var, rows.var(axis=0), rtol=1e-4, atol=1e-5)


def test_a_lost_life_ends_the_learners_episode_and_not_the_logged_one(atari_spec: Callable[..., EnvSpec]) -> None:
    def idle(obs: Tensor, state: Any, first: Tensor) -> tuple[dict[str, Tensor], Any]:
        return {"action": torch.zeros(len(obs), dtype=torch.int64)}, state

    collector = make_collector(atari_spec("breakout"), num_envs=1, reseed_after=10**6)
    terminated, first = [], []
    while not collector.episodes:
        batch = collector.collect(idle, 50)
        terminated += batch["terminated"][:, 0].tolist()
        first += batch["first"][:, 0].tolist()
    lives_lost = [t for t, lost in enumerate(terminated) if lost]
    episode = collector.pop_episodes()[0]
    assert lives_lost[:5][-1] + 1 == episode["length"]
    assert len([t for t in lives_lost if t < episode["length"]]) == 5
    assert [t for t, begins in enumerate(first) if begins] == [0, *(t + 1 for t in lives_lost if t + 1 < len(first))]


def test_whole_episodes_end_with_the_game_and_not_with_a_life(atari_spec: Callable[..., EnvSpec]) -> None:
    def idle(obs: Tensor, state: Any, first: Tensor) -> tuple[dict[str, Tensor], Any]:
        return {"action": torch.zeros(len(obs), dtype=torch.int64)}, state

    collector = make_collector(atari_spec("breakout"), num_envs=1, reseed_after=10**6)
    batch = collector.collect_episodes(idle, 1)
    assert int(batch["terminated"].sum()) == 5
    assert batch["over"].flatten().nonzero().flatten().tolist() == [len(batch["over"]) - 1]
    assert collector.pop_episodes()[0]["length"] == len(batch["over"])


def test_atari_observations_are_stored_as_bytes_as_the_game_showed_them(atari_spec: Callable[..., EnvSpec]) -> None:
    spec = atari_spec("breakout")
    collector = make_collector(spec, num_envs=2, reseed_after=10**6)
    batch = collector.collect(RandomPolicy(collector.envs.action_space), 60)
    envs = spec.make(2)
    obs = envs.reset(np.ones(2, bool), np.array(collector.envs.state_dict()["seed"]))
    for t in range(60):
        assert np.array_equal(batch["obs"][t].numpy(), obs)
        transition = envs.step(batch["action"][t].numpy())
        assert np.array_equal(batch["reward"][t].numpy(), np.sign(transition.reward))
        assert not transition.over.any()
        obs = transition.obs
    assert batch["obs"].dtype == torch.uint8
    assert np.array_equal(batch["next_obs"].numpy(), obs)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_a_restored_collector_goes_on_bit_for_bit(
    id: str, normalize: bool, gym_spec: Callable[..., Gym], through_disk: Disk
) -> None:
    if normalize and id == "FrozenLake-v1":
        normalize = False
    spec = gym_spec(id, max_episode_steps=13, normalize_obs=normalize, normalize_reward=normalize)
    undisturbed, restored = make_collector(spec), make_collector(spec)
    undisturbed.collect(RandomPolicy(undisturbed.envs.action_space), 33)
    restored.collect(RandomPolicy(restored.envs.action_space, seed=8), 5)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert restored.steps == undisturbed.steps
    for length in (20, 20):
        batches = [c.collect(RandomPolicy(c.envs.action_space, seed=3), length) for c in (undisturbed, restored)]
        for name in batches[0]:
            assert torch.equal(batches[0][name], batches[1][name]), name
    assert restored.pop_episodes() == undisturbed.pop_episodes()
    assert restored.recent_returns == undisturbed.recent_returns
    assert restored.recent_lengths.maxlen == undisturbed.recent_lengths.maxlen


def test_observations_reach_the_policy_as_float32_int64_or_bytes() -> None:
    assert to_policy(np.zeros((2, 3)), None, CPU).dtype == torch.float32
    assert to_policy(np.zeros(2, np.int64), None, CPU).dtype == torch.int64
    assert to_policy(np.zeros((2, 3), np.uint8), None, CPU).dtype == torch.uint8
    assert to_policy(np.zeros((2, 3)), Normalizer((3,), 0.9), CPU).dtype == torch.float32
