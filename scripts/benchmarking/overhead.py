"""What runs cost beside their training: the runs of a sweep, logs, checkpoints of a replay."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarking.goals import Limit
from benchmarking.ours import NEVER, the_run
from benchmarking.processes import run
from benchmarking.tables import ScaleTable, Size

LEAST_PER_RUN = Limit(0.3, at_most=True)  # seconds
LARGEST_LOGS = Limit(5.0, at_most=True)  # MB per million steps
MILLION = 1_000_000


# --- Sweeps ---------------------------------------------------------------------------------------------


def sweep(size: Size) -> ScaleTable:
    """Time sweeps of one run and of many, on each launcher that works on this machine alone."""
    from rlrun import record

    many = 4 if size.quick else 100
    workers = min(record.machine()["cores"], many // 2)
    made = ScaleTable(
        f"A sweep of {many} short runs",
        f"PPO on CartPole, 256 steps, one update, two evaluations of an episode. Overhead: what each run after the "
        f"first takes of a process, less its own training and evaluation; from the time of a sweep of {many} runs less "
        "that of a sweep with one run for each process.",
        "overhead per run, s",
        "s",
        LEAST_PER_RUN,
    )
    joblib = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"]
    for name, launcher, processes in (("(none)", [], 1), ("joblib", joblib, workers)):
        first, _ = timed_sweep(processes, launcher)
        whole, training = timed_sweep(many, launcher)
        per_run = (whole - first) * processes / (many - processes)
        made.add(
            {
                "launcher": name,
                "processes": processes,
                f"{many} runs, s": whole,
                "first ones, s": first,
                "training per run, s": training,
                "overhead per run, s": per_run - training,
            }
        )
    return made


def timed_sweep(num_runs: int, launcher: Sequence[str]) -> tuple[float, float]:
    """Return the seconds of a sweep, and the median of those that a run trained and evaluated."""
    short = ["algo=ppo", "env=cartpole", "total_steps=256", f"eval.every={NEVER}", "eval.final_episodes=2"]
    with tempfile.TemporaryDirectory() as folder:
        seconds = run("rlrun", ["-m", *short, f"seed=range({num_runs})", *launcher, f"outputs={folder}"]).seconds
        results = [json.loads(path.read_text()) for path in Path(folder).rglob("result.json")]
    assert len(results) == num_runs
    return seconds, median(r["time/wall_seconds"] + r["time/evaluation_seconds"] for r in results)


# --- Logs -----------------------------------------------------------------------------------------------


def logs(size: Size) -> ScaleTable:
    """Run a part of a million steps with the cadences of a million, and extrapolate the sizes of its files."""
    made = ScaleTable(
        "Logs per million steps",
        "In MB, of runs with the cadences of a million steps (400 rows of metrics, 20 evaluations); the sizes of "
        "shorter ones times a million over their steps. TensorBoard's file holds the pictures of tables, too.",
        "MB together",
        "MB",
        LARGEST_LOGS,
    )
    tabular, steps = (100_000, 4_000) if size.quick else (MILLION, 100_000)
    tasks = [("q_learning", env, tabular) for env in ("frozenlake", "cliffwalking", "taxi")]
    tasks += [("random", "cartpole", steps), ("ppo", "cartpole", steps)]
    tasks += [] if size.quick else [("dqn", "cartpole", steps), ("ppo", "breakout", steps // 5)]
    for algo, env, length in tasks:
        sizes = {name: count / 1e6 * MILLION / length for name, count in log_sizes(algo, env, length).items()}
        parts = {f"{name}, MB": megabytes for name, megabytes in sizes.items()}
        made.add({"run": f"{algo} {env}", "steps": length, **parts, "MB together": sum(sizes.values())})
    return made


def log_sizes(algo: str, env: str, steps: int) -> dict[str, int]:
    """Return the bytes of each kind of log of a run of so many steps, with the cadences of a million."""
    cadences = [f"log.every={MILLION // 400}", f"eval.every={MILLION // 20}", "eval.final_episodes=1"]
    with tempfile.TemporaryDirectory() as folder:
        run("rlrun", [f"algo={algo}", f"env={env}", f"total_steps={steps}", *cadences, f"outputs={folder}"])
        trained = the_run(Path(folder))
        kinds = {"metrics": "metrics.jsonl", "episodes": "episodes.jsonl", "evaluations": "evaluations.jsonl"}
        kinds |= {"TensorBoard": "events.out.tfevents.*"}
        return {kind: sum(path.stat().st_size for path in trained.glob(name)) for kind, name in kinds.items()}


# --- Checkpoints ----------------------------------------------------------------------------------------


def replay(size: Size) -> ScaleTable:
    """Fill replays of several sizes, and time the checkpoints of their runs and the restoring from them."""
    made = ScaleTable(
        "Checkpoints over the replay's size",
        "Of runs on Breakout whose replays are full, of noise, in processes of their own. Save: the median checkpoint, "
        "with 5,000 new steps since the last; restore: everything out of the last one, the environment included, with "
        "the files in the kernel's cache.",
    )
    for algo in ("dqn",) if size.quick else ("dqn", "rainbow"):
        for steps in (1_000, 2_000) if size.quick else (10_000, 100_000, 1_000_000):
            with tempfile.TemporaryDirectory() as folder:
                made.add({"algo": algo, "stored steps": steps, **replay_cost(algo, steps, Path(folder))})
    return made


def replay_cost(algo: str, steps: int, folder: Path) -> dict[str, float]:
    """Make a run, fill its replay, and restore it, each in a process of its own."""
    task = [f"algo={algo}", "env=breakout", f"algo.buffer_size={steps}", "stop.after_time=0.1", "eval.final_episodes=1"]
    run("rlrun", [*task, f"eval.every={NEVER}", "checkpoint.keep_replay=true", f"outputs={folder}"])
    path = str(the_run(folder))
    filled = json.loads(run("benchmarking.replay_cost", ["fill", path, str(steps)]).last_line)
    restored = json.loads(run("benchmarking.replay_cost", ["restore", path]).last_line)
    return {**filled, **restored}
