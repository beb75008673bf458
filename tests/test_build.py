"""What a run will need is said before it begins; here it is compared with what it takes."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlrun.build import build_agent
from rlrun.room import estimate

Compose = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("algo", ["dqn", "rainbow"])
def test_the_estimate_counts_what_a_checkpoint_holds_of_a_large_replay(
    algo: str, compose: Compose, tmp_path: Path
) -> None:
    config = compose(f"algo={algo}", "env=cartpole", "tuned=none", "device=cpu", "algo.buffer_size=1_000_000")
    agent = build_agent(config, tmp_path)
    stored = io.BytesIO()
    torch.save(agent.algorithm.state_dict(), stored)
    assert stored.tell() <= estimate(agent.algorithm, config).checkpoint <= 1.5 * stored.tell() + 500_000


@pytest.mark.parametrize(
    ("algo", "env"),
    [("q_learning", "frozenlake8x8"), ("sarsa", "cliffwalking"), ("value_iteration", "three_state_mdp")],
)
def test_the_estimate_counts_the_pictures_of_a_learned_table(algo: str, env: str, compose: Compose) -> None:
    def needed(*log: str) -> int:
        config = compose(f"algo={algo}", f"env={env}", "device=cpu", "total_steps=10_000", "eval.every=1000", *log)
        return estimate(build_agent(config).algorithm, config).disk

    agent = build_agent(compose(f"algo={algo}", f"env={env}", "device=cpu", "total_steps=10_000"))
    while agent.algorithm.steps < 10_000 and agent.algorithm.converged() is None:
        agent.algorithm.step()
    drawn = sum(map(len, agent.algorithm.pictures().values()))
    in_tensorboard_alone = needed("log.tensorboard=true") - needed("log.tensorboard=false")
    assert 11 * drawn <= in_tensorboard_alone <= 11 * 7 * drawn
