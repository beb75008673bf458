"""What scripts/gpu.py measures: rows, each of which is a process of its own and may fail alone, and their goals.

The goals for speed are those of LeanRL's published runs on an H100, and half of what the environment alone reaches.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from benchmarking import ours
from benchmarking.goals import Limit
from benchmarking.growth import benched
from benchmarking.processes import Terms, Window, run
from benchmarking.tables import Row
from benchmarking.works import BREAKOUT, DQN_BREAKOUT, SAC_HALFCHEETAH, WORKS, Settings, Training

PUBLISHED_STEPS = 10_000_000  # of the two long trainings
SLACK = 600.0  # seconds: start, compilation and last evaluation of a window, generously
LONGEST_TRAINING = 4 * 3600.0  # seconds
COMPILES = 120.0  # seconds of warm-up where networks are compiled
ENDS_SOON = "eval.max_steps=100"  # for an evaluation that nobody looks at
SMALL_NETWORK = ("env.image_size=36", "network.channels=[8,8,8]", "network.hidden=16")
BF16, COMPILED, HELD = "device.precision=bf16", "device.compile=true", "device.replay_on_device=true"


@dataclass
class How:
    """How all rows are measured, and the best speed of the environment alone that was seen so far [steps/s]."""

    device: str
    window: Window
    quick: bool
    total_steps: int
    extra: Sequence[str] = ()
    environment: float | None = field(default=None, init=False)

    @property
    def judges(self) -> bool:
        """Say whether goals are held against the numbers: those of a CPU and of quick runs mean nothing."""
        return self.device == "cuda" and not self.quick

    def terms(self, seconds: float) -> Terms:
        return Terms(gpu=self.device == "cuda", seconds=seconds)

    def options(self, env: str) -> list[str]:
        tiny = SMALL_NETWORK if self.quick and env == "breakout" else ()
        return [f"device={self.device}", *tiny, *self.extra]


class GpuRow(Protocol):
    """One measurement."""

    name: str

    def goal(self, how: How) -> str:
        """Return what is asked for, "" for nothing."""

    def measure(self, how: How) -> Row:
        """Return the columns with numbers, and `met`, None where it is not judged. Raises Failed."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentRow:
    """Random actions, no network, on all cores."""

    name: str
    num_envs: int

    def goal(self, how: How) -> str:
        return ""

    def measure(self, how: How) -> Row:
        # Each takes a tenth of a second to begin.
        num_envs = max(1, self.num_envs // 32) if how.quick else self.num_envs
        shape = [f"algo.num_envs={num_envs}", "algo.num_steps=1"]  # `bench` acts and learns as well: little of it
        task = ["algo=random", "env=breakout", *shape, f"device={how.device}"]
        speeds = benched(task, how.window.seconds / 3, how.terms(how.window.seconds + SLACK))
        how.environment = max(how.environment or 0.0, speeds["environment"])
        return {"steps/s": speeds["environment"], "memory, GB": None, "met": None}


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """Steady steps per second of training, by the real command."""

    name: str
    work: Training
    extra: tuple[str, ...] = ()
    least: float | None = None  # steps/s
    half_of_environment: bool = False
    quick: Settings = field(default_factory=dict)  # what makes an iteration short

    def limit(self, how: How) -> Limit | None:
        half = how.environment / 2 if self.half_of_environment and how.environment else None
        asked = [value for value in (self.least, half) if value is not None]
        return Limit(max(asked)) if asked else None

    def goal(self, how: How) -> str:
        limit = self.limit(how)
        return f">= {limit.value:,.0f} steps/s" if limit else ""

    def measure(self, how: How) -> Row:
        settings = {**self.work.settings, **(self.quick if how.quick else {})}
        work = replace(self.work, settings=settings)
        warm_up = max(how.window.warm_up, COMPILES) if COMPILED in self.extra and not how.quick else how.window.warm_up
        window = Window(how.window.seconds, warm_up)
        options = [*how.options(work.env), *self.extra, ENDS_SOON]
        sample = ours.speed(work, window, 0, options, how.terms(warm_up + how.window.seconds + SLACK))
        limit = self.limit(how)
        met = limit.verdict(sample["value"], "steps/s")["met"] if limit and how.judges else None
        return {"steps/s": sample["value"], "memory, GB": sample["memory_gb"], "met": met}


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """A whole training, with the evaluation of its last policy."""

    name: str
    task: tuple[str, ...]
    minutes: Limit
    mean: Limit | None = None
    quick: Settings = field(default_factory=dict)

    def goal(self, how: How) -> str:
        mean = f"mean >= {self.mean.value:g}, " if self.mean else ""
        return f"{mean}{PUBLISHED_STEPS:,} steps in <= {self.minutes.value:g} min"

    def measure(self, how: How) -> Row:
        shape = [f"algo.{key}={value}" for key, value in self.quick.items()] if how.quick else []
        episodes = ["eval.final_episodes=1", ENDS_SOON] if how.quick else ["eval.final_episodes=100"]
        cadence = [f"eval.every={ours.NEVER}", f"checkpoint.every={ours.NEVER}", f"total_steps={how.total_steps}"]
        with tempfile.TemporaryDirectory() as folder:
            task = [*self.task, *shape, *cadence, *episodes, *how.options("breakout"), f"outputs={folder}"]
            ended = run("rlrun", task, terms=how.terms(LONGEST_TRAINING))
            result = json.loads((ours.the_run(Path(folder)) / "result.json").read_text())
        return self.as_row(result, ended.seconds, how)

    def as_row(self, result: dict[str, Any], seconds: float, how: How) -> Row:
        """Return the row of a result, after so many seconds from the command to its end."""
        minutes, mean = result["time/wall_seconds"] / 60, result["mean_return"]
        soon = self.minutes.verdict(minutes, "min")["met"]
        enough = self.mean is None or self.mean.verdict(mean, "")["met"]
        return {
            "steps": result["steps"],
            "steps/s": result["steps"] / result["time/wall_seconds"],
            "training, min": minutes,
            "start to end, min": seconds / 60,
            "mean": mean,
            "met": soon and enough if how.judges and result["steps"] >= PUBLISHED_STEPS else None,
        }


# --- The rows -------------------------------------------------------------------------------------------

# As many updates of an iteration as published, whose steps are 4 and 8 times as many.
WIDE: Settings = {**BREAKOUT, "num_envs": 64, "num_steps": 64, "batch_size": 1024}
WIDEST: Settings = {**BREAKOUT, "num_envs": 128, "num_steps": 64, "batch_size": 2048}
PQN: Settings = {"num_envs": 128, "num_steps": 32, "batch_size": 128, "num_epochs": 2}
SHORT: Settings = {"num_envs": 4, "num_steps": 16, "batch_size": 16}


def training(name: str, algo: str, settings: Settings) -> Training:
    """Return the work of that name with other settings, for another algorithm."""
    work = WORKS[name]
    assert isinstance(work, Training)
    return replace(work, algo=algo, settings=settings)


def ppo_rows() -> list[GpuRow]:
    """Return PPO at the published size, held against LeanRL's, and at sizes for a GPU, in each arithmetic."""
    sizes = (("8 x 128", BREAKOUT, False), ("64 x 64", WIDE, True), ("128 x 64", WIDEST, True))
    arithmetic = (("float32", ()), ("bf16", (BF16,)), ("bf16, compiled", (BF16, COMPILED)))
    return [
        SpeedRow(
            name=f"PPO Breakout, {size}, {how}",
            work=training("ppo_breakout", "ppo", settings),
            extra=extra,
            least=6_809,
            half_of_environment=half,
            quick=SHORT,
        )
        for size, settings, half in sizes
        for how, extra in arithmetic
    ]


def both_replays(title: str, work: Training, least: float | None = None) -> list[GpuRow]:
    """Return the work with the replay's frames on the host alone, and on the device as well."""
    places = (("host", ()), ("device", (HELD,)))
    return [
        SpeedRow(name=f"{title}, replay on the {where}", work=work, extra=extra, least=least) for where, extra in places
    ]


def replay_rows() -> list[GpuRow]:
    named = (("DQN", "dqn"), ("Rainbow", "rainbow"))
    works = [(f"{name} Breakout", training("dqn_breakout", algo, DQN_BREAKOUT)) for name, algo in named]
    return [row for title, work in works for row in both_replays(title, work)]


def continuous_rows() -> list[GpuRow]:
    goals = (("sac", 725.0), ("td3", 936.0))
    works = [(algo, training("sac_halfcheetah", algo, SAC_HALFCHEETAH), least) for algo, least in goals]
    return [row for algo, work, least in works for row in both_replays(f"{algo.upper()} HalfCheetah", work, least)]


TABLES: dict[str, tuple[str, Sequence[GpuRow]]] = {
    "environment": (
        "Breakout alone, random actions",
        [EnvironmentRow(name=f"{count} environments", num_envs=count) for count in (8, 64, 128, 256)],
    ),
    "ppo": ("PPO", ppo_rows()),
    "replay": ("DQN and Rainbow", replay_rows()),
    "continuous": ("SAC and TD3", continuous_rows()),
    "pqn": (
        "PQN",
        [SpeedRow(name="PQN Breakout, 128 x 32", work=training("ppo_breakout", "pqn", PQN), quick=SHORT)],
    ),
    "train_ppo": (
        "A whole training of PPO",
        [
            TrainingRow(
                name="PPO Breakout, 64 x 64, bf16",
                task=("algo=ppo", "env=breakout", BF16, *(f"algo.{k}={v}" for k, v in WIDE.items())),
                minutes=Limit(15.0, at_most=True),
                mean=Limit(400.0),
                quick=SHORT,
            )
        ],
    ),
    "train_pqn": (
        "A whole training of PQN",
        [
            TrainingRow(
                name="PQN Breakout, 128 x 32",
                task=("algo=pqn", "env=breakout"),
                minutes=Limit(10.0, at_most=True),
                quick=SHORT,
            )
        ],
    ),
}
