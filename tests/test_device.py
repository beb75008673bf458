import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

from rlrun import device as device_module
from rlrun.device import WORTH_SEVERAL_THREADS, Device, have_one_thread
from rlrun.errors import UserError


def device(**options: Any) -> Device:
    defaults = {
        "kind": "cpu",
        "threads": 1,
        "precision": "float32",
        "compile": False,
        "deterministic": True,
        "replay_on_device": False,
    }
    return Device(**{**defaults, **options})


def test_auto_is_cuda_where_there_is_one_and_the_cpu_elsewhere() -> None:
    assert device(kind="auto").torch.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match="device=cpu"):
        device(kind="cuda")


@pytest.mark.parametrize("threads", [0, -1])
def test_a_number_of_threads_below_1_is_refused_by_key_and_value(threads: int) -> None:
    with pytest.raises(UserError, match=rf"device\.threads={threads}"):
        device(threads=threads)


def test_networks_are_made_on_one_thread() -> None:
    torch.set_num_threads(2)
    device(threads=2).activate()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("compile", [False, True])
def test_only_cuda_refuses_nondeterministic_kernels_and_a_later_run_need_not(
    compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    strict = device(compile=compile)
    strict.kind = "cuda"
    strict.activate()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    device(compile=compile).activate()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_lax_run_before_a_strict_one_does_not_keep_cublas_from_being_deterministic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delitem(os.environ, "CUBLAS_WORKSPACE_CONFIG")
    lax = device(deterministic=False)
    lax.kind = "cuda"
    lax.activate()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_device_that_compiles_nothing_does_not_wait_for_the_compiler_to_be_imported() -> None:
    code = (
        "import sys\nfrom rlrun.device import Device\n"
        "Device(kind='cpu', threads=1, precision='float32', compile=False, deterministic=True,"
        " replay_on_device=False).activate()\n"
        "assert not {'torch._dynamo', 'torch._inductor'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_optimizers_are_made_used_and_saved_without_importing_a_compiler() -> None:
    code = """
import sys, torch
from rlrun.device import Device
Device(kind="cpu", threads=1, precision="float32", compile=False, deterministic=True, replay_on_device=False).activate()
from rlrun.networks.optimizers import Adam, RMSpropTF
for make, options in ((Adam, {}), (RMSpropTF, {"alpha": 0.9})):
    weight = torch.zeros(2, requires_grad=True)
    optimizer = make([weight], lr=0.5, eps=1e-8, **options)
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert weight.tolist() != [0, 0]
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_several_computations_at_once_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    for at_once, threads in ((1, 4), (2, 2), (3, 1), (9, 1)):
        device(threads=None).choose_threads(WORTH_SEVERAL_THREADS, at_once)
        assert torch.get_num_threads() == threads


def test_what_is_done_meanwhile_takes_one_of_the_threads_if_there_are_two() -> None:
    for given, at_once, torchs, spare in ((1, 1, 1, 0), (2, 1, 1, 1), (4, 1, 3, 1), (1, 2, 1, 0), (4, 2, 1, 1)):
        made = device(threads=given)
        made.choose_threads(10, at_once, meanwhile=1)
        assert (torch.get_num_threads(), made.spare_threads) == (torchs, spare)
        made.choose_threads(10, at_once)
        assert made.spare_threads == 0


def test_a_core_is_idle_where_the_device_may_choose_and_the_network_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    for given, size, idle in ((None, 10, 2), (1, 10, 0), (None, WORTH_SEVERAL_THREADS, 0)):
        made = device(threads=given)
        made.choose_threads(size)
        assert made.idle_cores == idle
    monkeypatch.setenv("RLRUN_CORES", "1")
    made = device(threads=None)
    made.choose_threads(10)
    assert made.idle_cores == 0


def test_a_given_number_of_threads_is_taken_whatever_the_networks_size() -> None:
    for size in (10, 10 * WORTH_SEVERAL_THREADS):
        device(threads=2).choose_threads(size)
        assert torch.get_num_threads() == 2


def test_small_networks_get_one_thread_and_large_ones_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    device(threads=None).choose_threads(WORTH_SEVERAL_THREADS - 1)
    assert torch.get_num_threads() == 1
    device(threads=None).choose_threads(WORTH_SEVERAL_THREADS)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("compile", [False, True])
def test_placing_a_network_keeps_the_names_of_its_parameters(compile: bool) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    placed = device(compile=compile).place(net)
    assert placed is net
    assert list(placed.state_dict()) == ["0.weight", "0.bias"]


def test_bf16_is_autocast_in_forward_passes_alone() -> None:
    layer, x = nn.Linear(2, 2), torch.randn(3, 2)
    with device(precision="bf16").autocast():
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32
    with device().autocast():
        assert layer(x).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"compile": True}])
def test_the_fingerprint_tells_arithmetic_apart(change: dict[str, Any]) -> None:
    assert device(**change).fingerprint() != device().fingerprint()


def test_the_fingerprint_tells_the_number_of_threads_and_the_processor() -> None:
    device().choose_threads(10)
    one = device().fingerprint()
    device(threads=2).choose_threads(10)
    two = device(threads=2).fingerprint()
    assert (one["threads"], two["threads"]) == (1, 2)
    assert one["processor"]
    assert one["vector_instructions"]


def test_weights_that_stay_are_cast_once_and_no_longer_than_that() -> None:
    bf16 = device(precision="bf16")
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)

    def output() -> torch.Tensor:
        with torch.no_grad(), bf16.autocast():
            return layer(x)

    with bf16.constant_weights():
        before = output()
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        assert torch.equal(output(), before)  # the cast ones of before: that is why no weight may change
    assert not output().any()
    with bf16.autocast():
        loss = layer(x).float().sum()
    loss.backward()
    assert layer.weight.grad is not None


def test_numpy_multiplies_on_one_thread_and_the_fingerprint_says_with_what() -> None:
    device().activate()
    openblas = [
        one for one in threadpool_info() if one["internal_api"] == "openblas" and "numpy.libs" in one["filepath"]
    ]
    if not openblas:
        pytest.skip("this NumPy brings no OpenBLAS")
    assert [one["num_threads"] for one in openblas] == [1]
    assert device().fingerprint()["numpy_blas"] == f"openblas {openblas[0]['architecture']}"


def test_only_the_openblas_that_came_with_numpy_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    numpys = Path(np.__file__).parents[1] / "numpy.libs/a.so"
    torchs, others = Path(torch.__file__).parent / "lib/b.so", Path("/usr/torch/lib/c.so")

    def found(*paths: Path) -> list[Path]:
        controllers = [SimpleNamespace(internal_api="openblas", filepath=str(path)) for path in paths]
        pools = SimpleNamespace(
            lib_controllers=[*controllers, SimpleNamespace(internal_api="openmp", filepath="/d.so")]
        )
        monkeypatch.setattr(device_module, "ThreadpoolController", lambda: pools)
        device_module._numpys_blas.cache_clear()
        chosen = [Path(one.filepath) for one in device_module._numpys_blas()]
        device_module._numpys_blas.cache_clear()
        return chosen

    assert found(others, numpys, torchs) == [numpys]
    assert found(torchs, others) == [others]
    assert found(torchs) == []


def test_a_thread_that_has_one_of_torchs_threads_keeps_it() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(1, initializer=have_one_thread) as pool:
            pool.submit(int).result()
            torch.set_num_threads(2)  # before the thread has computed anything
            pool.submit(lambda: torch.ones(4, 4) @ torch.ones(4, 4)).result()
            assert pool.submit(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(before)
