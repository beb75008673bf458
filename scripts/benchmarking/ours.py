"""rlrun's side: the real command in a new process, logging to disk as it does, without evaluations and checkpoints."""

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarking import FIRST_STEP_ID, FIRST_STEP_MODULE, STEPPED
from benchmarking.goals import Sample
from benchmarking.processes import ON_CPU, Mark, Terms, Window, run, steady_speed
from benchmarking.works import Target, Training

NEVER = 10**12  # steps
EPISODES = 100  # whose mean is to reach the target, as many as both sides' running means hold
UNDISTURBED = (f"eval.every={NEVER}", "eval.final_episodes=1", f"checkpoint.every={NEVER}", "name=speed")


def speed(work: Training, window: Window, seed: int, extra: Sequence[str] = (), terms: Terms = ON_CPU) -> Sample:
    """Train for a window; return the steady steps per second and the memory."""
    with tempfile.TemporaryDirectory() as folder:
        ended = run("rlrun", [*training(work, window), f"seed={seed}", *extra, f"outputs={folder}"], terms=terms)
        marks = marks_of(metrics(the_run(Path(folder))))
    return {"value": steady_speed(marks, window.warm_up), "memory_gb": ended.memory_gb}


def training(work: Training, window: Window) -> list[str]:
    """Return the command line of a window of training."""
    network = [f"network.hidden={list(work.hidden)}", f"network.activation={work.activation}"]
    has_network = bool(work.settings) and work.env != "breakout"
    return [
        f"algo={work.algo}",
        f"env={work.env}",
        *(network if has_network else []),
        *(f"algo.{key}={value}" for key, value in work.settings.items()),
        f"total_steps={work.total_steps}",
        f"stop.after_time={window.warm_up + window.seconds}",
        f"log.every={work.iteration}",
        *UNDISTURBED,
    ]


def seconds_to(work: Target, total_steps: int, seed: int) -> Sample:
    """Train with the tuned settings; return seconds and steps of training until the target, infinite if never."""
    task = [f"algo={work.algo}", f"env={work.env}", f"total_steps={total_steps}", f"seed={seed}"]
    with tempfile.TemporaryDirectory() as folder:
        run("rlrun", [*task, "log.every=1", *UNDISTURBED, f"outputs={folder}"])
        trained = the_run(Path(folder))
        ends = [episode["step"] for episode in rows(trained / "episodes.jsonl")]
        enough = ends[EPISODES - 1] if len(ends) >= EPISODES else math.inf  # the step from which a mean is one of 100
        for row in metrics(trained):
            if row["step"] >= enough and row["rollout/ep_rew_mean"] >= work.target:
                return {"value": row["time/time_elapsed"], "steps": row["step"]}
    return {"value": math.inf, "steps": math.inf}


def first_step(seed: int) -> Sample:
    """Return the seconds from the command to the first step of an environment."""
    task = ["algo=ppo", "env=gym", f"env.id={FIRST_STEP_ID}", f"env.module={FIRST_STEP_MODULE}", f"seed={seed}"]
    with tempfile.TemporaryDirectory() as folder:
        return {"value": run("rlrun", [*task, f"outputs={folder}"], expected=STEPPED).seconds}


def help_page(seed: int) -> Sample:
    """Return the seconds that the help page takes, whatever the seed."""
    return {"value": run("rlrun", ["--help"]).seconds}


# --- What a run has written -----------------------------------------------------------------------------


def the_run(outputs: Path) -> Path:
    """Return the folder of the only run below `outputs`."""
    (path,) = outputs.rglob("metrics.jsonl")
    return path.parent


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the rows that training has written, in order."""
    return [row for row in rows(run / "metrics.jsonl") if "time/time_elapsed" in row]


def marks_of(rows: Sequence[dict[str, Any]]) -> list[Mark]:
    return [(0.0, 0), *((row["time/time_elapsed"], row["step"]) for row in rows)]
