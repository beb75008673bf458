"""`rlrun reproduce RUN`: run it again from its record, and say whether every bit is the same."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlrun.arguments import parse
from rlrun.checkpoint import CheckpointError, Checkpoints
from rlrun.config import differences, flatten, is_learning_key, validate
from rlrun.difference import Difference, first_difference, first_row_difference, num_tensors, rows, timeless
from rlrun.errors import RunFailed, UserError
from rlrun.files import scratch_prefix
from rlrun.inspect_run import stored_policy
from rlrun.launch import EXIT_FINISHED, Names, train
from rlrun.logger import EPISODES, EVALUATIONS, METRICS
from rlrun.run_folder import RunFolder

KNOWN = {"steps": 0, "into": "", "keep": False}
EXIT_IDENTICAL, EXIT_DIFFERENT = 0, 1
LEARNED = ("algorithm", "normalizer", "generators")  # what no cadence changes, of a checkpoint's state
# What a record says of code and machine besides the fingerprint, and what of that cannot change a bit.
PROVENANCE = ("fingerprint", "packages", "python", "code", "machine", "environment")
NAMING_CODE = ("env.module", "env.potential")  # keys besides _target_
NO_MATTER = ("fingerprint.code", "fingerprint.python", "machine.host", "machine.memory_bytes")


def reproduce(arguments: list[str]) -> int:
    """rlrun reproduce RUN [steps=N] [into=FOLDER] [keep=false]: run it again, and say whether every bit is the same.

    steps=N compares a beginning of the run; into= chooses the scratch folder, keep=true leaves it there. The exit
    code is 0 if the two are identical, and 1 if not.
    """
    path, options = parse(arguments, KNOWN, "reproduce")
    folder = RunFolder.existing(path)
    scope = scope_of(folder, options["steps"])
    with scratch(str(options["into"]), options["keep"]) as place:
        again = RunFolder(place / "run")
        code = run_again(folder, again, scope)
        if code > 128:  # interrupted
            return code
        comparison = Comparison(folder, again, scope)
        found = comparison.first() if code == EXIT_FINISHED else comparison.before_failure()
        report(comparison, found)
    if place.exists():
        print(f"the second run is in {again.path}")
    elif found:
        print("keep=true or into=FOLDER leaves the second run on the disk")
    return EXIT_DIFFERENT if found else EXIT_IDENTICAL


@dataclass(frozen=True)
class Scope:
    """How much of a run can be compared."""

    until: int | None  # the step to which it is run again; None: to its end
    looks_changed: list[str]  # cadences and the like that were changed on the way: the logs' rows differ by them


def scope_of(folder: RunFolder, steps: int) -> Scope:
    """Return what of a stored run can be compared with a repetition. Raises UserError if nothing can."""
    if steps < 0:
        raise UserError(f"steps={steps} is out of range: expected at least 1, or nothing for the whole run")
    if (processes := folder.record().get("fingerprint", {}).get("processes", 1)) > 1:
        raise UserError(
            f"{folder.path} was split over {processes} processes, and rlrun reproduce trains in one: give the run's "
            "own command to torchrun with another name=..."
        )
    changed: dict[str, list[Any]] = {}
    for event in folder.record()["lineage"]:
        changed.update(event.get("changed", {}))
    for key, (old, new) in changed.items():
        if is_learning_key(key):
            raise UserError(
                f"{folder.path} went on with {key}={new} after it had begun with {old}: no one configuration leads to "
                "its result, so that it cannot be run again from its record. Reproduce a run that was never changed"
            )
    looks = sorted(key for key in changed if key.split(".")[0] in ("eval", "log", "checkpoint", "stop"))
    result = folder.result()
    finished = folder.status() == "finished" and result is not None
    if finished and not steps and (result or {}).get("stopped_early") != "stop.after_time":
        return Scope(None, looks)
    return Scope(_last_comparable(folder, steps), looks)


def _last_comparable(folder: RunFolder, steps: int) -> int:
    """Return the step to which a part of a run, or one that was stopped, can be compared."""
    stored = Checkpoints(folder.path, keep=1).steps() or [row["step"] for row in rows(folder.path / METRICS)]
    if not stored:
        raise UserError(f"{folder.path} holds neither a checkpoint nor a row of metrics yet: nothing can be compared")
    if steps > stored[-1]:
        raise UserError(f"steps={steps} is beyond what is stored of {folder.path}: expected at most {stored[-1]}")
    return steps or int(stored[-1])


def run_again(folder: RunFolder, again: RunFolder, scope: Scope) -> int:
    """Train the stored run's configuration in another folder, as far as the scope says; return the exit code."""
    stored = folder.record()
    names = Names(**{name: stored[name] for name in ("algo", "env", "variant", "seed", "tuned")})
    config = config_of(folder, scope)
    try:
        code = train(again, config, names, until=scope.until)
    except UserError as error:
        raise UserError(f"{folder.path} cannot be run again here: {error} (it runs where into= says)") from error
    again.update_record(import_paths=stored.get("import_paths", []), reproduces=str(folder.path))
    return code


def config_of(folder: RunFolder, scope: Scope) -> dict[str, Any]:
    """Return the configuration to run again with: the clock ends nothing, and nothing is drawn."""
    config = validate(folder.config())
    config["log"]["tensorboard"] = False
    config["log"]["trackers"] = []
    config["stop"]["after_time"] = None
    config["fresh"] = False
    if scope.until is not None:
        config["eval"]["final_episodes"] = 1  # which is not looked at
    for key, origin in folder.record().get("origins", {}).items():
        check_origin(folder, key, origin)
        section = config["algo"] if key.startswith("algo.") else config
        section[key.rpartition(".")[2]] = origin["run"]  # a path that holds in any folder
    return config


def check_origin(folder: RunFolder, key: str, origin: dict[str, Any]) -> None:
    """Raise UserError unless another run still holds the very policy that a run began with."""
    which = origin["checkpoint"]
    began = f"{folder.path} began with the {which} policy of {key}={origin['run']}, of step {origin['step']}"
    try:
        _, manifest = stored_policy(RunFolder.existing(origin["run"]), which)
    except (UserError, RunFailed) as error:
        raise UserError(f"{began}, so that it cannot be run again without it: {error}") from error
    if manifest["sha256"] != origin["sha256"]:
        raise UserError(
            f"{began}, which has changed since: its {which} policy is now another one, of step "
            f"{manifest['step']}. It cannot be run again from what is stored"
        )


@contextmanager
def scratch(into: str, keep: bool) -> Iterator[Path]:
    """Give the block a folder, which goes afterwards unless it was asked for."""
    if into:
        place = Path(into)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise UserError(f"into={into} exists and is not an empty folder; name another")
        yield place
    elif keep:
        yield Path(tempfile.gettempdir()) / f"reproduced-{os.getpid()}"
    else:
        with tempfile.TemporaryDirectory(prefix=scratch_prefix("reproduce")) as temporary:
            yield Path(temporary)


# --- Comparison -----------------------------------------------------------------------------------------


class Comparison:
    """A run and its repetition, part by part. `compared` says what was found equal."""

    def __init__(self, stored: RunFolder, again: RunFolder, scope: Scope) -> None:
        self.stored, self.again, self.scope = stored, again, scope
        self.steps: int = again.record()["steps"]
        self.compared: list[str] = []
        self.left_out: list[str] = []

    def first(self) -> Difference | None:
        """Return the earliest difference, or None."""
        found = [*self.logs(), self.checkpoint()]
        if self.scope.until is None and not self.scope.looks_changed:
            found.append(self.result())
        return earliest(found)

    def before_failure(self) -> Difference | None:
        """Return the earliest difference where the repetition failed and the stored run went on."""
        failed = Difference("status", self.stored.status(), "failed, see above", self.steps)
        # A failing iteration writes no rows.
        self.steps = max((row["step"] for row in rows(self.again.path / METRICS)), default=0)
        self.scope = replace(self.scope, until=self.steps)
        return earliest([*self.logs(), failed])

    def logs(self) -> list[Difference | None]:
        if not self.scope.looks_changed:
            return [self.log(name) for name in (METRICS, EPISODES, EVALUATIONS)]
        self.left_out.append(f"rows that {', '.join(self.scope.looks_changed)} changed on the way")
        return [self.log(EPISODES)]

    def log(self, name: str) -> Difference | None:
        one, other = (self.rows(folder, name) for folder in (self.stored, self.again))
        found = first_row_difference(one, other, name)
        if not found:
            self.compared.append(f"{len(one):,} rows of {name}")
        return found

    def rows(self, folder: RunFolder, name: str) -> list[dict[str, Any]]:
        """Return the rows to compare: of a part of a run those before its last step, where the two stopped
        on different occasions (before and after an evaluation, say)."""
        all_rows = rows(folder.path / name)
        return all_rows if self.scope.until is None else [row for row in all_rows if row["step"] < self.steps]

    def checkpoint(self) -> Difference | None:
        try:
            states = [dict(Checkpoints(f.path, keep=1).load(self.steps)[0]) for f in (self.stored, self.again)]
        except CheckpointError:
            if self.scope.until is None:
                kept = Checkpoints(self.stored.path, keep=1).steps()
                return Difference("last checkpoint", f"of step {kept[-1:]}", f"of step {self.steps}", self.steps)
            self.left_out.append(f"the state of step {self.steps:,}, of which no checkpoint is kept")
            return None
        whole = self.scope.until is None and not self.scope.looks_changed
        # The logger's state is offsets into files whose clock readings vary in width; their rows are compared.
        names = [n for n in states[0] if n != "logger"] if whole else list(LEARNED)
        one, other = ({name: state.get(name) for name in names} for state in states)
        found = first_difference(one, other, "checkpoint")
        if found:
            return replace(found, step=self.steps)
        self.compared.append(f"{num_tensors(one):,} tensors of the checkpoint of step {self.steps:,}")
        return None

    def result(self) -> Difference | None:
        one, other = (timeless(folder.result() or {}) for folder in (self.stored, self.again))
        found = first_difference(one, other, "result.json")
        if found:
            return replace(found, step=self.steps)
        self.compared.append("result.json")
        return None


def earliest(found: list[Difference | None]) -> Difference | None:
    """Return the difference of the lowest step, the first of several."""
    return min((difference for difference in found if difference), key=lambda d: d.step or 0, default=None)


def report(comparison: Comparison, found: Difference | None) -> None:
    """Print the verdict, where the two first differ, and what else differs between them."""
    stored, again = comparison.stored, comparison.again
    extent = "the whole run" if comparison.scope.until is None else f"up to step {comparison.steps:,}"
    if found:
        print(f"different: {stored.path} is not reproduced ({extent})")
        print(f"first at step {found.step or 0:,}, {found.where}:\n  stored {found.one}\n  again  {found.other}")
    else:
        print(f"bit-identical: {stored.path}, {extent}")
    for line in comparison.compared:
        print(f"  equal: {line}")
    for line in comparison.left_out:
        print(f"  not compared: {line}")
    dropped = [event for event in stored.record()["lineage"] if event["event"] == "promise dropped"]
    for event in dropped:
        print(f"  the stored run itself went on otherwise from step {event['step']:,}: {', '.join(event['because'])}")
    changed = record_differences(stored.record(), again.record())
    if changed:
        print("what differs in their records" + ("" if found else ", and made no difference"))
    for key, (old, new) in changed.items():
        print(f"  {key}: {old} then, {new} now")
    if found and not changed and not dropped:
        print(f"nothing differs in their records{own_code(stored.config())}")
    if found and "code.commit" in changed:
        print(f"the code as it was: git checkout {changed['code.commit'][0]}")


def record_differences(stored: dict[str, Any], again: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {key: (then, now)} of code, versions, processor, device and the like that differ."""
    then, now = ({name: _plain(entry.get(name)) for name in PROVENANCE} for entry in (stored, again))
    changed = differences(then, now)
    return {
        key: pair
        for key, pair in changed.items()
        if key not in NO_MATTER and not key.startswith("fingerprint.packages")
    }


def _plain(value: Any) -> Any:
    """Shorten what a person need not read: of a dirty tree's difference only its length is shown."""
    if not isinstance(value, dict) or "dirty_diff" not in value:
        return value
    lines = len(value["dirty_diff"].splitlines())
    digest = hashlib.sha256(value["dirty_diff"].encode()).hexdigest()[:12]
    return {**value, "sha256": value["sha256"][:12], "dirty_diff": f"{lines} lines ({digest})" if lines else "none"}


def own_code(config: dict[str, Any]) -> str:
    """Name the modules that are not rlrun's, whose versions no record holds."""
    leaves = dict(flatten(config))
    named = [value for key, value in leaves.items() if key.endswith("._target_") or key in NAMING_CODE]
    foreign = sorted({str(name) for name in named if name and not str(name).startswith("rlrun.")})
    return f"; not recorded is the code of {', '.join(foreign)}" if foreign else ""
