"""The command line: a verb, or Hydra's grammar. Imports nothing heavy until a run needs it."""

import importlib
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rlrun.config import conf_folder, import_paths, make_importable, register_resolvers
from rlrun.distributed import World
from rlrun.errors import RunFailed, UserError, nearest
from rlrun.files import scratch_prefix

VERBS = {  # verb: module.function that takes the arguments after it and returns an exit code
    "resume": "rlrun.resume.resume",
    "eval": "rlrun.inspect_run.evaluate",
    "play": "rlrun.play.play",
    "ls": "rlrun.listing.ls",
    "list": "rlrun.listing.list_options",
    "bench": "rlrun.bench.bench",
    "compare": "rlrun.analysis.compare.compare",
    "aggregate": "rlrun.analysis.aggregate.aggregate",
    "playground": "rlrun.playground.playground",
    "reproduce": "rlrun.reproduce.reproduce",
    "export": "rlrun.export.export",
    "clean": "rlrun.clean.clean",
    "tune": "rlrun.tuning.tune.tune",
}
EXIT_BAD_INPUT = 2
# Hydra's launchers, and the extra that brings each; conf/hydra/launcher builds on them.
LAUNCHERS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
SHOWING = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")  # Hydra's, which run nothing


def main() -> None:
    """Run the command of this process and exit with its code."""
    _wait_politely()
    try:
        code = dispatch(sys.argv[1:])
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _wait_politely() -> None:
    """Have OpenMP's threads sleep where they wait for each other, after some microseconds, unless the user says how.

    Spinning ones, the default, cost a run beside a busy process most of its speed. Those that sleep at once are woken
    for each operation, which takes as long as a small one does; two thousand turns outlast the gaps between them.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def dispatch(arguments: list[str]) -> int:
    """Run a command, in one process or as one of several that torchrun has started; return the exit code."""
    world = World.of_environment()
    if world.size == 1:
        return run_command(arguments)
    from rlrun.followers import follow, lead

    if world.rank > 0:
        return follow(world)
    return lead(world, partial(run_one, arguments, world.size))


def run_one(arguments: list[str], processes: int) -> int:
    """Run a command that trains one run, in the first of several processes. Raises UserError for any other."""
    first = arguments[0] if arguments else "help"
    if (first in VERBS and first != "resume") or sweeps(arguments):
        what = "a sweep is" if sweeps(arguments) else f"rlrun {first} is"
        raise UserError(
            f"torchrun started {processes} processes to split one run over, and {what} none: expected key=value ... or "
            "resume RUN; leave torchrun out"
        )
    return run_command(arguments)


def run_command(arguments: list[str]) -> int:
    """Run a verb, print help, or hand the line to Hydra; return the exit code."""
    asks_for_help = any(argument in ("--help", "-h") for argument in arguments)
    first = arguments[0] if arguments else "help"
    if first in VERBS:
        module, _, name = VERBS[first].rpartition(".")
        verb = getattr(importlib.import_module(module), name)
        if asks_for_help:
            print(inspect.getdoc(verb))
            return 0
        return int(verb(arguments[1:]))
    if first == "help" or asks_for_help:
        from rlrun.help import page

        print(page())
        return 0
    if first == "--version":
        from rlrun import __version__

        print(f"rlrun {__version__}")
        return 0
    if re.fullmatch(r"[\w-]+", first) and not first.startswith("-"):
        raise UserError(
            f"{first} is neither a verb nor key=value.{nearest(first, VERBS)} Verbs: {', '.join(VERBS)}; "
            "`rlrun --help` has examples"
        )
    return run_hydra(arguments)


def run_hydra(arguments: list[str]) -> int:
    """Launch the run of each configuration that a command line composes; return the worst exit code."""
    for argument in arguments:
        if argument.startswith("="):
            raise UserError(f"{argument} has a value and no key: expected key=value, such as algo=ppo")
    if sweeps(arguments):
        return run_sweep(arguments)
    codes: list[int] = []

    def job(config: Any) -> None:
        try:
            codes.append(launch_composed(config))
        except (UserError, RunFailed) as error:  # caught here: Hydra would add lines of its own
            print(f"error: {error}", file=sys.stderr)
            codes.append(EXIT_BAD_INPUT)

    with_hydra(arguments, job)
    return max(codes, default=0)


def run_sweep(arguments: list[str]) -> int:
    """Run what the points of a sweep are missing; return its exit code."""
    from hydra._internal.utils import get_args_parser

    with _hydra_explained(arguments):
        _remember_config_dir(arguments)
        register_resolvers()
        from rlrun.sweep.conduct import sweep

        return sweep([quoted(override) for override in get_args_parser().parse_args(arguments).overrides])


def with_hydra(arguments: list[str], job: Callable[[Any], None]) -> None:
    """Call `job` with each DictConfig that the arguments compose. Raises UserError if they do not."""
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, so that the message below is the only one
    _remember_config_dir(arguments)
    register_resolvers()
    typed = sys.argv
    try:
        # Hydra notes a sweep's overrides there.
        with _hydra_explained(arguments), tempfile.TemporaryDirectory(prefix=scratch_prefix("hydra")) as scratch:
            sweep_dir = [f"hydra.sweep.dir={scratch}"] if sweeps(arguments) else []
            sys.argv = [typed[0], *map(quoted, arguments), *sweep_dir]
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)()
    finally:
        sys.argv = typed


@contextmanager
def _hydra_explained(arguments: list[str]) -> Iterator[None]:
    """Raise UserError for what Hydra raises in the block."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, arguments) from error


def quoted(argument: str) -> str:
    """Return key=value with quotes around each value that is a run's path: Hydra takes its seed=0 for a mistake.

    The path may hold ${seed}; several are separated by commas.
    """
    key, _, value = argument.partition("=")
    paths = [path for path in value.split(",") if "/" in path and "=" in path]
    if not paths or any(c in re.sub(r"\$\{\w+\}", "", value) for c in "'\"[]{}()$\\"):
        return argument
    return f"{key}=" + ",".join(f"'{path}'" if path in paths else path for path in value.split(","))


def sweeps(arguments: list[str]) -> bool:
    """Say whether a command line asks for several runs, and not for its configuration to be shown."""
    if any(argument in ("-m", "--multirun") for argument in arguments):
        return True
    shows = any(argument.partition("=")[0] in SHOWING for argument in arguments)
    return not shows and any(argument.startswith(("+study=", "hydra.mode=MULTIRUN")) for argument in arguments)


def launch_composed(config: Any) -> int:
    """Launch the run of a configuration that Hydra composed."""
    from rlrun.compose import planned
    from rlrun.launch import launch

    return launch(*planned(config))


def _remember_config_dir(arguments: list[str]) -> None:
    """Note --config-dir for what looks options up by name, and let its modules be imported."""
    for i, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
            if not Path(folder).is_dir():
                raise UserError(f"--config-dir={folder} is not a folder")
            os.environ["RLRUN_CONFIG_DIR"] = str(Path(folder).resolve())
    make_importable(import_paths())


def _explain(error: Exception, arguments: list[str]) -> UserError:
    """Turn Hydra's exception into one message with a remedy."""
    from rlrun.compose import known_keys
    from rlrun.config import GROUPS, options, unknown_key

    text = str(error)
    if found := re.search(r"Could not (?:override|append to config.*?) '([^']+)'", text):
        key, known = found[1].partition("@")[0], known_keys(arguments)
        if key == "study":
            return UserError("a study is added with a plus sign: +study=...")
        if key.startswith("env.kwargs"):
            return UserError(f"{key}: what is new to env.kwargs is added with a plus sign, +env.kwargs.name=value")
        return unknown_key(key, [*known, *GROUPS])
    if found := re.search(r"Could not (?:find|load) '(hydra/launcher|\w+)/([^']+)'", text):
        group, name = found.groups()
        if group == "hydra/launcher" and name in LAUNCHERS:
            return UserError(f'{group}={name} needs an extra: pip install "rlrun[{LAUNCHERS[name]}]"')
        known = sorted([*options(group), *(LAUNCHERS if group == "hydra/launcher" else ())])
        return UserError(f"{group}={name} does not exist.{nearest(name, known)} Known: {', '.join(known)}")
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return UserError(f"{found[1]} has several values: add -m to run one after the other, or quote a list as [a,b]")
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        return UserError(f"{found[1]} has no value: give {found[1]}=...")
    if "Multiple values for" in text or "Could not override" in text:
        return UserError(f"{text.splitlines()[0]}; groups are {', '.join(GROUPS)}")
    lines = [line.strip() for line in text.splitlines() if line.strip() and "hydra.cc" not in line]
    return UserError(f"the command line cannot be read: {' '.join(lines)}")
