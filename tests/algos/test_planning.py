from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import rlrun_here, the_run
from tabular_oracles import exact_values, expected_return, greedy, policy_iteration, uniform

from rlrun.algos.planning import Planning
from rlrun.build import Agent
from rlrun.errors import UserError
from rlrun.logger import read_rows

MakeAgent = Callable[..., Agent]

# Géron's table after 50 sweeps.
PRINTED_Q = [
    [18.91891892, 17.02702702, 13.62162162],
    [0.0, -np.inf, -4.87971488],
    [-np.inf, 50.13365013, -np.inf],
]


def planner(make_agent: MakeAgent, *overrides: str, sweeps: int | None = None) -> Planning:
    """Return the algorithm after so many sweeps, or once it has converged."""
    algorithm = make_agent(*overrides).algorithm
    assert isinstance(algorithm, Planning)
    while algorithm.steps < sweeps if sweeps is not None else not algorithm.converged():
        algorithm.step()
    return algorithm


def test_q_iteration_reproduces_the_printed_table_of_the_three_state_mdp(make_agent: MakeAgent) -> None:
    algorithm = planner(make_agent, "algo=q_iteration", "env=three_state_mdp", sweeps=50)
    assert (algorithm.gamma, algorithm.setup.total_steps) == (0.9, 50)
    np.testing.assert_allclose(algorithm.q_values(), PRINTED_Q, rtol=0, atol=5e-9)
    assert algorithm.q_values().argmax(axis=1).tolist() == [0, 0, 1]


def test_with_gamma_95_the_three_state_mdps_policy_goes_through_the_fire(make_agent: MakeAgent) -> None:
    algorithm = planner(make_agent, "algo=q_iteration", "env=three_state_mdp", "algo.gamma=0.95", sweeps=50)
    assert algorithm.q_values().argmax(axis=1).tolist() == [0, 2, 1]


@pytest.mark.parametrize("algo", ["value_iteration", "q_iteration"])
@pytest.mark.parametrize("env", ["three_state_mdp", "frozenlake", "frozenlake8x8", "taxi", "cliffwalking"])
def test_the_values_are_those_of_policy_iteration_with_a_linear_solver(
    algo: str, env: str, make_agent: MakeAgent
) -> None:
    algorithm = planner(make_agent, f"algo={algo}", f"env={env}", "algo.gamma=0.9", "algo.theta=1e-12")
    optimum = policy_iteration(algorithm.model, 0.9)
    exists = algorithm.model.available
    np.testing.assert_allclose(algorithm.q_values()[exists], optimum[exists], atol=1e-9)
    assert (algorithm.q_values()[~exists] == -np.inf).all()


def test_the_greedy_policys_own_values_are_those_that_were_found(make_agent: MakeAgent) -> None:
    algorithm = planner(make_agent, "algo=value_iteration", "env=frozenlake8x8", "algo.gamma=0.99")
    values = exact_values(algorithm.model, greedy(algorithm.q_values()), 0.99)
    np.testing.assert_allclose(algorithm.values.numpy(), values, atol=1e-7)


@pytest.mark.parametrize(
    ("env", "gamma", "optimum"),
    [
        ("frozenlake", 0.99, 0.740),
        ("frozenlake", 0.95, 0.730),
        ("frozenlake8x8", 0.999, 0.886),
        ("frozenlake8x8", 0.99, 0.863),
        ("frozenlake8x8", 0.95, 0.739),
        ("taxi", 0.99, 7.93),
    ],
)
def test_the_policy_reaches_the_known_optimum(env: str, gamma: float, optimum: float, make_agent: MakeAgent) -> None:
    algorithm = planner(make_agent, "algo=value_iteration", f"env={env}", f"algo.gamma={gamma}")
    reached = expected_return(algorithm.model, greedy(algorithm.q_values()))
    assert reached == pytest.approx(optimum, abs=5e-4 if env != "taxi" else 5e-3)


@pytest.mark.parametrize(("env", "expected"), [("frozenlake", 0.014), ("taxi", -771)])
def test_chance_achieves_what_is_known_of_it(env: str, expected: float, make_agent: MakeAgent) -> None:
    model = planner(make_agent, "algo=value_iteration", f"env={env}", sweeps=0).model
    assert expected_return(model, uniform(model)) == pytest.approx(expected, rel=0.01)


def test_delta_shrinks_by_gamma_at_each_sweep(make_agent: MakeAgent) -> None:
    algorithm = planner(make_agent, "algo=q_iteration", "env=taxi", "algo.gamma=0.5", sweeps=1)
    for _ in range(20):
        before = algorithm.delta
        assert algorithm.step()["train/delta"] <= 0.5 * before + 1e-12


def test_it_acts_by_the_first_of_the_best_actions(make_agent: MakeAgent) -> None:
    algorithm = planner(make_agent, "algo=value_iteration", "env=three_state_mdp", "algo.gamma=0.95")
    states = torch.tensor([2, 0, 1, 0])
    assert algorithm.act(states, None, torch.ones(4, dtype=torch.bool))[0].tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("algo", ["value_iteration", "q_iteration"])
def test_a_restored_planner_goes_on_bit_for_bit(
    algo: str, make_agent: MakeAgent, through_disk: Callable[[Any], Any]
) -> None:
    undisturbed = planner(make_agent, f"algo={algo}", "env=frozenlake", sweeps=30)
    restored = planner(make_agent, f"algo={algo}", "env=frozenlake", sweeps=2)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert restored.steps == 30
    assert [undisturbed.step() for _ in range(5)] == [restored.step() for _ in range(5)]
    playing = planner(make_agent, f"algo={algo}", "env=frozenlake", sweeps=0)
    for stored in (undisturbed.policy_state_dict(), undisturbed.state_dict()):  # of the best, and of a checkpoint
        playing.load_policy_state_dict(through_disk(stored))
        assert playing.q_values().tolist() == restored.q_values().tolist()


def test_without_a_model_the_error_names_environments_that_have_one(make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=r"env=taxi brings none: frozenlake, .*; algo=q_learning learns without"):
        make_agent("algo=value_iteration", "env=taxi", "+env.kwargs.fickle_passenger=true")
    with pytest.raises(UserError, match=r"cannot learn in env=cartpole: its observation space is Box"):
        make_agent("algo=value_iteration", "env=cartpole")


@pytest.mark.parametrize("override", ["algo.gamma=1.5", "algo.theta=-1.0"])
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=override):
        make_agent("algo=q_iteration", "env=frozenlake", override)


def test_a_run_ends_when_its_values_settle_and_leaves_the_last_pictures(tmp_path: Path) -> None:
    command = ["algo=value_iteration", "env=frozenlake", "log.console=false", "eval.final_episodes=2"]
    done = rlrun_here(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ended early by algo.theta" in done.stderr
    run = the_run(tmp_path)
    sweeps = read_rows(run / "metrics.jsonl")[-1]["step"]
    assert sorted(p.name for p in (run / "images").iterdir()) == [f"policy-{571}.png", f"q_values-{571}.png"]
    assert sweeps <= 571
    again = rlrun_here(command, tmp_path)
    assert (again.returncode, "is finished" in again.stderr) == (0, True)
    extended = rlrun_here(["resume", str(run), "total_steps=20000"], tmp_path)
    assert (extended.returncode, "is finished" in extended.stderr) == (0, True)
