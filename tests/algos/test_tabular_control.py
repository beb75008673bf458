"""Q-learning, Sarsa and Expected Sarsa."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tabular_oracles import exact_q, expected_return, greedy, policy_iteration, uniform

from rlrun.algos.q_learning import QLearning
from rlrun.algos.tabular_control import TabularControl
from rlrun.build import Agent
from rlrun.envs.tabular import Model
from rlrun.errors import UserError

MakeAgent = Callable[..., Agent]
ALGOS = ("q_learning", "sarsa", "expected_sarsa")
RANDOM = ("algo.epsilon_start=1", "algo.epsilon_end=1")
AVERAGING = ("algo.learning_rate=1", "algo.learning_rate_decay=0", "algo.learning_rate_power=0.8")


def learner(make_agent: MakeAgent, *overrides: str, steps: int) -> TabularControl:
    """Return the algorithm after so many steps."""
    algorithm = make_agent(*overrides, f"total_steps={max(1, steps)}").algorithm
    assert isinstance(algorithm, TabularControl)
    while algorithm.steps < steps:
        algorithm.step()
    return algorithm


def model_of(algorithm: TabularControl) -> Model:
    return algorithm.setup.make_model()


# --- What they converge to ------------------------------------------------------------------------------


def test_q_learning_converges_to_value_iterations_table(make_agent: MakeAgent) -> None:
    # Nothing is left to chance, so a step size of 1 gives the table to the last digits.
    lake = ("env=frozenlake", "tuned=none", "+env.kwargs.is_slippery=false", "algo.gamma=0.9")
    algorithm = learner(make_agent, "algo=q_learning", *lake, *RANDOM, "algo.learning_rate=1", steps=40_000)
    planner: Any = make_agent("algo=value_iteration", *lake, "algo.theta=1e-14").algorithm
    while not planner.converged():
        planner.step()
    np.testing.assert_allclose(algorithm.q.array(), planner.q_values(), atol=1e-12)


def test_q_learning_averages_chance_out(make_agent: MakeAgent) -> None:
    algorithm = learner(make_agent, "algo=q_learning", "env=three_state_mdp", *RANDOM, *AVERAGING, steps=300_000)
    optimum = policy_iteration(model_of(algorithm), 0.9)
    exists = np.isfinite(optimum)
    np.testing.assert_allclose(algorithm.q.array()[exists], optimum[exists], atol=1.0)
    assert (algorithm.q.array()[~exists] == -np.inf).all()
    assert algorithm.q.array().argmax(axis=1).tolist() == [0, 0, 1]


@pytest.mark.parametrize("algo", ["sarsa", "expected_sarsa"])
def test_sarsa_learns_the_values_of_the_policy_that_it_follows(algo: str, make_agent: MakeAgent) -> None:
    gamma = "algo.gamma=0.9"
    algorithm = learner(make_agent, f"algo={algo}", "env=three_state_mdp", gamma, *RANDOM, *AVERAGING, steps=300_000)
    model = model_of(algorithm)
    expected = exact_q(model, uniform(model), 0.9)
    exists = np.isfinite(expected)
    np.testing.assert_allclose(algorithm.q.array()[exists], expected[exists], atol=0.6)
    assert np.abs(expected[exists] - policy_iteration(model, 0.9)[exists]).max() > 10  # not the best policy's


@pytest.mark.parametrize("algo", ALGOS)
def test_a_cut_episode_is_bootstrapped_through(algo: str, make_agent: MakeAgent) -> None:
    # Only s0 is ever left, and a0 is the best there: Q = 0.7 (10 + 0.9 Q) + 0.3 * 0.9 * 30; an end would give 7.
    options = ("env=three_state_mdp", "env.max_episode_steps=1", "algo.gamma=0.9", "algo.initial_value=30")
    averaging = ("algo.epsilon_start=0.1", "algo.epsilon_end=0", *AVERAGING)
    algorithm = learner(make_agent, f"algo={algo}", "tuned=none", *options, *averaging, steps=50_000)
    q = algorithm.q.array()
    assert q[1].tolist() == [30, -np.inf, 30]
    expected = (0.7 * 10 + 0.3 * 0.9 * 30) / (1 - 0.7 * 0.9)
    assert q[0, 0] == pytest.approx(expected, abs=0.5)


# --- Known optima ---------------------------------------------------------------------------------------


def optimality(algorithm: TabularControl) -> float:
    return expected_return(model_of(algorithm), greedy(algorithm.q.array()))


@pytest.mark.parametrize("seed", range(3))
def test_q_learning_crosses_the_small_lake_as_well_as_anyone_can(seed: int, make_agent: MakeAgent) -> None:
    algorithm = learner(make_agent, "algo=q_learning", "env=frozenlake", f"seed={seed}", steps=50_000)
    assert optimality(algorithm) >= 0.72


def test_q_learning_drives_the_taxi_as_well_as_anyone_can(make_agent: MakeAgent) -> None:
    algorithm = learner(make_agent, "algo=q_learning", "env=taxi", steps=200_000)
    assert optimality(algorithm) >= 7.9


@pytest.mark.learning
@pytest.mark.parametrize("algo", ALGOS)
def test_all_cross_the_large_lake(algo: str, make_agent: MakeAgent) -> None:
    algorithm = learner(make_agent, f"algo={algo}", "env=frozenlake8x8", steps=1_000_000)
    assert optimality(algorithm) >= (0.85 if algo == "q_learning" else 0.83)


@pytest.mark.parametrize("algo", ["sarsa", "expected_sarsa"])
def test_the_on_policy_ones_cross_the_small_lake_once_they_stop_trying(algo: str, make_agent: MakeAgent) -> None:
    algorithm = learner(make_agent, f"algo={algo}", "env=frozenlake", steps=100_000)
    assert optimality(algorithm) >= 0.72


def test_sarsa_walks_where_q_learning_falls(make_agent: MakeAgent) -> None:
    def walked(algo: str) -> tuple[float, int, int]:
        """Return the mean return of the last 300 episodes, and length and lowest row of the greedy walk."""
        algorithm = learner(make_agent, f"algo={algo}", "env=cliffwalking", steps=20_000)
        table, q, state, states = model_of(algorithm).outcomes, algorithm.q.array(), 36, []
        while state != 47:
            state = table[state][int(q[state].argmax())][0][1]
            states.append(state)
            assert len(states) < 100
        returns = [episode["return"] for episode in algorithm.collector.pop_episodes()]
        return float(np.mean(returns[-300:])), len(states), max(s // 12 for s in states if 0 < s % 12 < 11)

    online, length, row = walked("q_learning")
    assert (length, row) == (13, 2)  # along the edge
    for algo in ("sarsa", "expected_sarsa"):
        safe_online, safe_length, safe_row = walked(algo)
        assert safe_length > 13
        assert safe_row < 2
        assert safe_online > online + 15


# --- One step at a time ---------------------------------------------------------------------------------


def watched(algorithm: TabularControl, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return the list that the algorithm's steps go to: (state, action, outcome, Q before the update)."""
    steps: list[tuple[Any, ...]] = []
    step = algorithm.collector.step

    def noted(action: int) -> Any:
        state, before = algorithm.collector.state, algorithm.q.array()
        outcome = step(action)
        steps.append((state, action, outcome, before))
        return outcome

    monkeypatch.setattr(algorithm.collector, "step", noted)
    return steps


SMALL = ("env=frozenlake", "tuned=none", "env.max_episode_steps=7", "algo.num_steps=1", "algo.gamma=0.9")
NUMBERS = ("algo.epsilon_start=0.3", "algo.epsilon_end=0.3", "algo.learning_rate=0.25", "algo.initial_value=1")


@pytest.mark.parametrize("algo", ALGOS)
def test_each_update_is_the_books(algo: str, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = learner(make_agent, f"algo={algo}", *SMALL, *NUMBERS, steps=0)
    steps = watched(algorithm, monkeypatch)
    before_next: list[Any] = []
    for _ in range(400):
        algorithm.step()
        before_next.append((algorithm.q.array(), getattr(algorithm, "action", None)))
    ends = set()
    for (state, action, (next_state, reward, terminated, truncated), q), (after, _) in zip(
        steps, before_next, strict=True
    ):
        future = {
            "q_learning": [q[next_state].max()],
            "expected_sarsa": [0.7 * q[next_state].max() + 0.3 * q[next_state].mean()],
            "sarsa": q[next_state].tolist(),  # whichever action it chose
        }[algo]
        targets = [reward if terminated else reward + 0.9 * value for value in future]
        expected = [q[state, action] + 0.25 * (target - q[state, action]) for target in targets]
        assert np.isclose(after[state, action], expected, atol=1e-12).any()
        untouched = np.ones_like(q, bool)
        untouched[state, action] = False
        assert (after[untouched] == q[untouched]).all()
        ends.add((terminated, truncated))
    assert {(True, False), (False, True)} <= ends


def test_sarsa_takes_the_action_whose_value_it_learned_from(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = learner(make_agent, "algo=sarsa", *SMALL, *NUMBERS, steps=0)
    steps = watched(algorithm, monkeypatch)
    tables = []
    for _ in range(300):
        algorithm.step()
        tables.append(algorithm.q.array())
    for (state, action, outcome, q), after, (_, next_action, _, _) in zip(steps, tables, steps[1:], strict=False):
        next_state, reward, terminated, truncated = outcome
        if not terminated and not truncated:
            target = reward + 0.9 * q[next_state, next_action]
            assert after[state, action] == pytest.approx(q[state, action] + 0.25 * (target - q[state, action]))


# --- Exploration and step sizes -------------------------------------------------------------------------


def test_epsilon_is_the_share_of_random_actions_and_ties_are_broken_at_random(make_agent: MakeAgent) -> None:
    algorithm = learner(make_agent, "algo=q_learning", "env=frozenlake", steps=0)
    clear = [algorithm.epsilon_greedy(0, [0.0, 3.0, 1.0, 2.0], 0.2) for _ in range(20_000)]
    assert np.bincount(clear) / 20_000 == pytest.approx([0.05, 0.85, 0.05, 0.05], abs=0.012)
    tied = [algorithm.epsilon_greedy(0, [1.0, 3.0, 3.0, 2.0], 0.0) for _ in range(20_000)]
    assert np.bincount(tied, minlength=4) / 20_000 == pytest.approx([0, 0.5, 0.5, 0], abs=0.02)


def test_actions_that_a_state_does_not_have_are_never_chosen(make_agent: MakeAgent) -> None:
    algorithm = learner(make_agent, "algo=q_learning", "env=three_state_mdp", steps=0)
    for epsilon in (0.0, 0.5, 1.0):
        chosen = {algorithm.epsilon_greedy(1, algorithm.q.rows[1], epsilon) for _ in range(200)}
        assert chosen == {0, 2}


def test_epsilon_falls_on_a_straight_line_over_its_part_of_the_run(make_agent: MakeAgent) -> None:
    numbers = ("algo.epsilon_start=1", "algo.epsilon_end=0.2", "algo.epsilon_steps=50", "algo.num_steps=10")
    algorithm = learner(make_agent, "algo=q_learning", "env=frozenlake", *numbers, steps=0)
    rates = [algorithm.step()["rollout/exploration_rate"] for _ in range(10)]
    assert rates == pytest.approx([1.0, 0.84, 0.68, 0.52, 0.36, 0.2, 0.2, 0.2, 0.2, 0.2])


def test_the_step_size_falls_with_the_visits_of_its_entry_and_with_the_steps(make_agent: MakeAgent) -> None:
    numbers = ("algo.learning_rate=0.8", "algo.learning_rate_power=0.5", "algo.learning_rate_decay=0.1")
    low = "algo.learning_rate_min=0.3"
    algorithm = learner(make_agent, "algo=q_learning", "env=frozenlake", *numbers, low, steps=0)
    assert [algorithm.step_size(2, 1) for _ in range(4)] == pytest.approx([0.8, 0.8 / 2**0.5, 0.8 / 3**0.5, 0.4])
    assert algorithm.step_size(2, 0) == pytest.approx(0.8)
    algorithm.collector.steps = 10
    assert algorithm.step_size(2, 2) == pytest.approx(0.4)
    assert algorithm.step_size(2, 0) == 0.3  # 0.8 / (sqrt 2 * 2) is below the minimum
    assert algorithm.visits.array()[2].tolist() == [2, 4, 1, 0]


def test_the_bonus_makes_what_was_seldom_tried_look_better(make_agent: MakeAgent) -> None:
    algorithm = learner(make_agent, "algo=q_learning", "env=frozenlake", "algo.exploration_bonus=6", steps=0)
    assert isinstance(algorithm, QLearning)
    algorithm.q.rows[3][:] = [1.0, 2.0, 3.0, 4.0]
    algorithm.visits.rows[3][:] = [0.0, 1.0, 2.0, 5.0]
    assert algorithm.with_bonus(3) == [7.0, 5.0, 5.0, 5.0]


@pytest.mark.parametrize("in_target", [True, False])
def test_the_bonus_is_in_the_target_where_it_is_asked_for(
    in_target: bool, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    bonus = ("algo.exploration_bonus=2", f"algo.bonus_in_target={in_target}".lower())
    algorithm = learner(make_agent, "algo=q_learning", *SMALL, *NUMBERS, *bonus, steps=0)
    steps = watched(algorithm, monkeypatch)
    for _ in range(200):
        visits = algorithm.visits.array()
        algorithm.step()
        state, action, (next_state, reward, terminated, _), q = steps[-1]
        future = (q[next_state] + in_target * 2 / (1 + visits[next_state])).max()
        target = reward if terminated else reward + 0.9 * future
        expected = q[state, action] + 0.25 * (target - q[state, action])
        assert algorithm.q.array()[state, action] == pytest.approx(expected)


def test_with_a_bonus_a_greedy_agent_tries_everything(make_agent: MakeAgent) -> None:
    dry = (
        "env=frozenlake8x8",
        "tuned=none",
        "+env.kwargs.is_slippery=false",
        "algo.epsilon_start=0",
        "algo.epsilon_end=0",
    )

    def share_tried(*overrides: str) -> float:
        algorithm = learner(make_agent, "algo=q_learning", *dry, *overrides, steps=50_000)
        visits = algorithm.visits.array()
        (lake,) = algorithm.collector.maps
        open_states = [
            s
            for states, cells in zip(lake.states, lake.cells, strict=True)
            for s, kind in zip(states, cells, strict=True)
            if kind not in "HG"
        ]
        return float((visits[open_states] > 0).mean())

    assert share_tried("algo.exploration_bonus=3") == 1.0
    assert share_tried() < 0.95


# --- State, spaces, ranges ------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("env", [("env=taxi",), ("env=taxi", "+env.kwargs.fickle_passenger=true")])
def test_a_restored_learner_goes_on_bit_for_bit(
    algo: str, env: tuple[str, ...], make_agent: MakeAgent, through_disk: Callable[[Any], Any]
) -> None:
    def make(seed: int) -> TabularControl:
        return learner(make_agent, f"algo={algo}", *env, f"seed={seed}", "algo.epsilon_start=0.5", steps=300)

    def go_on(algorithm: TabularControl) -> list[Any]:
        metrics = [algorithm.step() for _ in range(5)]
        return [metrics, algorithm.q.rows, algorithm.visits.rows, algorithm.collector.pop_episodes()]

    undisturbed, restored = make(0), make(1)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert go_on(restored) == go_on(undisturbed)
    playing = make(2)
    for stored in (undisturbed.policy_state_dict(), undisturbed.state_dict()):  # of the best, and of a checkpoint
        playing.load_policy_state_dict(through_disk(stored))
        assert playing.q.rows == undisturbed.q.rows


def test_it_acts_by_the_first_of_the_best_actions(make_agent: MakeAgent) -> None:
    algorithm = learner(make_agent, "algo=q_learning", "env=three_state_mdp", steps=0)
    algorithm.q.rows[0][:] = [1.0, 5.0, 5.0]
    states = torch.tensor([0, 1, 2, 0])
    assert algorithm.act(states, None, torch.ones(4, dtype=torch.bool))[0].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("algo", ALGOS)
def test_what_is_not_a_number_of_a_state_is_refused(algo: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=r"cannot learn in env=cartpole: its observation space is Box.* takes Discrete"):
        make_agent(f"algo={algo}", "env=cartpole")


@pytest.mark.parametrize("key", ["clip_reward", "normalize_reward"])
def test_rewards_for_networks_are_refused(key: str, make_agent: MakeAgent) -> None:
    for algo in ("q_learning", "value_iteration"):
        with pytest.raises(UserError, match=rf"env\.{key}=true is for networks"):
            make_agent(f"algo={algo}", "env=frozenlake", f"env.{key}=true")


@pytest.mark.parametrize(
    "override",
    [
        "gamma=1.5",
        "learning_rate=1.5",
        "learning_rate_power=-1.0",
        "epsilon_start=2.0",
        "num_steps=0",
        "epsilon_steps=0",
    ],
)
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=rf"algo\.{override}"):
        make_agent("algo=q_learning", "env=frozenlake", f"algo.{override}")
    with pytest.raises(UserError, match="exploration_bonus=-1"):
        make_agent("algo=q_learning", "env=frozenlake", "algo.exploration_bonus=-1")
