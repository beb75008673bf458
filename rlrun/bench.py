"""`rlrun bench`: environment steps per second of a configuration, and where the time goes.

Three things are measured on the same objects that training would use: the environments alone under random
actions, acting (the collector with the algorithm's policy), and learning (the algorithm's whole `step`).
Machines drift by a third over minutes, so the windows of the three alternate. B environments.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from rich.console import Console
from rich.table import Table

from rlrun import record
from rlrun.algos.algorithm import Algorithm
from rlrun.build import Agent, build_agent
from rlrun.device import processor
from rlrun.envs.base import Array
from rlrun.envs.replayed import ReplayedEnvs
from rlrun.errors import UserError
from rlrun.files import write_json
from rlrun.profiling import Iteration, learning, profile, time_shares, window
from rlrun.seeding import TRAINING_SEEDS

OWN_KEYS = ("seconds", "json", "profile")
DEFAULT_SECONDS = 20.0
NUM_WINDOWS = 5
BENCH_REPLAY = 20_000  # steps; how full a replay is changes its speed little
WARM_UP = 0.1  # of `seconds`, for each of the three, and two iterations at least: caches, compilation
ENV_STEPS = 32  # vector steps in one iteration of the environments alone
MEANINGS = {
    "environment": "random actions, no network",
    "acting": "environment and policy",
    "learning": "training as it is",
}


@dataclass(frozen=True)
class Options:
    """What `bench` itself reads from its command line."""

    seconds: float  # of measuring, for each of the three
    json: Path | None
    profile: bool


@dataclass(frozen=True)
class Speed:
    """Environment steps per second of each window."""

    windows: list[float]

    @property
    def median(self) -> float:
        return median(self.windows)

    def row(self) -> dict[str, Any]:
        return {"median": self.median, "min": min(self.windows), "max": max(self.windows), "windows": self.windows}


def bench(arguments: list[str]) -> int:
    """Measure what the command line configures and print the tables; return 0. Nothing is trained on disk."""
    options, overrides = split(arguments)
    jobs = composed(overrides)
    if len(jobs) > 1 and options.json is not None:
        raise UserError(f"json={options.json} holds one result and -m gives {len(jobs)}: leave one of them out")
    for config, choices in jobs:
        report = measured(config, choices, options)
        if options.json is not None:
            write_json(options.json, report)
            print(options.json)
    return 0


def split(arguments: list[str]) -> tuple[Options, list[str]]:
    """Return bench's own options and the rest, which is Hydra's. Raises UserError for a bad value."""
    own: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        key, _, value = ("profile=true" if argument == "--profile" else argument).partition("=")
        if key in OWN_KEYS:
            own[key] = value
        else:
            overrides.append(argument)
    return Options(_seconds(own), _json_path(own), _profile(own)), overrides


def composed(arguments: list[str]) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Return the validated configuration and the chosen options of each job, as training would have them."""
    from hydra.core.hydra_config import HydraConfig

    from rlrun.cli import with_hydra
    from rlrun.compose import resolved
    from rlrun.config import validate

    jobs = []

    def job(config: Any) -> None:
        jobs.append((validate(resolved(config)), dict(HydraConfig.get().runtime.choices)))

    try:
        with_hydra(arguments, job)
    except UserError as error:
        own = ", ".join(f"{key}=" for key in OWN_KEYS)
        raise UserError(f"{error}. Besides those, bench takes {own}") from error
    return jobs


def _for_a_bench(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with a replay that fits anywhere, out of which learning starts during the warm-up."""
    algo = dict(config["algo"])
    for key, most in (("buffer_size", BENCH_REPLAY), ("learning_starts", BENCH_REPLAY // 100)):
        if key in algo:
            algo[key] = min(algo[key], max(most, 4 * algo.get("batch_size", 1)))
    return {**config, "algo": algo}


def measured(config: dict[str, Any], choices: dict[str, str], options: Options) -> dict[str, Any]:
    """Build the agent, measure it, print the tables, and return them as plain values."""
    agent = build_agent(_for_a_bench(config))
    algorithm = agent.algorithm
    num_envs = int(getattr(algorithm, "num_envs", 1)) * int(getattr(algorithm, "num_workers", 1))
    title = f"{choices['algo']} on {agent.spec.name}: {num_envs} environments, {described(agent)}"
    iterations = {
        "environment": environment_alone(agent, num_envs),
        "acting": acting(algorithm),
        "learning": lambda: learning(algorithm),
    }
    at_least = options.seconds * (3 + 3 * WARM_UP + 1 / NUM_WINDOWS)
    print(f"{title}; this takes at least {at_least:.0f} s", file=sys.stderr)
    speeds = measure(iterations, options.seconds)
    shares = time_shares(algorithm, options.seconds / NUM_WINDOWS)
    rows = profile(algorithm) if options.profile else None
    agent.close()

    console = Console()
    for table in (speed_table(title, speeds), share_table(shares), *([profile_table(rows)] if rows else [])):
        console.print(table)
    return {
        "command": record.command(),
        "algo": choices["algo"],
        "env": agent.spec.name,
        "num_envs": num_envs,
        "steps_per_second": {name: speed.row() if speed else None for name, speed in speeds.items()},
        "time_share": shares,
        **({"profile": rows} if rows else {}),
        "seconds": options.seconds,
        **facts(agent),
        "config": config,
    }


def described(agent: Agent) -> str:
    """Return on what is computed, in words."""
    threads = torch.get_num_threads() + agent.device.spare_threads
    return f"{agent.device.kind}, {threads} thread{'s' * (threads > 1)}, {agent.device.precision}"


# --- The three things that are measured -----------------------------------------------------------------


def environment_alone(agent: Agent, num_envs: int) -> Iteration:
    """Return an iteration that steps the training environments with random actions."""
    rng = np.random.default_rng(0)
    envs = ReplayedEnvs(agent.spec.make(num_envs), rng, TRAINING_SEEDS)
    actions = random_actions(envs.action_space, num_envs)
    envs.start()

    def iterate() -> int:
        for action in actions:
            transition = envs.step(action)
            if transition.over.any():
                envs.next_episode(transition.over)
        return len(actions) * num_envs

    return iterate


def random_actions(space: spaces.Space, num_envs: int) -> Array:
    """Return [ENV_STEPS, B, *act], drawn beforehand, so that drawing is not measured."""
    space.seed(0)
    actions = np.array([[space.sample() for _ in range(num_envs)] for _ in range(ENV_STEPS)])
    # Policies count a Discrete space's actions from 0, and the environments add its start.
    return actions - space.start if isinstance(space, spaces.Discrete) else actions


def acting(algorithm: Algorithm) -> Iteration | None:
    """Return an iteration that collects without learning; None if the algorithm cannot be asked to."""
    collect = getattr(algorithm, "collect", None)
    if collect is None:
        return None

    def iterate() -> int:
        before = algorithm.steps
        collect()
        return algorithm.steps - before

    return iterate


def measure(iterations: dict[str, Iteration | None], seconds: float) -> dict[str, Speed | None]:
    """Return the speed of each, measured for `seconds` in all, in windows that take turns."""
    present = {name: iterate for name, iterate in iterations.items() if iterate is not None}
    for iterate in present.values():
        iterate()
        window(iterate, seconds * WARM_UP)
    windows: dict[str, list[float]] = {name: [] for name in present}
    for _ in range(NUM_WINDOWS):
        for name, iterate in present.items():
            windows[name].append(window(iterate, seconds / NUM_WINDOWS))
    return {name: Speed(windows[name]) if name in windows else None for name in iterations}


# --- What is shown and written --------------------------------------------------------------------------


def speed_table(title: str, speeds: dict[str, Speed | None]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("steps per second")
    for column in ("median", "min", "max"):
        table.add_column(column, justify="right")
    table.add_column("what runs")
    for name, speed in speeds.items():
        numbers = (speed.median, min(speed.windows), max(speed.windows)) if speed else ()
        cells = [f"{number:,.0f}" for number in numbers] or ["-"] * 3
        table.add_row(name, *cells, MEANINGS[name])
    return table


def share_table(shares: dict[str, float]) -> Table:
    table = Table(title="where the time of learning goes", title_justify="left")
    table.add_column("part")
    table.add_column("share", justify="right")
    for part, share in shares.items():
        table.add_row(part, f"{share:.1%}")
    return table


def profile_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="profile: most time of their own", title_justify="left")
    table.add_column("operation", overflow="fold")
    for column in ("calls", "ms", "share"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["name"], f"{row['calls']:,}", f"{row['self_ms']:,.1f}", f"{row['share']:.1%}")
    return table


def facts(agent: Agent) -> dict[str, Any]:
    """Return when, on what and with which versions this was measured. No host name: results get published."""
    machine = {key: value for key, value in record.machine().items() if key != "host"}
    code = record.code()
    return {
        "date": record.now(),
        "machine": {"processor": processor(), **machine},
        "device": agent.device.fingerprint(),
        "threads": torch.get_num_threads(),
        "packages": record.packages(),
        "python": record.platform.python_version(),
        "code": {key: code[key] for key in ("sha256", "commit") if key in code},
    }


def _seconds(own: dict[str, str]) -> float:
    text = own.get("seconds", str(DEFAULT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise UserError(f"seconds={text} must be a number above 0: the time that each measurement takes; try 20")
    return seconds


def _json_path(own: dict[str, str]) -> Path | None:
    """Return where to write. Fails now and not after a minute of measuring."""
    if "json" not in own:
        return None
    path = Path(own["json"])
    if path.is_dir() or not own["json"]:
        raise UserError(f"json={own['json']} must be the path of a file; try json=bench.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"json={path} cannot be written ({error}); choose another path") from error
    return path


def _profile(own: dict[str, str]) -> bool:
    text = own.get("profile", "false").lower()
    if text not in ("true", "false"):
        raise UserError(f"profile={own['profile']} must be true or false")
    return text == "true"
