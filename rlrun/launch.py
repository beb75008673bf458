"""One run, from its configuration to its exit code: new, continued, finished before, or refused."""

import os
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlrun import record, trackers
from rlrun.config import differences, env_of_id, import_paths, is_learning_key, tuned_for
from rlrun.distributed import LONE, World
from rlrun.errors import RunFailed, UserError
from rlrun.event_file import PATTERN
from rlrun.facts import FAILED, FINISHED, INTERRUPTED, PRUNED
from rlrun.files import DISK_FULL, human_bytes
from rlrun.run_folder import RunFolder
from rlrun.sweep.outcomes import SKIPPED, Place, note_outcome

if TYPE_CHECKING:
    from rlrun.build import Agent
    from rlrun.experiment import Experiment

EXIT_FINISHED, EXIT_FAILED = 0, 1
REPLAY = "replay"  # the folder of a run's replays
Prune = Callable[[int, float], bool]  # (step, mean return) of an evaluation -> whether the run shall end there


@dataclass(frozen=True)
class Names:
    """What a run is called: the parts of its folder, and the tuned file that its numbers come from."""

    algo: str
    env: str
    variant: str
    seed: int
    tuned: str

    @property
    def place(self) -> Place:
        return self.env, self.algo, self.variant, self.seed

    def folder(self, outputs: str) -> RunFolder:
        return RunFolder(Path(outputs) / self.env / self.algo / self.variant / f"seed={self.seed}")


def launch(config: dict[str, Any], names: Names, prune: Prune | None = None) -> int:
    """Train the run that the configuration names, or go on with it; return the process's exit code."""
    folder = names.folder(config["outputs"])
    if folder.exists() and not config["fresh"]:
        _refuse_other_learning(folder, config)
        if folder.status() == "finished":
            note_outcome(names.place, SKIPPED, EXIT_FINISHED)
            drop_replay(folder, config)
            result = folder.result() or {}
            _say(
                f"{folder.path} is finished: return {result.get('mean_return', float('nan')):.2f} after "
                f"{result.get('steps', 0):,} steps; fresh=true runs it again, `rlrun resume` extends it"
            )
            asked, played = config["eval"]["final_episodes"], len(result.get("returns", []))
            if played != asked:
                _say(
                    f"its return is that of {played} episodes, not of eval.final_episodes={asked}: "
                    f"`rlrun eval '{folder.path}' episodes={asked}` plays as many"
                )
            return EXIT_FINISHED
        return train(folder, config, prune=prune)
    return train(folder, config, names, prune=prune)


def train(
    folder: RunFolder,
    config: dict[str, Any],
    names: Names | None = None,
    *,
    until: int | None = None,
    prune: Prune | None = None,
) -> int:
    """Build and run the experiment of a folder, which `names` asks to be made; return the exit code.

    `until` ends it after so many steps, while schedules keep to the configuration's total_steps; `prune` is asked
    after each evaluation whether to end it there, which leaves it "pruned".
    """
    started = time.monotonic()
    if folder.path.exists() and folder.locked():
        with folder.lock():  # raises, and says who holds it, before seconds go into building
            pass
    if names is None:
        _check_processes(folder)
    _check_writable(folder.path)
    trackers.check(config)
    from rlrun.build import build_experiment
    from rlrun.followers import present
    from rlrun.room import check_room, estimate
    from rlrun.signals import Signals

    with Signals() as signals:
        agent, origins = _built(folder, config, new=names is not None)
        if names is None:
            _check_replay(folder, agent)
        needed = estimate(agent.algorithm, config)
        check_room(needed, folder.path)
        if names is not None and folder.exists():  # fresh=true, and the new configuration has proved sound
            with folder.lock():
                _say(f"the existing run is set aside in {_set_aside(folder, config['outputs'])}")
            _say("to go on with the new one after an interruption, leave fresh=true out")
        _make_folder(folder.path)
        with folder.lock():
            if names is not None:
                _begin(folder, config, names, agent, origins)
                _say(_about_tuned(names, config))
            _say(f"{folder.path}  ({needed}; set up in {time.monotonic() - started:.1f} s)")
            saving = bool(origins)
            experiment = build_experiment(
                agent, config, folder, signals, present(), prune, until=until, save_first=saving
            )
            # Only once it is taken up: a run that cannot be stays what it was, with its result.
            taken_up = None if names is not None else lambda: _continue(folder, config, origins)
            return _run(experiment, agent, config, taken_up)


def _built(folder: RunFolder, config: dict[str, Any], *, new: bool) -> tuple["Agent", dict[str, Any]]:
    """Return the run's agent and, where the run begins, the stored runs that it takes something from."""
    from rlrun.build import build_agent
    from rlrun.checkpoint import Checkpoints
    from rlrun.followers import present
    from rlrun.warm_start import source_of, told, warm_start

    begins = new or not Checkpoints(folder.path, keep=1).steps()
    source = source_of(config) if begins else None  # first, because it sets torch's switches as that run had them
    if (followers := present()) is not None:
        followers.build(config)
    agent = build_agent(config, folder.path, LONE if followers is None else followers.world)
    if followers is not None:
        agent.elsewhere = followers.built(agent.fingerprint())
    origins = agent.algorithm.begin(new=begins)
    if source is not None:
        origins["init_from"] = warm_start(agent, source)
        _say(told(source, origins["init_from"], agent.spec.normalize_obs))
    return agent, origins


def _run(experiment: "Experiment", agent: "Agent", config: dict[str, Any], taken_up: Callable[[], None] | None) -> int:
    folder = experiment.folder
    status, code, failure, begun = FAILED, EXIT_FAILED, "", taken_up is None
    try:
        experiment.restore()
        if taken_up is not None:
            taken_up()
        begun = True
        status = experiment.run()
        code = EXIT_FINISHED if status in (FINISHED, PRUNED) else 128 + (experiment.signals.received or 0)
        if status == INTERRUPTED:
            experiment.console.notice(
                f"interrupted at step {agent.algorithm.steps:,}, saved; the same command goes on from there"
            )
    except RunFailed as error:
        failure = str(error)
        experiment.console.close()
        experiment.console.notice(f"error: {failure}")
    except Exception as error:
        experiment.console.close()
        failure = f"{type(error).__name__}: {error}"
        experiment.console.notice(f"error: {_what_failed(folder, error)}\n{traceback.format_exc()}")
    finally:
        experiment.console.close()
        agent.close()  # the next run of a sweep shall not find threads of this one
        experiment.evaluator.close()
        # On a full disk these fail as well, and what went wrong has been said.
        with suppress(OSError, RunFailed):
            experiment.logger.close(status if begun else INTERRUPTED)
        with suppress(OSError, RunFailed):
            if begun:
                folder.update_record(status=status, ended=record.now(), steps=agent.algorithm.steps)
            if status in (FINISHED, PRUNED) and not config["checkpoint"]["keep_replay"]:
                _remove_replay(folder)  # only now: no kill can make the run need it again
            stored = folder.record()
            place = (stored["env"], stored["algo"], stored["variant"], stored["seed"])
            note_outcome(place, status, code, failure)
    return code


def _what_failed(folder: RunFolder, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"the disk of {folder.path} is full; make room and give the same command again"
    return "the run failed"


def drop_replay(folder: RunFolder, config: dict[str, Any]) -> None:
    """Remove what a kill has left of a finished run's replay, unless the run or this command is to keep it."""
    kept = any(asked["checkpoint"]["keep_replay"] for asked in (config, folder.config()))
    if kept or not (folder.path / REPLAY).is_dir():
        return
    with suppress(UserError, OSError), folder.lock():  # held: its own process removes it, or goes on with it
        if folder.status() == FINISHED:
            size = _remove_replay(folder)
            _say(f"{folder.path}: removed its replay of {human_bytes(size)}, which an earlier process had left")


def _remove_replay(folder: RunFolder) -> int:
    """Remove the replay's files; return how many bytes of disk they took."""
    size = sum(path.stat().st_blocks * 512 for path in (folder.path / REPLAY).rglob("*"))
    shutil.rmtree(folder.path / REPLAY, ignore_errors=True)
    return size


def _begin(folder: RunFolder, config: dict[str, Any], names: Names, agent: "Agent", origins: dict[str, Any]) -> None:
    folder.write_config(config)
    folder.write_record(
        {
            "status": "running",
            "command": record.command(),
            "algo": names.algo,
            "env": names.env,
            "variant": names.variant,
            "seed": names.seed,
            "tuned": names.tuned,
            "steps": 0,
            "total_steps": config["total_steps"],
            "started": record.now(),
            "ended": None,
            "protocol": agent.protocol(),
            "fingerprint": agent.fingerprint(),
            "environment": agent.spec.versions(),
            "import_paths": import_paths(),
            "origins": origins,
            "lineage": [],
            **record.provenance(),
        }
    )


def _check_replay(folder: RunFolder, agent: "Agent") -> None:
    """Raise UserError for a run that cannot go on, before its result is taken away."""
    from rlrun.checkpoint import Checkpoints

    started = Checkpoints(folder.path, keep=1).steps()
    if started and not all(replay.ring.exists() for replay in agent.algorithm.setup.replays):
        raise UserError(
            f"{folder.path} has lost its replay, without which it cannot go on: that of a finished run is deleted "
            "unless it was started with checkpoint.keep_replay=true. fresh=true starts the run anew"
        )


def _about_tuned(names: Names, config: dict[str, Any]) -> str:
    if names.tuned != "none":
        return f"tuned: {names.tuned} (tuned=none leaves it out)"
    # env=gym env.id=CartPole-v1 is the environment that env=cartpole names.
    namesake = env_of_id(config["env"].get("id"))
    known = tuned_for(names.algo, namesake) if namesake else "none"
    hint = f"; tuned={known} has numbers for {config['env']['id']}" if known != "none" else ""
    return f"tuned: none applied{hint}"


def _continue(folder: RunFolder, config: dict[str, Any], origins: dict[str, Any]) -> None:
    changed = differences(folder.config(), config)
    stored = folder.record()
    lineage = stored["lineage"]
    event: dict[str, Any] = {"event": "continued", "time": record.now(), "command": record.command()}
    if changed:
        event["changed"] = {key: list(pair) for key, pair in changed.items()}
        for key, (old, new) in changed.items():
            _say(f"{key}: {old} -> {new}")
    (folder.path / "result.json").unlink(missing_ok=True)  # there, if a finished run is extended
    folder.write_config(config)
    folder.write_record(
        {
            **stored,
            "status": "running",
            "ended": None,
            "total_steps": config["total_steps"],
            "origins": stored.get("origins", {}) | origins,
            "lineage": [*lineage, event],
        }
    )


def _refuse_other_learning(folder: RunFolder, config: dict[str, Any]) -> None:
    changed = {k: pair for k, pair in differences(folder.config(), config).items() if is_learning_key(k)}
    if changed:
        lines = "\n".join(f"  {key}: stored {old}, asked for {new}" for key, (old, new) in changed.items())
        raise UserError(
            f"{folder.path} holds a run with another configuration:\n{lines}\n"
            "Give this one its own name=..., or set the stored one aside with fresh=true"
        )


def _check_processes(folder: RunFolder) -> None:
    """Raise UserError for a run that was split over another number of processes: each has a part of its state."""
    stored, now = folder.record().get("fingerprint", {}).get("processes", 1), World.of_environment().size
    if stored != now:
        raise UserError(
            f"{folder.path} is a run of {stored} process{'es' * (stored > 1)}, and this command has {now}: expected "
            + (f"torchrun with {stored} in all" if stored > 1 else "the same command without torchrun")
            + ", or another name=..., or fresh=true, which starts it anew"
        )


def _check_writable(path: Path) -> None:
    """Raise UserError if the folder cannot be made, before seconds go into building."""
    existing = next(p for p in [path, *path.resolve().parents] if p.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(f"outputs: {existing} cannot be written to; choose another folder with outputs=...")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".lock"
        probe.touch()
    except OSError as error:
        raise UserError(f"outputs: {path} cannot be written ({error}); choose another with outputs=...") from error


def _set_aside(folder: RunFolder, outputs: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    relative = folder.path.relative_to(outputs)
    target = Path(outputs) / ".aside" / relative.with_name(f"{relative.name}-{stamp}")
    counter = 1
    while target.exists():
        counter += 1
        target = target.with_name(f"{relative.name}-{stamp}-{counter}")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.path.rename(target)
    for events in target.glob(PATTERN):  # else TensorBoard shows it beside the new run
        events.unlink()
    return target


def _say(text: str) -> None:
    import sys

    print(text, file=sys.stderr, flush=True)
