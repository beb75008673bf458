"""One job of a sweep, in whichever process and on whichever machine a launcher runs it."""

import os
import platform
import sys
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rlrun.config import differences, import_paths, is_learning_key, make_importable
from rlrun.errors import RunFailed, UserError
from rlrun.launch import EXIT_FAILED, Names, launch
from rlrun.run_folder import RunFolder
from rlrun.signals import STOP_FILE, ask_to_stop, asked_to_stop
from rlrun.sweep.outcomes import FAILED, INTERRUPTED, RUNNING, note_outcome, noting, write_outcome

EXIT_BAD_INPUT = 2
HERE = uuid.uuid4().hex  # this process; containers share names and numbers
NOT_BEGUN = 0  # what a job returns that the sweep's end has overtaken


@dataclass(frozen=True)
class Point:
    """One point of a sweep: a run."""

    number: int
    overrides: tuple[str, ...]
    config: dict[str, Any]
    names: Names

    @property
    def folder(self) -> RunFolder:
        return self.names.folder(self.config["outputs"])

    def is_finished(self) -> bool:
        """Say whether the run is stored, finished, and of this very configuration."""
        if self.config["fresh"] or not self.folder.exists():
            return False
        try:
            if self.folder.status() != "finished":
                return False
            return not any(is_learning_key(key) for key in differences(self.folder.config(), self.config))
        except (OSError, ValueError, KeyError, yaml.YAMLError):
            return False  # the job itself will say what is wrong with the folder, and no other is kept from running


@dataclass(frozen=True)
class Job:
    """Runs points. Plain values, so that it can be sent to other processes, which it makes like the sweep's own."""

    scratch: Path  # of the sweep; all machines that take part must see it
    working_folder: Path  # where the command was given
    command: tuple[str, ...]
    environment: Mapping[str, str]
    home: str  # of the sweep's own process, what HERE is

    def __call__(self, point: Point) -> int:
        """Run a point, or go on with it; return its exit code and leave its outcome in the scratch folder."""
        self._settle_in()
        with noting(partial(write_outcome, self.outcome_file(point.number))):
            # First said, then asked: so whoever ends the sweep knows of every job that will not hear of it.
            note_outcome(point.names.place, RUNNING, EXIT_FAILED)
            if asked_to_stop(self.stop_file) is not None:
                self.outcome_file(point.number).unlink(missing_ok=True)
                return NOT_BEGUN
            code = _launch(point)
        if code > 128 and self.at_home():
            ask_to_stop(self.stop_file, code - 128)
        elif 0 < code < 128 and point.config["on_error"] == "stop":
            ask_to_stop(self.stop_file, 0)
        return code

    @property
    def stop_file(self) -> Path:
        return self.scratch / "stop"

    def outcome_file(self, number: int) -> Path:
        return self.scratch / f"{number}.json"

    def at_home(self) -> bool:
        """Say whether this is the sweep's own process."""
        return self.home == HERE

    def _settle_in(self) -> None:
        os.environ.update(self.environment)
        if self.at_home():
            return
        if not self.scratch.is_dir():
            raise FileNotFoundError(
                f"{self.scratch} is not there on {platform.node()}: the sweep has ended, or this machine does not "
                "share the folder of outputs=..."
            )
        os.environ[STOP_FILE] = str(self.stop_file)
        os.chdir(self.working_folder)
        sys.argv[1:] = self.command  # which run.json quotes
        make_importable(import_paths())


def _launch(point: Point) -> int:
    """Launch a run; whatever goes wrong with it is its outcome, and no trouble of the next one's."""
    place = point.names.place
    try:
        return launch(point.config, point.names)
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        note_outcome(place, FAILED, EXIT_BAD_INPUT, str(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        note_outcome(place, INTERRUPTED, 130)
        raise
    except Exception as error:
        traceback.print_exc()
        note_outcome(place, FAILED, EXIT_FAILED, f"{type(error).__name__}: {error}")
        return EXIT_FAILED
