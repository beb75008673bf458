from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlrun.algos.trpo import TRPO
from rlrun.build import Agent
from rlrun.errors import UserError
from rlrun.math.distributions import Distribution
from rlrun.math.natural_gradient import assign, flatten

MakeAgent = Callable[..., Agent]
Disk = Callable[[Any], Any]
SMALL = ("tuned=none", "algo=trpo", "network.hidden=[16]", "algo.num_envs=2", "algo.num_steps=64", "algo.batch_size=32")


class Signs(gymnasium.Env[Any, Any]):
    """Two choices at once: which of two numbers is positive, and (of three) nothing. A reward of 1 for the first."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(action[0] == int(self.shown[0] > 0))
        self.steps += 1
        return self._obs(), reward, self.steps == 10, False, {}

    def _obs(self) -> np.ndarray:
        self.shown = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.shown


gymnasium.register("Signs-v0", Signs)

ENVS = {"discrete": ("env=cartpole",), "box": ("env=pendulum",), "multi_discrete": ("env=gym", "env.id=Signs-v0")}


def make_trpo(make_agent: MakeAgent, *overrides: str, env: str = "discrete") -> TRPO:
    algorithm = make_agent(*SMALL, *ENVS[env], *overrides).algorithm
    assert isinstance(algorithm, TRPO)
    return algorithm


def rollout(trpo: TRPO) -> tuple[dict[str, Tensor], Distribution]:
    """Return the data of one rollout, and the policy that made it."""
    data = trpo.learning_data(trpo.rollout())
    with torch.no_grad():
        return data, trpo.net.distribution(data["obs"])


def policy_weights(trpo: TRPO) -> Tensor:
    return flatten(trpo.policy_params()).detach()


def value_weights(trpo: TRPO) -> Tensor:
    return flatten(p for p in trpo.net.parameters() if not any(p is q for q in trpo.policy_params())).detach()


@pytest.mark.parametrize("env", ENVS)
def test_at_the_old_policy_the_surrogates_gradient_is_the_policy_gradient(env: str, make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent, env=env)
    data, old = rollout(trpo)
    improvement, kl = trpo.surrogate(data, old)
    actual = flatten(torch.autograd.grad(improvement, trpo.policy_params()))
    log_prob = trpo.net.distribution(data["obs"]).log_prob(data["action"])
    expected = flatten(torch.autograd.grad((log_prob * data["advantage"]).mean(), trpo.policy_params()))
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)
    assert float(improvement.detach()) == float(kl.detach()) == 0.0


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("seed", range(4))
def test_every_step_improves_within_the_trust_region(env: str, seed: int, make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent, f"seed={seed}", "algo.target_kl=0.02", env=env)
    taken = 0
    for _ in range(5):
        data, old = rollout(trpo)
        metrics = {name: float(value) for name, value in trpo.improve_policy(data).items()}
        with torch.no_grad():
            new = trpo.net.distribution(data["obs"])
            ratio = (new.log_prob(data["action"]) - old.log_prob(data["action"])).exp()
            improvement, kl = float(((ratio - 1) * data["advantage"]).mean()), float(old.kl(new).mean())
        assert metrics["train/kl_divergence_loss"] == pytest.approx(kl, abs=1e-7)
        assert metrics["train/policy_objective"] == pytest.approx(improvement, abs=1e-6)
        if metrics["train/is_line_search_success"]:
            taken += 1
            assert improvement > 0
            assert 0 < kl <= 0.02
    assert taken >= 4


@pytest.mark.parametrize("env", ENVS)
def test_a_small_step_is_as_long_as_the_trust_region_allows(env: str, make_agent: MakeAgent) -> None:
    """Where the divergence is the parabola of its second derivative, it is delta, less what the damping takes."""
    small = ("algo.target_kl=1e-5", "algo.cg_damping=1e-4", "algo.backtrack_ratio=0.98")
    trpo = make_trpo(make_agent, *small, env=env)
    metrics = trpo.improve_policy(rollout(trpo)[0])
    assert 0.85e-5 < float(metrics["train/kl_divergence_loss"]) <= 1e-5


def test_the_step_goes_along_the_natural_gradient(make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent, "network.hidden=[]", "algo.num_cg_iterations=30", "algo.target_kl=1e-4")
    data, old = rollout(trpo)
    before = policy_weights(trpo)
    gradient = flatten(torch.autograd.grad(trpo.surrogate(data, old)[0], trpo.policy_params()))
    product = trpo.fisher(data["obs"])
    matrix = torch.stack([product(unit) for unit in torch.eye(len(before))])
    trpo.improve_policy(data)
    natural = torch.linalg.solve(matrix.double(), gradient.double())
    step = (policy_weights(trpo) - before).double()
    assert float(torch.cosine_similarity(step, natural, dim=0)) > 0.9999


def uphill(trpo: TRPO, data: dict[str, Tensor], old: Distribution) -> Tensor:
    """Return a step along the gradient that is well within the trust region."""
    gradient = flatten(torch.autograd.grad(trpo.surrogate(data, old)[0], trpo.policy_params()))
    return 0.01 * gradient / gradient.norm()


@pytest.mark.parametrize("env", ENVS)
def test_the_line_search_refuses_a_step_that_makes_it_worse(env: str, make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent, env=env)
    data, old = rollout(trpo)
    before = policy_weights(trpo)
    metrics = trpo.line_search(-uphill(trpo, data, old), data, old)
    assert {name: float(value) for name, value in metrics.items()} == {
        "train/policy_objective": 0.0,
        "train/kl_divergence_loss": 0.0,
        "train/is_line_search_success": 0.0,
    }
    assert torch.equal(policy_weights(trpo), before)  # bit for bit


@pytest.mark.parametrize("env", ENVS)
def test_the_line_search_shortens_a_step_that_goes_too_far(env: str, make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent, "algo.num_backtracks=40", "algo.target_kl=1e-4", env=env)
    data, old = rollout(trpo)
    before, step = policy_weights(trpo), 300 * uphill(trpo, data, old)
    metrics = trpo.line_search(step, data, old)
    assert metrics["train/is_line_search_success"] == 1.0
    assert 0 < float(metrics["train/kl_divergence_loss"]) <= 1e-4
    taken = policy_weights(trpo) - before
    tried = [0.8**i for i in range(40)]
    accepted = [i for i, part in enumerate(tried) if torch.allclose(taken, part * step, atol=1e-6)]
    assert len(accepted) == 1
    assert accepted[0] > 0
    assign(trpo.policy_params(), before + tried[accepted[0] - 1] * step)
    assert float(trpo.surrogate(data, old)[1].detach()) > 1e-4  # the one before it was too long


def test_the_line_search_gives_up_after_as_many_steps_as_it_is_told(make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent, "algo.num_backtracks=3", "algo.target_kl=1e-6")
    data, old = rollout(trpo)
    before = policy_weights(trpo)
    assert trpo.line_search(300 * uphill(trpo, data, old), data, old)["train/is_line_search_success"] == 0.0
    assert torch.equal(policy_weights(trpo), before)


@pytest.mark.parametrize("advantage", [0.0, float("nan"), float("inf")])
def test_without_a_usable_gradient_no_step_is_taken(advantage: float, make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent)
    data, _ = rollout(trpo)
    data["advantage"] = torch.full_like(data["advantage"], advantage)
    before = policy_weights(trpo)
    metrics = trpo.improve_policy(data)
    assert metrics["train/is_line_search_success"] == 0.0
    assert torch.equal(policy_weights(trpo), before)


def test_rewards_that_are_not_finite_show_in_the_loss(make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent)
    collect = trpo.collector.collect

    def broken(*arguments: Any) -> dict[str, Tensor]:
        batch = collect(*arguments)
        batch["reward"][3, 0] = float("nan")
        return batch

    trpo.collector.collect = broken  # type: ignore[method-assign]
    assert not np.isfinite(float(trpo.step()["train/loss"]))


def test_policy_and_value_function_do_not_touch_each_others_weights(make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent)
    data, _ = rollout(trpo)
    policy, value = policy_weights(trpo), value_weights(trpo)
    trpo.fit_value(data)
    assert torch.equal(policy_weights(trpo), policy)
    assert not torch.equal(value_weights(trpo), value)
    value = value_weights(trpo)
    trpo.improve_policy(data)
    assert not torch.equal(policy_weights(trpo), policy)
    assert torch.equal(value_weights(trpo), value)


def test_the_value_function_is_fitted_to_the_returns(make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent, "algo.num_epochs=300", "algo.learning_rate=3e-3")
    data, _ = rollout(trpo)

    def error() -> float:
        with torch.no_grad():
            return float((trpo.net.value(data["obs"]) - data["target"]).square().mean())

    before = error()
    trpo.fit_value(data)
    assert error() < 0.2 * before


def test_the_value_function_takes_all_its_minibatches(make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent, "algo.num_epochs=3")
    steps: list[int] = []
    trpo.optimizer.register_step_pre_hook(lambda *_: steps.append(1))
    trpo.step()
    assert len(steps) == 3 * 128 // 32


def test_the_fisher_matrix_is_a_mean_over_the_asked_part_of_the_states(make_agent: MakeAgent) -> None:
    whole, part = make_trpo(make_agent), make_trpo(make_agent, "algo.fisher_fraction=0.25")
    data, _ = rollout(whole)
    seen: list[int] = []
    distribution = part.net.distribution

    def counted(obs: Tensor) -> Distribution:
        seen.append(len(obs))
        return distribution(obs)

    part.net.distribution = counted  # type: ignore[method-assign]
    before = [trpo.generator.get_state() for trpo in (whole, part)]
    vector = torch.randn(len(policy_weights(whole)))
    exact, estimate = whole.fisher(data["obs"])(vector), part.fisher(data["obs"])(vector)
    assert seen == [32, 32]  # of 128
    assert torch.equal(whole.generator.get_state(), before[0])
    assert not torch.equal(part.generator.get_state(), before[1])
    assert 0.8 < float(torch.cosine_similarity(exact, estimate, dim=0)) < 1.0


def test_it_learns_two_choices_at_once(make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent, "algo.target_kl=0.05", "algo.gamma=0.0", env="multi_discrete")
    for _ in range(25):
        trpo.step()
    obs = torch.tensor([[-0.5, 0.3], [0.5, 0.3], [-0.9, -0.3], [0.9, 0.9]])
    assert trpo.act(obs, None, torch.ones(4, dtype=torch.bool))[0][:, 0].tolist() == [0, 1, 0, 1]


def test_half_precision_keeps_the_trust_region(make_agent: MakeAgent) -> None:
    trpo = make_trpo(make_agent, "device.precision=bf16")
    for _ in range(3):
        metrics = trpo.step()
        assert metrics["train/is_line_search_success"] == 1.0
        assert 0 < float(metrics["train/kl_divergence_loss"]) <= 0.01


@pytest.mark.parametrize(
    "override",
    [
        "algo.target_kl=-0.01",
        "algo.fisher_fraction=1.5",
        "algo.fisher_fraction=0.0",
        "algo.num_cg_iterations=0",
        "algo.num_backtracks=0",
        "algo.backtrack_ratio=-0.5",
        "algo.cg_damping=-1",
        "algo.gamma=1.5",
    ],
)
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=override.replace(".", r"\.")):
        make_trpo(make_agent, override)


def test_a_rollout_of_one_step_cannot_be_normalised(make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match="num_steps"):
        make_trpo(make_agent, "algo.num_envs=1", "algo.num_steps=1")


def weights_and_metrics(trpo: TRPO, steps: int) -> list[Any]:
    metrics = [{name: float(value) for name, value in trpo.step().items()} for _ in range(steps)]
    return [metrics, [p.detach().numpy().tobytes() for p in trpo.net.parameters()]]


@pytest.mark.parametrize("env", ENVS)
def test_a_restored_trpo_goes_on_bit_for_bit(env: str, make_agent: MakeAgent, through_disk: Disk) -> None:
    def make(seed: int) -> TRPO:
        numbers = (f"seed={seed}", "env.max_episode_steps=7", "algo.fisher_fraction=0.5", "algo.num_epochs=2")
        return make_trpo(make_agent, *numbers, env=env)

    undisturbed, restored = make(0), make(1)
    weights_and_metrics(undisturbed, 3)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert restored.steps == undisturbed.steps == 3 * 128
    assert weights_and_metrics(restored, 3) == weights_and_metrics(undisturbed, 3)


def test_the_policy_alone_is_enough_to_act(make_agent: MakeAgent, through_disk: Disk) -> None:
    trained, other, obs = make_trpo(make_agent), make_trpo(make_agent, "seed=1"), torch.randn(50, 4)
    trained.step()
    other.load_policy_state_dict(through_disk(trained.policy_state_dict()))
    first = torch.ones(50, dtype=torch.bool)
    assert torch.equal(trained.act(obs, None, first)[0], other.act(obs, None, first)[0])
