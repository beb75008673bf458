from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlrun.algos.a2c import A2C
from rlrun.build import Agent
from rlrun.errors import UserError
from rlrun.networks.optimizers import Adam, RMSpropTF

MakeAgent = Callable[..., Agent]
SMALL = ("tuned=none", "algo=a2c", "network.hidden=[16]", "algo.num_envs=2")


def make_a2c(make_agent: MakeAgent, *overrides: str, env: str = "cartpole") -> A2C:
    algorithm = make_agent(*SMALL, f"env={env}", *overrides).algorithm
    assert isinstance(algorithm, A2C)
    return algorithm


def gradient_of_a_step(a2c: A2C) -> Tensor:
    """Return the gradient that `step` hands to its optimizer."""
    grads: list[Tensor] = []

    def keep(*_: Any) -> None:
        grads.append(torch.cat([p.grad.flatten() for p in a2c.net.parameters() if p.grad is not None]).clone())

    handle = a2c.optimizer.register_step_pre_hook(keep)
    a2c.step()
    handle.remove()
    assert len(grads) == 1
    return grads[0]


def n_step_returns(batch: dict[str, Tensor], last_value: Tensor, final_value: Tensor, gamma: float) -> Tensor:
    """Return R_t of Algorithm S3, by its own loop from the end of the rollout."""
    final = dict(zip(batch["final_index"].tolist(), final_value.tolist(), strict=True))
    num_steps, num_envs = batch["reward"].shape
    returns = torch.zeros(num_steps, num_envs)
    for b in range(num_envs):
        following = float(last_value[b])
        for t in reversed(range(num_steps)):
            if batch["terminated"][t, b]:
                following = 0.0
            elif batch["truncated"][t, b]:
                following = final[t * num_envs + b]
            following = float(batch["reward"][t, b]) + gamma * following
            returns[t, b] = following
    return returns


@pytest.mark.parametrize(
    "overrides",
    [
        ("env=cartpole",),
        ("env=cartpole", "env.max_episode_steps=4", "algo.entropy_coef=0.1", "algo.value_coef=0.25"),
        ("env=pendulum", "algo.entropy_coef=0.1", "algo.share_torso=true"),
        ("env=frozenlake", "algo.normalize_advantage=true"),
    ],
)
def test_the_gradient_is_that_of_the_papers_algorithm(overrides: tuple[str, ...], make_agent: MakeAgent) -> None:
    options = ("algo.num_steps=11", "algo.max_grad_norm=null", "algo.gamma=0.9", *overrides[1:])
    env = overrides[0].removeprefix("env=")
    a2c, twin = make_a2c(make_agent, *options, env=env), make_a2c(make_agent, *options, env=env)
    actual = gradient_of_a_step(a2c)

    batch = twin.rollout()
    with torch.no_grad():
        last_value, final_value = twin.net.value(batch["next_obs"]), twin.net.value(batch["final_obs"])
    returns = n_step_returns(batch, last_value, final_value, 0.9)
    policy, value = twin.net(batch["obs"].flatten(0, 1))
    advantage = (returns - batch["value"]).flatten()
    if twin.normalize_advantage:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    objective = policy.log_prob(batch["action"].flatten(0, 1)) * advantage + twin.entropy_coef * policy.entropy()
    loss = -objective.mean() + twin.value_coef * (returns.flatten() - value).square().mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in twin.net.parameters() if p.grad is not None])
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_a_rollout_is_learned_from_once(make_agent: MakeAgent) -> None:
    a2c = make_a2c(make_agent)
    for updates in (1, 2, 3):
        assert a2c.step()["train/n_updates"] == updates
        assert a2c.steps == updates * 2 * 5


def test_gradients_are_scaled_down_to_the_given_norm(make_agent: MakeAgent) -> None:
    free = gradient_of_a_step(make_a2c(make_agent, "algo.max_grad_norm=null"))
    clipped = gradient_of_a_step(make_a2c(make_agent, "algo.max_grad_norm=0.01"))
    assert float(free.norm()) > 0.01
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), atol=1e-5, rtol=1e-3)


def test_the_optimizer_is_the_one_that_is_named(make_agent: MakeAgent) -> None:
    assert isinstance(make_a2c(make_agent, "algo.optimizer_name=rmsprop").optimizer, RMSpropTF)
    assert isinstance(make_a2c(make_agent, "algo.optimizer_name=adam").optimizer, Adam)


def test_the_learning_rate_anneals_to_its_end(make_agent: MakeAgent) -> None:
    a2c = make_a2c(make_agent, "total_steps=40", "algo.learning_rate=1e-3", "algo.learning_rate_end=0")
    rates = [a2c.step()["train/learning_rate"] for _ in range(6)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0.0, 0.0])


@pytest.mark.parametrize("override", ["algo.rmsprop_alpha=1.5", "algo.num_steps=0", "algo.gamma=2.0"])
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=override.replace(".", r"\.").removesuffix(r"\.0")):
        make_a2c(make_agent, override)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
@pytest.mark.parametrize("env", ["cartpole", "pendulum"])
def test_a_restored_a2c_goes_on_bit_for_bit(
    env: str, optimizer: str, make_agent: MakeAgent, through_disk: Callable[[Any], Any]
) -> None:
    def make(seed: int) -> A2C:
        numbers = (f"algo.optimizer_name={optimizer}", f"seed={seed}", "env.max_episode_steps=9")
        return make_a2c(make_agent, *numbers, env=env)

    def go_on(a2c: A2C) -> list[Any]:
        metrics = [{name: float(value) for name, value in a2c.step().items()} for _ in range(5)]
        return [metrics, [p.detach().numpy().tobytes() for p in a2c.net.parameters()]]

    undisturbed, restored = make(0), make(1)
    go_on(undisturbed)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert go_on(restored) == go_on(undisturbed)
