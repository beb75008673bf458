"""A gradient that another process computes: the same bits, and nothing left behind."""

import gc
import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from harness import children, gone
from small_off_policy import SMALL, MakeAgent, check_exact_resume, make, run, weights
from torch import Tensor, nn

from rlrun.algos.aside import Aside
from rlrun.algos.sac import SAC
from rlrun.build import build_agent
from rlrun.device import Device
from rlrun.errors import RunFailed


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = children(os.getpid())
    yield
    gc.collect()
    assert children(os.getpid()) == before


def make_device(idle_cores: int = 1) -> Device:
    options: dict[str, Any] = {"kind": "cpu", "threads": None, "precision": "float32", "compile": False}
    device = Device(**options, deterministic=True, replay_on_device=False)
    device.idle_cores = idle_cores
    return device


def make_sac(make_agent: MakeAgent, *overrides: str, name: str = "sac", idle_cores: int = 1) -> SAC:
    sac = make(make_agent, name, *overrides)
    assert isinstance(sac, SAC)
    sac.setup.device.idle_cores = idle_cores
    return sac


class Scaled(nn.Module):
    """A network of one weight, w x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def squares(net: nn.Module, other: nn.Parameter) -> Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]:
    """Return the loss mean((w x + c)^2)."""

    def loss(inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value = (net(inputs["x"]) + other.detach()).square().mean()
        return value, {"loss": value, "process": torch.tensor(float(os.getpid() % 1000))}

    return loss


def by_hand(aside: Aside, net: Scaled, other: nn.Parameter, x: Tensor) -> float:
    """Compute once and check loss and gradient; return the process that did it, modulo 1000."""
    with aside.computed(x=x) as metrics:
        assert metrics == {}
    rest = float(net.weight.detach()) * x + float(other.detach())
    assert float(metrics["loss"]) == pytest.approx(float(rest.square().mean()))
    assert net.weight.grad is not None
    assert float(net.weight.grad) == pytest.approx(float((2 * rest * x).mean()))
    return float(metrics["process"])


def test_gradients_are_those_of_the_weights_and_inputs_of_the_moment() -> None:
    net, other = Scaled(), nn.Parameter(torch.tensor(1.0))
    aside = Aside(squares(net, other), net, [other], make_device())
    own = float(os.getpid() % 1000)
    processes = []
    for i in range(4):
        processes.append(by_hand(aside, net, other, torch.tensor([1.0, float(i)])))
        with torch.no_grad():
            net.weight += 0.5
            other -= 0.25
    assert processes[0] == own  # which is watched
    assert processes[1] == processes[2] == processes[3] != own
    aside.close()
    assert by_hand(aside, net, other, torch.tensor([1.0, 3.0])) != own  # another one
    aside.close()
    aside.close()


@pytest.mark.parametrize("why", ["no core is idle", "it compiles"])
def test_without_an_idle_core_everything_is_computed_here(why: str) -> None:
    net, other, device = Scaled(), nn.Parameter(torch.tensor(1.0)), make_device(int(why != "no core is idle"))
    device.compile = why == "it compiles"
    aside = Aside(squares(net, other), net, [other], device)
    for _ in range(3):
        assert by_hand(aside, net, other, torch.tensor([1.0, 3.0])) == os.getpid() % 1000


@pytest.mark.parametrize("leave", ["python", "numpy", "torch", "buffer"])
def test_a_loss_that_leaves_something_behind_is_computed_here(leave: str) -> None:
    net, other = Scaled(), nn.Parameter(torch.tensor(1.0))
    plain = squares(net, other)

    def loss(inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if leave == "python":
            random.random()
        elif leave == "numpy":
            np.random.random()
        elif leave == "torch":
            torch.rand(1)
        else:
            net.calls += 1
        return plain(inputs)

    aside = Aside(loss, net, [other], make_device())
    for _ in range(3):
        assert by_hand(aside, net, other, torch.tensor([1.0, 3.0])) == os.getpid() % 1000


def test_where_memory_cannot_be_shared_everything_is_computed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensors: list[Tensor]) -> None:
        raise OSError("Cannot allocate memory")

    net, other = Scaled(), nn.Parameter(torch.tensor(1.0))
    aside = Aside(squares(net, other), net, [other], make_device())
    monkeypatch.setattr("rlrun.algos.aside.share", refuse)
    for _ in range(3):
        assert by_hand(aside, net, other, torch.tensor([1.0, 3.0])) == os.getpid() % 1000


def test_what_the_block_raises_leaves_the_process_in_step() -> None:
    net, other = Scaled(), nn.Parameter(torch.tensor(1.0))
    aside = Aside(squares(net, other), net, [other], make_device())
    for i in range(4):
        with pytest.raises(ZeroDivisionError), aside.computed(x=torch.tensor([float(i), 7.0])):
            raise ZeroDivisionError
        by_hand(aside, net, other, torch.tensor([1.0, float(i)]))
    aside.close()


def test_a_process_that_dies_ends_the_run_with_a_word() -> None:
    net, other = Scaled(), nn.Parameter(torch.tensor(1.0))
    aside = Aside(squares(net, other), net, [other], make_device())
    for _ in range(2):
        by_hand(aside, net, other, torch.tensor([1.0, 3.0]))
    assert aside.process is not None
    (pid,) = children(os.getpid())
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunFailed, match="worker process 0 died: it was killed"):
        by_hand(aside, net, other, torch.tensor([1.0, 3.0]))
    aside.close()


def test_the_process_ends_with_what_it_computes_for() -> None:
    net, other = Scaled(), nn.Parameter(torch.tensor(1.0))
    aside = Aside(squares(net, other), net, [other], make_device())
    for _ in range(2):
        by_hand(aside, net, other, torch.tensor([1.0, 3.0]))
    pids = children(os.getpid())
    assert pids
    del aside
    gc.collect()
    assert gone(pids, within=5)


def test_a_process_takes_no_more_files_than_its_pipe() -> None:
    net, other = Scaled(), nn.Parameter(torch.tensor(1.0))
    aside = Aside(squares(net, other), net, [other], make_device())
    by_hand(aside, net, other, torch.tensor([1.0, 3.0]))
    before = len(os.listdir("/proc/self/fd"))
    by_hand(aside, net, other, torch.tensor([1.0, 3.0]))
    assert aside.process is not None
    assert len(os.listdir("/proc/self/fd")) == before + 1
    aside.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- Soft actor-critic's ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sac", "discrete sac"])
@pytest.mark.parametrize("wide", [False, True])
def test_who_computes_the_policys_gradient_changes_no_bit(name: str, wide: bool, make_agent: MakeAgent) -> None:
    options = ("network.hidden=[256,256]", "algo.batch_size=256", "algo.learning_starts=300") if wide else ()
    metrics, results = list[Any](), list[Any]()
    for idle_cores in (0, 1):
        sac = run(make_sac(make_agent, *options, name=name, idle_cores=idle_cores), 340 if wide else 100)
        metrics.append({key: float(value) for key, value in sac.update().items()})
        results.append([weights(net).numpy().tobytes() for net in sac.networks().values()])
        assert (sac.actor_gradient.process is not None) == bool(idle_cores)
        sac.close()
    assert metrics[0] == metrics[1]
    assert results[0] == results[1]


def test_a_killed_run_with_a_process_goes_on_like_an_undisturbed_one_without(
    make_agent: MakeAgent, through_disk: Callable[[Any], Any], tmp_path: Any, compose: Callable[..., dict[str, Any]]
) -> None:
    made: list[SAC] = []

    def make_one(folder: str, seed: int) -> SAC:
        options = (*SMALL, "algo=sac", "env=pendulum", "algo.buffer_size=55", "algo.batch_size=8", f"seed={seed}")
        sac = build_agent(compose(*options), tmp_path / folder).algorithm
        assert isinstance(sac, SAC)
        sac.setup.device.idle_cores = int(folder == "killed")
        made.append(sac)
        return sac

    check_exact_resume(make_one, through_disk, before=80)
    assert [sac.actor_gradient.process is not None for sac in made] == [False, True, True]
    for sac in made:
        sac.close()
