from collections.abc import Callable

import pytest
import torch

from rlrun.algos.qr_dqn import QRDQN, midpoints
from rlrun.build import Agent
from rlrun.errors import UserError

MakeAgent = Callable[..., Agent]
SMALL = (
    "tuned=none",
    "algo=qr_dqn",
    "env=cartpole",
    "network.hidden=[16]",
    "algo.buffer_size=500",
    "algo.batch_size=16",
    "algo.learning_starts=40",
    "algo.num_quantiles=4",
)


def make_qr_dqn(make_agent: MakeAgent, *overrides: str) -> QRDQN:
    algorithm = make_agent(*SMALL, *overrides).algorithm
    assert isinstance(algorithm, QRDQN)
    while algorithm.steps < 200:
        algorithm.step()
    torch.manual_seed(3)
    with torch.no_grad():  # so that the two networks can be told apart
        for p in algorithm.target_net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return algorithm


@pytest.mark.parametrize("kappa", [0.0, 1.0])
@pytest.mark.parametrize("double", ["false", "true"])
def test_the_loss_is_algorithm_1(double: str, kappa: float, make_agent: MakeAgent) -> None:
    qr = make_qr_dqn(make_agent, f"algo.double={double}", f"algo.kappa={kappa}", "algo.gamma=0.9")
    batch = qr.sample()
    losses, surprise, _ = qr.losses(batch, lambda: qr.targets(batch))
    theta, next_theta = qr.net(batch["obs"]).tolist(), qr.net(batch["next_obs"]).tolist()
    target_theta = qr.target_net(batch["next_obs"]).tolist()
    for m in range(16):
        chooser = next_theta[m] if qr.double else target_theta[m]
        best = max(range(2), key=lambda a, chooser=chooser: sum(chooser[a]))  # type: ignore[misc]
        r, discount = float(batch["reward"][m]), float(batch["discount"][m])
        targets = [r + discount * x for x in target_theta[m][best]]
        predicted, expected = theta[m][int(batch["action"][m])], 0.0
        for i, x in enumerate(predicted):
            for target in targets:
                u = target - x
                rho = abs(u) if kappa == 0 else (0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5)
                expected += abs((i + 0.5) / 4 - (u < 0)) * rho / 4
        assert float(losses[m].detach()) == pytest.approx(expected, rel=1e-3, abs=1e-5)
        error = abs(sum(targets) - sum(predicted)) / 4
        assert float(surprise[m].detach()) == pytest.approx(error, rel=1e-3, abs=1e-4)


def test_the_value_is_the_mean_of_the_quantiles(make_agent: MakeAgent) -> None:
    qr, obs = make_qr_dqn(make_agent), torch.randn(9, 4)
    assert qr.net(obs).shape == (9, 2, 4)
    torch.testing.assert_close(qr.q_values(qr.net, obs), qr.net(obs).sum(-1) / 4)


def test_quantiles_stand_in_the_middle_of_their_parts() -> None:
    assert midpoints(4, torch.device("cpu")).tolist() == [0.125, 0.375, 0.625, 0.875]


@pytest.mark.parametrize("override", ["algo.num_quantiles=0", "algo.kappa=-1.0"])
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=override.replace(".", "[.]").removesuffix("[.]0")):
        make_qr_dqn(make_agent, override)
