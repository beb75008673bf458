"""The random policy: every action space, every observation, and randomness of its own."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from harness import assert_identical, first_difference, killed_inside, rlrun, rlrun_here, the_run

import rlrun as package
from rlrun.build import Agent
from rlrun.envs.random_actions import random_actions
from rlrun.errors import UserError
from rlrun.seeding import GlobalGenerators

MANY = 20_000
SPACES: dict[str, Any] = {
    "discrete": spaces.Discrete(3),
    "discrete_from_5": spaces.Discrete(3, start=5),
    "multi_discrete": spaces.MultiDiscrete([2, 3, 4]),
    "grid_of_choices": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
    "multi_binary": spaces.MultiBinary(4),
    "grid_of_bits": spaces.MultiBinary([2, 3]),
    "box": spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32)),
    "box_of_doubles": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "half_open_box": spaces.Box(np.array([3, -np.inf], np.float32), np.array([np.inf, 3], np.float32)),
    "open_box": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "partly_open_box": spaces.Box(np.array([-np.inf, 0], np.float32), np.array([np.inf, 1], np.float32)),
    "box_of_bytes": spaces.Box(0, 255, (2,), np.uint8),
}


class AnySpace(gymnasium.Env):
    """Takes what its action space holds and nothing else; an episode lasts four steps."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, name: str) -> None:
        self.action_space, self.t = SPACES[name], 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.t += 1
        return np.zeros(2, np.float32), float(np.sum(action)), self.t == 4, False, {}


@pytest.fixture
def any_space() -> Iterator[None]:
    gymnasium.register("AnySpace-v0", AnySpace)
    yield
    del gymnasium.registry["AnySpace-v0"]


@pytest.mark.parametrize("name", SPACES)
def test_actions_are_distributed_as_gymnasiums_own_samples(name: str) -> None:
    space = SPACES[name]
    drawn = random_actions(space, MANY, np.random.default_rng(0))
    if isinstance(space, spaces.Discrete):
        drawn = drawn + space.start
    space.seed(0)
    own = np.array([space.sample() for _ in range(MANY)])
    assert drawn.shape == own.shape
    assert drawn.dtype == own.dtype
    assert all(space.contains(action) for action in drawn[:100])
    one, other = (sample.reshape(MANY, -1).astype(float) for sample in (drawn, own))
    error = 6 * other.std(axis=0) * np.sqrt(2 / MANY)  # six standard errors of a difference of means
    assert (np.abs(one.mean(axis=0) - other.mean(axis=0)) < error).all()
    assert (np.abs(one.std(axis=0) - other.std(axis=0)) < 2 * error).all()  # an exponential's varies more


@pytest.mark.parametrize("name", SPACES)
def test_it_trains_and_is_evaluated_in_every_action_space(
    name: str, any_space: None, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent("algo=random", "env=gym", "env.id=AnySpace-v0", f"+env.kwargs.name={name}", "algo.num_steps=8")
    assert agent.algorithm.step() == {}
    assert agent.algorithm.steps == 8 * 8
    result = agent.evaluator(100).evaluate([0, 1, 2])
    assert result is not None
    assert result.lengths == [4, 4, 4]


@pytest.mark.parametrize("env", ["cartpole", "frozenlake", "pendulum", "breakout"])
def test_it_observes_anything_and_builds_no_network(env: str, make_agent: Callable[..., Agent]) -> None:
    agent = make_agent("algo=random", f"env={env}", "algo.num_envs=2", "algo.num_steps=4")
    agent.algorithm.step()
    assert agent.algorithm.networks() == {}
    assert agent.algorithm.policy_state_dict() == {}
    agent.close()


def test_training_draws_from_its_own_generator_only(make_agent: Callable[..., Agent]) -> None:
    rollouts = []
    for disturbance in (1, 2):
        agent = make_agent("algo=random", "env=cartpole", "seed=7")
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)
        before = GlobalGenerators().state_dict()
        agent.algorithm.step()
        assert first_difference(before, GlobalGenerators().state_dict()) is None
        rollouts.append(agent.algorithm.batch["action"].clone())
    assert torch.equal(*rollouts)
    other = make_agent("algo=random", "env=cartpole", "seed=8")
    other.algorithm.step()
    assert not torch.equal(rollouts[0], other.algorithm.batch["action"])


def test_evaluation_draws_from_the_lent_generator_and_leaves_its_own_alone(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent("algo=random", "env=cartpole")
    agent.algorithm.step()
    before = agent.algorithm.state_dict()
    once, again = (agent.evaluator(500).evaluate(list(range(20))) for _ in range(2))
    assert once == again
    assert first_difference(before, agent.algorithm.state_dict()) is None
    obs, first = torch.zeros(64, 4), torch.zeros(64, dtype=torch.bool)
    torch.manual_seed(0)
    one, other = (agent.algorithm.act(obs, None, first)[0] for _ in range(2))
    assert not torch.equal(one, other)


def test_a_run_is_stored_evaluated_loaded_and_stamped_as_sampled(tmp_path: Path) -> None:
    done = rlrun_here(
        ["algo=random", "env=cartpole", "total_steps=2000", "eval.episodes=3", "log.console=false"], tmp_path
    )
    assert done.returncode == 0, done.stderr
    run = the_run(tmp_path)
    assert run == tmp_path / "outputs/cartpole/random/total_steps=2000/seed=0"
    played = rlrun_here(["eval", str(run), "episodes=200"], tmp_path)
    assert played.returncode == 0, played.stderr
    assert rlrun_here(["eval", str(run), "episodes=1", "checkpoint=best"], tmp_path).returncode == 0
    assert rlrun_here(["eval", str(run), "episodes=1", "seed=3"], tmp_path).returncode == 0
    reports = {p.name: json.loads(p.read_text()) for p in (run / "evaluations").iterdir()}
    assert {name.split("-", 2)[2] for name in reports} == {
        *("last-seed-0-episodes-200.json", "last-seed-3-episodes-1.json", "best-seed-0-episodes-1.json")
    }
    assert {len(report["returns"]) for report in reports.values()} == {1, 200}
    loaded = package.load(run)
    assert loaded.agent.protocol()["policy"] == "last, sampled"
    assert {loaded.act(np.zeros(4, np.float32)) for _ in range(50)} == {0, 1}
    # 22.2 over 1,000 episodes is what Gymnasium's own sampler earns; the standard error of 200 is 0.9.
    assert 18 < float(played.stdout.split()[1]) < 27


def test_a_number_out_of_range_is_refused(make_agent: Callable[..., Agent]) -> None:
    for key in ("algo.num_envs=0", "algo.num_steps=0"):
        with pytest.raises(UserError, match=key):
            make_agent("algo=random", "env=cartpole", key)


@pytest.mark.crash
@pytest.mark.parametrize("algo", ["random", "scripted"])
def test_a_killed_baseline_ends_bit_identical_to_an_undisturbed_one(algo: str, tmp_path: Path) -> None:
    cadences = ["eval.every=1500", "checkpoint.every=600", "eval.episodes=3", "eval.final_episodes=4"]
    arguments = [f"algo={algo}", "env=cartpole", "total_steps=6000", "algo.num_steps=8", *cadences]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert rlrun(arguments, whole).returncode == 0
    assert killed_inside("evaluation", 30, arguments, broken) == -signal.SIGKILL
    assert killed_inside("before the manifest", 2, arguments, broken) == -signal.SIGKILL
    assert rlrun(arguments, broken).returncode == 0
    assert_identical(the_run(whole), the_run(broken))
