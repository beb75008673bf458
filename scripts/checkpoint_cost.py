"""What checkpoints cost: the share of a run's time that saving takes, and the time that restoring takes.

    python scripts/checkpoint_cost.py RUN

RUN is the folder of a run with a checkpoint; it is copied, so that it stays as it is. Saving is timed at the
run's own state, training over some iterations; the share is that of the run's own cadence.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from rlrun.build import build_agent, build_experiment
from rlrun.config import validate
from rlrun.run_folder import RunFolder
from rlrun.signals import Signals


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--iterations", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "run"
        shutil.copytree(arguments.run, path)
        print(json.dumps(measure(RunFolder(path), arguments.iterations), indent=2))


def measure(folder: RunFolder, iterations: int) -> dict[str, float]:
    """Return seconds of a save and of a restore, steps per second, and the share of saving in percent."""
    config = validate(folder.config())
    experiment = build_experiment(build_agent(config), config, folder, Signals())
    started = time.perf_counter()
    experiment.restore()
    restore = time.perf_counter() - started
    experiment.algorithm.step()
    before, started = experiment.algorithm.steps, time.perf_counter()
    for _ in range(iterations):
        experiment.algorithm.step()
    speed = (experiment.algorithm.steps - before) / (time.perf_counter() - started)
    saves = []
    for _ in range(5):
        started = time.perf_counter()
        experiment.save()
        saves.append(time.perf_counter() - started)
    between = config["checkpoint"]["every"] / speed
    save = statistics.median(saves)
    return {
        "restore_seconds": round(restore, 2),
        "logged_actions": sum(len(log) for c in experiment.algorithm.setup.collectors for log in c.envs._log),
        "save_seconds": round(save, 3),
        "steps_per_second": round(speed, 1),
        "checkpoint_every": config["checkpoint"]["every"],
        "share_percent": round(100 * save / (between + save), 3),
    }


if __name__ == "__main__":
    main()
