"""`rlrun playground`: what random and hand-written policies earn. Nothing is trained, and torch is not imported."""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from rlrun import record
from rlrun.arguments import key_values, with_defaults
from rlrun.config import conf_folder, options, register_resolvers, validate
from rlrun.console import table_console
from rlrun.envs.base import Array, Envs, EnvSpec
from rlrun.envs.random_actions import random_actions
from rlrun.envs.scripts import BY_ID
from rlrun.episodes import MAX_PARALLEL, Act, Evaluation, State, play_episodes
from rlrun.errors import UserError, nearest
from rlrun.files import write_json

if TYPE_CHECKING:
    from rlrun.analysis.runs import Run

KNOWN: dict[str, Any] = {
    "envs": "cartpole,mountaincar,acrobot,frozenlake,taxi",
    "episodes": 20,
    "seed": 0,
    "out": "outputs/playground",
}
RESULTS = "results.json"
BY, METRIC = "algo", "final"  # what the report tells apart, and by which number
LAST_SEED = 2**31 - 1  # the Arcade Learning Environment takes 32-bit seeds
NOTICE = (
    "nothing was trained: every episode counts as a run of its own, its seed is the environment's, and there are no "
    "curves because these policies do not change"
)

Played = dict[str, dict[str, Evaluation]]  # {environment: {policy: episodes}}


def playground(arguments: list[str]) -> int:
    """rlrun playground [envs=cartpole,acrobot,...] [episodes=20] [seed=0] [out=outputs/playground]

    Play episodes of the random policy and, where there is one, of a hand-written policy; write results.json and the
    report that `rlrun compare` writes. Environment seeds are seed, seed + 1, ...; any env= of `rlrun list` will do.
    """
    chosen = with_defaults(key_values(arguments), KNOWN, "playground")
    _check(chosen)
    names = _names(chosen["envs"])
    specs = {name: _spec(name) for name in names}
    played = {name: play(*specs[name], chosen["episodes"], chosen["seed"]) for name in names}
    protocols = {name: {**spec.protocol(), "max_steps": limit} for name, (spec, limit) in specs.items()}
    out = Path(chosen["out"])
    table_console().print(_table(played), highlight=False)
    _write_report(played, protocols, out)
    write_json(out / RESULTS, results(played, protocols, chosen["seed"]))
    print(f"{RESULTS} and report.html in {out}/")
    return 0


def play(spec: EnvSpec, max_steps: int, num_episodes: int, seed: int) -> dict[str, Evaluation]:
    """Return the episodes of each policy that there is for an environment, on the seeds from `seed` on."""
    envs = spec.make(min(num_episodes, MAX_PARALLEL))
    seeds = list(range(seed, seed + num_episodes))
    played = {}
    try:
        for policy, act in _policies(spec, envs, seed).items():
            episodes = play_episodes(envs, act, seeds, max_steps)
            assert episodes is not None
            played[policy] = episodes
    finally:
        envs.close()
    return played


def results(played: Played, protocols: dict[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return results.json: for each environment its protocol, and for each policy its episodes."""
    return {
        "seed": seed,
        "packages": record.packages(),
        "environments": {
            env: {
                "protocol": protocols[env],
                "policies": {
                    policy: {
                        "min_return": min(episodes.returns),
                        "max_return": max(episodes.returns),
                        "mean_length": episodes.mean_length,
                        **episodes.row(),
                    }
                    for policy, episodes in policies.items()
                },
            }
            for env, policies in played.items()
        },
    }


def _policies(spec: EnvSpec, envs: Envs, seed: int) -> dict[str, Act]:
    # A generator for each environment, so that its episodes do not depend on which others are played.
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])

    def random(obs: Array, state: State, first: Array) -> tuple[Array, State]:
        return random_actions(envs.action_space, len(obs), rng), state

    policies: dict[str, Act] = {"random": random}
    if script := BY_ID.get(getattr(spec, "id", "")):
        policies["scripted"] = lambda obs, state, first: (script(obs), state)
    return policies


def _table(played: Played) -> Table:
    table = Table("environment", "policy", box=None, pad_edge=False)
    for name in ("return", "min", "max", "length", "episodes"):
        table.add_column(name, justify="right")
    for env, policies in played.items():
        for policy, episodes in policies.items():
            table.add_row(
                env,
                policy,
                f"{episodes.mean_return:.3f} ± {episodes.std_return:.3f}",
                f"{min(episodes.returns):g}",
                f"{max(episodes.returns):g}",
                f"{episodes.mean_length:.0f}",
                str(len(episodes.seeds)),
            )
    return table


def _write_report(played: Played, protocols: dict[str, dict[str, Any]], out: Path) -> None:
    """Write the report of `rlrun compare` about runs that are on no disk: each episode is one."""
    from rlrun.analysis.compare import write_report
    from rlrun.analysis.groups import grouped
    from rlrun.analysis.notices import group_notices
    from rlrun.analysis.provenance import made
    from rlrun.analysis.summary import summarize

    origin = made({"command": record.command(), "ended": record.now(), **record.provenance()})
    runs = [run for env in played for run in _as_runs(env, played[env], protocols[env], out / RESULTS, origin)]
    groups = grouped(runs, BY, METRIC)
    found = summarize(groups, BY, METRIC)
    write_report(replace(found, notices=[NOTICE, *group_notices(groups, BY, METRIC), *found.notices]), out)


def _as_runs(
    env: str, policies: dict[str, Evaluation], protocol: dict[str, Any], path: Path, origin: Any
) -> Iterator["Run"]:
    """Yield each episode as the run that it is to the statistics: one draw of what the policy earns."""
    from rlrun.analysis.runs import Run

    # One budget for all policies of an environment, so that none seems to have been given more.
    last = max(sum(episodes.lengths) for episodes in policies.values())
    for policy, episodes in policies.items():
        for seed, score, length in zip(episodes.seeds, episodes.returns, episodes.lengths, strict=True):
            yield Run(
                path=path,
                env=env,
                algo=policy,
                variant="default",
                seed=seed,
                tuned="none",
                status="finished",
                steps=length,
                total_steps=last,
                protocol={**protocol, "policy": policy},
                config={},
                result={"mean_return": score, "episodes": 1},
                curve=np.empty((0, 2)),
                clock=np.empty((0, 2)),
                made=origin,
            )


def _names(envs: str) -> list[str]:
    """Return the names in a list with commas, each once. Raises UserError for one that is no env= option."""
    known = options("env")
    names = list(dict.fromkeys(name.strip() for name in envs.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise UserError(f"envs={name} does not exist.{nearest(name, known)} Known: {', '.join(known)}")
    if not names:
        raise UserError(f"envs={envs} names no environment; expected for example envs={KNOWN['envs']}")
    return names


def _spec(name: str) -> tuple[EnvSpec, int]:
    """Return what makes an environment that env=name names, and the steps after which evaluations cut an episode."""
    from hydra import compose, initialize_config_dir

    from rlrun.compose import resolved

    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("config", ["algo=random", f"env={name}"])
    try:
        config = validate(resolved(composed))
    except UserError as error:  # such as env=gym, where nothing but the id is missing
        raise UserError(f"envs={name} is no single environment ({error}); choose others of `rlrun list`") from error
    module, _, cls = config["env"]["_target_"].rpartition(".")
    fields = {key: value for key, value in config["env"].items() if key != "_target_"}
    return getattr(import_module(module), cls)(**fields), config["eval"]["max_steps"]


def _check(chosen: dict[str, Any]) -> None:
    for key, value in chosen.items():
        if value is None or value == "":
            raise UserError(f"{key}= has no value; expected for example {key}={KNOWN[key]}")
    if chosen["episodes"] < 1:
        raise UserError(f"episodes={chosen['episodes']} is out of range: expected at least 1")
    if not 0 <= chosen["seed"] <= LAST_SEED - chosen["episodes"]:
        raise UserError(f"seed={chosen['seed']} is out of range: expected 0 to {LAST_SEED - chosen['episodes']}")
