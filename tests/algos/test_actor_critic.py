from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rlrun.algos.actor_critic import OneStepActorCritic
from rlrun.build import Agent
from rlrun.errors import UserError
from rlrun.networks.optimizers import Adam, RMSpropTF

MakeAgent = Callable[..., Agent]
Weights = dict[str, np.ndarray]
SMALL = ("tuned=none", "algo=actor_critic", "network.hidden=[16]", "algo.num_envs=2")
LINEAR = ("network.hidden=[]", "algo.optimizer_name=sgd")


def make_actor_critic(make_agent: MakeAgent, *overrides: str, env: str = "cartpole") -> OneStepActorCritic:
    algorithm = make_agent(*SMALL, f"env={env}", *overrides).algorithm
    assert isinstance(algorithm, OneStepActorCritic)
    return algorithm


def weights(algorithm: OneStepActorCritic) -> Weights:
    """Return the weights of linear networks: V(s) = v s + c, logits(s) = W s + b."""
    head, value = algorithm.actor[1].logits, algorithm.critic[1]
    tensors = {"W": head.weight, "b": head.bias, "v": value.weight[0], "c": value.bias[0]}
    return {name: tensor.detach().double().numpy().copy() for name, tensor in tensors.items()}


def by_hand(w: Weights, step: dict[str, Any], weight: float, gamma: float, beta: float) -> Weights:
    """Return the directions in which one step of one environment moves each weight, in S&B's formulas.

    step: obs and next_obs [4], action, reward, terminated of it; beta: of the entropy bonus.
    """
    x, action = step["obs"], int(step["action"])
    next_value = 0.0 if step["terminated"] else w["v"] @ step["next_obs"] + w["c"]
    delta = step["reward"] + gamma * next_value - (w["v"] @ x + w["c"])
    logits = w["W"] @ x + w["b"]
    pi = np.exp(logits) / np.exp(logits).sum()
    entropy = -(pi * np.log(pi)).sum()
    grad_log_pi = (np.arange(len(pi)) == action) - pi  # by the logits
    grad_entropy = -pi * (np.log(pi) + entropy)
    logit = weight * (delta * grad_log_pi + beta * grad_entropy)
    return {"W": np.outer(logit, x), "b": logit, "v": delta * x, "c": delta}


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("discount", ["false", "true"])
def test_each_step_moves_linear_networks_as_the_book_says(num_envs: int, discount: str, make_agent: MakeAgent) -> None:
    numbers = ("algo.learning_rate=0.03", "algo.learning_rate_end=0.03", "algo.gamma=0.9", "algo.entropy_coef=0.2")
    critic = ("algo.value_learning_rate=0.05", "algo.value_learning_rate_end=0.05", "env.max_episode_steps=12")
    more = (f"algo.num_envs={num_envs}", f"algo.discount_updates={discount}")
    algorithm = make_actor_critic(make_agent, *LINEAR, *numbers, *critic, *more)
    discounts, terminated, truncated = np.ones(num_envs), 0, 0
    for _ in range(60):
        before = weights(algorithm)
        algorithm.step()
        batch = {name: tensor.double().numpy() for name, tensor in algorithm.batch.items()}
        after_cut = dict(zip(batch["final_index"].astype(int), batch["final_obs"], strict=True))
        moves: list[Weights] = []
        for b in range(num_envs):
            discounts[b] = 1.0 if batch["first"][0, b] or discount == "false" else 0.9 * discounts[b]
            step = {name: batch[name][0, b] for name in ("obs", "action", "reward", "terminated")}
            step["next_obs"] = after_cut.get(b, batch["next_obs"][b])
            moves.append(by_hand(before, step, discounts[b], gamma=0.9, beta=0.2))
        after = weights(algorithm)
        for name, rate in (("W", 0.03), ("b", 0.03), ("v", 0.05), ("c", 0.05)):
            expected = before[name] + rate * np.mean([move[name] for move in moves], axis=0)
            np.testing.assert_allclose(after[name], expected, atol=2e-6)
        terminated += int(batch["terminated"].sum())
        truncated += int((batch["truncated"] * (1 - batch["terminated"])).sum())
    assert terminated > 0
    assert truncated > 0


def test_every_step_of_all_environments_is_one_update(make_agent: MakeAgent) -> None:
    algorithm = make_actor_critic(make_agent)
    for updates in (1, 2, 3):
        assert algorithm.step()["train/n_updates"] == updates
        assert algorithm.steps == 2 * updates


def test_the_critic_learns_what_a_fixed_policy_is_worth(make_agent: MakeAgent) -> None:
    """CartPole cut after two steps never falls: with V bootstrapped through the cut, V = 1 / (1 - gamma)."""
    rates = ("algo.learning_rate=0", "algo.learning_rate_end=0", "algo.gamma=0.8")
    critic = ("algo.value_learning_rate=0.1", "algo.value_learning_rate_end=0.1", "env.max_episode_steps=2")
    algorithm = make_actor_critic(make_agent, *LINEAR, *rates, *critic)
    for _ in range(400):
        algorithm.step()
    values = algorithm.critic(algorithm.batch["obs"][0])
    assert values.tolist() == pytest.approx([5.0, 5.0], rel=0.05)


def test_each_network_has_its_own_learning_rate(make_agent: MakeAgent) -> None:
    falling = ("total_steps=8", "algo.learning_rate=1e-3", "algo.learning_rate_end=0")
    algorithm = make_actor_critic(
        make_agent, *falling, "algo.value_learning_rate=4e-3", "algo.value_learning_rate_end=2e-3"
    )
    seen = []
    for _ in range(6):
        algorithm.step()
        seen.append([o.param_groups[0]["lr"] for o in (algorithm.actor_optimizer, algorithm.critic_optimizer)])
    assert [actor for actor, _ in seen] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0.0, 0.0])
    assert [critic for _, critic in seen] == pytest.approx([4e-3, 3.5e-3, 3e-3, 2.5e-3, 2e-3, 2e-3])


def test_the_optimizer_is_the_one_that_is_named(make_agent: MakeAgent) -> None:
    kinds = {"sgd": torch.optim.SGD, "adam": Adam, "rmsprop": RMSpropTF}
    for name, kind in kinds.items():
        algorithm = make_actor_critic(make_agent, f"algo.optimizer_name={name}")
        assert isinstance(algorithm.actor_optimizer, kind)
        assert isinstance(algorithm.critic_optimizer, kind)


@pytest.mark.parametrize("override", ["algo.value_learning_rate=-1", "algo.num_envs=0", "algo.gamma=2.0"])
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=override.replace(".", r"\.").removesuffix(r"\.0")):
        make_actor_critic(make_agent, override)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("env", ["cartpole", "pendulum"])
def test_a_restored_actor_critic_goes_on_bit_for_bit(
    env: str, optimizer: str, make_agent: MakeAgent, through_disk: Callable[[Any], Any]
) -> None:
    def make(seed: int) -> OneStepActorCritic:
        more = (f"algo.optimizer_name={optimizer}", "algo.discount_updates=true", f"seed={seed}")
        return make_actor_critic(make_agent, *more, "env.max_episode_steps=9", env=env)

    def go_on(algorithm: OneStepActorCritic) -> list[Any]:
        metrics = [{name: float(value) for name, value in algorithm.step().items()} for _ in range(13)]
        params = [*algorithm.actor.parameters(), *algorithm.critic.parameters()]
        return [metrics, [p.detach().numpy().tobytes() for p in params]]

    undisturbed, restored = make(0), make(1)
    go_on(undisturbed)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert go_on(restored) == go_on(undisturbed)
