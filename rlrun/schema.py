"""The keys of conf/config.yaml that are not in a group, with their types. The values are in the YAML."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class Eval:
    every: int  # steps between evaluations
    episodes: int  # episodes of each
    final_episodes: int  # episodes of the one that is reported
    max_steps: int  # agent steps after which an episode of an evaluation is cut


@dataclass
class Checkpoint:
    every: int  # steps between checkpoints
    keep: int  # how many are kept, besides the best policy
    keep_replay: bool  # leave a finished run's replay on the disk, so that the run can be extended


@dataclass
class Log:
    every: int  # steps between rows of metrics
    tensorboard: bool
    console: bool
    trackers: list[str]  # that get the same numbers: wandb, mlflow


@dataclass
class WandB:
    project: str
    entity: str | None  # null: the account's own
    mode: Literal["online", "offline"] | None  # null: as WANDB_MODE says, else online


@dataclass
class MLflow:
    tracking_uri: str | None  # null: as MLFLOW_TRACKING_URI says, else MLflow's own default
    experiment: str


@dataclass
class Stop:
    at_return: float | None  # end when an evaluation's mean return reaches this
    after_time: str | float | None  # end after so long: "90s", "30m", "2h", or seconds


@dataclass
class Run:
    seed: int
    total_steps: int
    name: str | None  # the folder instead of the slug of what was changed
    init_from: str | None  # the folder of a stored run, whose policy's weights to begin with
    init_checkpoint: str  # of that run: last, best, or a step
    outputs: str  # the folder that holds all runs
    fresh: bool  # set an existing run aside and start anew
    on_error: Literal["continue", "stop"]  # what a sweep does after a job has failed


# Each group of keys and the class that names its fields.
SECTIONS = {"eval": Eval, "checkpoint": Checkpoint, "log": Log, "wandb": WandB, "mlflow": MLflow, "stop": Stop}
# Keys that say how to watch a run or where it runs, not what is learned: a stored run takes other values.
WATCHING = ("eval", "checkpoint", "log", "wandb", "mlflow", "stop", "name", "outputs", "fresh", "on_error", "device")
# Of those, what does change the numbers that are computed.
LEARNING_EXCEPTIONS = ("device.precision",)
