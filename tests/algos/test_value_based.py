"""What DQN and its extensions share: switches that combine, and configurations that build."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from small_dqn import ALGOS, SMALL, make_dqn
from small_off_policy import Compose, MakeAgent, run, weights
from torch import Tensor

from rlrun.algos.dqn import DQN
from rlrun.build import build_agent
from rlrun.config import conf_folder
from rlrun.data.prioritized import PrioritizedReplay
from rlrun.networks.optimizers import Adam, RMSpropTF


@pytest.mark.parametrize("algo", ALGOS)
def test_all_switches_combine(algo: str, compose: Compose) -> None:
    few = {"c51": "num_atoms", "qr_dqn": "num_quantiles", "iqn": "num_taus"}
    small = [f"algo.{few[algo]}=4"] if algo in few else []
    numbers = ("algo.num_envs=2", "algo.learning_starts=0", "algo.batch_size=8", "network.hidden=[8]")
    config = compose(*SMALL, f"algo={algo}", "env=cartpole", *numbers, *small)
    for double, dueling, n_steps, alpha, sigma in product(
        (False, True), (False, True), (1, 3), (None, 0.5), (None, 0.5)
    ):
        switches = {"double": double, "dueling": dueling, "n_steps": n_steps}
        switches |= {"priority_alpha": alpha, "noisy_sigma": sigma}
        dqn = build_agent({**config, "algo": {**config["algo"], **switches}}).algorithm
        assert isinstance(dqn, DQN)
        before = weights(dqn.net)
        while dqn.updates < 2:
            metrics = dqn.step()
        assert math.isfinite(float(metrics["train/loss"])), switches
        assert not torch.equal(weights(dqn.net), before), switches
        assert isinstance(dqn.replay, PrioritizedReplay) == (alpha is not None)
        assert dqn.replay.n_steps == n_steps
        assert ("weight" in dqn.batch) == (alpha is not None)
        sigmas = [name for name, _ in dqn.net.named_parameters() if "sigma" in name]
        assert bool(sigmas) == (sigma is not None)


def noise(net: torch.nn.Module) -> Tensor:
    return torch.cat([buffer.flatten() for name, buffer in net.named_buffers() if "noise" in name]).clone()


def test_each_update_and_each_step_draws_noise_of_its_own(make_agent: MakeAgent) -> None:
    dqn = run(make_dqn(make_agent, "algo.noisy_sigma=0.5", "algo.epsilon_start=0", "algo.epsilon_end=0"), 80)
    drawn = [noise(dqn.net), noise(dqn.target_net)]
    dqn.update()
    drawn += [noise(dqn.net), noise(dqn.target_net)]
    dqn.policy(torch.zeros(1, 4), None, torch.ones(1, dtype=torch.bool))
    drawn.append(noise(dqn.net))
    assert len({tuple(n.tolist()) for n in drawn}) == 5


def test_a_minibatch_counts_by_its_weights(make_agent: MakeAgent) -> None:
    dqn = run(make_dqn(make_agent, "algo.priority_alpha=0.9", "algo.priority_beta=1.0", "algo.max_grad_norm=null"), 80)
    grads: list[Tensor] = []
    dqn.optimizer.register_step_pre_hook(
        lambda *_: grads.append(torch.cat([p.grad.flatten() for p in dqn.net.parameters() if p.grad is not None]))
    )
    before = dqn.net.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    dqn.update()
    assert float(dqn.batch["weight"].min()) < 1
    dqn.net.load_state_dict(before)
    losses, _, _ = dqn.losses(dqn.batch, lambda: dqn.targets(dqn.batch))
    dqn.net.zero_grad()
    sum(w * loss / 16 for w, loss in zip(dqn.batch["weight"].tolist(), losses, strict=True)).backward()  # type: ignore[union-attr]
    expected = torch.cat([p.grad.flatten() for p in dqn.net.parameters() if p.grad is not None])
    torch.testing.assert_close(grads[0], expected)


def test_priorities_become_the_errors_of_the_minibatch(make_agent: MakeAgent) -> None:
    dqn = run(make_dqn(make_agent, "algo.priority_alpha=0.5", "algo.learning_rate=0"), 80)
    dqn.update()
    replay = dqn.replay
    assert isinstance(replay, PrioritizedReplay)
    _, surprise, _ = dqn.losses(dqn.batch, lambda: dqn.targets(dqn.batch))
    priority = replay.tree.get(dqn.batch["place"].numpy())
    np.testing.assert_allclose(priority, surprise.detach().numpy() ** 0.5, rtol=1e-3, atol=1e-3)


def test_beta_rises_to_1_at_the_end_of_the_run(make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("algo.priority_alpha=0.5", "algo.priority_beta=0.4", "total_steps=200", "algo.train_every=20")
    dqn, betas = make_dqn(make_agent, *options), []
    assert isinstance(dqn.replay, PrioritizedReplay)
    sample = dqn.replay.sample

    def keep(batch_size: int, beta: float = 1.0) -> Any:
        betas.append(beta)
        return sample(batch_size, beta)

    monkeypatch.setattr(dqn.replay, "sample", keep)
    run(dqn, 260)
    progress = [
        0.2,
        *(min(steps / 200, 1) for steps in range(40, 241, 20)),
    ]  # the first minibatch is drawn after acting
    assert betas == pytest.approx([0.4 + 0.6 * p for p in progress])


def test_rainbow_is_c51_with_all_switches_on(compose: Compose) -> None:
    rainbow = compose("algo=rainbow", "env=breakout", "tuned=none")["algo"]
    assert rainbow["_target_"].endswith("C51")
    assert (rainbow["double"], rainbow["dueling"]) == (True, True)
    assert rainbow["n_steps"] > 1
    assert None not in (rainbow["priority_alpha"], rainbow["noisy_sigma"])
    assert rainbow["epsilon_start"] == rainbow["epsilon_end"] == 0


def test_the_optimizer_is_the_one_that_is_named(make_agent: MakeAgent) -> None:
    assert isinstance(make_dqn(make_agent).optimizer, Adam)
    centered = make_dqn(make_agent, "algo.optimizer_name=rmsprop_centered").optimizer
    assert isinstance(centered, RMSpropTF)
    assert centered.defaults["centered"]


TUNED = sorted(
    path.stem
    for path in (conf_folder() / "tuned").glob("*.yaml")
    if any(name in path.stem for name in ("dqn", "c51", "rainbow", "iqn", "pqn"))
)


@pytest.mark.parametrize("tuned", TUNED)
def test_every_tuned_file_composes_and_builds(tuned: str, make_agent: MakeAgent) -> None:
    algo, _, family = tuned.rpartition("_")
    game = {
        **dict.fromkeys(("atari", "nature", "dopamine"), "breakout"),
        "minatar": "minatar_breakout",
        "gym": "cartpole",
    }
    small = "algo.num_envs=2" if algo == "pqn" else "algo.buffer_size=2000"
    agent = make_agent(f"algo={algo}", f"env={game.get(family, family)}", f"tuned={tuned}", small)
    obs = torch.from_numpy(np.stack([agent.algorithm.setup.obs_space.sample()]))
    action, _ = agent.algorithm.act(obs, None, torch.ones(1, dtype=torch.bool))
    assert action.shape == (1,)
    agent.close()


@pytest.mark.parametrize("algo", ["dqn", "c51", "rainbow", "qr_dqn", "iqn", "pqn"])
def test_a_tuned_file_lets_no_exploration_rise(algo: str, compose: Compose) -> None:
    """Numbers come from the families that an algorithm belongs to: they must not undo what it is."""
    for env in ("cartpole", "acrobot", "mountaincar", "breakout"):
        numbers = compose(f"algo={algo}", f"env={env}")["algo"]
        assert numbers["epsilon_end"] <= numbers["epsilon_start"], env
