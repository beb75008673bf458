"""`rlrun resume RUN [key=value ...]`: go on with a stored run, from its folder alone."""

import sys
from typing import Any

from rlrun.arguments import key_values, split_run
from rlrun.config import differences, flatten, is_learning_key, unknown_key, validate
from rlrun.errors import UserError
from rlrun.launch import EXIT_FINISHED, drop_replay, train
from rlrun.run_folder import RunFolder


def resume(arguments: list[str]) -> int:
    """Apply the overrides that a stored run can take, and train it to its end; return the exit code."""
    path, rest = split_run(arguments, "resume")
    folder = RunFolder.existing(path)
    stored = folder.config()
    config = validate(_overridden(stored, key_values(rest)))
    _refuse(folder, stored, config)
    if folder.status() == "finished" and not _has_more_to_do(folder, stored, config):
        drop_replay(folder, config)
        print(f"{folder.path} is finished; a larger total_steps=... extends it", file=sys.stderr)
        return EXIT_FINISHED
    return train(folder, config)


def _overridden(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    known = [key for key, _ in flatten(config)]
    result = _copy(config)
    for key, value in overrides.items():
        if key == "device" and isinstance(value, str):
            key = "device.kind"
        if key not in known:
            raise unknown_key(key, known)
        *parents, leaf = key.split(".")
        section = result
        for parent in parents:
            section = section[parent]
        section[leaf] = value
    return result


def _refuse(folder: RunFolder, stored: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise UserError for a change that would make one run out of two."""
    changed = differences(stored, config)
    if "outputs" in changed or "name" in changed:
        raise UserError("outputs and name say where a run is stored; move the folder instead")
    refused = [key for key in changed if is_learning_key(key) and key != "total_steps"]
    if refused:
        key = refused[0]
        old, new = changed[key]
        raise UserError(
            f"{key}={new} cannot be changed on a stored run, which has {old}: half of it would have been learned "
            f"with one value and half with the other. Start another run with {key}={new}"
        )
    if config["fresh"] and not stored["fresh"]:
        raise UserError("fresh=true starts anew, and resume goes on: give the run's own command with fresh=true")
    if "total_steps" in changed:
        if config["total_steps"] < stored["total_steps"]:
            raise UserError(
                f"total_steps={config['total_steps']} is less than the run's {stored['total_steps']}: it can only be "
                "extended; stop.after_time=... or Ctrl-C end it early"
            )
        print(
            "a longer total_steps: the result is not that of a fresh run of this length, because what follows "
            "the run's progress (learning rates) has taken another course",
            file=sys.stderr,
        )


def _has_more_to_do(folder: RunFolder, stored: dict[str, Any], config: dict[str, Any]) -> bool:
    """Say whether a change gives a finished run more to do."""
    stopped_early = (folder.result() or {}).get("stopped_early")
    if stopped_early is None:
        return config["total_steps"] > stored["total_steps"]
    if not stopped_early.startswith("stop."):
        return False  # the algorithm itself found nothing left to learn
    if config["stop"] == stored["stop"]:
        print(f"{stopped_early} ended this run; {stopped_early}=null lets it go on", file=sys.stderr)
        return False
    return True


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value
