"""The search space: read, changed, checked, and handed to Optuna."""

from collections.abc import Callable
from typing import Any

import pytest

from rlrun.config import flatten
from rlrun.errors import UserError
from rlrun.tuning.budget import most_steps, planned_steps, within_budget
from rlrun.tuning.space import changed, checked, distribution, limited, located, override, stored_space, without

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def config(compose: Compose) -> dict[str, Any]:
    return compose("algo=ppo", "env=cartpole")


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
@pytest.mark.parametrize("env", ["cartpole", "pendulum", "breakout"])
def test_the_space_beside_an_algorithm_fits_it_everywhere(algo: str, env: str, compose: Compose) -> None:
    config = compose(f"algo={algo}", f"env={env}")
    space = checked(stored_space(algo), config)
    assert len(space) >= 8
    for key, domain in space.items():
        assert key in dict(flatten(config))
        distribution(domain)


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_the_spaces_hold_the_present_numbers_of_cartpole(algo: str, compose: Compose) -> None:
    config = compose(f"algo={algo}", "env=cartpole")
    known = dict(flatten(config))
    space = checked(stored_space(algo), config)
    assert [key for key, domain in space.items() if not located(domain, known[key], known)] == []


def test_numbers_are_read_as_numbers_wherever_they_stand(config: dict[str, Any]) -> None:
    space = changed({}, ["space.algo.learning_rate={low: 1e-5, high: 1e-2, log: true}", "space.algo.gamma=[9e-1, 1]"])
    assert checked(space, config) == {
        "algo.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
        "algo.gamma": [0.9, 1.0],
    }


def test_one_end_of_a_range_can_be_moved_and_a_key_be_taken_out() -> None:
    space = {"algo.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "algo.gamma": [0.9, 0.99]}
    found = changed(space, ["space.algo.learning_rate.high=1e-3", "space.algo.gamma=null"])
    assert found == {"algo.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}


def test_fixed_keys_and_sections_leave_the_space() -> None:
    space = {"algo.gamma": [0.9, 0.99], "algo.gae_lambda": [0.9, 1.0], "network.hidden": [[64], [32]]}
    assert list(without(space, ["algo.gamma", "network"])) == ["algo.gae_lambda"]
    assert list(limited(space, "algo.gamma,network.hidden")) == ["algo.gamma", "network.hidden"]


def test_whole_numbers_stay_whole_and_lists_become_text(config: dict[str, Any]) -> None:
    space = checked({"algo.num_epochs": {"low": 1, "high": 9, "step": 2}, "network.hidden": [[64, 64], [32]]}, config)
    epochs = distribution(space["algo.num_epochs"])
    assert type(epochs).__name__ == "IntDistribution"
    assert epochs.step == 2  # type: ignore[attr-defined]
    assert distribution(space["network.hidden"]).choices == ("[64, 64]", "[32]")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("algo.clip_value", True, "algo.clip_value=true"),
        ("algo.target_kl", None, "algo.target_kl=null"),
        ("algo.learning_rate", 1e-5, "algo.learning_rate=1e-05"),
        ("algo.learning_rate_end", "${algo.learning_rate}", "algo.learning_rate_end=${algo.learning_rate}"),
        ("network.hidden", "[64, 64]", "network.hidden=[64, 64]"),
    ],
)
def test_parameters_are_written_as_hydra_reads_them(key: str, value: Any, expected: str, compose: Compose) -> None:
    text = override(key, value)
    assert text == expected
    assert key in dict(flatten(compose("algo=ppo", "env=cartpole", text)))


def test_an_end_that_follows_its_start_gets_its_value(compose: Compose) -> None:
    config = compose("algo.learning_rate=0.003", override("algo.learning_rate_end", "${algo.learning_rate}"))
    assert config["algo"]["learning_rate_end"] == 0.003


@pytest.mark.parametrize(
    ("domain", "value", "expected"),
    [
        ([0.0, "${algo.learning_rate}"], 0.001, ("${algo.learning_rate}",)),
        ([0.0, "${algo.learning_rate}"], 0.0, (0.0,)),
        ([0.0, "${algo.learning_rate}"], 0.002, ()),
        ([[64], [32, 32]], [32, 32], ("[32, 32]",)),
        ({"low": 0.8, "high": 1.0}, 0.8, (0.8,)),
        ({"low": 0.8, "high": 1.0}, 0.79, ()),
        ({"low": 0.8, "high": 1.0, "step": 0.1}, 0.9, (0.9,)),
        ({"low": 0.8, "high": 1.0, "step": 0.1}, 0.95, ()),
        ({"low": 0.8, "high": 1.0}, None, ()),
    ],
)
def test_a_present_value_is_found_in_its_domain_or_not(domain: Any, value: Any, expected: tuple[Any, ...]) -> None:
    assert located(domain, value, {"algo.learning_rate": 0.001}) == expected


BAD = {
    "unknown key": ("space.algo.gama=[0.9,0.99]", ["algo.gama", "algo.gamma"]),
    "wrong type": ("space.algo.gamma=[0.9,high]", ["algo.gamma=high", "float"]),
    "wrong type in a range": ("space.algo.num_epochs={low: 1.5, high: 4}", ["algo.num_epochs=1.5", "int"]),
    "not a choice": ("space.network.activation=[tanh,sigmoyd]", ["sigmoyd", "tanh"]),
    "ends exchanged": ("space.algo.gamma={low: 1, high: 0.5}", ["low must be less than high"]),
    "a single value": ("space.algo.gamma={low: 1, high: 1}", ["algo.gamma=1.0"]),
    "one choice": ("space.algo.gamma=[0.9]", ["algo.gamma=VALUE"]),
    "a choice twice": ("space.algo.gamma=[0.9,9e-1]", ["twice"]),
    "log of zero": ("space.algo.entropy_coef={low: 0, high: 1, log: true}", ["above 0"]),
    "log and step": ("space.algo.gae_lambda={low: 0.5, high: 1, log: true, step: 0.1}", ["without log"]),
    "a step that misses high": ("space.algo.num_epochs={low: 1, high: 4, step: 2}", ["from low to high"]),
    "no high": ("space.algo.gamma={low: 0.9}", ["no high"]),
    "key of a range": ("space.algo.gamma={low: 0.9, hihg: 1}", ["hihg", "high"]),
    "choices as a key": ("space.algo.gamma={choices: [0.9, 1]}", ["[a, b]"]),
    "no domain": ("space.algo.gamma=0.9", ["no domain", "[0.9, 0.99]"]),
    "not a number": ("space.network.activation={low: 0, high: 1}", ["network.activation"]),
    "the budget": ("space.total_steps=[1000,2000]", ["total_steps", "cannot be searched"]),
    "the seed": ("space.seed=[1,2]", ["seed", "cannot be searched"]),
    "a cadence": ("space.eval.every=[1,2]", ["eval.every", "cannot be searched"]),
    "a reference to nothing": ('space.algo.clip_range_end=[0,"${algo.clip_rang}"]', ["algo.clip_rang", "clip_range"]),
    "no YAML": ("space.algo.gamma=[0.9", ["space.algo.gamma=[0.9", "cannot be read"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_domain_that_makes_no_sense_is_refused_with_a_remedy(case: str, config: dict[str, Any]) -> None:
    argument, fragments = BAD[case]
    with pytest.raises(UserError) as caught:
        checked(changed({}, [argument]), config)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_an_end_of_what_is_no_range_and_an_unknown_key_are_refused() -> None:
    with pytest.raises(UserError, match="not searched in a range"):
        changed({"algo.gamma": [0.9, 0.99]}, ["space.algo.gamma.high=1"])
    with pytest.raises(UserError, match=r"Did you mean algo\.gamma"):
        changed({"algo.gamma": [0.9, 0.99]}, ["space.algo.gama=null"])
    with pytest.raises(UserError, match=r"Did you mean algo\.gamma"):
        limited({"algo.gamma": [0.9, 0.99]}, "algo.gama")


def test_rollouts_that_would_train_for_much_longer_are_left_out(compose: Compose) -> None:
    config = compose("total_steps=20_000", "algo.num_envs=8", "algo.num_steps=128")
    assert planned_steps(config) == 20 * 1024
    assert most_steps(config) == 21_000
    space, notices = within_budget({"algo.num_steps": [32, 128, 256, 1024, 2048]}, config)
    assert space == {"algo.num_steps": [32, 128, 256]}  # 24,576 and 32,768 steps otherwise
    assert "1024, 2048" in notices[0]
    with pytest.raises(UserError, match=r"algo\.num_steps=128"):
        within_budget({"algo.num_steps": [1024, 2048]}, config)


def test_a_trial_may_take_as_many_steps_as_the_present_configuration(compose: Compose) -> None:
    config = compose("total_steps=20_000", "algo.num_envs=8", "algo.num_steps=2048")
    assert most_steps(config) == 32_768
