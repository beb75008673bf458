"""A3C under its logical clock. The wall clock's processes are in test_a3c_wall_clock.py."""

import heapq
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_a2c import n_step_returns
from torch import Tensor

from rlrun.algos.a2c import A2C
from rlrun.algos.a3c import A3C, Worker
from rlrun.build import Agent
from rlrun.errors import UserError

MakeAgent = Callable[..., Agent]
LSTM = ("network=lstm", "network.hidden=[16]", "network.lstm_size=8")
SMALL = ("tuned=none", "algo=a3c", "network.hidden=[16]", "algo.num_workers=3")


def make_a3c(make_agent: MakeAgent, *overrides: str) -> A3C:
    algorithm = make_agent(*SMALL, "env=cartpole", *overrides).algorithm
    assert isinstance(algorithm, A3C)
    return algorithm


def weights(net: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def next_worker(a3c: A3C) -> Worker:
    """Return the worker that the next event is about, by what the clock says."""
    return min(a3c.workers, key=lambda worker: worker.done_at)


def events(a3c: A3C, count: int) -> list[tuple[int, int]]:
    """Return, for each of so many steps, which worker took it and its staleness."""
    seen = []
    for _ in range(count):
        before = [worker.collector.steps for worker in a3c.workers]
        staleness = a3c.step()["train/staleness"]
        (number,) = [i for i, w in enumerate(a3c.workers) if w.collector.steps != before[i]]
        seen.append((number, int(staleness)))
    return seen


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_workers_take_turns_as_a_naive_simulation_of_events_has_it(spread: float, make_agent: MakeAgent) -> None:
    a3c = make_a3c(make_agent, f"algo.duration_std={spread}", "algo.num_steps=2")
    rng = a3c.setup.seeds.numpy("a3c durations")

    def duration() -> float:
        return float(rng.gamma(1 / spread**2, spread**2)) if spread else 1.0

    queue = [(duration(), number) for number in range(3)]
    heapq.heapify(queue)
    copied, expected = [0, 0, 0], []
    for update in range(60):
        now, number = heapq.heappop(queue)
        expected.append((number, update - copied[number]))
        copied[number] = update + 1
        heapq.heappush(queue, (now + duration(), number))
    assert events(a3c, 60) == expected


def test_without_spread_each_worker_is_as_stale_as_there_are_others(make_agent: MakeAgent) -> None:
    a3c = make_a3c(make_agent, "algo.duration_std=0", "algo.num_steps=2")
    assert events(a3c, 7) == [(0, 0), (1, 1), (2, 2), (0, 2), (1, 2), (2, 2), (0, 2)]


def test_durations_have_mean_1_and_the_given_deviation(make_agent: MakeAgent) -> None:
    a3c = make_a3c(make_agent, "algo.duration_std=0.4")
    drawn = torch.tensor([a3c.duration() for _ in range(20_000)])
    assert float(drawn.mean()) == pytest.approx(1, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(
    "overrides",
    [
        ("env.max_episode_steps=4",),
        ("algo.num_envs=2", "algo.entropy_coef=0.1", "algo.value_coef=0.25", "algo.share_torso=true"),
        ("env=pendulum", "algo.entropy_coef=0.1"),
    ],
)
def test_an_event_moves_theta_by_the_gradient_at_the_stale_copy(
    overrides: tuple[str, ...], make_agent: MakeAgent
) -> None:
    """RMSProp by hand, of a gradient by hand, at parameters that the network no longer has."""
    options = ("algo.num_steps=6", "algo.max_grad_norm=null", "algo.gamma=0.9", "algo.rmsprop_alpha=0.8")
    a3c, twin = (make_a3c(make_agent, *options, *overrides) for _ in range(2))
    for agent in (a3c, twin):
        for _ in range(7):
            agent.step()
    theta, worker = weights(twin.net), next_worker(twin)
    squares = [twin.optimizer.state[p]["square"].clone() for p in twin.net.parameters()]
    net = worker.net
    assert not any(torch.equal(own, shared) for own, shared in zip(weights(net), theta, strict=True))

    batch = worker.collect(6)
    with torch.no_grad():
        returns = n_step_returns(batch, net.value(batch["next_obs"]), net.value(batch["final_obs"]), 0.9).flatten()
    policy, value = net(batch["obs"].flatten(0, 1))
    log_prob = policy.log_prob(batch["action"].flatten(0, 1))
    objective = log_prob * (returns - value.detach()) + twin.entropy_coef * policy.entropy()
    loss = -objective.mean() + twin.value_coef * (returns - value).square().mean()
    gradients = torch.autograd.grad(loss, list(net.parameters()))

    rate = a3c.step()["train/learning_rate"]
    for p, before, square, gradient in zip(a3c.net.parameters(), theta, squares, gradients, strict=True):
        square = 0.8 * square + 0.2 * gradient**2
        expected = before - rate * gradient / (square + a3c.rmsprop_eps).sqrt()
        torch.testing.assert_close(p.detach(), expected, atol=1e-6, rtol=1e-4)
        assert not torch.equal(p, before)


def test_only_the_worker_of_the_event_gets_a_new_copy(make_agent: MakeAgent) -> None:
    a3c = make_a3c(make_agent)
    for _ in range(12):
        worker, before = next_worker(a3c), [weights(w.net) for w in a3c.workers]
        a3c.step()
        for other, old in zip(a3c.workers, before, strict=True):
            now = weights(a3c.net) if other is worker else old
            assert all(torch.equal(a, b) for a, b in zip(weights(other.net), now, strict=True))


@pytest.mark.parametrize("network", [(), LSTM])
def test_a_single_worker_is_a2c(network: tuple[str, ...], make_agent: MakeAgent) -> None:
    numbers = (
        *network,
        "algo.learning_rate=1e-3",
        "algo.entropy_coef=0.01",
        "algo.value_coef=0.5",
        "algo.learning_rate_end=0",
    )
    a3c = make_a3c(make_agent, "algo.num_workers=1", "algo.num_envs=2", "total_steps=300", *numbers)
    a2c = make_agent(
        "tuned=none", "algo=a2c", "env=cartpole", "network.hidden=[16]", "algo.num_envs=2", "total_steps=300", *numbers
    ).algorithm
    assert isinstance(a2c, A2C)
    worker = a3c.workers[0]
    # The two name their generators differently; else they begin alike.
    worker.collector.load_state_dict(a2c.collector.state_dict())
    worker.generator.set_state(a2c.generator.get_state())
    assert all(torch.equal(a, b) for a, b in zip(weights(a3c.net), weights(a2c.net), strict=True))
    for _ in range(30):
        one, other = a3c.step(), a2c.step()
        assert one.pop("train/staleness") == 0
        assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in other.items()}
    assert all(torch.equal(a, b) for a, b in zip(weights(a3c.net), weights(a2c.net), strict=True))


def test_workers_see_other_episodes_and_draw_other_numbers(make_agent: MakeAgent) -> None:
    a3c = make_a3c(make_agent)
    first = [tuple(worker.collector.obs.flatten().tolist()) for worker in a3c.workers]
    drawn = [float(torch.rand(1, generator=worker.generator)) for worker in a3c.workers]
    assert len(set(first)) == len(set(drawn)) == 3


def test_episodes_of_all_workers_are_dated_with_the_steps_of_all(make_agent: MakeAgent) -> None:
    a3c = make_a3c(make_agent, "env.max_episode_steps=5", "algo.num_envs=2")
    seen = []
    for _ in range(9):
        a3c.step()
        episodes = [e for collector in a3c.setup.collectors for e in collector.pop_episodes()]
        assert {e["step"] for e in episodes} == {a3c.steps}
        seen += [e["env"] for e in episodes]
    assert a3c.steps == 9 * 5 * 2
    assert set(seen) == set(range(6))


def test_the_learning_rate_anneals_over_the_steps_of_all_workers(make_agent: MakeAgent) -> None:
    numbers = ("total_steps=40", "algo.num_steps=10", "algo.learning_rate=1e-3", "algo.learning_rate_end=0")
    a3c = make_a3c(make_agent, *numbers)
    rates = [a3c.step()["train/learning_rate"] for _ in range(6)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0.0, 0.0])


def test_a_warm_start_reaches_the_copies_too(make_agent: MakeAgent) -> None:
    a3c, source = make_a3c(make_agent), make_a3c(make_agent, "seed=1")
    a3c.warm_start(source.policy_state_dict())
    for net in (a3c.net, *(worker.net for worker in a3c.workers)):
        assert all(torch.equal(a, b) for a, b in zip(weights(net), weights(source.net), strict=True))


@pytest.mark.parametrize("options", [("env=cartpole",), ("env=pendulum",), ("env=cartpole", *LSTM)])
def test_a_restored_a3c_goes_on_bit_for_bit(
    options: tuple[str, ...], make_agent: MakeAgent, through_disk: Callable[[Any], Any]
) -> None:
    def make(seed: int) -> A3C:
        return make_a3c(make_agent, f"seed={seed}", "env.max_episode_steps=9", *options)

    def go_on(a3c: A3C) -> list[Any]:
        metrics = [{name: float(value) for name, value in a3c.step().items()} for _ in range(12)]
        return [metrics, [p.numpy().tobytes() for p in weights(a3c.net)]]

    undisturbed, restored = make(0), make(1)
    go_on(undisturbed)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert go_on(restored) == go_on(undisturbed)


@pytest.mark.parametrize(
    "override", ["algo.num_workers=0", "algo.duration_std=-1.0", "algo.rollouts_per_step=0", "algo.gamma=2.0"]
)
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=override.replace(".", r"\.").removesuffix(r"\.0")):
        make_a3c(make_agent, override)
