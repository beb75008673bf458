"""A3C under the wall clock: the same algorithm in processes, which leave nothing behind."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import TESTS, children, gone, rlrun, rows, the_run

from rlrun.algos.a3c import A3C
from rlrun.build import Agent
from rlrun.errors import UserError

MakeAgent = Callable[..., Agent]
MakeA3C = Callable[..., A3C]
SMALL = ("tuned=none", "algo=a3c", "algo.clock=wall", "network.hidden=[16]", "algo.num_workers=3")


@pytest.fixture
def make_a3c(make_agent: MakeAgent) -> Iterator[MakeA3C]:
    """Return the factory; whatever processes its algorithms have are ended after the test."""
    made: list[Agent] = []

    def make(*overrides: str, env: str = "cartpole") -> A3C:
        made.append(make_agent(*SMALL, f"env={env}", "algo.rollouts_per_step=7", *overrides))
        algorithm = made[-1].algorithm
        assert isinstance(algorithm, A3C)
        return algorithm

    yield make
    for agent in made:
        agent.close()
    assert not children(os.getpid())


def everything_learned(a3c: A3C) -> list[torch.Tensor]:
    squares = [a3c.optimizer.state[p]["square"] for p in a3c.net.parameters()]
    return [tensor.detach().clone() for tensor in (*a3c.net.parameters(), *squares)]


def test_a_single_process_does_to_the_bit_what_the_logical_clock_does(make_a3c: MakeA3C) -> None:
    constant = ("algo.num_workers=1", "algo.learning_rate=1e-3", "algo.learning_rate_end=1e-3")
    wall, logical = make_a3c(*constant), make_a3c(*constant, "algo.clock=logical")
    logical.workers = [logical.make_worker("a3c worker 0 from step 0")]  # as the process names its generators
    metrics: list[dict[str, float]] = []
    for _ in range(3):
        means = wall.step()
        metrics = [{name: float(value) for name, value in logical.step().items()} for _ in range(7)]
        for name in ("train/loss", "train/explained_variance", "train/staleness"):
            assert means[name] == pytest.approx(sum(row[name] for row in metrics) / 7)
    assert all(torch.equal(a, b) for a, b in zip(everything_learned(wall), everything_learned(logical), strict=True))
    assert (wall.steps, wall.num_updates) == (logical.steps, logical.num_updates) == (105, 21)


def test_every_rollout_is_counted_once(make_a3c: MakeA3C) -> None:
    a3c = make_a3c("algo.num_envs=2", "algo.num_steps=4", "algo.num_workers=2")
    for step in (1, 2, 3):
        metrics = a3c.step()
        assert a3c.steps == step * 7 * 2 * 4
        assert metrics["train/n_updates"] == a3c.num_updates == step * 7
        assert 0 <= metrics["train/staleness"] < 7


def test_episodes_of_the_processes_arrive_here(make_a3c: MakeA3C) -> None:
    a3c = make_a3c("env.max_episode_steps=5", "algo.num_envs=2", "algo.rollouts_per_step=20")
    for _ in range(3):
        a3c.step()
        episodes = a3c.collector.pop_episodes()
        # Each rollout is as long as an episode, and nobody falls so soon.
        assert [(e["length"], e["return"], e["step"]) for e in episodes] == [(5, 5.0, a3c.steps)] * 40
        assert {e["env"] for e in episodes} <= set(range(6))
    assert list(a3c.collector.recent_returns) == [5.0] * 100


def test_the_policy_that_is_evaluated_here_is_the_one_that_learns_there(make_a3c: MakeA3C) -> None:
    a3c, obs, first = make_a3c(), torch.randn(4, 4), torch.ones(4, dtype=torch.bool)
    # The first policy is nearly uniform; one that has learned from such a rate is not.
    a3c.learning_rate = 0.1
    before = a3c.net.distribution(obs).entropy().detach()
    a3c.step()
    after = a3c.net.distribution(obs)
    assert not torch.equal(before, after.entropy())
    assert torch.equal(a3c.act(obs, None, first)[0], after.mode())
    assert torch.equal(a3c.net.distribution(obs).entropy(), after.entropy())  # nobody learns between two steps


def test_a_restored_run_goes_on_from_weights_optimizer_and_counters(
    make_a3c: MakeA3C, through_disk: Callable[[Any], Any]
) -> None:
    first, second = make_a3c(), make_a3c("seed=1")
    first.step()
    second.step()  # and its processes have begun
    second.close()
    second.load_state_dict(through_disk(first.state_dict()))
    for a, b in zip(everything_learned(first), everything_learned(second), strict=True):
        assert torch.equal(a, b)
    metrics = second.step()
    assert (metrics["train/n_updates"], second.steps) == (14, 70)
    assert metrics["train/staleness"] < 7  # the copies are those of the restored count, not of 0
    assert not torch.equal(everything_learned(first)[0], everything_learned(second)[0])


def test_a_later_session_plays_other_episodes(make_a3c: MakeA3C) -> None:
    a3c = make_a3c("algo.clock=logical", "algo.num_workers=1")
    starts = [a3c.make_worker(f"a3c worker 0 from step {step}").collector.obs.tolist() for step in (0, 35)]
    assert starts[0] != starts[1]


def test_a_loss_that_is_not_finite_comes_with_its_batch(make_a3c: MakeA3C) -> None:
    a3c = make_a3c("algo.learning_rate=1e38", "algo.max_grad_norm=null", "algo.rollouts_per_step=60")
    assert not math.isfinite(float(a3c.step()["train/loss"]))
    assert a3c.batch["obs"].shape == (5, 1, 4)


def test_what_processes_cannot_share_is_refused(make_a3c: MakeA3C, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = ("env.normalize_obs=true", "env.normalize_reward=true")
    with pytest.raises(UserError, match=r"env\.normalize_obs=true and env\.normalize_reward=true.*algo\.clock=logical"):
        make_a3c(*numbers, env="pendulum")
    with monkeypatch.context() as patch:
        patch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
        with pytest.raises(UserError, match=r"algo\.clock=wall forks its workers"):
            make_a3c()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        with pytest.raises(UserError, match=r"device=cuda: add device=cpu, or take algo\.clock=logical"):
            make_a3c("device=cuda")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.learning
def test_racing_processes_learn(make_a3c: MakeA3C) -> None:
    numbers = ("algo.num_steps=20", "algo.learning_rate=2e-3", "algo.gamma=0.98", "algo.entropy_coef=0.0")
    a3c = make_a3c(*numbers, "network.hidden=[64,64]", "algo.rollouts_per_step=50", "total_steps=40_000")
    while a3c.steps < 40_000:
        a3c.step()
    returns = list(a3c.collector.recent_returns)
    assert sum(returns) / len(returns) > 60  # chance gets 22


# --- Whole runs -----------------------------------------------------------------------------------------

RUN = [*SMALL, "env=cartpole", "device=cpu", "log.console=false", "eval.episodes=2", "eval.final_episodes=3"]


def start_group(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start the command line in a process group of its own, as a shell does, and wait for its first checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlrun", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not list(folder.rglob("checkpoints/step-*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.crash
def test_an_exception_in_a_process_is_one_error_and_the_end_of_the_run(tmp_path: Path) -> None:
    third_party = ["--config-dir", str(TESTS / "third_party")]
    arguments = [*third_party, *SMALL, "env=corridor", "+env.kwargs.break_at=120", "name=x", "log.console=false"]
    done = rlrun(arguments, tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "RuntimeError: the corridor collapsed" in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert json.loads((the_run(tmp_path) / "run.json").read_text())["status"] == "failed"


@pytest.mark.crash
def test_a_killed_run_leaves_no_process_and_goes_on_at_once(tmp_path: Path) -> None:
    arguments = [*RUN, "total_steps=8000", "checkpoint.every=1000"]
    process = start_group(arguments, tmp_path)
    workers = children(process.pid)
    assert len(workers) == 3
    process.kill()
    process.communicate()
    again = rlrun(arguments, tmp_path)
    assert gone(workers, within=0)
    assert again.returncode == 0, again.stderr
    assert "continuing from step" in again.stderr
    run = the_run(tmp_path)
    steps = [row["step"] for row in rows(run / "metrics.jsonl")]
    assert steps == sorted(steps)
    assert json.loads((run / "result.json").read_text())["steps"] == steps[-1] >= 8000


@pytest.mark.crash
def test_ctrl_c_in_a_terminal_saves_and_ends_all(tmp_path: Path) -> None:
    process = start_group([*RUN, "total_steps=2_000_000", "checkpoint.every=2000"], tmp_path)
    workers = children(process.pid)
    assert len(workers) == 3
    os.killpg(process.pid, signal.SIGINT)  # which the terminal sends to all processes
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, output
    assert output.count("saving at the next step boundary") == 1
    assert "Traceback" not in output
    assert gone(workers, within=0)


@pytest.mark.crash
def test_a_run_says_and_records_that_no_other_will_be_like_it(tmp_path: Path) -> None:
    done = rlrun([*RUN, "total_steps=1000"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not bit-identical to another run of the same command: algo.clock=wall" in done.stderr
    (event,) = json.loads((the_run(tmp_path) / "run.json").read_text())["lineage"]
    assert (event["event"], event["step"]) == ("promise dropped", 0)
    assert "algo.clock=wall" in event["because"][0]
    compared = rlrun(["reproduce", str(the_run(tmp_path))], tmp_path)
    assert compared.returncode == 1
    assert "the stored run itself went on otherwise from step 0: algo.clock=wall" in compared.stdout
