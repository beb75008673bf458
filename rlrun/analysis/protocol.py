"""Which runs may be compared: those that were given the same task, the same budget and the same exam."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlrun.analysis.metric import is_tag
from rlrun.analysis.runs import Run
from rlrun.errors import UserError

BUDGET = ("stop.at_return", "stop.after_time")  # they end a run before total_steps
EXAM = ("eval.episodes", "eval.final_episodes", "eval.max_steps")
PER_ALGO = "protocol.policy"  # greedy or sampled is part of a method: it may differ between algorithms only
OF_A_GAME = ("protocol.game", PER_ALGO)  # what games of one benchmark differ in
MOST_EXAMPLES = 3
LONGEST_VALUE = 40  # characters

Differing = dict[str, dict[str, list[Run]]]  # {key: {value: runs}}


@dataclass(frozen=True)
class Checked:
    """What was found: the keys that are mixed in each environment, and those mixed across Atari games."""

    notices: list[str] = field(default_factory=list)
    mixed: dict[str, list[str]] = field(default_factory=dict)
    mixed_games: list[str] = field(default_factory=list)


def facts(run: Run, metric: str) -> dict[str, Any]:
    """Return what has to be equal among compared runs of one environment.

    How often a run was evaluated matters only where the metric is made of those evaluations: the best of
    more evaluations is higher.
    """
    keys = [*BUDGET, *EXAM, *(() if metric == "final" or is_tag(metric) else ("eval.every",))]
    return {
        **{f"protocol.{key}": value for key, value in run.protocol.items()},
        **{f"environment.{key}": value for key, value in run.versions.items()},
        "total_steps": run.total_steps,
        **{key: run.config[key] for key in keys if key in run.config},
        **({"episodes of rlrun eval": run.best.episodes} if run.best is not None else {}),
    }


def check_same(runs: Sequence[Run], metric: str, mix: bool) -> Checked:
    """Return what differs in protocol. Raises UserError where it does within an environment, unless `mix`."""
    refused: list[str] = []
    mixed: dict[str, list[str]] = {}
    methods: list[str] = []
    by_env: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_env[run.env].append(run)
    for env, members in by_env.items():
        for key, values in _differing(members, metric).items():
            if key == PER_ALGO and not _mixed_within_an_algo(members):
                methods.append(_line(env, key, values))
                continue
            refused.append(_line(env, key, values))
            mixed.setdefault(env, []).append(key)
    if refused and not mix:
        raise UserError(
            "these runs were not made under one protocol, so their numbers do not compare:\n"
            + "\n".join(refused)
            + "\nGive fewer PATHS, or mix=true to compare them all the same"
        )
    notices = [f"mixed protocols: {line.strip()}" for line in refused]
    notices += [f"algorithms act differently in evaluation, each as its paper does: {line.strip()}" for line in methods]
    games, found = _across_games(by_env, metric)
    return Checked([*notices, *_about_games(found, mix)], mixed, games)


def _across_games(by_env: dict[str, list[Run]], metric: str) -> tuple[list[str], list[str]]:
    """Return the keys in which Atari games differ from one another, and a line about each."""
    games = [run for members in by_env.values() for run in members if run.protocol.get("game")]
    differing = {
        key: values
        for key, values in _differing(games, metric).items()
        if key not in OF_A_GAME and not key.startswith("environment.") and not _only_within(values, games)
    }
    return list(differing), [_line("Atari", key, values).strip() for key, values in differing.items()]


def _about_games(lines: Sequence[str], mix: bool) -> list[str]:
    if not lines:
        return []
    what = "pooled all the same" if mix else "so they are not pooled into overall numbers (mix=true pools them)"
    return [f"the games were not played under one protocol, {what}: {'; '.join(lines)}"]


def _only_within(values: dict[str, list[Run]], games: Sequence[Run]) -> bool:
    """Say whether every game has runs of every value: then the games are alike, and each is mixed in itself."""
    names = {run.env for run in games}
    return all({run.env for run in runs} == names for runs in values.values())


def _mixed_within_an_algo(members: Iterable[Run]) -> bool:
    found: dict[str, set[str]] = defaultdict(set)
    for run in members:
        found[run.algo].add(str(run.protocol.get("policy")))
    return any(len(policies) > 1 for policies in found.values())


def _differing(members: Sequence[Run], metric: str) -> Differing:
    """Return the keys that have several values.

    A key that one stamp lacks is a difference: the stamps are of different kinds. One that a configuration
    lacks is not: the run is older than the key.
    """
    stamps = [facts(run, metric) for run in members]
    found = {}
    for key in sorted({key for stamp in stamps for key in stamp}):
        values: dict[str, list[Run]] = defaultdict(list)
        for run, stamp in zip(members, stamps, strict=True):
            if key in stamp or key.startswith("protocol."):
                values[str(stamp.get(key, "not recorded"))].append(run)
        if len(values) > 1:
            found[key] = dict(values)
    return found


def _line(env: str, key: str, values: dict[str, list[Run]]) -> str:
    shown = [
        f"{value[:LONGEST_VALUE]} in {len(runs)} run{'s' if len(runs) > 1 else ''} ({runs[0].path})"
        for value, runs in list(values.items())[:MOST_EXAMPLES]
    ]
    more = "" if len(values) <= MOST_EXAMPLES else f", and {len(values) - MOST_EXAMPLES} more values"
    return f"  {env}: {key} is {', '.join(shown)}{more}"
