"""The oracle is the three-state MDP cut after three steps: all of its trajectories can be written down."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from rlrun.algos.reinforce import Reinforce, time_in_episode
from rlrun.build import Agent
from rlrun.data.collector import Batch
from rlrun.envs.three_state_mdp import DYNAMICS
from rlrun.errors import UserError
from rlrun.networks.optimizers import Adam

MakeAgent = Callable[..., Agent]
HORIZON = 3
STAY = {(s, a): [(1.0, s, 0.0, False)] for s in range(3) for a in range(3)}  # what an action that is not there does
SMALL = ("tuned=none", "algo=reinforce", "algo.episodes_per_update=2", "network.hidden=[16]")
TABLE = ("network.hidden=[]", f"env.max_episode_steps={HORIZON}", "algo.learning_rate=0", "algo.learning_rate_end=0")


def make_reinforce(make_agent: MakeAgent, *overrides: str, env: str = "cartpole") -> Reinforce:
    algorithm = make_agent(*SMALL, f"env={env}", *overrides).algorithm
    assert isinstance(algorithm, Reinforce)
    return algorithm


def make_table(make_agent: MakeAgent, *overrides: str) -> Reinforce:
    """Return REINFORCE on the three-state MDP with a softmax policy whose logits are a (random) table."""
    reinforce = make_reinforce(make_agent, *TABLE, *overrides, env="three_state_mdp")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in reinforce.policy_net.parameters():
            parameter.normal_(std=0.8, generator=generator)
    return reinforce


def gradient_of_a_step(reinforce: Reinforce, batch: Batch | None = None) -> Tensor:
    """Return the gradient that `step` hands to the policy's optimizer, for a given batch or what it collects."""
    grads: list[Tensor] = []

    def keep(*_: Any) -> None:
        grads.append(torch.cat([p.grad.flatten() for p in reinforce.policy_net.parameters() if p.grad is not None]))

    handle = reinforce.optimizer.register_step_pre_hook(keep)
    if batch is not None:
        reinforce.collector.collect_episodes = lambda policy, count: batch  # type: ignore[method-assign]
    reinforce.step()
    handle.remove()
    assert len(grads) == 1
    return grads[0].clone()


@dataclass
class Trajectory:
    states: list[int]  # HORIZON of them, and the one after
    actions: list[int]
    rewards: list[float]
    chance: float  # of the outcomes, given the actions


def trajectories(state: int = 0, length: int = HORIZON) -> Iterator[Trajectory]:
    if length == 0:
        yield Trajectory([state], [], [], 1.0)
        return
    for action in range(3):
        for p, after, reward, _ in DYNAMICS[state].get(action, STAY[state, action]):
            for rest in trajectories(after, length - 1):
                yield Trajectory(
                    [state, *rest.states], [action, *rest.actions], [reward, *rest.rewards], p * rest.chance
                )


def as_batch(trajectory: Trajectory, *, terminated: bool = False, wage: float = 0.0) -> Batch:
    """Return the trajectory as the collector would, cut short at its end, or terminated there.

    wage: a reward more for each step.
    """
    length = len(trajectory.actions)
    last = torch.arange(length)[:, None] == length - 1
    obs = torch.tensor(trajectory.states)
    return {
        "obs": obs[:-1, None],
        "action": torch.tensor(trajectory.actions)[:, None],
        "reward": torch.tensor(trajectory.rewards)[:, None] + wage,
        "first": torch.arange(length)[:, None] == 0,
        "terminated": last & terminated,
        "truncated": last & (not terminated),
        "over": last,
        "next_obs": torch.zeros(1, dtype=torch.int64),
        "final_obs": obs[:0] if terminated else obs[-1:],
        "final_index": torch.tensor([] if terminated else [length - 1], dtype=torch.int64),
    }


def probability(trajectory: Trajectory, pi: Tensor) -> Tensor:
    """pi: [3, 3], a row for each state -> the probability of the trajectory, differentiable."""
    return trajectory.chance * pi[trajectory.states[:-1], trajectory.actions].prod()


def exact_gradient(reinforce: Reinforce, gamma: float, worth: Tensor) -> Tensor:
    """Return the gradient of -J by dynamic programming; worth: [3], of the state after the last step."""
    pi = reinforce.policy_net(torch.arange(3)).log_probs.exp()
    value = worth
    for _ in range(HORIZON):
        q = [
            [sum(p * (r + gamma * value[n]) for p, n, r, _ in DYNAMICS[s].get(a, STAY[s, a])) for a in range(3)]
            for s in range(3)
        ]
        value = torch.stack([sum(pi[s, a] * q[s][a] for a in range(3)) for s in range(3)])
    grads = torch.autograd.grad(-value[0], list(reinforce.policy_net.parameters()))
    return torch.cat([g.flatten() for g in grads])


def moments(reinforce: Reinforce, **options: Any) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a one-episode gradient, by going through all trajectories."""
    pi = reinforce.policy_net(torch.arange(3)).log_probs.exp().detach()
    mean = square = torch.zeros(())
    for trajectory in trajectories():
        p, gradient = probability(trajectory, pi), gradient_of_a_step(reinforce, as_batch(trajectory, **options))
        mean, square = mean + p * gradient, square + p * gradient.square()
    return mean, square - mean.square()


def test_the_trajectories_are_all_there_are(make_agent: MakeAgent) -> None:
    pi = make_table(make_agent).policy_net(torch.arange(3)).log_probs.exp()
    assert float(sum(probability(t, pi) for t in trajectories()).detach()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("gamma", "discount"), [(1.0, "false"), (0.8, "true")])
@pytest.mark.parametrize("baseline", ["none", "value"])
def test_the_expected_gradient_is_exactly_the_policy_gradient(
    baseline: str, gamma: float, discount: str, make_agent: MakeAgent
) -> None:
    numbers = (f"algo.gamma={gamma}", f"algo.discount_updates={discount}", "algo.value_learning_rate=0")
    one = ("algo.episodes_per_update=1", "algo.value_epochs=1", f"algo.baseline={baseline}")
    reinforce = make_table(make_agent, *numbers, *one)
    worth = torch.zeros(3)
    if baseline == "value":  # of any critic: what it says of the last state is believed, all else cancels out
        worth = torch.tensor([3.0, -20.0, 11.0])
        set_value(reinforce, worth)
    mean, _ = moments(reinforce)
    exact = exact_gradient(reinforce, gamma, worth)
    assert float(exact.norm()) > 1
    torch.testing.assert_close(mean, exact, atol=1e-3, rtol=1e-4)


def set_value(reinforce: Reinforce, value: Tensor) -> None:
    """Make the linear critic say so: value: [3]."""
    with torch.no_grad():
        reinforce.value_net[1].weight.copy_(value)
        reinforce.value_net[1].bias.zero_()


def test_without_the_power_of_gamma_later_steps_count_in_full(make_agent: MakeAgent) -> None:
    reinforce = make_table(make_agent, "algo.gamma=0.8", "algo.episodes_per_update=1", "algo.baseline=none")
    pi = reinforce.policy_net(torch.arange(3)).log_probs.exp()
    objective = torch.zeros(())
    for t in trajectories():
        to_go = [sum(0.8 ** (k - i) * t.rewards[k] for k in range(i, HORIZON)) for i in range(HORIZON)]
        log_probs = pi[t.states[:-1], t.actions].log()
        objective = objective - probability(t, pi).detach() * (log_probs * torch.tensor(to_go)).sum()
    expected = torch.autograd.grad(objective, list(reinforce.policy_net.parameters()))
    mean, _ = moments(reinforce)
    torch.testing.assert_close(mean, torch.cat([g.flatten() for g in expected]), atol=1e-3, rtol=1e-4)
    assert not torch.allclose(mean, exact_gradient(reinforce, 0.8, torch.zeros(3)), rtol=0.02)


def test_sampled_gradients_scatter_around_the_exact_one(make_agent: MakeAgent) -> None:
    reinforce = make_table(make_agent, "algo.gamma=1.0", "algo.baseline=none", "algo.episodes_per_update=20")
    samples = torch.stack([gradient_of_a_step(reinforce) for _ in range(100)])
    exact = exact_gradient(reinforce, 1.0, torch.zeros(3))
    error = samples.std(0) / len(samples) ** 0.5
    assert bool((error < 0.2 * exact.abs().max()).all())
    assert bool(((samples.mean(0) - exact).abs() < 4 * error).all())


def test_a_value_baseline_keeps_the_mean_and_lowers_the_variance(make_agent: MakeAgent) -> None:
    numbers = ("algo.gamma=1.0", "algo.episodes_per_update=1", "algo.value_learning_rate=0", "algo.value_epochs=1")
    plain = make_table(make_agent, *numbers, "algo.baseline=none")
    with_value = make_table(make_agent, *numbers, "algo.baseline=value")
    set_value(with_value, mean_return_from(plain, wage=20.0))
    mean, variance = moments(plain, terminated=True, wage=20.0)
    same_mean, lower_variance = moments(with_value, terminated=True, wage=20.0)
    torch.testing.assert_close(same_mean, mean, atol=1e-3, rtol=1e-3)
    assert float(lower_variance.sum()) < 0.5 * float(variance.sum())


def mean_return_from(reinforce: Reinforce, wage: float) -> Tensor:
    """Return the mean of what is still won after a visit to each state, [3]."""
    pi = reinforce.policy_net(torch.arange(3)).log_probs.exp().detach()
    total, visits = torch.zeros(3), torch.zeros(3)
    for t in trajectories():
        for i in range(HORIZON):
            total[t.states[i]] += probability(t, pi) * sum(r + wage for r in t.rewards[i:])
            visits[t.states[i]] += probability(t, pi)
    return total / visits


def join(first: Batch, second: Batch) -> Batch:
    """Return two batches of terminated episodes as one."""
    batch = {name: torch.cat([first[name], second[name]]) for name in first}
    return {**batch, "next_obs": second["next_obs"]}


def test_a_long_episode_counts_as_one_like_a_short_one(make_agent: MakeAgent) -> None:
    options = ("algo.baseline=none", "algo.entropy_coef=2.0", "algo.entropy_coef_end=2.0", "algo.gamma=0.9")
    one = make_table(make_agent, *options, "algo.episodes_per_update=1")
    two = make_table(make_agent, *options, "algo.episodes_per_update=2")
    short = as_batch(Trajectory([0, 1], [0], [10.0], 1.0), terminated=True)
    long = as_batch(Trajectory([0, 1, 2, 2, 0, 0], [0, 2, 1, 1, 0], [0.0, -50, 0, 40, 10], 1.0), terminated=True)
    separate = (gradient_of_a_step(one, short) + gradient_of_a_step(one, long)) / 2
    torch.testing.assert_close(gradient_of_a_step(two, join(short, long)), separate, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("baseline", ["none", "standardize", "value"])
def test_returns_stop_at_termination_and_go_on_through_a_time_limit_only_with_a_value(
    baseline: str, make_agent: MakeAgent
) -> None:
    reinforce = make_reinforce(make_agent, f"algo.baseline={baseline}", "algo.gamma=0.9")
    generator = torch.Generator().manual_seed(0)
    length = 40
    reward, dice = torch.randn(length, 1, generator=generator), torch.rand(length, 1, generator=generator)
    terminated, truncated = dice < 0.15, dice > 0.85
    truncated[-1], terminated[-1] = True, False
    final_index = truncated.flatten().nonzero().flatten()
    final_obs = torch.randn(len(final_index), 4, generator=generator)
    batch = {"reward": reward, "terminated": terminated, "truncated": truncated, "final_index": final_index}
    actual = reinforce.returns({**batch, "final_obs": final_obs})

    worth = reinforce.value(final_obs).tolist() if baseline == "value" else [0.0] * len(final_obs)
    expected, following = [0.0] * length, 0.0
    for t in reversed(range(length)):
        if terminated[t]:
            following = 0.0
        elif truncated[t]:
            following = worth.pop()
        following = expected[t] = float(reward[t]) + 0.9 * following
    assert int(terminated.sum()) > 2
    assert len(final_index) > 2
    torch.testing.assert_close(actual, torch.tensor(expected))


def test_standardised_returns_have_mean_zero_and_deviation_one(make_agent: MakeAgent) -> None:
    reinforce = make_reinforce(make_agent, "algo.baseline=standardize")
    returns = torch.randn(50) * 7 + 100
    advantage = reinforce.advantages(torch.zeros(50, 4), returns)
    torch.testing.assert_close(advantage, (returns - returns.mean()) / returns.std(correction=0))
    assert float(advantage.mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantage.square().mean()) == pytest.approx(1, abs=1e-5)
    # Where all returns are alike there is nothing to learn, and no division by zero.
    assert reinforce.advantages(torch.zeros(1, 4), torch.tensor([3.0])).tolist() == [0.0]


def test_time_counts_from_each_episodes_start() -> None:
    first = torch.tensor([True, False, False, True, True, False])
    assert time_in_episode(first).tolist() == [0, 1, 2, 0, 0, 1]


def test_an_update_is_made_of_whole_episodes_under_one_policy(make_agent: MakeAgent) -> None:
    reinforce = make_reinforce(make_agent, "algo.episodes_per_update=3", "algo.learning_rate=0.05")
    for update in (1, 2, 3, 4):
        before = [p.detach().clone() for p in reinforce.policy_net.parameters()]
        steps = reinforce.steps
        assert reinforce.step()["train/n_updates"] == update
        batch = reinforce.batch
        assert int(batch["over"].sum()) == 3
        assert bool(batch["first"][0])
        assert bool(batch["over"][-1])
        starts = [*batch["first"].flatten().nonzero().flatten().tolist(), len(batch["over"])]
        assert [b - 1 for b in starts[1:]] == batch["over"].flatten().nonzero().flatten().tolist()
        assert [e["length"] for e in reinforce.collector.pop_episodes()] == [b - a for a, b in pairwise(starts)]
        assert reinforce.steps - steps == len(batch["over"])
        after = list(reinforce.policy_net.parameters())
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_value_baseline_is_fitted_after_it_has_served(make_agent: MakeAgent) -> None:
    reinforce = make_reinforce(make_agent, "algo.baseline=value", "algo.value_epochs=30", "algo.gamma=0.9")
    losses = [float(reinforce.step()["train/value_loss"]) for _ in range(15)]
    assert losses[-1] < 0.3 * losses[0]
    before = reinforce.value_net[1].weight.clone()
    served: list[Tensor] = []
    advantages = reinforce.advantages

    def keep(obs: Tensor, returns: Tensor) -> Tensor:
        served.append(reinforce.value_net[1].weight.clone())
        return advantages(obs, returns)

    reinforce.advantages = keep  # type: ignore[method-assign]
    reinforce.step()
    assert torch.equal(served[0], before)
    assert not torch.equal(reinforce.value_net[1].weight, before)


def test_only_a_value_baseline_has_a_value_network(make_agent: MakeAgent) -> None:
    assert set(make_reinforce(make_agent).networks()) == {"policy_net"}
    reinforce = make_reinforce(make_agent, "algo.baseline=value")
    assert set(reinforce.networks()) == {"policy_net", "value_net"}
    assert set(reinforce.acting_networks()) == {"policy_net"}


def test_the_entropy_bonus_and_the_learning_rate_fall_on_straight_lines(make_agent: MakeAgent) -> None:
    limits = ("env.max_episode_steps=5", "total_steps=40")  # nobody falls that early: updates are of 10 steps
    numbers = ("algo.entropy_coef=0.2", "algo.entropy_coef_end=0", "algo.learning_rate=1e-3")
    reinforce = make_reinforce(make_agent, *limits, *numbers, "algo.learning_rate_end=0")
    metrics = [reinforce.step() for _ in range(6)]
    assert [m["train/entropy_coef"] for m in metrics] == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0, 0.0])
    assert [m["train/learning_rate"] for m in metrics] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0.0, 0.0])


def test_an_entropy_bonus_alone_makes_the_policy_uniform(make_agent: MakeAgent) -> None:
    reinforce = make_table(make_agent, "algo.baseline=none", "algo.entropy_coef=1e6", "algo.entropy_coef_end=1e6")
    reinforce.learning_rate = reinforce.learning_rate_end = 0.05
    entropies = [-float(reinforce.step()["train/entropy_loss"]) for _ in range(150)]
    assert entropies[0] < 1
    assert entropies[-1] == pytest.approx(math.log(3), abs=0.005)


def test_the_optimizer_is_the_one_that_is_named(make_agent: MakeAgent) -> None:
    assert isinstance(make_reinforce(make_agent, "algo.optimizer_name=nadam").optimizer, torch.optim.NAdam)
    assert isinstance(make_reinforce(make_agent, "algo.optimizer_name=adam").optimizer, Adam)


def test_gradients_are_scaled_down_to_the_given_norm(make_agent: MakeAgent) -> None:
    free = gradient_of_a_step(make_reinforce(make_agent, "algo.max_grad_norm=null"))
    clipped = gradient_of_a_step(make_reinforce(make_agent, "algo.max_grad_norm=0.01"))
    assert float(free.norm()) > 0.01
    torch.testing.assert_close(clipped, 0.01 * free / free.norm(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("override", ["algo.episodes_per_update=0", "algo.value_epochs=0", "algo.gamma=2.0"])
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=override.replace(".", r"\.").removesuffix(r"\.0")):
        make_reinforce(make_agent, override)


CASES = [
    ("cartpole", "algo.baseline=standardize", "algo.optimizer_name=nadam"),
    ("pendulum", "algo.baseline=value", "env.normalize_obs=true"),
]


@pytest.mark.parametrize(("env", "baseline", "more"), CASES)
def test_a_restored_reinforce_goes_on_bit_for_bit(
    env: str, baseline: str, more: str, make_agent: MakeAgent, through_disk: Callable[[Any], Any]
) -> None:
    def make(seed: int) -> Reinforce:
        return make_reinforce(make_agent, baseline, more, f"seed={seed}", "env.max_episode_steps=20", env=env)

    def go_on(reinforce: Reinforce) -> list[Any]:
        metrics = [{name: float(value) for name, value in reinforce.step().items()} for _ in range(4)]
        weights = [p.detach().numpy().tobytes() for net in reinforce.networks().values() for p in net.parameters()]
        return [metrics, weights]

    undisturbed, restored = make(0), make(1)
    go_on(undisturbed)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    restored.setup.normalizer.load_state_dict(through_disk(undisturbed.setup.normalizer.state_dict()))
    assert go_on(restored) == go_on(undisturbed)
