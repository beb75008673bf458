"""Whole runs on a GPU that is none: what mixes with the CPU's tensors is found without one at hand."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from harness import TESTS, assert_identical, environment, the_run
from torch.utils import backend_registration

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this torch takes no devices that are written in Python",
    ),
]

SHORT = "device=cuda eval.every=1000000 eval.episodes=2 eval.final_episodes=2 checkpoint.every=150 log.console=false"
REPLAY = "total_steps=300 algo.learning_starts=100 algo.buffer_size=1000 algo.batch_size=8"
CASES = {
    "on-policy": "-m algo=a2c,a3c,trpo,reinforce,actor_critic,pqn env=cartpole total_steps=600",
    "a memory": "algo=ppo network=lstm env=cartpole total_steps=600",
    "ahead": "algo=ppo env=pendulum env.normalize_obs=true algo.overlap=true algo.num_envs=2 algo.num_steps=64 "
    "algo.batch_size=64 total_steps=512",
    "frames": "algo=ppo env=breakout algo.num_envs=2 algo.num_steps=16 algo.batch_size=16 total_steps=64",
    "action values": f"-m algo=dqn,rainbow,c51,qr_dqn,iqn env=cartpole {REPLAY} algo.train_every=4 algo.num_updates=1",
    "frames on the device": f"-m algo=dqn,rainbow env=breakout {REPLAY} algo.train_every=8 "
    "device.replay_on_device=true",
    "bounded actions": f"-m algo=sac,td3,ddpg env=pendulum {REPLAY} env.normalize_obs=true",
    "bounded actions, on the device": f"-m algo=sac,td3 env=pendulum {REPLAY} env.normalize_obs=true "
    "env.normalize_reward=true device.replay_on_device=true",
    "discrete SAC": f"algo=sac env=cartpole {REPLAY}",
}


def run(arguments: str, folder: Path, **changes: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the command line with that GPU; return how it ended, and how often it waited and sent."""
    report = folder / "report.json"
    done = subprocess.run(
        [sys.executable, str(TESTS / "pretended_gpu.py"), str(report), *arguments.split(), *SHORT.split()],
        cwd=folder,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, json.loads(report.read_text()) if report.exists() else {}


@pytest.mark.parametrize("case", CASES)
def test_runs_train_and_are_evaluated_on_a_gpu(case: str, tmp_path: Path) -> None:
    done, counts = run(CASES[case], tmp_path)
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/*/*/*/*/result.json")]
    assert len(results) == CASES[case].count(",") + 1
    assert counts["waits"]["collector._step"] > 0


# algorithm: command line, how often it acts, and how often it learns
WAITS = {
    "ppo": ("env=cartpole total_steps=768 algo.num_envs=8", 96, 3),
    "dqn": (f"env=cartpole {REPLAY} algo.train_every=4 algo.num_updates=1", 300, 51),
    "sac": (f"env=pendulum {REPLAY} algo.train_every=1", 300, 201),
    "td3": (f"env=pendulum {REPLAY} algo.train_every=1", 300, 201),
}


@pytest.mark.parametrize("algo", WAITS)
def test_an_update_waits_for_nothing_on_its_gpu(algo: str, tmp_path: Path) -> None:
    arguments, acts, updates = WAITS[algo]
    done, counts = run(f"algo={algo} {arguments} log.every=1000000", tmp_path)
    assert done.returncode == 0, done.stderr
    waits, sends = Counter(counts["waits"]), Counter(counts["sends"])
    assert waits.pop("collector._step") == acts
    assert waits.pop("experiment.check_finite") <= updates
    assert waits.pop("experiment.check_weights") <= 6  # once a checkpoint
    del waits["evaluation._act"]
    # The only row of the log, and what the first round is watched for.
    assert waits.keys() <= {"logger._number", "meanwhile.<genexpr>"}
    # What it must send it sends, and nothing in the update itself.
    assert sends["collector._step"] == 2 * acts  # an observation, and where episodes begin
    assert sends["replay.look_up"] == (0 if algo == "ppo" else 3 * updates)
    before = {"device.place", "sac.__post_init__", "off_policy.<genexpr>"}  # and at random, during the warm-up
    at_the_edges = {"collector._step", "collector._batch", "rollout._tensor", "collector.to_policy", "replay.look_up"}
    assert (+sends).keys() <= before | at_the_edges | {"evaluation._act"}


@pytest.mark.parametrize(
    "arguments",
    [
        f"algo=dqn env=breakout {REPLAY} device.replay_on_device=true algo.train_every=4",
        "algo=ppo network=lstm env=cartpole algo.num_steps=16 total_steps=600",
    ],
)
def test_a_killed_run_on_a_gpu_ends_bit_identical(arguments: str, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    arguments += " checkpoint.every=100 log.every=50"
    done, _ = run(arguments, whole)
    assert done.returncode == 0, done.stderr
    killed, _ = run(arguments, broken, KILL_INSIDE="half a checkpoint:3")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    last, _ = run(arguments, broken)
    assert last.returncode == 0, last.stderr
    assert "continuing from step" in last.stderr
    assert_identical(the_run(whole), the_run(broken))


def test_what_would_mix_with_the_cpus_tensors_is_refused() -> None:
    program = """
import pretended_gpu as gpu, torch
with gpu.Pretence():
    x = torch.arange(4.0, device=gpu.GPU)
    index, cpu, one, own = torch.tensor(1), torch.ones(4), torch.ones(()), torch.Generator()
    for wrong in (
        lambda: x + cpu,
        lambda: torch.stack([x, cpu]),
        lambda: torch.stack([x[0], one]),
        lambda: one.add_(x[0]),
        lambda: torch.add(x, x, out=cpu),
        lambda: x.index_select(0, index),
        lambda: torch.where(x > 1, cpu, x),
        lambda: x.index_put_((index,), torch.ones(1)),
        lambda: torch.rand(4, device=gpu.GPU, generator=own),
        lambda: x.normal_(generator=own),
        x.numpy,
    ):
        try:
            wrong()
        except (RuntimeError, TypeError):
            continue
        raise SystemExit(f"not refused: line {wrong.__code__.co_firstlineno}")
    assert (x + 1).tolist() == [1, 2, 3, 4] and x[torch.tensor([3, 0])].cpu().tolist() == [3, 0]
    x[1:3] = torch.tensor([7.0, 8.0])
    weight = torch.nn.Parameter(x)
    weight.data = torch.zeros(2, device=gpu.GPU)
    assert weight.tolist() == [0, 0]
    assert x.sum().item() == 18 and x.device == gpu.GPU
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment(PYTHONPATH=str(TESTS)), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
