"""The promise: kill a run at any moment, give the same command again, and it ends bit for bit the same."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from harness import (
    assert_identical,
    final_state,
    first_difference,
    kill_underway,
    killed_inside,
    rlrun,
    rlrun_here,
    rows,
    start,
    the_run,
    total_steps,
)

pytestmark = pytest.mark.crash

CADENCES = ["eval.episodes=3", "eval.final_episodes=4", "checkpoint.keep=2", "log.console=false"]
ENVS = {
    "cartpole": ["env=cartpole", "total_steps=6000"],
    "pendulum": ["env=pendulum", "total_steps=6000", "env.normalize_obs=true", "env.normalize_reward=true"],
    "bipedalwalker": ["env=bipedalwalker", "total_steps=5000", "env.max_episode_steps=150"],
    "breakout": ["env=breakout", "total_steps=1500", "env.repeat_action_probability=0.25", "env.max_frames=1200"],
}
ALGOS = {
    "ppo": ["algo=ppo", "algo.num_envs=4", "algo.num_steps=32", "algo.batch_size=64", "algo.num_epochs=2"],
    "a2c": ["algo=a2c", "algo.num_envs=4", "algo.num_steps=8"],
    "ppo ahead": [
        *("algo=ppo", "algo.num_envs=4", "algo.num_steps=32", "algo.batch_size=64", "algo.num_epochs=2"),
        "algo.overlap=true",
    ],
}

# Rings of 2,048 slots or few more, of which 300 steps are within reach: they go round several times.
REPLAY = [
    "tuned=none",
    "algo.buffer_size=300",
    "algo.learning_starts=100",
    "algo.batch_size=16",
    "algo.n_steps=3",
    "algo.train_every=8",
]
TINY = ["env=cartpole", "total_steps=4500", "network.hidden=[16]"]
TINY_PENDULUM = ["env=pendulum", "total_steps=4500", "network.hidden=[16]"]
FRAMES = [*ENVS["breakout"], "total_steps=2400", "env.image_size=36", "network.channels=[8,8,8]", "network.hidden=16"]
VALUE_BASED = {
    "dqn": ["algo=dqn", *TINY, *REPLAY, "env.normalize_obs=true", "algo.epsilon_end=0.3"],
    "rainbow": ["algo=rainbow", *TINY, *REPLAY, "algo.num_envs=2", "algo.num_atoms=11"],
    "dqn on frames": ["algo=dqn", *FRAMES, *REPLAY],
    "pqn": ["algo=pqn", *TINY, "algo.num_envs=4", "algo.num_steps=8", "algo.batch_size=16"],
}

NO_RETURNS = [option for option in REPLAY if "n_steps" not in option]
POTENTIALS = "rlrun.envs.potentials"
SMALL_ROLLOUT = ["tuned=none", "algo.num_envs=2", "algo.num_steps=50", "algo.batch_size=50", "algo.num_epochs=2"]
POLICY_SEARCH = {
    "trpo": ["algo=trpo", *ENVS["pendulum"], "total_steps=4500", *SMALL_ROLLOUT, "algo.fisher_fraction=0.5"],
    "a3c": ["algo=a3c", *ENVS["pendulum"], "total_steps=4500", "tuned=none", "algo.num_workers=3", "algo.num_envs=2"],
    "reinforce": [
        "algo=reinforce",
        *ENVS["pendulum"],
        "total_steps=4500",
        "algo.baseline=value",
        "algo.episodes_per_update=1",
    ],
    "actor_critic": ["algo=actor_critic", *ENVS["pendulum"], "total_steps=4500", "algo.discount_updates=true"],
    "bc": ["algo=bc", *ENVS["pendulum"], "total_steps=4500", *SMALL_ROLLOUT, "algo.beta=0.5", "algo.eval_greedy=false"],
    "a potential": [*ALGOS["ppo"], "env=mountaincar", "total_steps=4500", f"env.potential={POTENTIALS}.mountaincar"],
    "sac": ["algo=sac", *TINY_PENDULUM, *NO_RETURNS, "algo.noise_correlation=0.8", "env.normalize_obs=true"],
    "sac, discrete": ["algo=sac", *TINY, *NO_RETURNS, "algo.num_envs=2"],
    "td3": ["algo=td3", *TINY_PENDULUM, *NO_RETURNS, "algo.num_envs=2", "algo.num_updates=3"],
    "ddpg": ["algo=ddpg", *TINY_PENDULUM, *NO_RETURNS, "env.normalize_reward=true"],
    "trpo on frames": ["algo=trpo", *FRAMES, *SMALL_ROLLOUT, "algo.num_cg_iterations=5"],
}

BF16 = ["device.precision=bf16", "device.threads=2"]  # two threads: convolutions in parts
FAST_PATHS = {
    "ppo on frames in bf16": [*ALGOS["ppo"], *FRAMES, *BF16],
    "dqn on frames in bf16": ["algo=dqn", *FRAMES, *REPLAY, "algo.batch_size=40", *BF16],
    "sac, wide enough for oneDNN": [*POLICY_SEARCH["sac"], "network.hidden=[128,128]", "algo.batch_size=128"],
    "ppo in minibatches of 256": [
        *(*ALGOS["ppo"], *TINY, "total_steps=20000", "algo.num_steps=64", "algo.batch_size=256"),
    ],
}
COMPILED = [*ALGOS["ppo"], *TINY, "total_steps=4500", "device.compile=true"]

TABULAR = {  # what learns with a table, or plans: steps or sweeps, and where
    "value_iteration": (571, ["env=frozenlake"]),  # after which it has converged
    "q_iteration": (50, ["env=three_state_mdp"]),
    "td": (6000, ["env=three_state_mdp"]),
    "q_learning": (6000, ["env=taxi", "algo.epsilon_start=0.5"]),
    "sarsa": (6000, ["env=taxi", "+env.kwargs.fickle_passenger=true"]),  # which has no model
    "expected_sarsa": (6000, ["env=frozenlake"]),
}


def command(algo: str, env: str) -> list[str]:
    total = total_steps(ENVS[env])
    cadences = [f"eval.every={total // 4}", f"checkpoint.every={total // 9}", f"log.every={total // 20}"]
    return [*ALGOS[algo], *ENVS[env], *CADENCES, *cadences]


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("algo", ALGOS)
def test_a_killed_run_ends_bit_identical_to_an_undisturbed_one(algo: str, env: str, tmp_path: Path) -> None:
    arguments = command(algo, env)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = rlrun(arguments, whole)
    assert done.returncode == 0, done.stderr

    dice = random.Random(f"{algo} {env}")
    kill_underway(dice, 0.02, 0.4, arguments, broken)
    assert killed_inside("evaluation", dice.randint(5, 20), arguments, broken) == -signal.SIGKILL
    assert killed_inside("half a checkpoint", dice.randint(1, 2), arguments, broken) == -signal.SIGKILL
    killed_inside("before the manifest", 2, arguments, broken)
    last = rlrun(arguments, broken)
    assert last.returncode == 0, last.stderr

    assert_identical(the_run(whole), the_run(broken))


OTHERS = VALUE_BASED | POLICY_SEARCH | FAST_PATHS
OTHERS |= {"ppo compiled": COMPILED} if shutil.which("g++") else {}  # torch calls it


@pytest.mark.parametrize("case", OTHERS)
def test_a_killed_run_of_other_algorithms_ends_bit_identical(case: str, tmp_path: Path) -> None:
    total, every = total_steps(OTHERS[case]), 200
    cadences = ["eval.every=1500", f"checkpoint.every={every}", "log.every=100"]
    arguments, dice = [*OTHERS[case], *CADENCES, *cadences], random.Random(case)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = rlrun(arguments, whole)
    assert done.returncode == 0, done.stderr
    step = kill_underway(dice, 0.1, 0.5, arguments, broken)
    left = (total - step) // every
    # While later steps overwrite earlier ones.
    assert killed_inside("half a checkpoint", dice.randint(2, left // 2), arguments, broken) == -signal.SIGKILL
    last = rlrun(arguments, broken)
    assert last.returncode == 0, last.stderr
    assert "continuing from step" in last.stderr
    assert_identical(the_run(whole), the_run(broken))


FROM_ANOTHER = {
    "init_from": [*ALGOS["a2c"], "init_from={}", "env.normalize_obs=true"],
    "init_from with a replay": ["algo=dqn", *REPLAY, "init_from={}", "env.normalize_obs=true"],
    "an expert": ["algo=bc", *SMALL_ROLLOUT, "algo.expert={}", "algo.expert_greedy=false"],
}


@pytest.mark.parametrize("case", FROM_ANOTHER)
def test_a_killed_run_that_began_with_another_ends_bit_identical_without_that_one(case: str, tmp_path: Path) -> None:
    algo = ["algo=dqn", *REPLAY] if "replay" in case else ALGOS["ppo"]
    options = [*TINY, "total_steps=2000", *CADENCES, "eval.every=900", "checkpoint.every=250", "log.every=100"]
    source = [*algo, *options, "total_steps=500", "env.normalize_obs=true", "name=source"]
    assert rlrun_here(source, tmp_path).returncode == 0
    other = the_run(tmp_path)
    arguments = [option.format(other) for option in FROM_ANOTHER[case]] + options
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = rlrun_here(arguments, whole)
    assert done.returncode == 0, done.stderr
    # In the midst of the checkpoint of step 0, when the other is needed once more, and of a later one.
    assert killed_inside("half a checkpoint", 1, arguments, broken) == -signal.SIGKILL
    assert killed_inside("half a checkpoint", 4, arguments, broken) == -signal.SIGKILL
    shutil.rmtree(other)
    last = rlrun(arguments, broken)
    assert last.returncode == 0, last.stderr
    assert "continuing from step" in last.stderr
    assert_identical(the_run(whole), the_run(broken))


@pytest.mark.parametrize("algo", TABULAR)
def test_a_killed_table_ends_bit_identical_with_the_same_pictures(algo: str, tmp_path: Path) -> None:
    total, options = TABULAR[algo]
    cadences = [f"eval.every={total // 4}", f"checkpoint.every={total // 9}", f"log.every={total // 20}"]
    arguments = [f"algo={algo}", *options, f"total_steps={total}", *CADENCES, *cadences]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = rlrun(arguments, whole)
    assert done.returncode == 0, done.stderr
    assert killed_inside("half a checkpoint", random.Random(algo).randint(3, 6), arguments, broken) == -signal.SIGKILL
    last = rlrun(arguments, broken)
    assert last.returncode == 0, last.stderr
    assert "continuing from step" in last.stderr
    assert_identical(the_run(whole), the_run(broken))
    drawn = [{p.name: p.read_bytes() for p in (the_run(f) / "images").iterdir()} for f in (whole, broken)]
    assert len(drawn[0]) > 2
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_next_boundary_and_the_run_goes_on_from_there(
    number: signal.Signals, tmp_path: Path
) -> None:
    arguments = command("ppo", "cartpole")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert rlrun(arguments, whole).returncode == 0

    process = start(arguments, broken)
    while not list(broken.rglob("checkpoints/step-*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "interrupted at step" in output
    again = rlrun(arguments, broken)
    assert again.returncode == 0
    assert "continuing from step" in again.stderr
    assert_identical(the_run(whole), the_run(broken))


def test_looking_more_or_less_often_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    base = [*ALGOS["ppo"], *ENVS["cartpole"], "eval.final_episodes=4", "log.console=false"]
    folders = []
    for cadence in (500, 100_000):
        folder = tmp_path / str(cadence)
        folder.mkdir()
        every = [f"eval.every={cadence}", f"log.every={cadence}", f"checkpoint.every={cadence}", "eval.episodes=3"]
        assert rlrun([*base, *every], folder).returncode == 0
        folders.append(the_run(folder))
    often, seldom = (final_state(run) for run in folders)
    for learned in ("algorithm", "normalizer", "generators"):
        assert first_difference(often[learned], seldom[learned]) is None
    assert rows(folders[0] / "episodes.jsonl") == rows(folders[1] / "episodes.jsonl")


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    arguments = [*ALGOS["ppo"], "env=cartpole", "total_steps=600", "eval.final_episodes=2", "log.console=false"]
    assert rlrun([*arguments, "name=one", "seed=0"], tmp_path).returncode == 0
    assert rlrun([*arguments, "name=two", "seed=1"], tmp_path).returncode == 0
    one, two = (tmp_path / f"outputs/cartpole/ppo/{name}/seed={seed}" for name, seed in (("one", 0), ("two", 1)))
    assert first_difference(final_state(one)["algorithm"], final_state(two)["algorithm"]) is not None
