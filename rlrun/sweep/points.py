"""The points of a sweep: what Hydra expands a command line and its study into, each composed and checked."""

import os
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rlrun.compose import planned
from rlrun.config import conf_folder, differences, flatten
from rlrun.errors import UserError
from rlrun.launch import Names
from rlrun.sweep.job import EXIT_BAD_INPUT, Point
from rlrun.sweep.outcomes import FAILED, UNKNOWN, Outcome

STUDY = "study"


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep, the points that are refused, and what Hydra's own keys say about their launch."""

    points: list[Point]
    refused: dict[int, Outcome]
    master: DictConfig

    def launcher(self, scratch: Path) -> dict[str, Any]:
        """Return hydra.launcher, resolved; `scratch` is hydra.sweep.dir, which launchers keep their files in."""
        OmegaConf.update(self.master, "hydra.sweep.dir", str(scratch))
        return dict(OmegaConf.to_container(self.master.hydra.launcher, resolve=True))  # type: ignore[arg-type]

    @property
    def at_once(self) -> int | None:
        """How many runs the user allows at a time."""
        batch: int | None = self.master.hydra.sweeper.max_batch_size
        return batch

    @property
    def environment(self) -> dict[str, str]:
        return dict(self.master.hydra.job.env_set)


def plan(overrides: Sequence[str]) -> Plan:
    """Compose every point that the overrides of a command line ask for.

    Raises UserError for a sweep without points, with one point twice, or of which all points are refused, and
    Hydra's exceptions for what cannot be composed.
    """
    sweep = _Sweep(overrides)
    points: list[Point] = []
    refused: dict[int, Outcome] = {}
    for number, job in enumerate(sweep.jobs()):
        try:
            points.append(Point(number, job, *sweep.composed(job)))
        except UserError as error:
            refused[number] = Outcome(*UNKNOWN, FAILED, EXIT_BAD_INPUT, str(error), " ".join(job))
    if not points and not refused:
        raise UserError("the sweep has no points: one of its ranges or lists is empty")
    errors = {outcome.error for outcome in refused.values()}
    if not points and len(errors) == 1:
        raise UserError(errors.pop())
    _check_apart(points)
    return Plan(points, refused, sweep.master)


class _Sweep:
    """Overrides parsed, and composed as far as they say how to sweep."""

    def __init__(self, overrides: Sequence[str]) -> None:
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.override_parser.overrides_parser import OverridesParser

        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            self.loader = GlobalHydra.instance().config_loader()
        self.parser = OverridesParser.create(config_loader=self.loader)
        parsed = self.parser.parse_overrides(list(overrides))
        extra = os.environ.get("RLRUN_CONFIG_DIR")
        self.hydra = [*_lines(o for o in parsed if o.is_hydra_override())]
        if any(line.startswith("hydra.sweeper.params.") for line in self.hydra):
            raise UserError("hydra.sweeper.params is for studies; on the command line say what to sweep: seed=1,2")
        if extra:
            self.hydra.append(f"hydra.searchpath=['file://{extra}']")  # quoted: a path may hold =
        self.studies = [o for o in parsed if o.key_or_group == STUDY]
        self.own = _lines(o for o in parsed if not o.is_hydra_override() and o not in self.studies)
        if len(self.studies) > 1 or not all(isinstance(study.value(), str) for study in self.studies):
            raise UserError(f"{' '.join(_lines(self.studies))}: give one study at a time")
        self.master = self._composed([*self.hydra, *_lines(self.studies)])
        self._check()
        self._shared: dict[tuple[str, ...], tuple[dict[str, Any], Names]] = {}  # by overrides, the seed aside

    def jobs(self) -> list[tuple[str, ...]]:
        """Return the overrides of each job; those of the command line win over the study's."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        params = self.master.hydra.sweeper.params or {}
        parsed = self.parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *self.own])
        return [tuple(job) for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]

    def composed(self, job: Sequence[str]) -> tuple[dict[str, Any], Names]:
        """Return the configuration and the names of a job's run; jobs that differ in the seed share the work."""
        seed = next((o.removeprefix("seed=") for o in job if re.fullmatch(r"seed=\d{1,18}", o)), None)
        others = tuple(override for override in job if not override.startswith("seed="))
        if seed is not None and others in self._shared:
            config, names = self._shared[others]
            return {**deepcopy(config), "seed": int(seed)}, replace(names, seed=int(seed))
        composed = self._composed_job(job)
        with open_dict(composed):
            del composed["hydra"]
        result = planned(composed)
        if not any("seed" in value for value in _interpolations(composed)):
            self._shared[others] = result
        return result

    def _composed_job(self, job: Sequence[str]) -> DictConfig:
        from hydra.core.hydra_config import HydraConfig

        composed: DictConfig = self.loader.load_sweep_config(self.master, list(job))
        HydraConfig.instance().set_config(composed)  # which the configuration may refer to, as in a run by itself
        return composed

    def _composed(self, overrides: list[str]) -> DictConfig:
        from hydra.types import RunMode

        composed: DictConfig = self.loader.load_configuration("config", overrides, run_mode=RunMode.RUN)
        return composed

    def _check(self) -> None:
        """Raise UserError for keys of Hydra's, and studies, that a sweep could not do justice to."""
        hydra = self.master.hydra
        if not hydra.sweeper._target_.endswith(".BasicSweeper"):
            raise UserError("hydra/sweeper: rlrun sweeps with Hydra's basic sweeper; `rlrun tune` searches")
        at_once = hydra.sweeper.max_batch_size
        if at_once is not None and at_once < 1:
            raise UserError(
                f"hydra.sweeper.max_batch_size={at_once} is out of range: expected how many runs may go on at a time, "
                "at least 1, or null for as many as the launcher takes"
            )
        if hydra.callbacks:
            raise UserError(f"hydra.callbacks.{next(iter(hydra.callbacks))}: a sweep calls no callbacks of Hydra's")
        if not self.studies:
            return
        name = self.studies[0].get_value_element_as_str()
        if not hydra.sweeper.params:
            raise UserError(f"study={name} sets no hydra.sweeper.params, so there is nothing to run")
        without = self._composed(self.hydra)
        for key, (_, value) in differences(_plain(without), _plain(self.master)).items():
            raise UserError(
                f"study={name} sets {key} outside of hydra.sweeper.params: write `{key}: {value}` there, so that its "
                "runs are those of the same command by hand"
            )


def _lines(overrides: Any) -> list[str]:
    return [override.input_line for override in overrides]


def _interpolations(config: DictConfig) -> list[str]:
    return [value for _, value in flatten(_plain(config)) if isinstance(value, str) and "${" in value]


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def _check_apart(points: Sequence[Point]) -> None:
    """Raise UserError if two points would write to one folder."""
    seen: dict[Path, Point] = {}
    for point in points:
        other = seen.setdefault(point.folder.path, point)
        if other is point:
            continue
        changed = differences(other.config, point.config)
        if not changed:
            raise UserError(f"the sweep has a point twice: {' '.join(point.overrides)}; take out the repeated value")
        key, (one, two) = next(iter(changed.items()))
        if point.config["name"] is not None:
            raise UserError(
                f"name= gives one folder to all values of {key}: leave it out, and each gets a folder that names them"
            )
        raise UserError(
            f"{key}={one} and {key}={two} would be one run, in {point.folder.path}: {key} changes nothing that is "
            "learned, so give it one value"
        )
