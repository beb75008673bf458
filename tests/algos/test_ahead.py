"""algo.overlap=true: each rollout is collected during the update before it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlrun.algos.ppo import PPO
from rlrun.build import Agent, build_agent
from rlrun.errors import UserError
from rlrun.room import estimate

MakeAgent = Callable[..., Agent]
SMALL = ("tuned=none", "algo=ppo", "env=cartpole", "network.hidden=[16]", "algo.num_envs=2", "algo.num_steps=16")
KINDS = {
    "separate torsos": (),
    "shared torso": ("algo.share_torso=true",),
    "lstm": ("network=lstm", "network.lstm_size=8"),
    "normalised": ("env.normalize_obs=true", "env.normalize_reward=true"),
}


def make(make_agent: MakeAgent, *overrides: str, overlap: bool = True) -> PPO:
    options = ("algo.batch_size=16", "algo.learning_rate=1e-2", f"algo.overlap={str(overlap).lower()}", *overrides)
    algorithm = make_agent(*SMALL, *options).algorithm
    assert isinstance(algorithm, PPO)
    return algorithm


def weights(ppo: PPO) -> Tensor:
    return torch.cat([p.detach().flatten() for p in ppo.net.parameters()])


def test_every_rollout_but_the_first_is_of_the_policy_one_update_ago(make_agent: MakeAgent) -> None:
    ppo, judge = make(make_agent), make(make_agent).net
    policies = []  # at the beginning of each step
    for k in range(5):
        policies.append({name: tensor.clone() for name, tensor in ppo.net.state_dict().items()})
        ppo.step()
        judge.load_state_dict(policies[max(0, k - 1)])
        with torch.no_grad():
            policy, value = judge(ppo.batch["obs"].flatten(0, 1))
        log_prob = policy.log_prob(ppo.batch["action"].flatten())
        torch.testing.assert_close(ppo.batch["log_prob"].flatten(), log_prob)
        torch.testing.assert_close(ppo.batch["value"].flatten(), value)


def test_what_is_learned_from_is_left_alone_meanwhile(make_agent: MakeAgent) -> None:
    ppo = make(make_agent)
    ppo.step()
    assert ppo.ahead is not None
    ahead = {name: column.clone() for name, column in ppo.ahead.batch.items()}
    ppo.step()
    assert ppo.batch.keys() == ahead.keys()
    assert all(torch.equal(ppo.batch[name], ahead[name]) for name in ahead)
    assert not torch.equal(ppo.batch["obs"], ppo.ahead.batch["obs"])


def test_the_rollout_that_is_ahead_counts_as_steps(make_agent: MakeAgent) -> None:
    ppo = make(make_agent)
    assert [float(ppo.step()["train/n_updates"]) for _ in range(3)] == [4, 8, 12]
    assert ppo.steps == 4 * 32


def test_without_overlap_nothing_is_ahead(make_agent: MakeAgent) -> None:
    ppo = make(make_agent, overlap=False)
    ppo.step()
    assert ppo.ahead is None
    assert ppo.steps == 32


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_run_goes_on_bit_for_bit(
    kind: str, make_agent: MakeAgent, through_disk: Callable[[Any], Any]
) -> None:
    undisturbed, killed = make(make_agent, *KINDS[kind]), make(make_agent, *KINDS[kind], "seed=1")
    for _ in range(3):
        undisturbed.step()
    killed.step()
    killed.load_state_dict(through_disk(undisturbed.state_dict()))
    for _ in range(3):
        metrics = [{name: float(value) for name, value in ppo.step().items()} for ppo in (undisturbed, killed)]
        assert metrics[0] == metrics[1]
    assert torch.equal(weights(undisturbed), weights(killed))


def test_a_compiled_network_is_refused(make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=r"algo\.overlap=true .* device\.compile=true"):
        make(make_agent, "device.compile=true")


def test_a_checkpoint_is_known_to_hold_the_rollout(compose: Callable[..., dict[str, Any]]) -> None:
    def needed(*overrides: str) -> int:
        config = compose(*SMALL, "algo.batch_size=32", "algo.num_steps=2000", *overrides)
        return estimate(build_agent(config).algorithm, config).checkpoint

    assert needed("algo.overlap=true") - needed("algo.overlap=false") > 2 * 2000 * 4 * 4  # float32 observations alone


def test_an_error_of_the_environment_ends_the_step(make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    ppo = make(make_agent)
    ppo.step()

    def broken(action: Any) -> None:
        raise ValueError("the pole is gone")

    monkeypatch.setattr(ppo.collector.envs, "step", broken)
    with pytest.raises(ValueError, match="the pole is gone"):
        ppo.step()


def test_a_policy_from_elsewhere_plays_from_the_first_rollout_on(make_agent: MakeAgent) -> None:
    teacher, pupil = make(make_agent, "seed=3"), make(make_agent)
    pupil.warm_start(teacher.policy_state_dict())
    pupil.step()
    with torch.no_grad():
        policy, _ = teacher.net(pupil.batch["obs"].flatten(0, 1))
    torch.testing.assert_close(pupil.batch["log_prob"].flatten(), policy.log_prob(pupil.batch["action"].flatten()))
