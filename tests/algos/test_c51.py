import math
from collections.abc import Callable

import pytest
import torch

from rlrun.algos.c51 import C51
from rlrun.build import Agent
from rlrun.errors import UserError

MakeAgent = Callable[..., Agent]
SMALL = (
    "tuned=none",
    "algo=c51",
    "env=cartpole",
    "network.hidden=[16]",
    "algo.buffer_size=500",
    "algo.batch_size=16",
    "algo.learning_starts=40",
    "algo.num_atoms=6",
    "algo.v_min=-2",
    "algo.v_max=8",
)


def make_c51(make_agent: MakeAgent, *overrides: str) -> C51:
    algorithm = make_agent(*SMALL, *overrides).algorithm
    assert isinstance(algorithm, C51)
    while algorithm.steps < 200:
        algorithm.step()
    torch.manual_seed(3)
    with torch.no_grad():  # so that the two networks can be told apart
        for p in algorithm.target_net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return algorithm


ATOMS = [-2.0, 0.0, 2.0, 4.0, 6.0, 8.0]


def probabilities(logits: list[float]) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.exp(x) / total for x in logits]


def mean(logits: list[float]) -> float:
    return sum(p * z for p, z in zip(probabilities(logits), ATOMS, strict=True))


@pytest.mark.parametrize("double", ["false", "true"])
def test_the_loss_is_the_cross_entropy_to_the_projected_target(double: str, make_agent: MakeAgent) -> None:
    c51 = make_c51(make_agent, f"algo.double={double}", "algo.n_steps=2")
    batch = c51.sample()
    losses, surprise, q_mean = c51.losses(batch, lambda: c51.targets(batch))
    logits, next_logits = c51.net(batch["obs"]).tolist(), c51.net(batch["next_obs"]).tolist()
    target_logits = c51.target_net(batch["next_obs"]).tolist()
    for m in range(16):
        chooser = next_logits[m] if c51.double else target_logits[m]
        best = max(range(2), key=lambda a, chooser=chooser: mean(chooser[a]))  # type: ignore[misc]
        target = [0.0] * 6
        for p, z in zip(probabilities(target_logits[m][best]), ATOMS, strict=True):
            moved = min(max(float(batch["reward"][m]) + float(batch["discount"][m]) * z, -2.0), 8.0)
            place = (moved + 2) / 2
            target[math.floor(place)] += p * (1 - place % 1)
            if place % 1:
                target[math.floor(place) + 1] += p * (place % 1)
        predicted = probabilities(logits[m][int(batch["action"][m])])
        expected = -sum(t * math.log(p) for t, p in zip(target, predicted, strict=True))
        assert float(losses[m].detach()) == pytest.approx(expected, rel=1e-4)
        entropy = -sum(t * math.log(t) for t in target if t > 0)
        assert float(surprise[m].detach()) == pytest.approx(expected - entropy, abs=1e-5)
    assert (losses > 0).all()
    assert float(q_mean) == pytest.approx(sum(mean(row) for rows in logits for row in rows) / 32, rel=1e-4)


def test_the_value_is_the_mean_of_the_distribution(make_agent: MakeAgent) -> None:
    c51, obs = make_c51(make_agent, "algo.dueling=true"), torch.randn(9, 4)
    expected = torch.tensor([[mean(row) for row in rows] for rows in c51.net(obs).tolist()])
    torch.testing.assert_close(c51.q_values(c51.net, obs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("override", ["algo.num_atoms=1", "algo.v_min=8", "algo.v_max=-3"])
def test_atoms_that_cannot_be_are_refused(override: str, make_agent: MakeAgent) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(UserError, match=rf"{key.replace('.', '[.]')}={value}"):
        make_c51(make_agent, override)
