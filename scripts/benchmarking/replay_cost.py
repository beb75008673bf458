"""What a replay adds to a run's checkpoints; each part in a process that runs this module.

    python -m benchmarking.replay_cost fill RUN STEPS
    python -m benchmarking.replay_cost restore RUN

It prints its numbers as JSON. RUN, the folder of a run with one environment, is changed.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from benchmark_replay import fill

from rlrun.build import build_agent, build_experiment
from rlrun.config import validate
from rlrun.experiment import Experiment
from rlrun.run_folder import RunFolder
from rlrun.signals import Signals

SAVES, BETWEEN = 5, 5_000  # checkpoints, and the steps between them


def main(kind: str, path: str, *steps: str) -> None:
    experiment = experiment_of(Path(path))
    print(json.dumps(filled(experiment, int(steps[0])) if kind == "fill" else restored(experiment)))


def experiment_of(path: Path) -> Experiment:
    folder = RunFolder.existing(path)
    config = validate(folder.config())
    return build_experiment(build_agent(config, path), config, folder, Signals())


def filled(experiment: Experiment, steps: int) -> dict[str, float]:
    """Restore the run, store so many steps of noise, and time checkpoints with more of it since the last."""
    experiment.restore()
    (replay,) = experiment.algorithm.setup.replays
    for start in range(0, steps, BETWEEN):
        fill(replay, min(BETWEEN, steps - start))
        replay.state_dict()  # as a checkpoint does, lest the slack runs out
    seconds = []
    for _ in range(SAVES):
        fill(replay, BETWEEN)
        started = time.perf_counter()
        experiment.save()
        seconds.append(time.perf_counter() - started)
    return {"on disk, GB": replay.ring.nbytes / 1e9, "save, s": statistics.median(seconds)}


def restored(experiment: Experiment) -> dict[str, float]:
    started = time.perf_counter()
    experiment.restore()
    return {"restore, s": time.perf_counter() - started}


if __name__ == "__main__":
    main(*sys.argv[1:])
