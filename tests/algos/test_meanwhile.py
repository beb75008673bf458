"""Acting while a gradient is computed: the same bits as one after the other."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_dqn import SMALL, make_dqn
from small_off_policy import Compose, MakeAgent, check_exact_resume, run, weights
from torch import Tensor, nn

from rlrun.algos.dqn import DQN
from rlrun.algos.meanwhile import Meanwhile
from rlrun.build import build_agent
from rlrun.device import Device
from rlrun.networks import convolved
from rlrun.networks.jobs import Jobs


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("meanwhile")]


def a_device(spare_threads: int) -> Device:
    options: dict[str, Any] = {"kind": "cpu", "threads": None, "precision": "float32", "compile": False}
    device = Device(**options, deterministic=True, replay_on_device=False)
    device.spare_threads = spare_threads
    return device


def thread_name() -> str:
    return threading.current_thread().name


# --- The thread ---------------------------------------------------------------------------------------------


def test_after_a_first_round_without_traces_a_thread_computes() -> None:
    meanwhile, names = Meanwhile([], a_device(1)), []
    for _ in range(3):
        with meanwhile.round():
            first, second = meanwhile.start(thread_name), meanwhile.start(thread_name)
            names.append((first(), second()))
    meanwhile.close()
    assert names == [("MainThread",) * 2, ("meanwhile_0",) * 2, ("meanwhile_0",) * 2]


@pytest.mark.parametrize("why", ["no spare thread", "a draw", "a buffer"])
def test_otherwise_everything_is_computed_here(why: str) -> None:
    norm = nn.BatchNorm1d(2)

    def compute() -> str:
        if why == "a draw":
            torch.rand(1)
        if why == "a buffer":
            norm(torch.randn(4, 2, generator=torch.Generator()))
        return thread_name()

    meanwhile = Meanwhile([norm], a_device(int(why != "no spare thread")))
    for _ in range(3):
        with meanwhile.round():
            assert meanwhile.start(compute)() == "MainThread"


@pytest.mark.parametrize("num_threads", [1, 3])
def test_everything_is_computed_with_one_of_torchs_threads_from_the_first_round_on(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    try:
        meanwhile = Meanwhile([], a_device(1))
        for _ in range(3):
            with meanwhile.round():
                count = meanwhile.start(torch.get_num_threads)
                assert count() == 1
                assert torch.get_num_threads() == num_threads
        meanwhile.close()
        alone = Meanwhile([], a_device(0))
        with alone.round():
            assert alone.start(torch.get_num_threads)() == num_threads
    finally:
        torch.set_num_threads(1)


def test_nothing_goes_on_after_a_round_that_raised() -> None:
    meanwhile, done = Meanwhile([], a_device(1)), []
    with meanwhile.round():
        pass

    def fail_beside_something_long() -> None:
        with meanwhile.round():
            meanwhile.start(lambda: time.sleep(0.2) or done.append(1))  # type: ignore[func-returns-value]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_beside_something_long()
    assert done == [1]
    meanwhile.close()


def test_what_the_thread_raises_is_raised_where_its_result_is_asked_for() -> None:
    def fail() -> None:
        raise FileNotFoundError("the map of level 3")

    meanwhile = Meanwhile([], a_device(1))
    with meanwhile.round():
        pass
    with pytest.raises(FileNotFoundError, match="level 3") as raised, meanwhile.round():
        meanwhile.start(fail)()
    assert "device.threads=1" in raised.value.__notes__[0]
    with meanwhile.round():
        assert meanwhile.start(thread_name)() == "meanwhile_0"
    meanwhile.close()


# --- Deep Q-networks' ---------------------------------------------------------------------------------------


def outcome(dqn: DQN, iterations: int) -> list[Any]:
    metrics = [{key: float(value) for key, value in dqn.step().items()} for _ in range(iterations)]
    stored = dqn.replay.ring.read("action", dqn.replay.ring.position(0, dqn.replay.ring.head[0] - 1))  # type: ignore[arg-type]
    return [metrics, [weights(net).numpy().tobytes() for net in dqn.networks().values()], stored.tolist()]


@pytest.mark.parametrize(
    "options",
    [
        ("algo=dqn",),
        ("algo=dqn", "algo.double=true", "algo.priority_alpha=0.5", "algo.n_steps=3", "env.normalize_obs=true"),
        ("algo=dqn", "device.precision=bf16", "algo.double=true"),
        ("algo=dqn", "algo.num_updates=3", "algo.num_envs=2", "algo.dueling=true"),
        ("algo=c51", "algo.num_atoms=11"),
        ("algo=qr_dqn", "algo.num_quantiles=7"),
        ("algo=iqn",),
        ("algo=rainbow", "algo.num_atoms=11"),
    ],
    ids=lambda options: " ".join(options),
)
def test_who_acts_changes_no_bit(options: tuple[str, ...], make_agent: MakeAgent) -> None:
    outcomes = []
    for spare_threads in (0, 1):
        dqn = make_dqn(make_agent, *options[1:], "algo.epsilon_end=0.3", algo=options[0].partition("=")[2])
        # As `choose_threads` would for a larger network.
        dqn.setup.device.spare_threads = spare_threads * dqn.threads_meanwhile()
        outcomes.append(outcome(dqn, 60))
        assert (dqn.meanwhile.thread is not None) == (spare_threads and options[0] not in ("algo=iqn", "algo=rainbow"))
        dqn.close()
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_who_acts_on_frames_changes_no_bit(
    precision: str, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, helped = [], set()

    class Watched(Jobs[Any]):
        def __init__(self) -> None:
            super().__init__()
            helped.add((threads, self.helper is not None))

    monkeypatch.setattr(convolved, "Jobs", Watched)
    for threads in (1, 2):
        options = ("network.hidden=16", "env.image_size=36", "network.channels=[8,8,8]", "algo.epsilon_end=0.3")
        fixed = [option for option in SMALL if not option.startswith(("network.hidden", "device.threads"))]
        agent = make_agent(
            *fixed, "algo=dqn", "env=breakout", *options, f"device.precision={precision}", f"device.threads={threads}"
        )
        dqn = agent.algorithm
        assert isinstance(dqn, DQN)
        assert torch.get_num_threads() == 1
        outcomes.append(outcome(dqn, 40))
        assert (dqn.meanwhile.thread is not None) == (threads == 2)
        dqn.close()
    assert outcomes[0] == outcomes[1]
    assert helped == {(1, False), (2, False), (2, True)}  # the first round is always done alone


def test_the_minibatch_is_drawn_before_and_the_weights_move_after_acting(make_agent: MakeAgent) -> None:
    dqn, seen = run(make_dqn(make_agent, "algo.learning_rate=0.1"), 60), list[tuple[str, int, Tensor]]()
    collect, sample, add = dqn.collect, dqn.sample, dqn.replay.add

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            seen.append((name, int(dqn.replay.ring.head.sum()), weights(dqn.net).clone()))
            return function(*arguments)

        return noting

    dqn.collect, dqn.sample = noted("act", collect), noted("draw", sample)  # type: ignore[method-assign]
    dqn.replay.add = noted("store", add)  # type: ignore[method-assign]
    dqn.step()
    (draw, before, first), (act, also_before, second), (store, _, third) = seen
    assert (draw, act, store) == ("draw", "act", "store")
    assert before == also_before
    assert torch.equal(first, second)
    assert not torch.equal(second, third)


def test_a_thread_is_of_use_where_acting_and_learning_have_nothing_in_common(make_agent: MakeAgent) -> None:
    def meanwhile(algo: str, *options: str) -> int:
        return make_dqn(make_agent, *options, algo=algo).threads_meanwhile()

    assert [meanwhile(algo) for algo in ("dqn", "c51", "qr_dqn")] == [1, 1, 1]
    assert meanwhile("iqn") == meanwhile("dqn", "algo.noisy_sigma=0.5") == meanwhile("dqn", "device.compile=true") == 0


def test_a_killed_run_with_a_thread_goes_on_like_an_undisturbed_one_without(
    compose: Compose, through_disk: Callable[[Any], Any], tmp_path: Path
) -> None:
    made: list[DQN] = []

    def make_one(folder: str, seed: int) -> DQN:
        options = (*SMALL, "algo=dqn", "env=cartpole", "algo.buffer_size=60", "algo.train_every=1", f"seed={seed}")
        dqn = build_agent(compose(*options), tmp_path / folder).algorithm
        assert isinstance(dqn, DQN)
        dqn.setup.device.spare_threads = int(folder == "killed")
        made.append(dqn)
        return dqn

    check_exact_resume(make_one, through_disk, before=70)
    assert [dqn.meanwhile.thread is not None for dqn in made] == [False, True, True]
    for dqn in made:
        dqn.close()


def test_the_thread_does_jobs_of_the_caller_where_there_is_one() -> None:
    for spare_threads in (0, 1):
        meanwhile = Meanwhile([], a_device(spare_threads))
        for _ in range(2):
            with meanwhile.round():
                meanwhile.start(thread_name)()
        with meanwhile.helping():
            assert Jobs[str]().helper is meanwhile.thread
            jobs = Jobs[str]()
            jobs.give(thread_name)
            if meanwhile.thread is not None:
                meanwhile.start(thread_name)()
            assert jobs.results() == ["meanwhile_0" if spare_threads else "MainThread"]
        meanwhile.close()
