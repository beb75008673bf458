"""What Hydra composed, as plain values, and the names that a run gets from it."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlrun.config import conf_folder, flatten, is_learning_key, validate
from rlrun.errors import UserError
from rlrun.launch import Names
from rlrun.run_folder import variant

NAMES_OF_ENV = ("env.id", "env.game", "env.name")  # these are in the folder's name already
NAMES_OF_RUNS = ("init_from", "algo.expert")  # their values may be paths of runs
CHOICES = ("algo", "env", "network", "device", "protocol", "tuned")


def planned(config: DictConfig) -> tuple[dict[str, Any], Names]:
    """Return the validated configuration and the names of the run that Hydra has just composed."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    if choices["protocol"] != "none" and "frame_skip" not in config.env:
        raise UserError(f"protocol={choices['protocol']} is for Atari games, and env={choices['env']} is none")
    plain = validate(resolved(config))
    typed = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # ${seed} as it is
    assert isinstance(typed, list)
    return plain, names_of(plain, [str(override) for override in typed], choices)


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values. Raises UserError where one is missing."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        missing = [key for key in known_leaves(config) if OmegaConf.is_missing(*_parent(config, key))]
        if missing:
            raise UserError(f"{missing[0]} has no value: give {missing[0]}=...") from error
        raise UserError(f"{getattr(error, 'full_key', '')}: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    # Groups that only set other groups' keys leave an empty section of their own name.
    return {str(k): v for k, v in plain.items() if k not in ("hydra", "tuned", "protocol")}


def known_leaves(config: DictConfig) -> list[str]:
    """Return the dotted keys of all values, set or not."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return [key for key, _ in flatten({str(k): v for k, v in plain.items()})]


def _parent(config: DictConfig, key: str) -> tuple[Any, str]:
    parent, _, leaf = key.rpartition(".")
    return (OmegaConf.select(config, parent) if parent else config), leaf


def names_of(config: dict[str, Any], overrides: Sequence[str], choices: Mapping[str, Any]) -> Names:
    """Return what the run is called, from its configuration, its overrides, and the chosen options."""
    default, default_choices = _without_overrides(choices)
    final = dict(flatten(config))
    changes = [
        f"{group}={choices[group]}"
        for group in CHOICES[2:]
        if choices.get(group) != default_choices.get(group) and is_learning_key(group)
    ]
    typed = {key.lstrip("+~"): text for key, _, text in (override.partition("=") for override in overrides)}
    for key, text in typed.items():  # the last one counts
        if key in CHOICES or key == "seed" or not is_learning_key(key):
            continue
        # A section given as a whole counts by its leaves.
        for leaf, value in final.items():
            given = leaf == key or leaf.startswith(f"{key}.")
            if given and leaf not in NAMES_OF_ENV and default.get(leaf, "-") != value:
                of_run = leaf in NAMES_OF_RUNS and "/" in str(value)
                changes.append(f"{leaf}={_run_shown(value, text, config) if of_run else _shown(value)}")
    name = config["name"]
    return Names(
        algo=choices["algo"],
        env=config["env"]["name"],
        variant=variant([name]) if name is not None else variant(changes),
        seed=config["seed"],
        tuned=choices["tuned"],
    )


def known_keys(arguments: Sequence[str]) -> list[str]:
    """Return all dotted keys of the configuration that the group choices on a command line compose."""
    overrides = [a for a in arguments if a.partition("=")[0] in CHOICES and "," not in a]
    config = _compose(overrides)
    return [k for k, _ in flatten(_plain(config)) if k.split(".")[0] not in ("hydra", "tuned", "protocol")]


def _without_overrides(choices: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return values and choices as they are when only algo and env, and what they imply, are chosen."""
    chosen = tuple(f"{group}={choices[group]}" for group in CHOICES if group in choices)
    return _composed_from(chosen, os.environ.get("RLRUN_CONFIG_DIR"))


@lru_cache
def _composed_from(chosen: tuple[str, ...], config_dir: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compose once what the points of a sweep share. `config_dir` is where `_compose` looks, too."""
    base = _compose([choice for choice in chosen if choice.startswith(("algo=", "env="))], hydra=True)
    return dict(flatten(_plain(_compose(list(chosen))))), dict(base.hydra.runtime.choices)


def _compose(overrides: list[str], *, hydra: bool = False) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    extra = os.environ.get("RLRUN_CONFIG_DIR")
    if extra:
        overrides = [*overrides, f"hydra.searchpath=['file://{extra}']"]  # quoted: a path may hold =
    saved = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return compose("config", overrides, return_hydra_config=hydra)
    finally:
        GlobalHydra.instance().hydra = saved


def _plain(config: DictConfig) -> dict[str, Any]:
    """Return plain values, resolved one by one: those that need a missing one stay as they are written."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    values: dict[str, Any] = {}
    for key, value in flatten({str(k): v for k, v in plain.items()}):
        try:
            values[key] = OmegaConf.select(config, key)
        except OmegaConfBaseException:
            values[key] = value
        if OmegaConf.is_config(values[key]):
            values[key] = OmegaConf.to_container(values[key])
    return values


def _run_shown(path: str, typed: str, config: dict[str, Any]) -> str:
    """Return a short name for a stored run: ppo-default-seed=0, with what else tells it from others in front.

    Typed with seed=${seed}, it is another run for each seed of one configuration, whose name then leaves the seed out.
    """
    parts = Path(os.path.abspath(path)).parts[-4:]
    if Path(os.path.abspath(path)) != Path(os.path.abspath(config["outputs"]), *parts):
        parts = (hashlib.sha256(path.replace(parts[-1], "").encode()).hexdigest()[:6], *parts[-3:])
    elif parts[0] == config["env"]["name"]:
        parts = parts[1:]
    return "-".join(parts[:-1] if "${seed}" in typed.rpartition("/")[2] else parts)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value)
