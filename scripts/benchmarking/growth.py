"""What grows with the work: speed over environments, memory over steps."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarking.goals import Limit
from benchmarking.ours import UNDISTURBED
from benchmarking.processes import ON_CPU, Terms, environment, fail, killed_in_the_end, run
from benchmarking.tables import ScaleTable, Size

ENVS = {  # steps of an iteration, and numbers of environments
    "cartpole": (2048, (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "breakout": (1024, (1, 4, 16, 64, 256)),
}
QUICK_ENVS = {"cartpole": (2048, (1, 4))}
FLAT = Limit(1.05, at_most=True)  # of the memory at the first mark
LOOK_EVERY = 0.2  # seconds
TAIL = 4096  # bytes of metrics, of which the last row takes a part


def envs(size: Size) -> ScaleTable:
    """Measure steps per second over numbers of environments; `rlrun bench` takes its three parts in turn."""
    made = ScaleTable(
        "Steps per second over environments",
        "PPO with the same number of steps and updates an iteration, however many environments they come from (1,024 "
        "steps on Breakout, 2,048 on CartPole; minibatches of 256, 4 epochs). Environment: random actions, no network; "
        "acting: with the policy; learning: training as it is.",
    )
    for env, (steps, numbers) in (QUICK_ENVS if size.quick else ENVS).items():
        for num_envs in numbers:
            shape = [f"algo.num_envs={num_envs}", f"algo.num_steps={steps // num_envs}", "algo.batch_size=256"]
            speeds = benched(["algo=ppo", f"env={env}", *shape, "algo.num_epochs=4"], size.window.seconds / 3)
            made.add({"environment": env, "number": num_envs, **{f"{part}, steps/s": v for part, v in speeds.items()}})
    return made


def benched(overrides: Sequence[str], seconds: float, terms: Terms = ON_CPU) -> dict[str, float]:
    """Return `rlrun bench`'s median steps per second of each part."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        run("rlrun", ["bench", *overrides, f"seconds={seconds}", f"json={out}"], terms=terms)
        report = json.loads(out.read_text())
    return {part: speed["median"] for part, speed in report["steps_per_second"].items()}


def memory(size: Size) -> ScaleTable:
    """Watch the memory of long runs."""
    made = ScaleTable(
        "Memory over steps",
        "Of the process that trains, in MB, when it had taken so many steps: resident, and what of it is not backed by "
        "files, which is held against the first row.",
        "of the first",
        "x",
        FLAT,
    )
    marks = [2_000, 6_000] if size.quick else [100_000, 200_000, 500_000, 1_000_000, 2_000_000]
    for task in (["algo=ppo", "env=cartpole"], ["algo=q_learning", "env=frozenlake"]):
        first: float | None = None
        for steps, resident, own in watched([*task, f"total_steps={marks[-1]}"], marks):
            grown = None if first is None else own / first
            first = first or own
            name = " ".join(part.partition("=")[2] for part in task)
            made.add({"run": name, "steps": steps, "resident, MB": resident, "own, MB": own, "of the first": grown})
    return made


def watched(task: list[str], marks: list[int]) -> Iterator[tuple[int, float, float]]:
    """Train; yield (steps, resident memory, memory without files [MB]) when each mark is first seen to be passed."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "rlrun", *task, *UNDISTURBED, "log.every=1_000", f"outputs={folder}"]
        process = subprocess.Popen(command, stdout=errors, stderr=errors, text=True, env=environment())
        with killed_in_the_end(process):
            seen = (0, 0.0, 0.0)
            waiting = list(marks)
            while process.poll() is None:
                if (steps := _steps(Path(folder))) > seen[0] and (now := _memory(process.pid)) is not None:
                    seen = (steps, *now)
                if waiting and seen[0] >= waiting[0]:
                    waiting.pop(0)
                    yield seen
                time.sleep(LOOK_EVERY)
            if process.returncode != 0:
                errors.seek(0)
                fail(f"{' '.join(command)} ended with code {process.returncode}:\n{errors.read()}")
            for _ in waiting:  # passed since the last look, and the run is over
                yield seen


def _steps(outputs: Path) -> int:
    """Return the step of the last whole row of metrics, 0 before there is one."""
    for path in outputs.rglob("metrics.jsonl"):
        with open(path, "rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            rows = file.read().rpartition(b"\n")[0].splitlines()
        return int(json.loads(rows[-1])["step"]) if rows else 0
    return 0


def _memory(pid: int) -> tuple[float, float] | None:
    """Return a process's resident memory and what of it is not backed by files [MB]; None if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {
        line.partition(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "RssAnon"))
    }
    if len(kilobytes) < 2:  # a zombie has none
        return None
    return kilobytes["VmRSS"] * 1024 / 1e6, kilobytes["RssAnon"] * 1024 / 1e6
