"""Learning is proven by returns: each line trains through the command line to a published pass line."""

import json
from pathlib import Path
from statistics import median

import pytest
from harness import rlrun, the_run

pytestmark = pytest.mark.learning

# algorithm, environment, what the mean return of 100 episodes of the last policy must reach
PASS_LINES = [
    ("ppo", "cartpole", 475),  # 100k steps
    ("a2c", "cartpole", 475),  # 500k steps
    ("a3c", "cartpole", 475),  # 250k steps
    ("trpo", "cartpole", 475),  # 100k steps
    ("reinforce", "cartpole", 450),  # 200k steps
    ("actor_critic", "cartpole", 475),  # 150k steps
    ("ppo", "mountaincar_continuous", 85),  # 20k steps
    ("sac", "pendulum", -200),  # 20k steps
    ("td3", "pendulum", -200),  # 20k steps
    ("sac", "mountaincar_continuous", 90),  # 20k steps
    ("dqn", "cartpole", 450),  # 50k steps
    ("pqn", "cartpole", 475),  # 500k steps
    # The optima are 0.74 and 7.93; a hundred episodes tell them to 0.04 and 0.26.
    ("q_learning", "frozenlake", 0.65),  # 50k steps
    ("q_learning", "taxi", 7.4),  # 200k steps
]
# After a fifth of their budgets, where chance gets 22 and the hand-written policy 42.
EARLY_LINES = [("c51", 90), ("qr_dqn", 90), ("iqn", 90), ("rainbow", 150)]


def mean_return(arguments: list[str], folder: Path, seed: int = 0) -> float:
    folder.mkdir(exist_ok=True)
    done = rlrun([*arguments, f"seed={seed}", "log.console=false"], folder, timeout=800)
    assert done.returncode == 0, done.stderr
    result = json.loads((the_run(folder) / "result.json").read_text())
    assert len(result["returns"]) == 100
    return float(result["mean_return"])


@pytest.mark.parametrize(("algo", "env", "pass_line"), PASS_LINES)
def test_learns_to_the_published_return(algo: str, env: str, pass_line: float, tmp_path: Path) -> None:
    assert mean_return([f"algo={algo}", f"env={env}"], tmp_path) >= pass_line


def test_ppo_learns_pendulum_in_most_seeds(tmp_path: Path) -> None:
    # About one seed in ten has not learned to swing up from everywhere after 100k steps, and which one depends on the
    # last bits of the arithmetic.
    returns = [mean_return(["algo=ppo", "env=pendulum"], tmp_path / str(seed), seed) for seed in range(5)]
    assert median(returns) >= -250


@pytest.mark.parametrize(("algo", "pass_line"), EARLY_LINES)
def test_what_learns_a_distribution_is_well_above_chance_early(algo: str, pass_line: float, tmp_path: Path) -> None:
    assert mean_return([f"algo={algo}", "env=cartpole", "total_steps=10_000"], tmp_path) >= pass_line
