"""The composed configuration: where its files are, and whether every key in it means something.

Hydra accepts any key that a `+` precedes and any type; here each key must be a field of what its group
builds, with a value of the field's type.
"""

import ast
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from rlrun import schema
from rlrun.errors import UserError, nearest
from rlrun.fields import coerce, constant_of, fields_of

GROUPS = ("algo", "env", "network", "device")  # groups whose _target_ is built

# What people type who come from another library.
ALIASES = {
    "lr": "learning_rate",
    "n_envs": "num_envs",
    "num_workers": "num_envs",
    "timesteps": "total_steps",
    "total_timesteps": "total_steps",
    "n_timesteps": "total_steps",
    "n_steps": "num_steps",
    "rollout_length": "num_steps",
    "minibatch_size": "batch_size",
    "n_epochs": "num_epochs",
    "update_epochs": "num_epochs",
    "ent_coef": "entropy_coef",
    "vf_coef": "value_coef",
    "clip_coef": "clip_range",
    "lam": "gae_lambda",
    "discount": "gamma",
    "normalize": "normalize_obs",
    "sticky": "repeat_action_probability",
    "n_eval_episodes": "episodes",
    "eval_freq": "every",
    "save_freq": "every",
    "log_interval": "every",
    "env_id": "id",
}


def conf_folder() -> Path:
    """Return the folder of configurations: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def search_folders() -> list[Path]:
    """Return all folders that configurations come from; --config-dir adds to them."""
    extra = os.environ.get("RLRUN_CONFIG_DIR")
    return [conf_folder(), *([Path(extra)] if extra else [])]


def import_paths() -> list[str]:
    """Return where a third party's modules are looked for: the current folder, and that of --config-dir."""
    extra = os.environ.get("RLRUN_CONFIG_DIR")
    return [os.getcwd(), *([extra] if extra else [])]


def make_importable(paths: list[str]) -> None:
    """Add folders to the end of the module search path, where they shadow nothing."""
    sys.path.extend(path for path in paths if path not in sys.path)


def options(group: str) -> list[str]:
    """Return the names in a group, sorted."""
    return sorted({p.stem for folder in search_folders() for p in (folder / group).glob("*.yaml")})


def option_file(group: str, name: str) -> Path | None:
    paths = [folder / group / f"{name}.yaml" for folder in search_folders()]
    return next((path for path in paths if path.exists()), None)


def lineage(group: str, name: str) -> list[str]:
    """Return the option and those that its defaults list builds on, nearest first: breakout, atari."""
    path = option_file(group, name)
    if path is None:
        return [name]
    content = yaml.safe_load(path.read_text()) or {}
    parents = [d for d in content.get("defaults", []) if isinstance(d, str) and d != "_self_"]
    return [name, *(ancestor for parent in parents for ancestor in lineage(group, parent))]


def target_of(group: str, name: str) -> str | None:
    """Return what an option builds, as its file says or the nearest of those that it builds on; None if none does."""
    files = [path for option in lineage(group, name) if (path := option_file(group, option)) is not None]
    return next((content["_target_"] for path in files if "_target_" in (content := _yaml(path))), None)


def algorithms_that(attribute: str) -> list[str]:
    """Return the algorithms whose classes give a true value to an attribute, leaving out what cannot be found."""
    found = []
    for name in options("algo"):
        module, _, cls = (target_of("algo", name) or "").rpartition(".")
        with suppress(UserError):
            found += [name] if constant_of(module, cls, attribute) else []
    return found


def tuned_for(algo: str, env: str) -> str:
    """Return the tuned file of the pair, or of the families it belongs to, or "none"."""
    for a in lineage("algo", algo):
        for e in lineage("env", env):
            if option_file("tuned", f"{a}_{e}") is not None:
                return f"{a}_{e}"
    return "none"


def completed(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a stored run's configuration with the keys that came into being after it.

    They get the values of today's files: a new key's default is to leave everything as it was.
    """
    base = _yaml(conf_folder() / "config.yaml")
    top = {key: value for key, value in base.items() if key not in (*schema.SECTIONS, "defaults", "hydra")}
    result = {**_plain(top), **stored}
    for section in schema.SECTIONS:
        result[section] = {**_plain(base[section]), **result.get(section, {})}
    for group in GROUPS:
        if isinstance(values := result.get(group), dict):
            result[group] = {**_group_defaults(group, str(values.get("_target_"))), **values}
    return result


@lru_cache
def _group_defaults(group: str, target: str) -> dict[str, Any]:
    """Return the plain values of the first option of a group that builds `target`."""
    for name in options(group):
        path = option_file(group, name)
        assert path is not None
        content = _yaml(path).get(group, _yaml(path))
        if content.get("_target_") == target:
            return _plain(content)
    return {}


@lru_cache
def _yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is only a value after Hydra has composed it."""
    composed = ("${", "???")
    return {k: v for k, v in values.items() if k != "defaults" and not (isinstance(v, str) and v.startswith(composed))}


def env_of_id(gym_id: str | None) -> str | None:
    """Return the named environment that has this Gymnasium id, if there is one."""
    for name in options("env"):
        path = option_file("env", name)
        assert path is not None
        if gym_id is not None and (yaml.safe_load(path.read_text()).get("env") or {}).get("id") == gym_id:
            return name
    return None


def register_resolvers() -> None:
    """Make the functions known that the YAML files use."""
    from omegaconf import OmegaConf

    def register(name: str, function: Any) -> None:
        OmegaConf.register_new_resolver(name, function, replace=True)

    register("tuned_for", tuned_for)
    register("fraction", fraction)
    register("slug", slug)


def fraction(total: Any, parts: int) -> int:
    """Return total / parts, at least 1; what is no number is left for the check of total itself."""
    try:
        return max(1, int(float(total)) // parts)
    except (TypeError, ValueError, OverflowError):
        return 1


def slug(text: str) -> str:
    """Return the text with what a folder's name cannot hold replaced: ALE/Pong-v5 -> ALE-Pong-v5."""
    return "".join(c if c.isalnum() or c in "._=+," else "-" for c in str(text)).strip("-.") or "default"


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with each value in its field's type. Raises UserError for the first that
    is unknown, missing, or of another type."""
    for group in GROUPS:
        if not isinstance(config.get(group), dict) or "_target_" not in config[group]:
            raise UserError(f"{group} names nothing to build: choose one of {', '.join(options(group))}")
    known = fields_of(schema.__name__, "Run")
    top = {k: v for k, v in config.items() if k not in schema.SECTIONS and k not in GROUPS}
    checked = _check("", top, known, "rlrun", extra_known=[*schema.SECTIONS, *GROUPS])
    for section, cls in schema.SECTIONS.items():
        checked[section] = _check(section, config.get(section, {}), fields_of(schema.__name__, cls.__name__), section)
    for group in GROUPS:
        target = config[group]["_target_"]
        module, _, name = target.rpartition(".")
        values = {k: v for k, v in config[group].items() if k != "_target_"}
        checked[group] = {"_target_": target, **_check(group, values, fields_of(module, name, group), target)}
    _check_ranges(checked)
    return checked


def seconds(duration: str | float | None) -> float | None:
    """Return the seconds of "90s", "30m", "2h" or a number. Raises UserError for anything else."""
    if duration is None:
        return None
    duration = str(duration)
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    try:
        value = float(duration[:-1]) * units[duration[-1]] if duration[-1:] in units else float(duration)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise UserError(f'stop.after_time={duration} is no duration: expected "90s", "30m", "2h" or seconds')
    return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("algo.gamma", 0.99) for each leaf."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_learning_key(key: str) -> bool:
    """Say whether the value of a dotted key changes what is learned."""
    return key in schema.LEARNING_EXCEPTIONS or key.split(".")[0] not in schema.WATCHING


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old, new)} where two configurations differ; "-" stands for an absent key."""
    a, b = dict(flatten(old)), dict(flatten(new))
    keys = [*a, *(key for key in b if key not in a)]
    return {k: (a.get(k, "-"), b.get(k, "-")) for k in keys if a.get(k, "-") != b.get(k, "-")}


def unknown_key(key: str, known: list[str]) -> UserError:
    """Return the error for a dotted key that nothing reads."""
    last = key.rpartition(".")[2]
    wanted = ALIASES.get(last)
    section = key.rpartition(".")[0]
    meant = [k for k in known if k.rpartition(".")[2] == wanted]
    meant.sort(key=lambda k: k.rpartition(".")[0] != section)
    if meant:
        hint = f" rlrun calls it {' or '.join(meant[:3])}."
    else:
        leaves = {k.rpartition(".")[2]: k for k in known}
        hint = nearest(key, known) or nearest(last, leaves)
    return UserError(f"{key} is not a key of this configuration.{hint} `--cfg job` shows all keys")


def _check(
    section: str, values: Mapping[str, Any], fields: dict[str, ast.expr], reader: str, extra_known: Any = ()
) -> dict[str, Any]:
    prefix = f"{section}." if section else ""
    checked = {}
    for key, value in values.items():
        if key not in fields:
            raise unknown_key(prefix + key, [*(prefix + f for f in fields), *extra_known])
        checked[key] = coerce(prefix + key, value, fields[key])
    missing = [key for key in fields if key not in values]
    if missing:
        raise UserError(f"{prefix}{missing[0]} is missing: {reader} needs it, and no configuration sets it")
    return checked


def _check_ranges(config: dict[str, Any]) -> None:
    at_least_one = (
        "total_steps",
        "eval.every",
        "eval.episodes",
        "eval.final_episodes",
        "eval.max_steps",
        "checkpoint.every",
        "checkpoint.keep",
        "log.every",
    )
    values = dict(flatten(config))
    for key in at_least_one:
        if values[key] < 1:
            raise UserError(f"{key}={values[key]} is out of range: expected at least 1")
    if not config["outputs"]:
        raise UserError("outputs= is empty: expected the folder that holds all runs, such as outputs=outputs")
    if not 0 <= config["seed"] < 2**63:
        raise UserError(f"seed={config['seed']} is out of range: expected 0 to 2^63 - 1")
    seconds(config["stop"]["after_time"])
    if config["init_from"] is None and config["init_checkpoint"] != "last":
        raise UserError(f"init_checkpoint={config['init_checkpoint']} says nothing without init_from=RUN")
    name = config["name"]
    if name is not None and slug(name) != name:
        raise UserError(
            f"name={name} cannot name a folder: expected letters, digits and . _ - = + , as in {slug(name)}"
        )
    threads = values.get("device.threads")
    if threads is not None and threads < 1:
        raise UserError(f"device.threads={threads} is out of range: expected at least 1, or null to choose by itself")
    probability = values.get("env.repeat_action_probability", 0.0)
    if not 0 <= probability < 1:
        raise UserError(f"env.repeat_action_probability={probability} is out of range: expected [0, 1)")
