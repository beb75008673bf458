import math
from collections.abc import Callable

import pytest
import torch

from rlrun.algos.iqn import IQN, ImplicitQuantileNetwork
from rlrun.build import Agent
from rlrun.errors import UserError

MakeAgent = Callable[..., Agent]
SMALL = (
    "tuned=none",
    "algo=iqn",
    "env=cartpole",
    "network.hidden=[16,8]",
    "algo.buffer_size=500",
    "algo.batch_size=16",
    "algo.learning_starts=40",
    "algo.num_taus=5",
    "algo.num_target_taus=3",
    "algo.num_acting_taus=4",
    "algo.num_cosines=6",
)


def make_iqn(make_agent: MakeAgent, *overrides: str) -> IQN:
    algorithm = make_agent(*SMALL, *overrides).algorithm
    assert isinstance(algorithm, IQN)
    while algorithm.steps < 200:
        algorithm.step()
    torch.manual_seed(3)
    with torch.no_grad():  # so that the two networks can be told apart
        for p in algorithm.target_net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return algorithm


@pytest.mark.parametrize("double", ["false", "true"])
def test_the_loss_is_equation_3(double: str, make_agent: MakeAgent) -> None:
    iqn = make_iqn(make_agent, f"algo.double={double}", "algo.gamma=0.9")
    batch = iqn.sample()
    before = iqn.generator.get_state()
    losses, surprise, _ = iqn.losses(batch, lambda: iqn.targets(batch))
    iqn.generator.set_state(before)
    taus, target_taus = iqn.draw_taus(5), iqn.draw_taus(3)
    z = iqn.net(batch["obs"], taus).tolist()
    target_z = iqn.target_net(batch["next_obs"], target_taus).tolist()
    chooser = iqn.net if iqn.double else iqn.target_net
    best = iqn.q_values(chooser, batch["next_obs"]).argmax(1).tolist()
    for m in range(16):
        r, discount = float(batch["reward"][m]), float(batch["discount"][m])
        targets = [r + discount * x for x in target_z[m][best[m]]]
        predicted, expected = z[m][int(batch["action"][m])], 0.0
        for x, tau in zip(predicted, taus[m].tolist(), strict=True):
            for target in targets:
                u = target - x
                expected += abs(tau - (u < 0)) * (0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5) / 3
        assert float(losses[m].detach()) == pytest.approx(expected, rel=1e-3, abs=1e-5)
        error = abs(sum(targets) / 3 - sum(predicted) / 5)
        assert float(surprise[m].detach()) == pytest.approx(error, rel=1e-3, abs=1e-4)


def test_probabilities_enter_by_their_cosines(make_agent: MakeAgent) -> None:
    """Eq. (4): phi_j(tau) = ReLU(sum_i cos(pi i tau) w_ij + b_j), times the features."""
    iqn, obs, taus = make_iqn(make_agent), torch.randn(3, 4), torch.rand(3, 5)
    net = iqn.net
    assert isinstance(net, ImplicitQuantileNetwork)
    weight, bias = net.embedding[0].weight.detach().double(), net.embedding[0].bias.detach().double()
    expected = torch.empty(3, 2, 5)
    for m in range(3):
        features = net.q.body(obs[m : m + 1]).double()
        for n in range(5):
            cosines = torch.tensor([math.cos(math.pi * i * float(taus[m, n])) for i in range(6)]).double()
            phi = (weight @ cosines + bias).relu()
            expected[m, :, n] = net.q.head((features * phi).float())[0, :, 0]
    torch.testing.assert_close(net(obs, taus), expected, atol=1e-4, rtol=1e-4)


def test_each_probability_is_answered_for_itself(make_agent: MakeAgent) -> None:
    iqn, obs, taus = make_iqn(make_agent, "algo.dueling=true"), torch.randn(3, 4), torch.rand(3, 5)
    together = iqn.net(obs, taus)
    one_by_one = torch.stack([iqn.net(obs, taus[:, i : i + 1])[..., 0] for i in range(5)], -1)
    torch.testing.assert_close(together, one_by_one)


def test_it_acts_on_the_mean_of_evenly_spaced_quantiles(make_agent: MakeAgent) -> None:
    iqn, obs = make_iqn(make_agent), torch.randn(50, 4)
    taus = torch.tensor([0.125, 0.375, 0.625, 0.875]).expand(50, 4)
    q = iqn.net(obs, taus).mean(-1)
    torch.testing.assert_close(iqn.q_values(iqn.net, obs), q)
    action, _ = iqn.act(obs, None, torch.ones(50, dtype=torch.bool))
    assert torch.equal(action, q.argmax(1))


def test_probabilities_are_drawn_anew_for_each_sample(make_agent: MakeAgent) -> None:
    iqn = make_iqn(make_agent)
    one, two = iqn.draw_taus(5), iqn.draw_taus(5)
    assert one.shape == (16, 5)
    assert len(torch.cat([one, two]).unique()) == 160
    assert (one >= 0).all()
    assert (one < 1).all()


@pytest.mark.parametrize("override", ["algo.num_taus=0", "algo.num_acting_taus=0", "algo.kappa=-1.0"])
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=override.replace(".", "[.]").removesuffix("[.]0")):
        make_iqn(make_agent, override)
