"""One run over several processes learns what one process does, and keeps the promise."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import assert_identical, children, environment, first_difference, gone, rlrun_here, the_run
from torch import nn

from rlrun.algos.algorithm import check_minibatch, descend
from rlrun.algos.on_policy import minibatches, normalized
from rlrun.build import build_agent
from rlrun.distributed import LONE, ProcessLost, World
from rlrun.envs.normalizer import Normalizer
from rlrun.errors import UserError
from rlrun.followers import Follower, Followers, Following, Order
from rlrun.seeding import Seeds, drawn

Work = Callable[[World], Any]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rlrun"]


def in_processes(size: int, work: Work, answering: int | None = None) -> list[Any]:
    """Return what `work` returns in each of some forked processes that have met, by rank; or in the first few."""
    context = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    workers = [
        context.Process(target=_in_process, args=(rank, size, port, work, pipes[rank][1]), daemon=True)
        for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    try:
        for _, sender in pipes:
            sender.close()
        answers = [receiver for receiver, _ in pipes][:answering]
        assert all(receiver.poll(60) for receiver in answers)
        return [receiver.recv() for receiver in answers]
    finally:
        for worker in workers:
            worker.kill()


def _in_process(rank: int, size: int, port: int, work: Work, sender: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    world = World.of_environment()
    world.join()
    sender.send(work(world))
    os._exit(0)


# --- What is shared ---------------------------------------------------------------------------------------


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World.of_environment() is LONE
    monkeypatch.setenv("RANK", "1")  # as other tools set it, for purposes of their own
    assert World.of_environment() is LONE


def test_gradients_of_shares_average_to_that_of_the_whole_minibatch_with_normalised_advantages() -> None:
    generator = torch.Generator().manual_seed(0)
    x, advantage = torch.randn(12, 3, generator=generator), 5 + 3 * torch.randn(12, generator=generator)

    def gradient(world: World) -> list[float]:
        net = nn.Linear(3, 1)
        with torch.no_grad():
            net.weight.fill_(0.5)
            net.bias.fill_(0.1)
        mine = slice(world.rank * 12 // world.size, (world.rank + 1) * 12 // world.size)
        loss = (net(x[mine]).squeeze(1).exp() * normalized(advantage[mine], world)).mean()
        descend(loss, torch.optim.SGD(net.parameters(), lr=0.1), 0.5, world)
        return torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()

    whole = gradient(LONE)
    for size in (2, 3):
        parts = in_processes(size, gradient)
        assert all(part == parts[0] for part in parts)
        assert parts[0] == pytest.approx(whole, abs=1e-6)


def test_statistics_of_normalisation_are_bit_for_bit_those_of_one_process() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (5, 6, 2))
    ended = np.random.default_rng(1).random((5, 6)) < 0.3

    def moments(world: World) -> list[list[float]]:
        normalizer, n = Normalizer((2,), 0.9, world), 6 // world.size
        mine, returns = slice(world.rank * n, (world.rank + 1) * n), np.zeros(n)
        for row, end in zip(rows, ended, strict=True):
            normalizer.update_obs(row[mine])
            normalizer.reward(row[mine, 0], end[mine], returns)
        both = normalizer.obs_moments, normalizer.return_moments
        return [[*m.mean.ravel().tolist(), *m.var.ravel().tolist(), float(m.count)] for m in both]

    assert in_processes(2, moments) == [moments(LONE)] * 2


@pytest.mark.parametrize("fill", ["exponential_", "normal_"])
def test_a_shared_generator_draws_for_all_and_gives_each_process_its_rows(fill: str) -> None:
    def draws(world: World, rows: int) -> torch.Tensor:
        generator = Seeds(0, world).torch("x")
        return drawn(torch.empty(rows, 5), generator, lambda empty: getattr(empty, fill)(generator=generator))

    parts = [draws(World(rank, 3), 4) for rank in range(3)]
    assert torch.equal(torch.cat(parts), draws(LONE, 12))


def test_minibatches_of_all_processes_are_of_one_size_and_hold_each_row_once_an_epoch() -> None:
    generators = [Seeds(0, World(rank, 2)).torch("x") for rank in range(2)]
    data = {"row": torch.arange(12)}
    for _ in range(2):
        orders = []
        for generator in generators:
            batches = [batch["row"].tolist() for batch in minibatches(data, 4, generator)]
            assert [len(batch) for batch in batches] == [4, 4, 4]
            orders.append([row for batch in batches for row in batch])
            assert sorted(orders[-1]) == list(range(12))
        assert orders[0] != orders[1]
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_metrics_are_averaged_and_plain_numbers_left_alone() -> None:
    def metrics(world: World) -> dict[str, float]:
        values = world.averaged({"a": torch.tensor(1.0 + world.rank), "b": 7, "c": torch.tensor(2.0)})
        return {name: float(value) for name, value in values.items()}

    assert in_processes(2, metrics) == [{"a": 1.5, "b": 7.0, "c": 2.0}] * 2


@pytest.mark.parametrize(("batch", "sequence", "best"), [(5, 1, 4), (30, 10, 20)])
def test_a_minibatch_that_processes_cannot_share_is_refused_with_the_nearest_that_they_can(
    batch: int, sequence: int, best: int
) -> None:
    with pytest.raises(UserError, match=f"give each of 2 processes as many .*; try {best}$"):
        check_minibatch(batch, 60, sequence, processes=2)
    check_minibatch(best, 60, sequence, processes=2)


# --- What is learned --------------------------------------------------------------------------------------

SMALL = ["tuned=none", "network.hidden=[16]", "algo.num_envs=4", "total_steps=100_000"]
WHOLE_ROLLOUTS = {
    "a2c": ["algo=a2c", "env=cartpole", "algo.num_steps=40", "algo.normalize_advantage=true"],
    "ppo": ["algo=ppo", "env=cartpole", "algo.num_steps=40", "algo.batch_size=160", "algo.target_kl=0.01"],
    "continuous ppo, normalised": [
        *("algo=ppo", "env=pendulum", "algo.num_steps=50", "algo.batch_size=200", "env.max_episode_steps=40"),
        *("env.normalize_obs=true", "env.normalize_reward=true"),
    ],
    "ppo with a memory": [
        *("algo=ppo", "env=cartpole", "algo.num_steps=40", "algo.batch_size=160", "network=lstm"),
        "network.lstm_size=8",
    ],
    "pqn": ["algo=pqn", "env=cartpole", "algo.num_steps=40", "algo.batch_size=160", "algo.epsilon_end=0.5"],
}


@pytest.mark.parametrize("case", WHOLE_ROLLOUTS)
def test_two_processes_learn_what_one_does_where_minibatches_are_whole_rollouts(
    case: str, compose: Callable[..., dict[str, Any]]
) -> None:
    config = compose("device=cpu", "device.threads=1", *SMALL, *WHOLE_ROLLOUTS[case])

    def learned(world: World) -> tuple[list[dict[str, float]], int, dict[str, np.ndarray], dict[str, float]]:
        algorithm = build_agent(config, world=world).algorithm
        for _ in range(4):
            metrics = world.averaged(algorithm.step())
        (collector,) = algorithm.setup.collectors
        (net,) = algorithm.networks().values()
        weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
        return collector.pop_episodes(), algorithm.steps, weights, {k: float(v) for k, v in metrics.items()}

    episodes, steps, weights, metrics = learned(LONE)
    assert len(episodes) > 3
    for theirs in in_processes(2, learned):
        assert len(theirs[0]) == len(episodes)
        for one, other in zip(theirs[0], episodes, strict=True):
            assert one == pytest.approx(other, rel=1e-4)  # continuous actions are equal but for rounding
        assert theirs[1] == steps
        for name, weight in weights.items():
            np.testing.assert_allclose(theirs[2][name], weight, atol=1e-4, err_msg=name)
        assert theirs[3] == pytest.approx(metrics, rel=1e-3, abs=1e-4)


def test_processes_restored_to_a_checkpoint_go_on_bit_for_bit(compose: Callable[..., dict[str, Any]]) -> None:
    options = [*WHOLE_ROLLOUTS["continuous ppo, normalised"], "algo.num_steps=30", "algo.batch_size=60"]
    config = compose("device=cpu", "device.threads=1", *SMALL, *options)

    def begin(world: World, followers: Followers, *stored: Any) -> Follower:
        followers.build(config)
        agent = build_agent(config, world=world)
        assert followers.built(agent.fingerprint()) == [{}]
        leader = Follower(normalizer=agent.normalizer, algorithm=agent.algorithm)
        followers.restore(*(stored or (leader.state_dict(), [])))
        if stored:
            leader.load_state_dict(stored[0])
        return leader

    def steps(world: World, followers: Followers, leader: Follower) -> list[Any]:
        for _ in range(2):
            followers.step()
            world.averaged(leader.algorithm.step())
        state, parts = deepcopy(leader.state_dict()), followers.parts()
        assert first_difference(parts[0]["algorithm"]["collector"], state["algorithm"]["collector"]) is not None
        return [state, parts]

    def lead_and_follow(world: World) -> str | None:
        if world.rank:
            following = Following(world)
            while (order := Order(world.largest(0, 0)[0])) != Order.END:
                following.do(order)
            return None
        followers = Followers(world)
        leader = begin(world, followers)
        stored = steps(world, followers, leader)
        undisturbed = steps(world, followers, leader)
        again = steps(world, followers, begin(world, followers, *stored))
        followers.end()
        return str(first_difference(undisturbed, again) or "")

    assert in_processes(2, lead_and_follow) == ["", None]


# --- The command line -------------------------------------------------------------------------------------

PPO = ["algo=ppo", "env=cartpole", "tuned=none", "algo.num_envs=4", "algo.num_steps=32", "algo.batch_size=64"]
QUIET = ["log.console=false", "device=cpu", "eval.episodes=3", "eval.final_episodes=4"]
RUN = [*PPO, *QUIET, "total_steps=3000", "eval.every=1000", "checkpoint.every=300", "log.every=200"]


def torchrun(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    alone = environment(OMP_NUM_THREADS="1")
    return subprocess.run([*TORCHRUN, *arguments], cwd=folder, env=alone, capture_output=True, text=True, timeout=300)


def start(arguments: list[str], folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a run; return torchrun's process, and those of the run by rank once it has a checkpoint."""
    alone = environment(OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        [*TORCHRUN, *arguments], cwd=folder, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    before = set(folder.rglob("step-*.json"))
    while not set(folder.rglob("step-*.json")) - before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    ranks = {rank_of(pid): pid for pid in children(process.pid) if rank_of(pid) is not None}
    return process, [ranks["0"], ranks["1"]]


def rank_of(pid: int) -> str | None:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return next((entry.partition("=")[2] for entry in entries if entry.startswith("RANK=")), None)


@pytest.mark.crash
def test_a_killed_run_of_two_processes_ends_bit_identical_to_an_undisturbed_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = torchrun(RUN, whole)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("return ") == 1  # one process speaks

    process, pids = start(RUN, broken)
    os.kill(pids[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.count("another process of this run has ended") == 1
    process, pids = start(RUN, broken)
    process.kill()  # torchrun itself: what it started must not go on without it
    assert gone(pids, within=10)
    process.communicate()
    last = torchrun(RUN, broken)
    assert last.returncode == 0, last.stderr
    assert last.stderr.count("continuing from step") == 1
    assert "not bit-identical" not in last.stderr
    assert_identical(the_run(whole), the_run(broken))


@pytest.mark.crash
def test_a_signal_to_one_process_saves_and_a_lone_process_does_not_take_the_run_over(tmp_path: Path) -> None:
    long = [*RUN, "total_steps=1_000_000"]
    process, pids = start(long, tmp_path)
    os.kill(pids[1], signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert output.count("interrupted at step") == 1, output
    run = the_run(tmp_path)
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert record["fingerprint"]["processes"] == 2

    for command in (long, ["resume", str(run)]):
        alone = rlrun_here(command, tmp_path)
        assert alone.returncode == 2
        assert "is a run of 2 processes, and this command has 1: expected torchrun with 2 in all" in alone.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algo.num_envs=9"], "algo.num_envs=9 cannot be shared by 2 processes: expected a multiple of 2, such as 8"),
        (
            ["-m", "seed=0,1"],
            "torchrun started 2 processes to split one run over, and a sweep is none: expected key=value",
        ),
    ],
)
def test_bad_input_is_answered_once_and_leaves_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = torchrun(["algo=a2c", "tuned=none", "env=cartpole", "device=cpu", *arguments], tmp_path)
    assert done.stderr.count("error: ") == 1, done.stderr
    assert f"error: {message}" in done.stderr
    assert "exitcode  : 2" in done.stderr  # of the first process, as torchrun reports it
    assert not list(tmp_path.iterdir())


def test_an_algorithm_that_cannot_be_split_names_those_that_can(compose: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"learns in one process, and torchrun started 2: .* one of a2c, ppo, pqn$"):
        build_agent(compose("algo=dqn", "device=cpu"), world=World(1, 2))


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match=r"started 99 processes on a machine with .* GPUs: each needs one of its own"):
        World(98, 99, local_rank=98, local_size=99).take_gpu()


def test_what_ends_a_follower_is_said_by_the_first_process() -> None:
    def said(world: World) -> str:
        if world.rank == 1:
            world.report_failure("env.id=Far-v0 needs a package")
            os._exit(2)
        with pytest.raises(ProcessLost) as lost:
            world.largest(1)
        return str(lost.value)

    assert in_processes(2, said, answering=1) == ["process 1: env.id=Far-v0 needs a package"]


@pytest.mark.learning
def test_two_processes_learn_cartpole(tmp_path: Path) -> None:
    options = ["algo=ppo", "env=cartpole", "total_steps=10_000", "eval.every=10_000"]
    done = torchrun([*options, "device=cpu", "log.console=false"], tmp_path)
    assert done.returncode == 0, done.stderr
    # After a tenth of its budget, where chance gets 22 and the hand-written policy 42.
    assert json.loads((the_run(tmp_path) / "result.json").read_text())["mean_return"] >= 70
