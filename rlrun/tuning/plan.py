"""What a command line of `rlrun tune` asks for: the search, and the command line of each of its runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rlrun import __version__, record
from rlrun.arguments import key_values, with_defaults
from rlrun.compose import CHOICES, NAMES_OF_ENV
from rlrun.config import differences, flatten, is_learning_key, slug
from rlrun.errors import UserError, nearest
from rlrun.files import write_atomically
from rlrun.launch import Names
from rlrun.run_folder import RunFolder
from rlrun.tuning.budget import most_steps, within_budget
from rlrun.tuning.space import EXAMPLES, PREFIX, Space, changed, checked, limited, override, stored_space, without
from rlrun.tuning.workers import composed

SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "none")
STORAGES = ("journal", "sqlite")
KNOWN: dict[str, Any] = {  # what tune itself takes, and what holds where nothing is said
    "trials": 50,
    "seeds": 3,
    "sampler": "tpe",
    "pruner": "median",
    "confirm": 5,
    "jobs": 1,
    "storage": "journal",
    "name": None,
    "only": None,
}
PER_RUN = ("seed", "outputs")  # Hydra's keys that tune sets itself, starting from what is given
REFUSED = {"fresh": "give another name=..., or delete the search's folder", "study": "that is for rlrun -m"}
DEFAULT_ROOT = "searches"  # beside outputs/: hundreds of trials would bury the runs that one looks for there
SCORED_BY = ("eval.every", "eval.episodes", "eval.max_steps", "stop.at_return", "stop.after_time")


@dataclass(frozen=True)
class Options:
    """What tune itself reads from its command line."""

    trials: int  # that are wanted, complete or pruned
    seeds: int  # runs of a trial
    sampler: str
    pruner: str
    confirm: int  # fresh seeds that the best trial is confirmed on
    jobs: int  # worker processes
    storage: str
    name: str | None  # of the folder
    only: Any  # the keys that are searched; None: all of the space

    def __post_init__(self) -> None:
        for key, least in (("trials", 1), ("seeds", 1), ("jobs", 1), ("confirm", 0)):
            if getattr(self, key) < least:
                raise UserError(f"{key}={getattr(self, key)} is out of range: expected at least {least}")
        for key, known in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("storage", STORAGES)):
            value = str(getattr(self, key))
            if value not in known:
                raise UserError(f"{key}={value} is not known.{nearest(value, known)} Known: {', '.join(known)}")
        if self.name is not None and slug(self.name) != str(self.name):
            raise UserError(f"name={self.name} cannot name a folder; try name={slug(str(self.name))}")


@dataclass(frozen=True)
class Plan:
    """A search, fully described."""

    options: Options
    folder: Path
    flags: list[str]  # --config-dir DIR, where it was given
    overrides: list[str]  # of every run
    config: dict[str, Any]  # the present configuration: what the overrides compose
    names: Names
    space: Space
    notices: list[str]  # what one should know before it begins

    @property
    def search_seeds(self) -> list[int]:
        first = self.config["seed"]
        return list(range(first, first + self.options.seeds))

    @property
    def fresh_seeds(self) -> list[int]:
        """Return the seeds of the confirmation, which no trial ever trains with."""
        first = self.search_seeds[-1] + 1
        return list(range(first, first + self.options.confirm))

    @property
    def every(self) -> int:
        return int(self.config["eval"]["every"])

    @property
    def evaluations(self) -> int:
        """Return the number of evaluations in a whole run."""
        return int(self.config["total_steps"]) // self.every

    def trial_runs(self, number: int, params: dict[str, Any]) -> list[list[str]]:
        """Return the command line of each run of a trial."""
        # Nothing is read off the last policy's own episodes there: as many as in an evaluation will do.
        cheap = [f"eval.final_episodes={self.config['eval']['episodes']}"]
        return [
            [*self.flags, *cheap, *self._run("search", f"trial-{number:03d}", params, seed)]
            for seed in self.search_seeds
        ]

    def confirmation_run(self, name: str, params: dict[str, Any], seed: int) -> list[str]:
        return [*self.flags, *self._run("confirm", name, params, seed)]

    def confirmation_folder(self, name: str, seed: int) -> RunFolder:
        names = Names(self.names.algo, self.names.env, name, seed, "")
        return names.folder(str(self.folder / "confirm"))

    def _run(self, part: str, name: str, params: dict[str, Any], seed: int) -> list[str]:
        place = str(self.folder / part).replace("'", "\\'")
        return [
            *self.overrides,
            *(override(key, value) for key, value in params.items()),
            f"seed={seed}",
            f"name={name}",
            f"outputs='{place}'",  # quoted: Hydra takes `=` for its own
            "log.console=false",
        ]

    def choices(self) -> list[str]:
        """Return the overrides that choose what is built; the others only set numbers, which a tuned file can."""
        keys = (*(key for key in CHOICES if key != "tuned"), *NAMES_OF_ENV)
        return [o for o in self.overrides if o.partition("=")[0].lstrip("+") in keys]

    @property
    def most_steps(self) -> int:
        return most_steps(self.config)

    def definition(self) -> dict[str, Any]:
        """Return what the trials' values depend on; it cannot change within a search."""
        config = {k: v for k, v in flatten(self.config) if is_learning_key(k) or k in SCORED_BY}
        fixed = ("seeds", "sampler", "pruner", "storage")
        return {
            **{key: value for key, value in asdict(self.options).items() if key in fixed},
            "config": config,
            "space": self.space,
        }

    @property
    def file(self) -> Path:
        return self.folder / "search.yaml"

    def store(self) -> None:
        """Write the definition, or raise UserError if the folder holds a search with another one."""
        if not self.file.exists():
            facts = {"command": record.command(), "created": record.now(), "version": __version__}
            text = yaml.safe_dump({**facts, **self.definition()}, sort_keys=False)
            write_atomically(self.file, text.encode())
            return
        stored = yaml.safe_load(self.file.read_text())
        changed = differences({key: stored.get(key) for key in self.definition()}, self.definition())
        if changed:
            lines = "\n".join(
                f"  {key.removeprefix('config.')}: stored {old}, asked for {new}" for key, (old, new) in changed.items()
            )
            raise UserError(
                f"{self.folder} holds a search with another definition:\n{lines}\nGive this one its own name=..."
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the search while the block runs."""
        folder = RunFolder(self.folder)
        if folder.locked():
            raise UserError(f"{self.folder} is being worked on by another process; wait for it, or give name=...")
        with folder.lock():
            yield


def plan(arguments: list[str]) -> Plan:
    """Read and check a command line. Raises UserError for what makes no sense; writes nothing."""
    flags, own, of_space, rest = _split(arguments)
    options = Options(**with_defaults(key_values(own), KNOWN, "tune"))
    given = {o.partition("=")[0].lstrip("+~"): o for o in rest}
    for key, remedy in REFUSED.items():
        if key in given:
            raise UserError(f"{given[key]} is not for tune: {remedy}")
    overrides = [o for o in rest if o.partition("=")[0] not in PER_RUN]
    config, names = _present(flags, rest)
    if config["eval"]["every"] > config["total_steps"]:
        raise UserError(
            f"eval.every={config['eval']['every']} leaves runs of total_steps={config['total_steps']} without an "
            "evaluation, and trials are judged by those: lower it"
        )
    space = changed(stored_space(names.algo), of_space)
    for argument in of_space:
        if (key := argument.removeprefix(PREFIX).partition("=")[0]) in given:
            raise UserError(f"{argument} searches what {given[key]} fixes: leave one of them out")
    space = without(space, [key for key in given if key not in CHOICES])
    if not space:
        raise UserError(
            f"algo={names.algo} has no search space: write tune/{names.algo}.yaml into a --config-dir, or give "
            f"{PREFIX}KEY={EXAMPLES}"
        )
    if options.only is not None:
        space = limited(space, options.only)
    space, notices = within_budget(checked(space, config), config)
    root = config["outputs"] if "outputs" in given else DEFAULT_ROOT
    default = f"{names.algo}_{names.env}" + (f"_{names.variant}" if names.variant != "default" else "")
    folder = Path(root) / slug(str(options.name or default))
    return Plan(options, folder, flags, overrides, config, names, space, notices)


def _split(arguments: list[str]) -> tuple[list[str], list[str], list[str], list[str]]:
    """Return flags, tune's own arguments, those about the space, and Hydra's overrides."""
    flags: list[str] = []
    own: list[str] = []
    of_space: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        key = argument.partition("=")[0]
        if key in ("--config-dir", "-cd"):
            flags += [argument] if "=" in argument else [argument, *(next(waiting, ""),)]
        elif argument.startswith("-"):
            raise UserError(f"rlrun tune takes no {argument}; `rlrun tune --help` says what it takes")
        elif key in KNOWN:
            own.append(argument)
        elif key.startswith(PREFIX):
            of_space.append(argument)
        else:
            rest.append(argument)
    return flags, own, of_space, rest


def _present(flags: list[str], overrides: list[str]) -> tuple[dict[str, Any], Names]:
    try:
        return composed([*flags, *overrides])
    except UserError as error:
        typed = (o.partition("=")[0] for o in overrides)
        unknown = next((key for key in typed if str(error).startswith(f"{key} is not a key")), None)
        if unknown is None:
            raise
        own = ", ".join(f"{key}=" for key in KNOWN)
        raise UserError(f"{error}; tune itself takes {own} and {PREFIX}KEY=.{nearest(unknown, KNOWN)}") from error
