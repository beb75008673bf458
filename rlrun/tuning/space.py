"""The search space: domains in conf/tune/<algo>.yaml, changed by space.KEY=... on the command line.

A domain is a list of choices, or a range {low, high} with log: true or a step. A choice may be another key's value,
"${algo.learning_rate}": that is how an end of a schedule follows its start.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlrun.config import GROUPS, flatten, is_learning_key, lineage, option_file, unknown_key
from rlrun.errors import UserError, nearest
from rlrun.fields import coerce, fields_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Domain = list[Any] | dict[str, Any]
Space = dict[str, Domain]

RANGE_KEYS = ("low", "high", "log", "step")
PREFIX = "space."
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
EXAMPLES = "[0.9, 0.99] for choices, {low: 1e-5, high: 1e-2, log: true} for a range"


def stored_space(algo: str) -> dict[str, Any]:
    """Return the domains beside the algorithm or the one it builds on, not yet checked; {} if there are none."""
    for name in lineage("algo", algo):
        path = option_file("tune", name)
        if path is not None:
            return _parsed(path.read_text(), str(path))
    return {}


def changed(space: Mapping[str, Any], arguments: Iterable[str]) -> dict[str, Any]:
    """Apply space.KEY=DOMAIN, space.KEY.high=NUMBER and space.KEY=null, which takes the key out."""
    result = dict(space)
    for argument in arguments:
        key, _, text = argument.removeprefix(PREFIX).partition("=")
        value = _parsed(f"value: {text}", argument)["value"]
        parent, _, last = key.rpartition(".")
        if last in RANGE_KEYS and parent:
            if not isinstance(result.get(parent), dict):
                raise UserError(
                    f"{argument}: {parent} is not searched in a range; give {PREFIX}{parent}={{low: , high: }}"
                )
            result[parent] = {**result[parent], last: value}
        elif value is not None:
            result[key] = value
        elif result.pop(key, None) is None:
            raise UserError(f"{argument}: {key} is not searched.{nearest(key, result)} Searched: {', '.join(result)}")
    return result


def without(space: Mapping[str, Any], fixed: Iterable[str]) -> dict[str, Any]:
    """Take out the keys that the command line gives a value, or a section that holds them."""
    sections = tuple(fixed)
    return {
        key: domain for key, domain in space.items() if not any(key == s or key.startswith(f"{s}.") for s in sections)
    }


def limited(space: Mapping[str, Any], only: Any) -> dict[str, Any]:
    """Keep the keys named by only=KEY or only=[KEY, KEY]."""
    keys = [str(key) for key in (only if isinstance(only, list) else str(only).split(","))]
    for key in keys:
        if key not in space:
            raise UserError(f"only={key} is not searched.{nearest(key, space)} Searched: {', '.join(space)}")
    return {key: space[key] for key in keys}


def checked(space: Mapping[str, Any], config: Mapping[str, Any]) -> Space:
    """Return the domains in the types of their keys. Raises UserError for the first that makes no sense."""
    known = dict(flatten(config))
    return {key: _checked(key, domain, config, known) for key, domain in space.items()}


def distribution(domain: Domain) -> "BaseDistribution":
    """Return the domain in Optuna's terms."""
    from optuna import distributions

    if isinstance(domain, list):
        return distributions.CategoricalDistribution([plain(choice) for choice in domain])
    kind = distributions.FloatDistribution if isinstance(domain["low"], float) else distributions.IntDistribution
    return kind(**domain)


def located(domain: Domain, value: Any, known: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return (value,) as Optuna knows a configuration's value, or () where the domain does not hold it."""
    if isinstance(domain, list):
        return next(((plain(choice),) for choice in domain if _meant(choice, known) == value), ())
    if isinstance(value, bool) or not isinstance(value, int | float) or not domain["low"] <= value <= domain["high"]:
        return ()
    on_grid = "step" not in domain or _whole((value - domain["low"]) / domain["step"])
    return (value,) if on_grid else ()


def plain(choice: Any) -> Any:
    """Return a choice as Optuna stores it: lists as text."""
    return json.dumps(choice) if isinstance(choice, list | dict) else choice


def override(key: str, value: Any) -> str:
    """Return a parameter's value as Hydra reads it."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _parsed(text: str, source: str) -> dict[str, Any]:
    """Read YAML with 1e-5 as a number, also inside of lists and mappings."""
    try:
        value = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{source} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UserError(f"{source} holds no search space: expected lines such as algo.gamma: [0.9, 0.99]")
    return {str(key): item for key, item in value.items()}


def _checked(key: str, domain: Any, config: Mapping[str, Any], known: Mapping[str, Any]) -> Domain:
    if key not in known:
        raise unknown_key(key, list(known))
    if key.split(".")[0] not in GROUPS or not is_learning_key(key):
        raise UserError(f"{PREFIX}{key} cannot be searched: expected a number of algo, env or network")
    annotation = _annotation(key, config)
    if isinstance(domain, list):
        return _choices(key, domain, annotation, known)
    if isinstance(domain, dict):
        return _range(key, domain, annotation)
    raise UserError(f"{PREFIX}{key}={domain} is no domain: expected {EXAMPLES}")


def _choices(key: str, choices: list[Any], annotation: ast.expr, known: Mapping[str, Any]) -> list[Any]:
    typed = [choice if _reference(key, choice, known) else _typed(key, choice, annotation) for choice in choices]
    if len(typed) < 2:
        raise UserError(
            f"{PREFIX}{key}={choices} leaves nothing to choose: give two values, or fix it with {key}=VALUE"
        )
    for i, choice in enumerate(typed):
        if choice in typed[:i]:
            raise UserError(f"{PREFIX}{key}={choices} holds {choice} twice: take one out")
    return typed


def _range(key: str, given: dict[str, Any], annotation: ast.expr) -> dict[str, Any]:
    where = f"{PREFIX}{key}={given}"
    for name in given:
        if name not in RANGE_KEYS:
            hint = " Choices are written [a, b]." if name == "choices" else nearest(str(name), RANGE_KEYS)
            raise UserError(f"{where}: {name} is not a key of a range.{hint} Known: {', '.join(RANGE_KEYS)}")
    missing = [name for name in ("low", "high") if name not in given]
    if missing:
        raise UserError(f"{where} has no {missing[0]}: expected {EXAMPLES}")
    low, high = (_number(key, given[name], annotation) for name in ("low", "high"))
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}: log={log} must be true or false")
    if not low < high:
        raise UserError(f"{where}: low must be less than high; a single value is fixed with {key}={low}")
    if log and low <= 0:
        raise UserError(f"{where}: log: true needs a low above 0")
    domain = {"low": low, "high": high, "log": log}
    if given.get("step") is None:
        return domain
    step = _number(key, given["step"], annotation)
    if log or step <= 0 or not _whole((high - low) / step):
        raise UserError(f"{where}: a step must be above 0, lead from low to high, and go without log: true")
    return {**domain, "step": step}


def _annotation(key: str, config: Mapping[str, Any]) -> ast.expr:
    """Return the type of a key, as the source of what its group builds declares it."""
    group, name, *deeper = key.split(".")
    if deeper:  # a key of a mapping such as env.kwargs
        return ast.Name("Any")
    module, _, target = config[group]["_target_"].rpartition(".")
    return fields_of(module, target, group)[name]


def _typed(key: str, value: Any, annotation: ast.expr) -> Any:
    try:
        return coerce(key, value, annotation)
    except UserError as error:
        raise UserError(f"{PREFIX}{error}") from error


def _number(key: str, value: Any, annotation: ast.expr) -> Any:
    typed = _typed(key, value, annotation)
    if isinstance(typed, bool) or not isinstance(typed, int | float):
        raise UserError(
            f"{PREFIX}{key} is searched in a range of numbers, and {value} is none; choices are written [a, b]"
        )
    return typed


def _reference(key: str, choice: Any, known: Mapping[str, Any]) -> bool:
    """Say whether a choice is another key's value. Raises UserError if there is no such key."""
    found = REFERENCE.fullmatch(choice) if isinstance(choice, str) else None
    if found and (found[1] not in known or found[1] == key):
        raise UserError(f"{PREFIX}{key}: {choice} must name another key.{nearest(found[1], known)}")
    return found is not None


def _meant(choice: Any, known: Mapping[str, Any]) -> Any:
    found = REFERENCE.fullmatch(choice) if isinstance(choice, str) else None
    return known[found[1]] if found else choice


def _whole(ratio: float) -> bool:
    return abs(ratio - round(ratio)) < 1e-9 * max(1.0, abs(ratio))
