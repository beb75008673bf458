from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import rlrun_here, the_run
from tabular_oracles import exact_values, greedy, policy_iteration, uniform

from rlrun.algos.td import TD
from rlrun.build import Agent
from rlrun.errors import UserError
from rlrun.logger import read_rows

MakeAgent = Callable[..., Agent]
AVERAGING = ("algo.learning_rate=1", "algo.learning_rate_power=0.8")


def predictor(make_agent: MakeAgent, *overrides: str, steps: int) -> TD:
    """Return the algorithm after so many steps."""
    algorithm = make_agent("algo=td", *overrides, f"total_steps={max(1, steps)}").algorithm
    assert isinstance(algorithm, TD)
    while algorithm.steps < steps:
        algorithm.step()
    return algorithm


@pytest.mark.parametrize(("env", "tolerance"), [("frozenlake", 0.03), ("three_state_mdp", 1.0)])
def test_the_random_policys_values_solve_its_bellman_equations(
    env: str, tolerance: float, make_agent: MakeAgent
) -> None:
    algorithm = predictor(make_agent, f"env={env}", "algo.gamma=0.9", *AVERAGING, steps=200_000)
    model = algorithm.setup.make_model()
    expected = exact_values(model, uniform(model), 0.9)
    np.testing.assert_allclose(algorithm.v, expected, atol=tolerance)
    assert np.ptp(expected) > 10 * tolerance


def test_a_scripted_policys_values_solve_its_bellman_equations(make_agent: MakeAgent) -> None:
    options = ("env=frozenlake", "env.max_episode_steps=1000", "algo.gamma=0.9")
    model = predictor(make_agent, *options, steps=0).setup.make_model()
    best = greedy(policy_iteration(model, 0.9))
    actions = best.argmax(axis=1).tolist()
    algorithm = predictor(make_agent, *options, *AVERAGING, f"algo.policy={actions}", steps=200_000)
    visited = np.array(algorithm.visits) > 500
    np.testing.assert_allclose(np.array(algorithm.v)[visited], exact_values(model, best, 0.9)[visited], atol=0.03)
    assert visited.sum() >= 9


def test_each_update_is_the_books(make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = ("algo.num_steps=1", "algo.learning_rate=0.25", "algo.gamma=0.9", "algo.initial_value=2")
    algorithm = predictor(make_agent, "env=frozenlake", "env.max_episode_steps=4", *numbers, steps=0)
    step, ends = algorithm.collector.step, set()
    notes: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        algorithm.collector, "step", lambda a: notes.append((algorithm.collector.state, step(a))) or notes[-1][1]
    )
    for _ in range(300):
        before = list(algorithm.v)
        algorithm.step()
        state, (next_state, reward, terminated, truncated) = notes[-1]
        target = reward if terminated else reward + 0.9 * before[next_state]
        before[state] += 0.25 * (target - before[state])
        assert algorithm.v == pytest.approx(before)
        ends.add((terminated, truncated))
    assert {(True, False), (False, True)} <= ends


def test_evaluation_plays_the_policy(make_agent: MakeAgent) -> None:
    scripted = predictor(make_agent, "env=three_state_mdp", "algo.policy=[2,0,1]", steps=0)
    states, first = torch.tensor([0, 1, 2, 0]), torch.ones(4, dtype=torch.bool)
    assert scripted.act(states, None, first)[0].tolist() == [2, 0, 1, 2]
    chance = predictor(make_agent, "env=three_state_mdp", steps=0)
    torch.manual_seed(0)
    drawn = chance.act(torch.ones(10_000, dtype=torch.int64), None, first)[0]
    assert torch.bincount(drawn, minlength=3).tolist() == pytest.approx([5_000, 0, 5_000], abs=250)


def test_a_restored_td_goes_on_bit_for_bit(make_agent: MakeAgent, through_disk: Callable[[Any], Any]) -> None:
    def go_on(algorithm: TD) -> list[Any]:
        return [[algorithm.step() for _ in range(5)], algorithm.v, algorithm.visits, algorithm.collector.pop_episodes()]

    undisturbed = predictor(make_agent, "env=frozenlake", "seed=0", steps=500)
    restored = predictor(make_agent, "env=frozenlake", "seed=1", steps=200)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert go_on(restored) == go_on(undisturbed)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("greedy", 'algo.policy=greedy is neither "random" nor a run folder; a list'),
        ("[0,1]", r"\[0, 1\] has 2 actions: expected one for each of the 3 states"),
        ("[0,1,1]", "state 1 has no action 1: expected one of 0, 2"),
        ("[0,0,7]", "state 2 has no action 7: expected one of 1"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(policy: str, message: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=message):
        make_agent("algo=td", "env=three_state_mdp", f"algo.policy={policy}")


def test_the_policy_of_a_stored_run_is_evaluated(tmp_path: Path, make_agent: MakeAgent) -> None:
    quick = ["log.console=false", "eval.final_episodes=2", "eval.every=400"]
    planned = rlrun_here(["algo=value_iteration", "env=frozenlake", *quick], tmp_path)
    assert planned.returncode == 0, planned.stderr
    source = the_run(tmp_path).relative_to(tmp_path)
    command = ["algo=td", "env=frozenlake", f"algo.policy={source}", *AVERAGING, "algo.gamma=1", "total_steps=40000"]
    done = rlrun_here([*command, *quick, "name=td", "eval.every=20000", "checkpoint.every=20000"], tmp_path)
    assert done.returncode == 0, done.stderr
    run = next((tmp_path / "outputs/frozenlake/td/td").iterdir())
    assert sorted(p.name for p in (run / "images").iterdir()) == ["values-20000.png", "values-40000.png"]
    # Over some nine hundred episodes of at most 100 steps the success is that of the planned policy.
    returns = [episode["return"] for episode in read_rows(run / "episodes.jsonl")]
    assert np.mean(returns) == pytest.approx(0.74, abs=0.05)
    with pytest.raises(UserError, match=r"was learned on env=frozenlake, with Discrete\(16\)"):
        make_agent("algo=td", "env=frozenlake8x8", f"algo.policy='{tmp_path / source}'")
