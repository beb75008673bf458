"""What SAC, DDPG and TD3 share: the loop, the replay, resuming."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_off_policy import ALGOS, SMALL, Compose, MakeAgent, check_exact_resume, first, make, run, weights

from rlrun.algos.off_policy import OffPolicy
from rlrun.build import build_agent
from rlrun.config import conf_folder
from rlrun.errors import UserError
from rlrun.exported_policy import ExportedPolicy

CONTINUOUS = [name for name, env in ALGOS.items() if env == "pendulum"]


class Odd(gymnasium.Env):
    """Actions of an odd shape between odd bounds; it complains of any other."""

    observation_space = spaces.Dict({"n": spaces.Discrete(3), "x": spaces.Box(-1, 1, (2,), np.float32)})
    action_space = spaces.Box(np.array([[0, 1, -5]] * 2, np.float32), np.array([[0.5, 9, -4.9]] * 2, np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return {"n": 1, "x": np.zeros(2, np.float32)}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return (
            {"n": 2, "x": np.ones(2, np.float32)},
            float(action.sum()),
            False,
            bool(self.np_random.random() < 0.1),
            {},
        )


class Boundless(Odd):
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


gymnasium.register("OddBox-v0", entry_point=lambda **_: Odd())
gymnasium.register("Boundless-v0", entry_point=lambda **_: Boundless())


# --- The loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGOS)
@pytest.mark.parametrize(("train_every", "num_envs", "num_updates"), [(1, 1, 1), (4, 2, 3), (16, 4, 8)])
def test_updates_are_as_many_as_asked_for(
    train_every: int, num_envs: int, num_updates: int, name: str, make_agent: MakeAgent
) -> None:
    numbers = (f"algo.train_every={train_every}", f"algo.num_envs={num_envs}", f"algo.num_updates={num_updates}")
    algorithm = run(make(make_agent, name, *numbers), 96)
    assert algorithm.steps == 96
    assert algorithm.updates == sum(step >= 40 for step in range(train_every, 97, train_every)) * num_updates


@pytest.mark.parametrize("name", ALGOS)
def test_the_warm_up_acts_uniformly_at_random_and_learns_nothing(name: str, make_agent: MakeAgent) -> None:
    algorithm = make(make_agent, name, "algo.learning_starts=400")
    before = {key: weights(net) for key, net in algorithm.networks().items()}
    while algorithm.steps < 399:
        assert algorithm.step()["train/n_updates"] == 0
    assert all(torch.equal(weights(net), before[key]) for key, net in algorithm.networks().items())
    actions = algorithm.replay.ring.read("action", np.arange(399)).ravel()
    low, high = (0, 1) if name == "discrete sac" else (-2, 2)
    assert low <= actions.min() < actions.max() <= high
    spread = 1 / 2 if name == "discrete sac" else 4 / math.sqrt(12)
    assert actions.mean() == pytest.approx((low + high) / 2, abs=5 * spread / math.sqrt(399))
    assert actions.std() == pytest.approx(spread, rel=0.1)
    assert algorithm.step()["train/n_updates"] == 1
    assert not torch.equal(weights(algorithm.networks()["critics"]), before["critics"])


@pytest.mark.parametrize("name", ALGOS)
def test_losses_are_finite_and_all_networks_learn(name: str, make_agent: MakeAgent) -> None:
    algorithm = make(make_agent, name)
    before = {key: weights(net) for key, net in algorithm.networks().items()}
    metrics = run(algorithm, 60).step()
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert {"train/loss", "train/critic_loss", "train/actor_loss", "train/n_updates"} <= metrics.keys()
    for key, net in algorithm.networks().items():
        assert not torch.equal(weights(net), before[key]), key


@pytest.mark.parametrize("name", CONTINUOUS)
def test_any_box_of_actions_is_stored_in_its_units_and_shape_and_played_within_bounds(
    name: str, make_agent: MakeAgent
) -> None:
    algorithm = run(make(make_agent, name, "env=gym", "env.id=OddBox-v0", "algo.num_envs=2", "algo.train_every=2"), 120)
    action = algorithm.replay.sample(16)["action"]
    assert action.shape == (16, 2, 3)
    space = algorithm.setup.action_space
    assert all(space.contains(a) for a in action.numpy().clip(space.low, space.high))  # type: ignore[attr-defined]
    low, high = (torch.from_numpy(b) for b in (space.low, space.high))  # type: ignore[attr-defined]
    assert bool(((action >= low - 1e-6) & (action <= high + 1e-6)).all())
    assert action.std(0).min() > 0


@pytest.mark.parametrize("name", ALGOS)
def test_a_warm_up_that_never_ends_is_told(name: str, make_agent: MakeAgent) -> None:
    assert make(make_agent, name).notices() == []
    idle = make(make_agent, name, "algo.learning_starts=500", "total_steps=500")
    assert idle.notices() == ["nothing will be learned: algo.learning_starts=500 and total_steps=500"]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_space_without_bounds_is_refused_with_a_way_out(name: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=r"squashed between bounds.*algo=ppo"):
        make(make_agent, name, "env=gym", "env.id=Boundless-v0")


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_network_for_images_is_refused_on_vectors_with_a_way_out(name: str, compose: Compose) -> None:
    small = [o for o in SMALL if not o.startswith("network.")]
    with pytest.raises(UserError, match=r"try network=mlp"):
        build_agent(compose(*small, f"algo={name}", "env=pendulum", "network=nature_cnn"))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_exploring_noise_goes_on_through_an_episode_and_begins_anew_with_the_next(
    name: str, make_agent: MakeAgent
) -> None:
    algorithm = make(make_agent, name, "algo.noise_correlation=1.0", "algo.learning_starts=0")
    obs = torch.zeros(500, 3)
    start, state = algorithm.policy(obs, None, first(500))
    again, state = algorithm.policy(obs, state, first(500))
    half = first(500)
    half[:250] = True
    anew, _ = algorithm.policy(obs, state, half)
    assert len(start["action"].unique()) > 400
    assert torch.equal(again["action"], start["action"])
    assert torch.equal(anew["action"][250:], start["action"][250:])
    assert not torch.isin(anew["action"][:250], start["action"][:250]).all()


# --- Acting and resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGOS)
def test_evaluation_plays_without_chance_and_what_is_exported_is_the_same(name: str, make_agent: MakeAgent) -> None:
    agent = make_agent(*SMALL, f"algo={name.split()[-1]}", f"env={ALGOS[name]}")
    algorithm = agent.algorithm
    assert isinstance(algorithm, OffPolicy)
    run(algorithm, 60)
    obs = torch.randn(50, 4 if ALGOS[name] == "cartpole" else 3)
    before = torch.get_rng_state(), algorithm.generator.get_state()
    action, state = algorithm.act(obs, None, first(50))
    assert state is None
    assert torch.equal(action, algorithm.act(obs, None, first(50))[0])
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], algorithm.generator.get_state())
    torch.testing.assert_close(ExportedPolicy(agent)(obs)[0], action)


@pytest.mark.parametrize("name", ALGOS)
def test_the_policy_alone_is_enough_to_act(
    name: str, make_agent: MakeAgent, through_disk: Callable[[Any], Any]
) -> None:
    trained = run(make(make_agent, name), 60)
    other, obs = make(make_agent, name, "seed=1"), torch.randn(50, 4 if ALGOS[name] == "cartpole" else 3)
    assert trained.policy_state_dict().keys() == {"actor"}
    other.load_policy_state_dict(through_disk(trained.policy_state_dict()))
    assert torch.equal(trained.act(obs, None, first(50))[0], other.act(obs, None, first(50))[0])


RESUMED = {
    "sac": ("algo.num_envs=2", "algo.train_every=4", "algo.noise_correlation=0.8", "env.normalize_obs=true"),
    "discrete sac": ("algo.train_every=2", "algo.num_updates=2", "env.normalize_reward=true"),
    "ddpg": ("algo.noise_correlation=0.5", "algo.num_updates=2"),
    "td3": ("algo.num_envs=2", "algo.train_every=2", "algo.policy_every=3"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_restored_run_goes_on_bit_for_bit(
    name: str, compose: Compose, through_disk: Callable[[Any], Any], tmp_path: Path
) -> None:
    def make_one(folder: str, seed: int) -> OffPolicy:
        numbers = (*SMALL, f"algo={name.split()[-1]}", f"env={ALGOS[name]}", "env.max_episode_steps=19")
        config = compose(*numbers, *RESUMED[name], f"seed={seed}", "algo.buffer_size=60")
        algorithm = build_agent(config, tmp_path / folder).algorithm
        torch.set_num_threads(1)
        assert isinstance(algorithm, OffPolicy)
        return algorithm

    check_exact_resume(make_one, through_disk, before=70)


# --- Values that cannot be ----------------------------------------------------------------------------------

BAD = {
    "num_envs=0": "at least 1",
    "train_every=0": "at least 1",
    "num_updates=0": "at least 1",
    "batch_size=0": "at least 1",
    "learning_starts=-1": "at least 0",
    "gamma=1.5": r"\[0, 1\]",
    "tau=2.0": r"\[0, 1\]",
    "learning_rate=-0.1": "at least 0",
    "critic_learning_rate=-0.1": "at least 0",
    "noise_correlation=1.1": r"\[0, 1\]",
}


@pytest.mark.parametrize("override", BAD)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_numbers_out_of_range_are_refused_by_key_and_value(name: str, override: str, make_agent: MakeAgent) -> None:
    shown = f"algo.{override}".replace(".", r"\.")
    with pytest.raises(UserError, match=f"{shown}.*{BAD[override]}"):
        make(make_agent, name, f"algo.{override}")


def test_environments_that_do_not_divide_the_steps_between_updates_are_refused(make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=r"algo\.train_every=4 .*num_envs = 3.*try 3$"):
        make(make_agent, "sac", "algo.train_every=4", "algo.num_envs=3")


@pytest.mark.parametrize("name", ALGOS)
def test_a_replay_that_could_never_give_a_minibatch_is_refused(name: str, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError, match=r"algo\.buffer_size=17 must hold"):
        make(make_agent, name, "algo.buffer_size=17")
    assert run(make(make_agent, name, "algo.buffer_size=18"), 80).updates > 0


TUNED = sorted(
    p.stem for p in (conf_folder() / "tuned").glob("*.yaml") if p.stem.split("_")[0] in ("sac", "td3", "ddpg")
)


@pytest.mark.parametrize("tuned", TUNED)
def test_every_tuned_file_composes_and_builds(tuned: str, make_agent: MakeAgent) -> None:
    algo, _, env = tuned.partition("_")
    example = {"gym": "pendulum", "mujoco": "halfcheetah", "box2d": "bipedalwalker", "atari": "breakout"}
    agent = make_agent(f"algo={algo}", f"env={example.get(env, env)}", f"tuned={tuned}", "algo.buffer_size=5000")
    obs = torch.from_numpy(np.stack([agent.algorithm.setup.obs_space.sample()]))
    action, _ = agent.algorithm.act(obs if obs.dtype == torch.uint8 else obs.float(), None, first(1))
    assert len(action) == 1
    agent.close()
