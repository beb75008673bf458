import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from naive_replay import (
    CPU,
    GAMMA,
    NUMBERS,
    PICTURES,
    VECTORS,
    Batch,
    Experience,
    Step,
    copied,
    drawable,
    make_replay,
    same,
)

from rlrun.build import Agent
from rlrun.data.collector import Collector
from rlrun.data.replay import Replay
from rlrun.envs.base import EnvSpec
from rlrun.envs.gym import Gym
from rlrun.envs.normalizer import Normalizer
from rlrun.envs.replayed import ReplayedEnvs

MakeAgent = Callable[..., Agent]


def assert_equals_the_list(replay: Replay, world: Experience) -> int:
    """Assert that every step that can be drawn looks as in the list; return how many there are."""
    streams, records = drawable(replay)
    batch = replay.look_up(streams, records)
    for m, b in enumerate(streams.tolist()):
        step = world.steps[b][int(batch["action"][m])]  # an action is its step's number
        reward, discount, next_obs = world.n_step(b, step.action, replay.n_steps)
        assert np.array_equal(batch["obs"][m].numpy(), step.obs)
        assert float(batch["reward"][m]) == reward
        assert float(batch["discount"][m]) == discount
        if discount > 0:
            assert np.array_equal(batch["next_obs"][m].numpy(), next_obs)
    for b in range(replay.num_envs):  # the newest steps, each once, without a gap
        numbers = batch["action"][torch.from_numpy(streams == b)].tolist()
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        # A step near the end waits for its n-step future; padding may stand between it and the newest record.
        if numbers:
            assert len(world.steps[b]) - 1 - numbers[-1] <= replay.n_steps
    return len(records)


WORLDS = [
    pytest.param(PICTURES, 4, id="stack of 4"),
    pytest.param(PICTURES, 1, id="pictures"),
    pytest.param(VECTORS, 1, id="vectors"),
    pytest.param(NUMBERS, 1, id="numbers"),
]


@pytest.mark.parametrize("n_steps", [1, 3, 5])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize(("space", "frame_stack"), WORLDS)
def test_every_step_is_that_of_a_list_of_transitions(
    space: spaces.Space, frame_stack: int, num_envs: int, n_steps: int, small_chunks: None, tmp_path: Path
) -> None:
    dice = random.Random(f"{space} {frame_stack} {num_envs} {n_steps}")
    world = Experience(num_envs, space, frame_stack, seed=dice.randrange(10**6))
    settings: dict[str, Any] = {"num_envs": num_envs, "frame_stack": frame_stack, "n_steps": n_steps}
    replay = make_replay(tmp_path, space, capacity=40 * num_envs, slack=30, **settings)
    counts = []
    while replay.ring.head.min() < 2.5 * replay.ring.slots:
        replay.add(world.collect(dice.randint(1, 12)))
        counts.append(assert_equals_the_list(replay, world))
    assert max(counts) > 20 * num_envs


def test_with_chunks_of_their_true_size_too(tmp_path: Path) -> None:
    world = Experience(2, PICTURES, 4, seed=0)
    replay = make_replay(tmp_path, PICTURES, num_envs=2, capacity=1200, frame_stack=4, n_steps=3)
    while replay.ring.head.min() < 1.2 * replay.ring.slots:
        replay.add(world.collect(200))
    assert assert_equals_the_list(replay, world) > 600


@pytest.mark.parametrize("capacity", [1, 2, 3, 7])
@pytest.mark.parametrize(("space", "frame_stack"), WORLDS[:3])
def test_the_smallest_replays_are_right_too(
    space: spaces.Space, frame_stack: int, capacity: int, small_chunks: None, tmp_path: Path
) -> None:
    world = Experience(1, space, frame_stack, seed=capacity)
    replay = make_replay(tmp_path, space, capacity=capacity, frame_stack=frame_stack, slack=1)
    for _ in range(100):
        replay.add(world.collect(1))
        assert_equals_the_list(replay, world)


class OneLifeAfterTheOther(Experience):
    """A game that never ends, in which every other step costs a life."""

    def end(self) -> tuple[bool, bool, bool]:
        return len(self.steps[0]) % 2 == 1, False, False


def test_frames_are_stored_once_also_where_a_life_is_lost(tmp_path: Path) -> None:
    world = OneLifeAfterTheOther(1, PICTURES, 4, seed=0)
    replay = make_replay(tmp_path, PICTURES, frame_stack=4)
    replay.add(world.collect(40))
    assert replay.ring.head.tolist() == [3 + 40]  # the older frames of the first stack, and one for each step
    assert_equals_the_list(replay, world)


# --- Drawing --------------------------------------------------------------------------------------------


def chi_square(counts: np.ndarray) -> float:
    """Return the statistic against equal probabilities, in its standard deviations above its mean."""
    expected = counts.mean()
    degrees = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


@pytest.mark.parametrize("frame_stack", [1, 4])
@pytest.mark.parametrize("rounds", [3, 40], ids=["filling", "wrapped"])
def test_all_steps_are_drawn_equally_often_and_padding_never(
    rounds: int, frame_stack: int, small_chunks: None, tmp_path: Path
) -> None:
    world = Experience(3, PICTURES, frame_stack, seed=3)
    replay = make_replay(tmp_path, PICTURES, num_envs=3, capacity=150, n_steps=3, frame_stack=frame_stack)
    for _ in range(rounds):
        replay.add(world.collect(8))
    streams, records = drawable(replay)
    possible = {pair: i for i, pair in enumerate(zip(streams.tolist(), records.tolist(), strict=True))}
    counts = np.zeros(len(possible))
    for _ in range(100):
        for pair in zip(*(a.tolist() for a in replay.draw(300)), strict=True):
            counts[possible[pair]] += 1  # padding, and what has no future yet, has no place in here
    assert counts.min() > 0
    assert abs(chi_square(counts)) < 4


def test_drawing_depends_on_the_generator_alone(small_chunks: None, tmp_path: Path) -> None:
    draws = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        world = Experience(1, VECTORS, 1, seed=0)
        replay = make_replay(tmp_path / name, seed=seed)
        replay.add(world.collect(50))
        np.random.seed(len(name))
        draws.append([copied(replay.sample(8)) for _ in range(3)])
    assert same(draws[0], draws[1])
    assert not same(draws[0], draws[2])


def test_an_empty_replay_has_no_length(tmp_path: Path) -> None:
    replay = make_replay(tmp_path, n_steps=3)
    assert len(replay) == 0
    assert not list(tmp_path.iterdir())  # and no files


class Together(Experience):
    """Environments whose episodes all end at the same time, after `length` steps."""

    length = 10**9

    def end(self) -> tuple[bool, bool, bool]:
        over = sum(map(len, self.steps)) // self.num_envs % self.length == self.length - 1
        return False, over, over


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize(("capacity", "length"), [(1600, 10**9), (64, 2), (48, 1), (160, 1)])
def test_what_is_said_to_be_drawable_can_be_drawn(
    capacity: int, length: int, n_steps: int, alpha: float | None, small_chunks: None, tmp_path: Path
) -> None:
    """Where all that is stored is padding, rejection would draw for ever, and a sum tree have nothing to find."""
    world = Together(16, PICTURES, 4, seed=0)
    world.length = length
    settings: dict[str, Any] = {"num_envs": 16, "frame_stack": 4, "n_steps": n_steps}
    replay = make_replay(tmp_path, PICTURES, capacity=capacity, alpha=alpha, **settings)
    for _ in range(30):
        replay.add(world.collect(1))
        if len(replay) > 0:
            assert len(drawable(replay)[0]) > 0
            replay.sample(32)


# --- What real environments give --------------------------------------------------------------------------


def raw_collector(spec: EnvSpec, num_envs: int) -> Collector:
    envs = ReplayedEnvs(spec.make(num_envs), np.random.default_rng(0), range(1000), reseed_after=10**6)
    return Collector(
        envs=envs,
        normalizer=Normalizer(envs.obs_space.shape or (), GAMMA),
        normalize_obs=spec.normalize_obs,
        normalize_reward=spec.normalize_reward,
        clip_reward=spec.clip_reward,
        device=CPU,
        raw=True,
    )


def replay_for(collector: Collector, spec: EnvSpec, folder: Path, **numbers: Any) -> Replay:
    normalized = spec.normalize_obs or spec.normalize_reward
    return make_replay(
        folder,
        collector.envs.obs_space,
        num_envs=collector.num_envs,
        frame_stack=spec.stacked_frames(),
        normalizer=collector.normalizer if normalized else None,
        action_space=collector.envs.action_space,
        **numbers,
    )


class Random:
    """A policy that acts at random and keeps what it did."""

    def __init__(self, space: spaces.Space) -> None:
        self.space = space
        self.space.seed(0)
        self.actions: list[np.ndarray] = []

    def __call__(self, obs: torch.Tensor, state: Any, first: torch.Tensor) -> tuple[Batch, Any]:
        self.actions.append(np.stack([self.space.sample() for _ in range(len(obs))]))
        return {"action": torch.from_numpy(self.actions[-1])}, state


def lived_through(spec: EnvSpec, collector: Collector, actions: list[np.ndarray]) -> list[list[Step]]:
    """Give the same actions to environments of our own with the same seeds, and list what happens."""
    num_envs = collector.num_envs
    envs, steps = spec.make(num_envs), [[] for _ in range(num_envs)]  # type: tuple[Any, list[list[Step]]]
    obs = envs.reset(np.ones(num_envs, bool), np.array(collector.envs.state_dict()["seed"])).copy()
    for action in actions:
        transition = envs.step(action)
        for b in range(num_envs):
            reward = np.sign(transition.reward[b]) if spec.clip_reward else transition.reward[b]
            ends = bool(transition.terminated[b]), bool(transition.truncated[b])
            steps[b].append(Step(obs[b].copy(), action[b], float(reward), *ends, transition.obs[b].copy()))
        obs = transition.obs.copy()
        if transition.over.any():
            obs = envs.reset(transition.over, np.full(num_envs, -1)).copy()
    envs.close()
    return steps


@pytest.mark.parametrize("n_steps", [1, 3])
def test_breakout_comes_back_as_the_policy_saw_it(
    n_steps: int, atari_spec: Callable[..., EnvSpec], tmp_path: Path
) -> None:
    spec = atari_spec("breakout", max_frames=600, noop_max=5)
    collector = raw_collector(spec, 2)
    replay = replay_for(collector, spec, tmp_path, capacity=1000, n_steps=n_steps)
    policy = Random(collector.envs.action_space)
    for _ in range(13):
        replay.add(collector.collect(policy, 15))
    world = Experience(2, VECTORS, 1, seed=0)
    world.steps = lived_through(spec, collector, policy.actions)
    flat = [step for steps in world.steps for step in steps]
    assert any(step.truncated for step in flat)
    assert any(step.terminated for step in flat)  # lives
    assert any(step.reward for step in flat)

    streams, records = drawable(replay)
    batch = replay.look_up(streams, records)
    assert batch["obs"].shape == (len(records), 4, 84, 84)
    assert batch["obs"].dtype == batch["next_obs"].dtype == torch.uint8
    for b in range(2):
        rows = np.flatnonzero(streams == b)
        assert len(world.steps[b]) - n_steps <= len(rows) <= len(world.steps[b])
        for i, m in enumerate(rows.tolist()):
            reward, discount, next_obs = world.n_step(b, i, n_steps)
            assert np.array_equal(batch["obs"][m].numpy(), world.steps[b][i].obs)
            assert (int(batch["action"][m]), float(batch["reward"][m])) == (int(world.steps[b][i].action), reward)
            assert float(batch["discount"][m]) == discount
            assert discount == 0 or np.array_equal(batch["next_obs"][m].numpy(), next_obs)


def test_values_leave_normalised_by_what_is_known_when_they_leave(gym_spec: Callable[..., Gym], tmp_path: Path) -> None:
    spec = gym_spec("Pendulum-v1", max_episode_steps=7, normalize_obs=True, normalize_reward=True)
    collector = raw_collector(spec, 2)
    replay = replay_for(collector, spec, tmp_path, capacity=200, n_steps=3)
    policy = Random(collector.envs.action_space)
    seen = []
    for _ in range(2):
        replay.add(collector.collect(policy, 20))
        world = lived_through(spec, collector, policy.actions)
        normalizer = collector.normalizer
        streams, records = drawable(replay)
        batch = replay.look_up(streams, records)
        rows = np.flatnonzero(streams == 0)
        scaled = [[float(normalizer.scaled_reward(np.float32(s.reward))) for s in steps] for steps in world]
        for i, m in enumerate(rows.tolist()):
            k = min(3, 7 - i % 7)
            expected = sum(GAMMA**j * scaled[0][i + j] for j in range(k))
            raw, after = (obs.astype(np.float32) for obs in (world[0][i].obs, world[0][i + k - 1].next_obs))
            assert np.array_equal(batch["obs"][m].numpy(), normalizer.obs(raw))
            assert np.array_equal(batch["next_obs"][m].numpy(), normalizer.obs(after))
            assert float(batch["reward"][m]) == pytest.approx(expected, rel=1e-6)
            assert float(batch["discount"][m]) == GAMMA**k
            assert np.array_equal(batch["action"][m].numpy(), world[0][i].action)
        seen.append(copied({"obs": batch["obs"][:5], "reward": batch["reward"][:5]}))
    assert not torch.equal(seen[0]["obs"], seen[1]["obs"])
    assert not torch.equal(seen[0]["reward"], seen[1]["reward"])


def test_a_raw_collector_shows_the_policy_and_the_statistics_what_any_other_does(
    gym_spec: Callable[..., Gym],
) -> None:
    spec = gym_spec("Pendulum-v1", max_episode_steps=7, normalize_obs=True, normalize_reward=True)
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    collectors = {raw: raw_collector(spec, 2) for raw in seen}
    collectors[False].raw = False
    for raw, collector in collectors.items():
        policy = Random(collector.envs.action_space)

        def keep(
            obs: torch.Tensor,
            state: Any,
            first: torch.Tensor,
            policy: Random = policy,
            seen: list[torch.Tensor] = seen[raw],
        ) -> tuple[Batch, Any]:
            seen.append(obs.clone())
            return policy(obs, state, first)

        collector.collect(keep, 20)
    assert torch.equal(torch.stack(seen[True]), torch.stack(seen[False]))
    one, other = (collector.normalizer for collector in collectors.values())
    assert np.array_equal(one.obs_moments.mean, other.obs_moments.mean)
    assert one.return_moments.var == other.return_moments.var


# --- Room -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 8])
def test_a_million_atari_steps_take_7_3_gb_and_each_7_2_kb(num_envs: int, make_agent: MakeAgent) -> None:
    numbers = (f"algo.num_envs={num_envs}", f"algo.train_every={max(4, num_envs)}", "algo.buffer_size=1_000_000")
    agent = make_agent("algo=dqn", "env=breakout", *numbers)
    (replay,) = agent.algorithm.setup.replays
    assert sum(field.nbytes for field in replay.ring.fields.values()) <= 7_200
    assert replay.ring.capacity * num_envs == 1_000_000
    assert replay.ring.nbytes <= 7.3e9
    assert agent.algorithm.setup.replays == [replay]
    agent.close()


def resident_bytes(*kinds: str) -> int:
    """Return the memory of this process: RssAnon is its own, RssFile and RssShmem are pages of files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(status[kind].split()[0]) for kind in kinds) * 1024


def test_steps_lie_in_files_and_not_in_memory(tmp_path: Path) -> None:
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    world = Experience(1, space, 4, seed=0)
    batch = world.collect(250)
    replay = make_replay(tmp_path, space, capacity=5000, frame_stack=4)
    replay.add(batch)
    replay.sample(32)
    before = resident_bytes("RssAnon")
    for _ in range(20):
        replay.add(batch)
        replay.sample(32)
    stored = replay.ring.nbytes
    assert stored > 35e6
    assert resident_bytes("RssAnon") - before < stored / 4

    state = replay.state_dict()
    before = resident_bytes("RssFile", "RssShmem")
    resumed = make_replay(tmp_path, space, capacity=5000, frame_stack=4)
    resumed.load_state_dict(state)  # which checks everything
    resumed.sample(4)  # the kernel maps the pages around those that are read, too
    assert resident_bytes("RssFile", "RssShmem") - before < stored / 4
