import math

import pytest
import torch
from small_off_policy import MakeAgent, first, make, run, weights
from torch import Tensor, nn

from rlrun.algos.algorithm import descend
from rlrun.algos.sac import SAC
from rlrun.errors import UserError


def make_sac(make_agent: MakeAgent, *overrides: str, name: str = "sac") -> SAC:
    sac = make(make_agent, name, *overrides)
    assert isinstance(sac, SAC)
    return sac


def shaken(net: nn.Module) -> None:
    """Give a network other weights, larger than those it had."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.5 * torch.randn_like(p))


# --- The soft value -----------------------------------------------------------------------------------------


def test_the_soft_value_of_discrete_actions_is_the_sum_over_them(make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent, "algo.alpha=0.3", name="discrete sac"), 60)
    obs = torch.randn(20, 4)
    value, entropy = sac.soft_value(sac.target_critics, obs, torch.empty(20, 0))
    alpha = float(sac.log_alpha.detach().exp())
    for m in range(20):
        p = sac.actor(obs[[m]]).log_probs.exp()[0].tolist()
        q = sac.target_critics(obs[[m]])[:, 0].tolist()
        expected = sum(p[a] * (min(q[0][a], q[1][a]) - alpha * math.log(p[a])) for a in range(2))
        assert float(value[m].detach()) == pytest.approx(expected, rel=1e-4)
        assert float(entropy[m].detach()) == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-4)


def test_the_soft_value_of_continuous_actions_is_that_of_the_action_drawn(make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent, "algo.alpha=0.3"), 60)
    obs, noise = torch.randn(20, 3), torch.randn(20, 1)
    value, entropy = sac.soft_value(sac.critics, obs, noise)
    action, log_prob = sac.actor(obs).sample_with_log_prob(noise)
    q = sac.critics(obs, action)
    alpha = float(sac.log_alpha.detach().exp())
    torch.testing.assert_close(value, torch.minimum(q[0], q[1]) - alpha * log_prob)
    torch.testing.assert_close(entropy, -log_prob)


def test_drawn_soft_values_have_the_mean_that_an_integral_over_actions_gives(make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent), 60)
    obs = torch.randn(1, 3)
    with torch.no_grad():
        drawn, _ = sac.soft_value(sac.critics, obs.expand(50_000, 3), torch.randn(50_000, 1))
        noise = torch.linspace(-6, 6, 2001).unsqueeze(-1)
        action, log_prob = sac.actor(obs.expand(2001, 3)).sample_with_log_prob(noise)
        each = sac.critics(obs.expand(2001, 3), action).amin(0) - sac.log_alpha.exp() * log_prob
        density = (-0.5 * noise.squeeze().square()).exp() / math.sqrt(2 * math.pi)
        integral = torch.trapezoid(density * each, noise.squeeze())
    assert float(drawn.mean()) == pytest.approx(float(integral), abs=5 * float(drawn.std()) / math.sqrt(50_000))


@pytest.mark.parametrize("name", ["sac", "discrete sac"])
def test_values_of_stored_actions_are_those_of_the_actions_taken(name: str, make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent, name=name), 60)
    batch = sac.replay.sample(16)
    q = sac.q_values(batch["obs"], batch["action"])
    assert q.shape == (2, 16)
    for m in range(16):
        if name == "sac":
            expected = sac.critics(batch["obs"][[m]], batch["action"][[m]])[:, 0]
        else:
            expected = sac.critics(batch["obs"][[m]])[:, 0, int(batch["action"][m])]
        torch.testing.assert_close(q[:, m], expected)


# --- The updates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sac", "discrete sac"])
def test_critics_learn_reward_and_discounted_soft_value_of_what_follows(name: str, make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent, "algo.num_envs=4", "algo.train_every=4", name=name), 400)
    shaken(sac.target_critics)
    batch, noise = sac.replay.sample(64), torch.randn(64, 1)
    with torch.no_grad():
        next_value = sac.soft_value(sac.target_critics, batch["next_obs"], noise)[0].tolist()
        q = sac.q_values(batch["obs"], batch["action"]).tolist()
    reward, discount = batch["reward"].tolist(), batch["discount"].tolist()
    assert (0.0 in discount) == (name == "discrete sac")  # Pendulum never terminates
    errors = [q[i][m] - reward[m] - discount[m] * next_value[m] for i in range(2) for m in range(64)]
    loss = float(sac.critic_loss(batch, noise)[0].detach())
    assert loss == pytest.approx(sum(error**2 for error in errors) / 2 / 64, rel=1e-4)


@pytest.mark.parametrize("name", ["sac", "discrete sac"])
def test_the_critics_go_down_their_loss_and_the_targets_stay(name: str, make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent, "algo.critic_learning_rate=0.01", name=name), 60)
    batch, target, actor = sac.replay.sample(16), weights(sac.target_critics), weights(sac.actor)
    losses = []
    for _ in range(50):
        loss, _ = sac.critic_loss(batch, sac.noise())
        descend(loss, sac.critic_optimizer, max_grad_norm=None)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert torch.equal(weights(sac.target_critics), target)
    assert torch.equal(weights(sac.actor), actor)


@pytest.mark.parametrize("name", ["sac", "discrete sac"])
def test_the_policy_goes_up_the_soft_value_and_leaves_the_critics_alone(name: str, make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent, "algo.learning_rate=0.01", "algo.alpha_learning_rate=0", name=name), 60)
    shaken(sac.critics)
    batch, critics = sac.replay.sample(16), weights(sac.critics)
    gradient = [p.grad.clone() for p in sac.critics.parameters() if p.grad is not None]
    values, noise = [], sac.noise()  # the same actions drawn
    for _ in range(60):
        with sac.actor_gradient.computed(obs=batch["obs"], noise=noise) as metrics:
            pass
        sac.actor_optimizer.step()
        values.append(-float(metrics["train/actor_loss"]))
    assert values[-1] > values[0] + 0.01
    assert torch.equal(weights(sac.critics), critics)
    now = [p.grad for p in sac.critics.parameters()]
    assert all(g is not None and torch.equal(g, h) for g, h in zip(now, gradient, strict=True))


@pytest.mark.parametrize("name", ["sac", "discrete sac"])
def test_both_losses_are_taken_at_the_weights_before_the_step(name: str, make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent, "algo.critic_learning_rate=0.1", "algo.learning_rate=0.1", name=name), 60)
    batch = {key: value.clone() for key, value in sac.replay.sample(16).items()}
    sac.replay.sample = lambda batch_size: batch  # type: ignore[method-assign]
    draw = sac.generator.get_state()
    next_noise, noise = sac.noise(), sac.noise()
    critic_loss, _ = sac.critic_loss(batch, next_noise)
    actor_loss, _ = sac.actor_loss({"obs": batch["obs"], "noise": noise})
    sac.generator.set_state(draw)
    metrics = sac.update()
    assert float(metrics["train/critic_loss"]) == float(critic_loss.detach())
    assert float(metrics["train/actor_loss"]) == float(actor_loss.detach())


def test_the_targets_follow_by_tau(make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent, "algo.tau=0.1"), 60)
    target = weights(sac.target_critics).clone()
    sac.update()
    torch.testing.assert_close(weights(sac.target_critics), 0.1 * weights(sac.critics) + 0.9 * target)


# --- The temperature ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sac", "discrete sac"])
def test_alpha_falls_where_the_policy_is_random_enough_and_rises_where_it_is_not(
    name: str, make_agent: MakeAgent
) -> None:
    sac = make_sac(make_agent, name=name)
    wanted = sac.wanted_entropy()
    for entropy, sign in ((wanted + 0.5, -1), (wanted - 0.5, 1)):
        before = float(sac.log_alpha.detach())
        for _ in range(20):  # past the momentum of the other direction
            sac.update_alpha(torch.tensor(entropy))
        assert math.copysign(1, float(sac.log_alpha.detach()) - before) == sign


@pytest.mark.parametrize("wanted", [-1.5, 0.9])
def test_the_entropy_goes_to_its_target(wanted: float, make_agent: MakeAgent) -> None:
    rates = ("algo.learning_rate=0.01", "algo.alpha_learning_rate=0.05", "algo.batch_size=64")
    sac = run(make_sac(make_agent, f"algo.target_entropy={wanted}", *rates), 64)
    metrics = [sac.update()["train/entropy"] for _ in range(400)]
    assert float(sum(metrics[-100:])) / 100 == pytest.approx(wanted, abs=0.25)


def test_the_target_entropy_is_minus_one_for_each_dimension_in_half_widths(make_agent: MakeAgent) -> None:
    assert make_sac(make_agent).wanted_entropy() == pytest.approx(math.log(2) - 1)  # Pendulum: -2 to 2
    assert make_sac(make_agent, "env=mountaincar_continuous").wanted_entropy() == pytest.approx(-1)
    assert make_sac(make_agent, "algo.target_entropy=-0.3").wanted_entropy() == -0.3
    discrete = make_sac(make_agent, "algo.target_entropy_fraction=0.5", name="discrete sac")
    assert discrete.wanted_entropy() == pytest.approx(0.5 * math.log(2))


def test_a_fixed_alpha_stays(make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent, "algo.auto_alpha=false", "algo.alpha=0.25"), 80)
    assert float(sac.log_alpha.detach().exp()) == pytest.approx(0.25)
    assert (
        float(run(make_sac(make_agent, "algo.auto_alpha=false", "algo.alpha=0.0"), 60).update()["train/ent_coef"]) == 0
    )


# --- Exploration --------------------------------------------------------------------------------------------


def test_it_explores_by_drawing_from_the_policy(make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent), 60)
    obs = torch.randn(1, 3).expand(20_000, 3)
    with torch.no_grad():
        action = sac.policy(obs, None, first(20_000))[0]["action"]
        policy = sac.actor(obs[:1])
    u = (action / 2).atanh()
    assert float(u.mean()) == pytest.approx(float(policy.mean), abs=0.03)
    assert float(u.std()) == pytest.approx(float(policy.log_std.exp()), rel=0.03)


def test_discrete_actions_are_drawn_with_the_policys_probabilities(make_agent: MakeAgent) -> None:
    sac = run(make_sac(make_agent, name="discrete sac"), 60)
    obs = torch.randn(1, 4).expand(20_000, 4)
    with torch.no_grad():
        action: Tensor = sac.policy(obs, None, first(20_000))[0]["action"]
        p = float(sac.actor(obs[:1]).log_probs.exp()[0, 1])
    assert float(action.float().mean()) == pytest.approx(p, abs=0.02)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("algo.log_std_min=3.0",), r"algo\.log_std_min=3\.0 must not exceed algo\.log_std_max=2\.0"),
        (("algo.alpha=0.0",), r"algo\.alpha=0 can never become larger"),
        (("algo.alpha=-1.0",), r"algo\.alpha=-1\.0 is out of range"),
        (("algo.target_entropy_fraction=1.5",), r"algo\.target_entropy_fraction=1\.5 is out of range"),
        (("env=cartpole", "algo.noise_correlation=0.5"), r"algo\.noise_correlation=0\.5 is for continuous actions"),
    ],
)
def test_values_that_cannot_be_are_refused(overrides: tuple[str, ...], message: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=message):
        make_sac(make_agent, *overrides)
