from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlrun.algos.pqn import PQN
from rlrun.build import Agent
from rlrun.errors import UserError

MakeAgent = Callable[..., Agent]
SMALL = (
    "tuned=none",
    "algo=pqn",
    "network.hidden=[16]",
    "network.layer_norm=true",
    "algo.num_envs=4",
    "algo.num_steps=8",
    "algo.batch_size=16",
)


def make_pqn(make_agent: MakeAgent, *overrides: str, env: str = "cartpole") -> PQN:
    algorithm = make_agent(*SMALL, f"env={env}", *overrides).algorithm
    assert isinstance(algorithm, PQN)
    return algorithm


def greedy_value(pqn: PQN, obs: Tensor) -> list[float]:
    return [max(row) for row in pqn.net(obs).squeeze(-1).tolist()]


def test_the_target_is_the_lambda_return_of_the_greedy_value(make_agent: MakeAgent) -> None:
    pqn = make_pqn(make_agent, "env.max_episode_steps=5", "algo.gamma=0.9", "algo.q_lambda=0.7")
    batch = pqn.collector.collect(pqn.policy, 8)
    target = pqn.learning_data(batch)["target"].view(8, 4).tolist()
    assert batch["truncated"].any()
    finals = dict(zip(batch["final_index"].tolist(), greedy_value(pqn, batch["final_obs"]), strict=True))
    for b in range(4):
        following = greedy_value(pqn, batch["next_obs"])[b]  # both the return and the value after the last step
        next_value = following
        for t in reversed(range(8)):
            if batch["truncated"][t, b]:
                following = next_value = finals[t * 4 + b]
            mixed = 0.7 * following + 0.3 * next_value
            bootstrap = 0.0 if batch["terminated"][t, b] else mixed
            following = float(batch["reward"][t, b]) + 0.9 * bootstrap
            assert target[t][b] == pytest.approx(following, rel=1e-4, abs=1e-5)
            next_value = greedy_value(pqn, batch["obs"][t])[b]


def test_the_loss_is_half_the_mean_squared_error(make_agent: MakeAgent) -> None:
    pqn = make_pqn(make_agent)
    data = pqn.learning_data(pqn.collector.collect(pqn.policy, 8))
    q = pqn.net(data["obs"]).squeeze(-1).tolist()
    errors = [float(y) - row[int(a)] for y, row, a in zip(data["target"], q, data["action"], strict=True)]
    assert float(pqn.loss(data).detach()) == pytest.approx(sum(e * e for e in errors) / 64, rel=1e-4)


def test_there_is_neither_a_replay_nor_a_target_network(make_agent: MakeAgent) -> None:
    pqn = make_pqn(make_agent)
    assert pqn.networks().keys() == {"net"}
    assert pqn.setup.replays == []
    assert any(isinstance(layer, nn.LayerNorm) for layer in pqn.net.modules())


def test_epsilon_and_learning_rate_fall_on_straight_lines(make_agent: MakeAgent) -> None:
    numbers = ("algo.epsilon_start=0.9", "algo.epsilon_end=0.1", "algo.epsilon_fraction=0.5", "algo.learning_rate=1e-3")
    pqn = make_pqn(make_agent, "total_steps=320", *numbers)
    for i in range(12):
        metrics, progress = pqn.step(), min(i / 10, 1)
        assert metrics["rollout/exploration_rate"] == pytest.approx(0.9 - 0.8 * min(progress / 0.5, 1))
        assert metrics["train/learning_rate"] == pytest.approx(1e-3 * (1 - progress))


def test_exploring_actions_are_as_frequent_as_epsilon(make_agent: MakeAgent) -> None:
    pqn = make_pqn(make_agent)
    greedy = torch.zeros(20_000, dtype=torch.int64)
    assert float(pqn.explore(greedy, 0.3, pqn.generator).float().mean()) == pytest.approx(0.15, abs=0.01)
    assert torch.equal(pqn.explore(greedy, 0.0, pqn.generator), greedy)


def test_greedy_actions_draw_no_random_number(make_agent: MakeAgent) -> None:
    pqn, obs = make_pqn(make_agent), torch.randn(50, 4)
    before = torch.get_rng_state(), pqn.generator.get_state()
    action, _ = pqn.act(obs, None, torch.ones(50, dtype=torch.bool))
    assert torch.equal(action, pqn.net(obs).squeeze(-1).argmax(1))
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], pqn.generator.get_state())


@pytest.mark.parametrize("env", ["cartpole", "acrobot"])
def test_a_restored_pqn_goes_on_bit_for_bit(
    env: str, make_agent: MakeAgent, through_disk: Callable[[Any], Any]
) -> None:
    def make(seed: int) -> PQN:
        return make_pqn(make_agent, f"seed={seed}", "env.max_episode_steps=9", "total_steps=500", env=env)

    def go_on(pqn: PQN) -> list[Any]:
        metrics = [{name: float(value) for name, value in pqn.step().items()} for _ in range(5)]
        return [metrics, [p.detach().numpy().tobytes() for p in pqn.net.parameters()]]

    undisturbed, restored = make(0), make(1)
    go_on(undisturbed)
    restored.load_state_dict(through_disk(undisturbed.state_dict()))
    assert go_on(restored) == go_on(undisturbed)


@pytest.mark.parametrize("network", ["nature_cnn", "impala_cnn"])
def test_it_plays_atari_on_any_network_for_images(network: str, make_agent: MakeAgent) -> None:
    numbers = ("algo.num_envs=2", "algo.num_steps=4", "algo.batch_size=8", "algo.num_epochs=1")
    agent = make_agent("algo=pqn", "env=breakout", f"network={network}", *numbers)
    assert "train/loss" in agent.algorithm.step()
    agent.close()


@pytest.mark.parametrize(
    "override", ["algo.gamma=1.5", "algo.q_lambda=-0.1", "algo.num_steps=0", "algo.epsilon_fraction=2.0"]
)
def test_numbers_out_of_range_are_refused_by_key_and_value(override: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=override.replace(".", "[.]").removesuffix("[.]0")):
        make_pqn(make_agent, override)


def test_a_batch_size_that_does_not_divide_the_rollout_is_refused_with_one_that_does(make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=r"algo\.batch_size=5 must divide .* = 32; try (\d+)") as caught:
        make_pqn(make_agent, "algo.batch_size=5")
    assert 32 % int(str(caught.value).rpartition(" ")[2]) == 0
