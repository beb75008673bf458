"""The arguments of verbs: a run's folder, then key=value."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlrun.errors import UserError, nearest


def split_run(arguments: list[str], verb: str) -> tuple[Path, list[str]]:
    """Return the run's path and the rest.

    A run's path holds `=` itself (seed=0), so an argument that exists as a path is one, whatever it looks
    like; only the first argument is looked at. Raises UserError if there is none.
    """
    if not arguments or (
        not Path(arguments[0]).exists() and "=" in arguments[0].rpartition("/")[2] and "/" not in arguments[0]
    ):
        raise UserError(f"rlrun {verb} needs the folder of a run: rlrun {verb} outputs/cartpole/ppo/default/seed=0")
    return Path(arguments[0]), arguments[1:]


def split_paths(arguments: list[str], known: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Split paths from key=value. Run folders hold `=` themselves: what exists, or has a slash, is a path."""
    paths: list[Path] = []
    rest: list[str] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if equals and (key in known or not (Path(argument).exists() or "/" in key)):
            rest.append(argument)
        else:
            paths.append(Path(argument))
    return paths, rest


def key_values(arguments: list[str]) -> dict[str, Any]:
    """Return {key: value} of "key=value" arguments; values are read as YAML, 1e6 as a number."""
    values = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"{argument} is not key=value")
        values[key] = _value(text)
    return values


def parse(arguments: list[str], known: Mapping[str, Any], verb: str) -> tuple[Path, dict[str, Any]]:
    """Split "RUN key=value ..." and check the keys against `known`, {key: default}; defaults fill the rest."""
    path, rest = split_run(arguments, verb)
    return path, with_defaults(key_values(rest), known, verb)


def with_defaults(given: Mapping[str, Any], known: Mapping[str, Any], verb: str) -> dict[str, Any]:
    """Return the defaults, overridden by `given` in the default's type. Raises UserError on a misfit."""
    values = dict(known)
    for key, value in given.items():
        if key not in known:
            hint = f"{nearest(key, known)} Known: {', '.join(known)}" if known else " It takes no keys, only paths"
            raise UserError(f"rlrun {verb} has no key {key}.{hint}")
        values[key] = _as(key, value, known[key])
    return values


def _as(key: str, value: Any, default: Any) -> Any:
    if default is None:
        return value
    kind = type(default)
    if value is None:
        raise UserError(f"{key}= has no value: expected {kind.__name__}, such as {default}")
    if kind is bool or isinstance(value, bool):
        fits = isinstance(value, bool) and kind is bool
    elif kind is int:
        fits = isinstance(value, int | float) and float(value).is_integer()
    elif kind is float:
        fits = isinstance(value, int | float)
    else:
        fits = True
    if not fits:
        raise UserError(f"{key}={value} has the wrong type: expected {kind.__name__}, such as {default}")
    return kind(value)


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} cannot be read as a value: {error}") from error
    if isinstance(value, str):  # YAML 1.1 takes 1e6 for a word
        try:
            return float(value)
        except ValueError:
            return value
    return value
