from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from harness import first_difference

from rlrun.build import Agent
from rlrun.envs.gym import Gym
from rlrun.envs.normalizer import Normalizer
from rlrun.evaluation import MAX_PARALLEL, Evaluation, Evaluator
from rlrun.seeding import SELECTION_SEEDS, GlobalGenerators

CPU = torch.device("cpu")


class Countdown(gymnasium.Env):
    """An episode's length is drawn from its seed, and short ones pay more: 100 a step for 1 step, 1 for 40."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is None:  # no episode may be played whose seed was not asked for
            self.length = self.t = 0
            return np.array([-1, -1], np.float32), {}
        self.length, self.t = length_of(seed), 0
        return np.array([seed, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        assert self.t <= self.length
        over = self.t == self.length
        return np.array([self.length, self.t], np.float32), reward_of(self.length), over, False, {}


def length_of(seed: int) -> int:
    return int(np.random.default_rng(seed).choice([1, 2, 40]))


def reward_of(length: int) -> float:
    return 100.0 if length == 1 else 1.0


@pytest.fixture
def countdown(gym_spec: Callable[..., Gym]) -> Iterator[Gym]:
    gymnasium.register("Countdown-v0", Countdown, order_enforce=False)
    yield gym_spec("Countdown-v0")
    del gymnasium.registry["Countdown-v0"]


class Player:
    """A policy that is no algorithm: it acts by a function of what it sees, and keeps what that was."""

    def __init__(self) -> None:
        self.obs: list[Any] = []
        self.first: list[Any] = []

    def act(self, obs: Any, state: Any, first: Any) -> tuple[Any, Any]:
        self.obs.append(obs.clone())
        self.first.append(first.clone())
        return torch.zeros(len(obs), dtype=torch.int64), state


def evaluator(spec: Gym, player: Any, normalizer: Normalizer | None = None, **options: Any) -> Evaluator:
    return Evaluator(player, spec, normalizer, CPU, **{"max_steps": 1000, **options})


@pytest.mark.parametrize("episodes", [1, 3, MAX_PARALLEL, 37])
def test_each_seed_is_played_to_its_end_and_counted_once(episodes: int, countdown: Gym) -> None:
    seeds = list(range(1000, 1000 + episodes))
    result = evaluator(countdown, Player()).evaluate(seeds)
    assert result is not None
    lengths = [length_of(seed) for seed in seeds]
    assert result.seeds == seeds
    assert result.lengths == lengths
    assert result.returns == [reward_of(n) * n for n in lengths]


def test_short_episodes_do_not_crowd_out_long_ones(countdown: Gym) -> None:
    seeds = list(range(200))
    result = evaluator(countdown, Player()).evaluate(seeds)
    assert result is not None
    # Stopping at the first so many that finish would find too few episodes of 40 steps.
    assert result.mean_length == np.mean([length_of(seed) for seed in seeds])


def test_a_policy_is_told_where_episodes_begin(countdown: Gym) -> None:
    player = Player()
    evaluator(countdown, player).evaluate(list(range(25)))
    begun = sum(int((first & (obs[:, 1] == 0)).sum()) for obs, first in zip(player.obs, player.first, strict=True))
    assert begun == 25
    for obs, first in zip(player.obs, player.first, strict=True):
        assert first[obs[:, 1] == 0].all()


def test_evaluating_twice_gives_the_same_episodes(countdown: Gym, gym_spec: Callable[..., Gym]) -> None:
    for spec in (countdown, gym_spec("BipedalWalker-v3", max_episode_steps=30)):
        player = RandomPlayer(spec)
        kept = evaluator(spec, player)
        results = [kept.evaluate(list(range(12))) for _ in range(2)] + [
            evaluator(spec, player).evaluate(list(range(12)))
        ]
        assert results[0] == results[1] == results[2]


class RandomPlayer:
    """Draws from torch's global generator, as sampling policies do in evaluation."""

    def __init__(self, spec: Gym) -> None:
        self.space = spec.make(1).action_space

    def act(self, obs: Any, state: Any, first: Any) -> tuple[Any, Any]:
        if isinstance(self.space, spaces.Discrete):
            return torch.randint(int(self.space.n), (len(obs),)), state
        return torch.rand(len(obs), *self.space.shape) * 2 - 1, state


def test_an_interruption_drops_the_evaluation(countdown: Gym) -> None:
    calls = iter([False, False, True])
    assert evaluator(countdown, Player(), interrupted=lambda: next(calls)).evaluate(list(range(30))) is None


def test_an_evaluation_after_an_interrupted_one_starts_over(countdown: Gym) -> None:
    calls = iter([False, False, True])
    kept = evaluator(countdown, Player(), interrupted=lambda: next(calls, False))
    assert kept.evaluate(list(range(30))) is None
    result = kept.evaluate(list(range(30)))
    assert result is not None
    assert result.lengths == [length_of(seed) for seed in range(30)]


def test_the_normaliser_is_applied_and_frozen(countdown: Gym) -> None:
    normalizer = Normalizer((2,), 0.99)
    normalizer.update_obs(np.array([[0.0, 0.0], [50.0, 4.0]]))
    before = normalizer.state_dict()
    player = Player()
    evaluator(countdown, player, normalizer).evaluate(list(range(15)))
    after = normalizer.state_dict()
    for part in ("obs_moments", "return_moments"):
        assert first_difference(before[part], after[part]) is None
    seen = torch.cat(player.obs)
    expected = normalizer.obs(np.array([[0.0, 0.0]], np.float32))[0, 1]
    assert float(seen[0, 1]) == pytest.approx(float(expected))
    assert seen.abs().max() <= 10


def test_an_episode_that_never_ends_is_cut(countdown: Gym) -> None:
    result = evaluator(countdown, Player(), max_steps=1).evaluate([3, 4, 5])
    assert result is not None
    assert result.lengths == [1, 1, 1]


def test_the_mean_and_deviation_are_over_the_episodes() -> None:
    evaluation = Evaluation(seeds=[1, 2], returns=[1.0, 3.0], lengths=[10, 20])
    assert (evaluation.mean_return, evaluation.std_return, evaluation.mean_length) == (2.0, 1.0, 15.0)


def flat(state: Any) -> list[Any]:
    """Return the leaves of a state, arrays and tensors as bytes."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in (key, *flat(state[key]))]
    if isinstance(state, list | tuple):
        return [leaf for item in state for leaf in flat(item)]
    return [state.numpy().tobytes() if isinstance(state, torch.Tensor) else state]


@pytest.mark.parametrize(
    "overrides",
    [
        ("algo=ppo", "env=cartpole", "algo.eval_greedy=false", "env.normalize_obs=true"),
        ("algo=a2c", "env=pendulum", "algo.eval_greedy=false", "env.max_episode_steps=30"),
    ],
)
def test_evaluation_leaves_training_and_the_global_generators_untouched(
    overrides: tuple[str, ...], make_agent: Callable[..., Agent]
) -> None:
    numbers = ("tuned=none", "algo.num_envs=2", "algo.num_steps=16", *overrides)
    if "algo=ppo" in overrides:
        numbers = ("algo.batch_size=16", *numbers)
    states = []
    for evaluate in (False, True):
        agent = make_agent(*numbers)
        for _ in range(3):
            agent.algorithm.step()
            if evaluate:
                before = flat([agent.algorithm.state_dict(), GlobalGenerators().state_dict()])
                seeds = agent.seeds.episodes("evaluation", SELECTION_SEEDS, 4)
                assert agent.evaluator(1000).evaluate(seeds) is not None
                assert flat([agent.algorithm.state_dict(), GlobalGenerators().state_dict()]) == before
        states.append(flat([agent.algorithm.state_dict(), GlobalGenerators().state_dict()]))
    assert states[0] == states[1]
