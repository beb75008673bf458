import ast
import importlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlrun import cli, config
from rlrun.compose import known_keys, names_of, resolved
from rlrun.config import ALIASES, differences, flatten, is_learning_key, options, slug, tuned_for, unknown_key
from rlrun.errors import UserError, nearest
from rlrun.fields import fields_of

Compose = Callable[..., dict[str, Any]]
# What a family of environments leaves open.
NEEDED = {
    "gym": ["env.id=CartPole-v1"],
    "box2d": ["env.id=LunarLander-v3"],
    "mujoco": ["env.id=Ant-v5"],
    "atari": ["env.game=breakout"],
    "minatar": ["env.id=MinAtar/Breakout-v1"],
}


def dispatch(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command line in this process."""
    monkeypatch.setattr(sys, "argv", ["rlrun", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    return cli.dispatch(arguments)


# Tuned files that are asked for by name, and an environment that they are for.
PRESETS = {"dqn_nature": "breakout", "dqn_dopamine": "breakout", "reinforce_geron": "cartpole"}

# --- Everything that can be chosen ----------------------------------------------------------------------


@pytest.mark.parametrize("env", options("env"))
def test_every_environment_composes_and_validates(env: str, compose: Compose) -> None:
    composed = compose(f"env={env}", *NEEDED.get(env, []))
    assert composed["total_steps"] >= 10_000
    assert composed["env"]["name"]
    assert "tuned" not in composed


@pytest.mark.parametrize("env", ["cartpole", "frozenlake"])
@pytest.mark.parametrize("algo", options("algo"))
def test_every_algorithm_composes_and_validates(algo: str, env: str, compose: Compose) -> None:
    assert compose(f"algo={algo}", f"env={env}")["algo"]["_target_"].startswith("rlrun.algos.")


@pytest.mark.parametrize("group", ["network", "device", "protocol"])
def test_every_other_option_composes_and_validates(group: str, compose: Compose) -> None:
    for name in options(group):
        compose(f"{group}={name}", *(["env=breakout"] if group == "protocol" and name != "none" else []))


@pytest.mark.parametrize("tuned", [name for name in options("tuned") if name != "none"])
def test_every_tuned_file_sets_only_keys_that_exist(tuned: str, compose: Compose) -> None:
    algo = max((name for name in options("algo") if tuned.startswith(f"{name}_")), key=len)
    env = tuned.removeprefix(f"{algo}_")
    env = env if env in options("env") else PRESETS[tuned]
    composed = compose(f"algo={algo}", f"env={env}", f"tuned={tuned}", *NEEDED.get(env, []))
    content: dict[str, Any] = {}
    for name in reversed(config.lineage("tuned", tuned)):
        file = yaml.safe_load((config.conf_folder() / "tuned" / f"{name}.yaml").read_text())
        content |= {key: value for key, value in flatten(file) if key != "defaults"}
    final = dict(flatten(composed))
    assert {key: final.get(key, "absent") for key in content} == content


@pytest.mark.parametrize("group", ["algo", "env", "network", "device"])
def test_an_options_keys_are_the_fields_of_what_it_builds_without_defaults_of_their_own(
    group: str, compose: Compose
) -> None:
    for name in options(group):
        if "_target_" not in (config.conf_folder() / group / f"{name}.yaml").read_text():
            continue  # it builds on another one
        composed = compose(f"{group}={name}", *NEEDED.get(name, []))[group]
        module, _, target = composed.pop("_target_").rpartition(".")
        cls = getattr(importlib.import_module(module), target)
        if not is_dataclass(cls):
            continue
        wanted = [f for f in fields(cls) if f.name != "setup"]
        assert {f.name for f in wanted} == composed.keys()
        assert [f.name for f in wanted if f.default is not MISSING or f.default_factory is not MISSING] == []


@pytest.mark.parametrize("algo", options("algo"))
def test_an_algorithms_keys_stand_in_the_order_of_its_fields(algo: str) -> None:
    content: dict[str, Any] = {}
    for name in reversed(config.lineage("algo", algo)):  # a variant adds to the file that it names in `defaults`
        content |= yaml.safe_load((config.conf_folder() / "algo" / f"{name}.yaml").read_text())
    content.pop("defaults", None)
    module, _, target = content.pop("_target_").rpartition(".")
    cls = getattr(importlib.import_module(module), target)
    assert list(content) == [f.name for f in fields(cls) if f.name != "setup"]


def test_a_stored_configuration_gets_the_keys_that_came_into_being_after_it(compose: Compose) -> None:
    whole = compose("algo=dqn", "env=breakout")
    old = {key: dict(value) if isinstance(value, dict) else value for key, value in whole.items()}
    del old["checkpoint"]["keep_replay"], old["network"]["layer_norm"], old["wandb"], old["on_error"]
    assert config.completed(old) == whole
    old["network"]["layer_norm"] = True
    assert config.completed(old)["network"]["layer_norm"] is True  # what it says stays


# --- What wins over what --------------------------------------------------------------------------------


def test_tuned_numbers_are_found_by_the_pair_and_can_be_left_out(compose: Compose) -> None:
    assert compose("algo=ppo", "env=cartpole")["algo"]["num_epochs"] == 20
    assert compose("algo=ppo", "env=cartpole", "tuned=none")["algo"]["num_epochs"] == 4


def test_tuned_numbers_of_a_family_are_found(compose: Compose) -> None:
    assert tuned_for("ppo", "breakout") == "ppo_atari"
    assert tuned_for("ppo", "no_such_environment") == "none"
    assert compose("algo=ppo", "env=pong")["algo"]["clip_range"] == 0.1


def test_the_command_line_wins_over_tuned_numbers_and_these_over_the_options(compose: Compose) -> None:
    composed = compose("algo=ppo", "env=cartpole", "algo.num_epochs=7", "total_steps=5000")
    assert (composed["algo"]["num_epochs"], composed["total_steps"]) == (7, 5000)
    assert composed["algo"]["gamma"] == 0.98


def test_atari_brings_its_network_and_protocol(compose: Compose) -> None:
    composed = compose("env=breakout")
    assert composed["network"]["_target_"].endswith("NatureCNN")
    assert composed["env"]["life_loss"] is True
    machado = compose("env=breakout", "protocol=machado")["env"]
    assert (machado["repeat_action_probability"], machado["life_loss"], machado["full_action_space"]) == (
        0.25,
        False,
        True,
    )


def test_cadences_are_fractions_of_the_budget(compose: Compose) -> None:
    composed = compose("total_steps=10_000")
    assert (composed["eval"]["every"], composed["checkpoint"]["every"], composed["log"]["every"]) == (500, 200, 25)
    assert compose("total_steps=3")["log"]["every"] == 1


# --- What is not a key ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("+algo.lr=1", "algo.learning_rate"),
        ("+algo.n_envs=1", "algo.num_envs"),
        ("+timesteps=100", "total_steps"),
        ("+algo.gama=0.9", "algo.gamma"),
        ("+algo.learnin_rate=0.9", "algo.learning_rate"),
        ("+env.max_steps=5", "env.max_episode_steps"),
        ("+network.hiden=[3]", "network.hidden"),
        ("+device.thread=1", "device.threads"),
        ("+eval.episode=1", "eval.episodes"),
        ("+sed=1", "seed"),
    ],
)
def test_an_added_key_that_nothing_reads_is_refused_with_the_nearest(
    override: str, named: str, compose: Compose
) -> None:
    key = override.lstrip("+").partition("=")[0]
    with pytest.raises(UserError, match=rf"^{key} is not a key") as caught:
        compose(override)
    assert f" {named}" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["algo.lr=1"], "algo.learning_rate"),
        (["timesteps=100"], "total_steps"),
        (["algo=a2c", "algo.n_epochs=3"], "algo.n_epochs is not a key"),
        (["env=breakout", "env.sticky=0.25"], "env.repeat_action_probability"),
        (["algo=pppo"], "ppo"),
        (["env=brekout"], "breakout"),
        (["env=gym"], "env.id="),
    ],
)
def test_a_wrong_command_line_is_answered_with_the_remedy(
    arguments: list[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code, message = dispatch(arguments, monkeypatch), capsys.readouterr().err
    except UserError as error:
        code, message = 2, str(error)
    assert code == 2
    assert named in message
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("override", ["env.kwargs={gravity: 9.8}", "env.kwargs.gravity=9.8"])
def test_arguments_of_the_environment_are_accepted_or_the_message_says_how_to_give_them(
    override: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        dispatch([override, "total_steps=0"], monkeypatch)  # which is refused before anything runs
        message = capsys.readouterr().err
    except UserError as error:
        message = str(error)
    assert "total_steps=0 is out of range" in message or "+env.kwargs" in message


def test_the_aliases_lead_to_keys_that_exist() -> None:
    known = {key.rpartition(".")[2] for overrides in ([], ["env=breakout"]) for key in known_keys(overrides)}
    assert set(ALIASES.values()) <= known


def test_an_alias_prefers_the_section_in_which_it_was_typed() -> None:
    known = ["log.every", "eval.every", "checkpoint.every"]
    assert "rlrun calls it eval.every or" in str(unknown_key("eval.eval_freq", known))


@pytest.mark.parametrize("word", ["trian", "resum", "lst"])
def test_a_word_that_is_no_verb_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=f"{word} is neither a verb nor key=value"):
        cli.dispatch([word])


def test_nearest_finds_what_differs_in_case_and_keeps_quiet_when_nothing_is_near() -> None:
    assert nearest("cartpole-V1", ["CartPole-v1", "Ant-v5"]) == " Did you mean CartPole-v1?"
    assert nearest("xyz", ["CartPole-v1"]) == ""


# --- Types and ranges -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("total_steps=1e6", "total_steps", 1_000_000),
        ("total_steps=200_000", "total_steps", 200_000),
        ("algo.num_steps=1e3", "algo.num_steps", 1000),
        ("algo.gamma=1", "algo.gamma", 1.0),
        ("algo.target_kl=null", "algo.target_kl", None),
        ("algo.target_kl=0.01", "algo.target_kl", 0.01),
        ("name=2026", "name", "2026"),
        ("network.hidden=[32,32]", "network.hidden", [32, 32]),
        ("network.hidden=[1e2]", "network.hidden", [100]),
        ("stop.after_time=2h", "stop.after_time", "2h"),
        ("+env.kwargs.gravity=9.8", "env.kwargs.gravity", 9.8),
    ],
)
def test_values_get_the_type_of_their_field(override: str, key: str, value: Any, compose: Compose) -> None:
    found: Any = compose(override)
    for part in key.split("."):
        found = found[part]
    assert found == value
    assert type(found) is type(value)


@pytest.fixture(scope="module")
def atari() -> dict[str, Any]:
    """Return one valid configuration; composing takes long, so that the tests below change copies of it."""
    from hydra import compose, initialize_config_dir

    config.register_resolvers()
    with initialize_config_dir(str(config.conf_folder()), version_base="1.3"):
        return config.validate(resolved(compose("config", ["env=breakout", "network=mlp"])))


def changed(valid: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    section, _, leaf = key.rpartition(".")
    copy = {k: dict(v) if isinstance(v, dict) else v for k, v in valid.items()}
    (copy[section] if section else copy)[leaf] = value
    return copy


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("total_steps", 1.5, "int"),
        ("total_steps", "many", "int"),
        ("total_steps", None, "int"),
        ("total_steps", True, "int"),
        ("total_steps", math.inf, "int"),
        ("total_steps", math.nan, "int"),
        ("algo.gamma", "high", "float"),
        ("algo.gamma", None, "float"),
        ("algo.gamma", [0.9], "float"),
        ("algo.clip_value", 1, "bool"),
        ("algo.clip_value", "perhaps", "bool"),
        ("algo.target_kl", "low", r"float \| null"),
        ("network.activation", "sigmoid", "tanh"),
        ("network.hidden", 64, r"list\[int\]"),
        ("network.hidden", [64, "x"], r"list\[int\]"),
        ("network.hidden", [64, 1.5], r"list\[int\]"),
        ("device.precision", "fp8", "bf16"),
        ("env.game", None, "str"),
        ("stop.after_time", [1], "str"),
        ("name", {"a": 1}, "str"),
    ],
)
def test_a_value_of_another_type_is_refused_by_key_value_and_expectation(
    key: str, value: Any, expected: str, atari: dict[str, Any]
) -> None:
    shown = "null" if value is None else re.escape(str(value))
    with pytest.raises(UserError, match=rf"^{key}={shown} (has the wrong type|is not known): expected .*{expected}"):
        config.validate(changed(atari, key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_steps", 0),
        ("total_steps", -5),
        ("eval.every", 0),
        ("eval.episodes", 0),
        ("eval.final_episodes", 0),
        ("checkpoint.every", 0),
        ("checkpoint.keep", 0),
        ("log.every", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("env.repeat_action_probability", 1.0),
        ("env.repeat_action_probability", -0.1),
        ("env.repeat_action_probability", math.nan),
    ],
)
def test_numbers_out_of_range_are_refused_by_key(key: str, value: Any, atari: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{key}={value} is out of range"):
        config.validate(changed(atari, key, value))


@pytest.mark.parametrize("value", ["null", "many", "nan", "inf", "[1]", "-1"])
def test_a_budget_that_is_no_number_is_refused_as_itself_and_not_as_a_cadence(value: str, compose: Compose) -> None:
    with pytest.raises(UserError, match=r"^total_steps="):
        compose(f"total_steps={value}")


def test_validation_changes_nothing_in_what_it_is_given(atari: dict[str, Any]) -> None:
    given = changed(atari, "total_steps", 1e6)
    assert config.validate(given)["total_steps"] == 1_000_000
    assert type(given["total_steps"]) is float
    assert config.validate(atari) == atari


def test_a_missing_key_is_named(compose: Compose) -> None:
    with pytest.raises(UserError, match=r"algo\.gamma is missing"):
        compose("~algo.gamma")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("rlrun.algos.ppo.PPPO", "PPPO"),
        ("no_such_package.x.Y", "no_such_package"),
        ("rlrun.algos.nothing.X", "nothing"),
    ],
)
def test_a_target_that_does_not_exist_is_named(target: str, message: str, compose: Compose) -> None:
    with pytest.raises(UserError, match=message):
        compose(f"algo._target_={target}")


def test_fields_are_read_through_base_classes_and_without_importing(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "their_algorithm.py").write_text(
        "raise RuntimeError('imported')\n"
        "from rlrun.algos.ppo import PPO\n"
        "class Further(PPO):\n    tau: float\n    action_spaces: ClassVar[tuple] = ()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = fields_of("their_algorithm", "Further")
    assert "setup" not in found
    assert list(found)[-1] == "tau"
    assert ast.unparse(found["gamma"]) == "float"


# --- What a run is called, and what may change ----------------------------------------------------------


def test_learning_keys_name_the_run_and_cadences_do_not() -> None:
    assert all(is_learning_key(key) for key in ("algo.gamma", "total_steps", "env.id", "network.hidden", "seed"))
    assert not any(
        is_learning_key(key) for key in ("eval.every", "checkpoint.keep", "log.every", "name", "device.kind")
    )
    assert is_learning_key("device.precision")


def test_differences_name_each_key_with_both_values() -> None:
    old = {"a": 1, "b": {"c": 2, "d": [1]}, "gone": 0}
    new = {"a": 1, "b": {"c": 3, "d": [1]}, "new": {"x": None}}
    assert differences(old, new) == {"b.c": (2, 3), "gone": (0, "-"), "new.x": ("-", None)}
    assert differences(old, old) == {}


def named(compose: Compose, *overrides: str) -> str:
    choices = {"algo": "ppo", "env": "cartpole", "network": "mlp", "device": "auto", "protocol": "none"}
    choices["tuned"] = "ppo_cartpole"
    for override in overrides:
        key, _, value = override.partition("=")
        if key in choices:
            choices[key] = value
    return names_of(compose(*overrides), list(overrides), choices).variant


def test_a_run_is_named_after_what_differs_from_its_defaults(compose: Compose) -> None:
    assert named(compose) == "default"
    assert named(compose, "algo.learning_rate=1e-3") == "default"  # what the tuned file says anyway
    assert named(compose, "algo.num_epochs=3", "algo.gamma=0.5") == "gamma=0.5_num_epochs=3"
    assert named(compose, "eval.every=77", "log.console=false", "device.threads=2", "seed=3") == "default"
    assert named(compose, "algo.gamma=0.5", "name=mine") == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ALE/Pong-v5", "ALE-Pong-v5"), ("../../etc", "etc"), ("a b", "a-b"), ("", "default"), ("...", "default")],
)
def test_a_slug_is_one_harmless_folder_name(text: str, expected: str) -> None:
    assert slug(text) == expected


# --- Speed ----------------------------------------------------------------------------------------------


def test_showing_a_configuration_and_refusing_one_import_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from rlrun import cli\n"
        "from rlrun.errors import UserError\n"
        "assert cli.dispatch(['--help']) == 0\n"
        "assert cli.dispatch(['--cfg', 'job']) == 0\n"
        "try:\n    assert cli.dispatch(['+algo.lr=1']) == 2\n"
        "except UserError:\n    pass\n"
        "heavy = {'torch', 'numpy', 'gymnasium', 'ale_py', 'tensorboard', 'rich'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "learning_rate" in done.stderr
    assert list(tmp_path.iterdir()) == []
