"""What a run is, for those that show its numbers elsewhere: TensorBoard's HParams tab and the trackers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rlrun.config import flatten, is_learning_key

FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"  # how a run or its session ended
PRUNED = "pruned"  # by a search, whose trial it is; it can be resumed
SAID_BY_NAMES = ("algo._target_", "env._target_", "env.name", "init_from")  # by the variant: it may hold the seed
Scalar = bool | int | float | str


@dataclass(frozen=True)
class Facts:
    """The names, the beginning and the configuration of one run. Everything in it can be written as JSON."""

    env: str
    algo: str
    variant: str
    seed: int
    started: str  # ISO 8601
    host: str
    config: dict[str, Any]

    @classmethod
    def of(cls, record: Mapping[str, Any], config: dict[str, Any]) -> "Facts":
        """Return the facts from what run.json and config.yaml say."""
        names = {key: record[key] for key in ("env", "algo", "variant", "seed", "started")}
        return cls(**names, host=record.get("machine", {}).get("host", ""), config=config)

    @property
    def group(self) -> str:
        """What the runs of one configuration share, in words."""
        return f"{self.env}/{self.algo}/{self.variant}"

    @property
    def name(self) -> str:
        return f"{self.group}/seed={self.seed}"

    @property
    def id(self) -> str:
        """A name of this run alone, which it keeps over all its sessions, and when its folder is moved."""
        return _digest([self.started, self.host, self.name], 16)

    @property
    def started_unix(self) -> float:
        return datetime.fromisoformat(self.started).timestamp()

    def hyperparameters(self) -> dict[str, Scalar]:
        """Return what was chosen and may change what is learned, the seed apart: {dotted key: value}."""
        values: dict[str, Scalar] = {"algo": self.algo, "env": self.env, "variant": self.variant}
        for key, value in flatten(self.config):
            if key == "seed" or not is_learning_key(key):
                continue
            if key == "network._target_":
                values["network"] = str(value).rpartition(".")[2]
            elif key not in SAID_BY_NAMES:
                values[key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
        return values

    def trial(self) -> str:
        """Name the configuration without the seed. Runs share it only if all their hyperparameters are equal."""
        return f"{self.group} {_digest(self.hyperparameters(), 6)}"


def _digest(value: Any, length: int) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]
