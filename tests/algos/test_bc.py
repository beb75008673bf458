"""Cloning: what is learned from an expert, whoever that is, and that its own run is not needed any more."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from harness import rlrun, rlrun_here, the_run

import rlrun as package
from rlrun.algos.bc import BC
from rlrun.build import Agent
from rlrun.envs import scripts
from rlrun.errors import UserError

MakeAgent = Callable[..., Agent]
Disk = Callable[[Any], Any]
SMALL = ("algo=bc", "network.hidden=[16]", "algo.num_envs=4", "algo.num_steps=16", "algo.batch_size=32")
SHORT = ["log.console=false", "eval.episodes=2", "eval.final_episodes=3", "log.tensorboard=false", "device.threads=1"]
SOURCE = ["algo=ppo", "tuned=none", "network.hidden=[8]", "algo.num_envs=2", "algo.num_steps=32", "algo.batch_size=64"]


class TwoChoices(gymnasium.Env):
    """Twice 3 and twice 2 choices in a 2 x 2 observation; nothing matters."""

    observation_space = spaces.Box(-1, 1, (2, 2), np.float32)
    action_space = spaces.MultiDiscrete([3, 2], start=[1, 0])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action)), action
        return self._look(), 0.0, bool(self.np_random.random() < 0.1), False, {}

    def _look(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)


class Grid(TwoChoices):
    action_space = spaces.Box(-0.5, 0.5, (2, 2), np.float32)  # type: ignore[assignment]


def chosen(obs: np.ndarray) -> np.ndarray:
    """Return actions of TwoChoices that can be learned."""
    return np.stack([1 + (obs[:, 0, 0] > 0) + (obs[:, 0, 1] > 0), obs[:, 1, 0] > 0], axis=1).astype(int)


def copied(obs: np.ndarray) -> np.ndarray:
    return obs


def bc(make_agent: MakeAgent, *options: str) -> BC:
    algorithm = make_agent(*SMALL, "env=cartpole", "total_steps=1_000_000", *options).algorithm
    assert isinstance(algorithm, BC)
    algorithm.begin(new=True)
    return algorithm


@pytest.fixture(autouse=True)
def environments() -> Iterator[None]:
    for cls in (TwoChoices, Grid):
        gymnasium.register(f"{cls.__name__}-v0", cls)
    yield
    for cls in (TwoChoices, Grid):
        del gymnasium.registry[f"{cls.__name__}-v0"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PPO run that normalises observations and has hardly learned anything; its policy is nearly uniform."""
    folder = tmp_path_factory.mktemp("source")
    options = ["env=cartpole", "total_steps=256", "env.normalize_obs=true", "eval.every=100", *SHORT]
    done = rlrun_here([*SOURCE, *options], folder)
    assert done.returncode == 0, done.stderr
    return the_run(folder)


# --- What is learned ------------------------------------------------------------------------------------


def test_a_clone_comes_to_do_what_the_script_does(make_agent: MakeAgent) -> None:
    algorithm = bc(make_agent)
    accuracies = [float(algorithm.step()["train/accuracy"]) for _ in range(100)]
    assert np.mean(accuracies[:2]) < 0.8
    assert np.mean(accuracies[-20:]) > 0.9
    batch = algorithm.collector.collect(algorithm.policy, 200)
    action, _ = algorithm.act(batch["obs"].flatten(0, 1), None, torch.zeros(800, dtype=torch.bool))
    assert (action == batch["wanted"].flatten()).float().mean() > 0.9


@pytest.mark.parametrize(("env_id", "script"), [("TwoChoices-v0", "chosen"), ("Grid-v0", "copied")])
def test_several_choices_and_tables_of_numbers_are_cloned(env_id: str, script: str, make_agent: MakeAgent) -> None:
    algorithm = bc(make_agent, "env=gym", f"env.id={env_id}", f"algo.expert={__name__}.{script}")
    for _ in range(80):
        metrics = algorithm.step()
    obs = np.random.default_rng(0).uniform(-1, 1, (500, 2, 2)).astype(np.float32)
    with torch.no_grad():
        action, _ = algorithm.act(torch.from_numpy(obs), None, torch.zeros(500, dtype=torch.bool))
    if script == "chosen":
        assert float(metrics["train/accuracy"]) > 0.85
        assert (action.numpy() + np.array([1, 0]) == chosen(obs)).mean() > 0.85
    else:
        assert float(metrics["train/mse"]) < 0.01  # of what is executed: beyond the bounds there is nothing to copy
        wanted = obs.reshape(500, 4).clip(-0.5, 0.5)
        assert np.square(action.numpy().clip(-0.5, 0.5) - wanted).mean() < 0.01


def test_with_a_fixed_deviation_the_gradient_is_that_of_the_squared_error(make_agent: MakeAgent) -> None:
    algorithm = bc(make_agent, "env=pendulum", "algo.log_std_init=-0.5")
    algorithm.step()
    data = {"obs": torch.randn(32, 3), "wanted": torch.randn(32, 1)}
    weights = [p for p in algorithm.net.parameters() if p.requires_grad]
    loss, _ = algorithm.loss(data)
    error = (algorithm.net.distribution(data["obs"]).mode() - data["wanted"]).square().sum(-1).mean()
    scaled = 0.5 * error * float(np.exp(1.0))  # 1 / sigma^2
    ours, expected = (torch.autograd.grad(x, weights, allow_unused=True) for x in (loss, scaled))
    assert sum(g is not None for g in expected) == 4
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("learn_std", [False, True])
def test_the_deviation_is_learned_only_if_asked(learn_std: bool, make_agent: MakeAgent) -> None:
    algorithm = bc(make_agent, "env=pendulum", f"algo.learn_std={str(learn_std).lower()}", "algo.learning_rate=0.01")
    for _ in range(30):
        algorithm.step()
    log_std = algorithm.net.policy_head.log_std.item()
    assert log_std < -0.2 if learn_std else log_std == 0.0


# --- Who acts -------------------------------------------------------------------------------------------


def test_the_expert_alone_acts_by_default(make_agent: MakeAgent) -> None:
    algorithm = bc(make_agent)
    algorithm.step()
    expected = scripts.cartpole(algorithm.batch["obs"].flatten(0, 1).numpy())
    assert (algorithm.batch["action"].flatten().numpy() == expected).all()
    assert torch.equal(algorithm.batch["action"], algorithm.batch["wanted"])


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_the_clone_acts_on_its_share_of_the_steps_and_is_told_what_the_expert_would_do(
    beta: float, make_agent: MakeAgent
) -> None:
    algorithm = bc(make_agent, f"algo.beta={beta}", "algo.num_steps=400", "algo.batch_size=1600")
    with torch.no_grad():  # the clone always pushes to the right, the expert to the left or the right
        algorithm.net.policy_head.logits.bias.copy_(torch.tensor([-100.0, 100.0]))
    batch = algorithm.collector.collect(algorithm.policy, 400)
    expected = torch.from_numpy(scripts.cartpole(batch["obs"].flatten(0, 1).numpy())).view(400, 4)
    assert torch.equal(batch["wanted"], expected)
    left = batch["wanted"] == 0
    assert left.sum() > 100
    assert float((batch["action"][left] == 0).float().mean()) == pytest.approx(beta, abs=0.08)


def test_the_expert_sees_raw_observations_and_the_clone_normalised_ones(make_agent: MakeAgent) -> None:
    algorithm = bc(make_agent, "env.normalize_obs=true")
    seen: list[np.ndarray] = []
    act = algorithm.teacher.act
    algorithm.teacher.act = lambda obs, *rest: (seen.append(obs.copy()), act(obs, *rest))[1]  # type: ignore[method-assign]
    algorithm.step()
    raw, stored = np.stack(seen), algorithm.batch["obs"].numpy()
    assert (np.abs(raw[0]) <= 0.05).all()
    assert np.abs(stored).max() > 1
    assert (algorithm.batch["wanted"].numpy() == (raw[..., 2] >= 0)).all()


def test_a_stored_policy_is_imitated_as_it_acts_by_itself(source: Path, make_agent: MakeAgent) -> None:
    algorithm = bc(make_agent, f"algo.expert='{source}'", "algo.expert_checkpoint=last")
    algorithm.step()
    run = package.load(source, "last")
    obs = algorithm.batch["obs"].flatten(0, 1).numpy()  # raw here, and normalised by the run's own statistics there
    assert [run.act(row) for row in obs] == algorithm.batch["wanted"].flatten().tolist()
    assert algorithm.batch["wanted"].float().mean() not in (0.0, 1.0)


def test_a_sampling_expert_draws_from_generators_of_its_own(source: Path, make_agent: MakeAgent) -> None:
    options = (f"algo.expert='{source}'", "algo.expert_greedy=false")
    batches = []
    for seed in (1, 2):
        algorithm = bc(make_agent, *options)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        batch = algorithm.collector.collect(algorithm.policy, 16)
        assert torch.equal(torch.get_rng_state(), before)
        batches.append({name: batch[name].clone() for name in ("obs", "wanted")})
    assert torch.equal(batches[0]["wanted"], batches[1]["wanted"])
    greedy = bc(make_agent, f"algo.expert='{source}'")
    first = torch.zeros(64, dtype=torch.bool)
    mode, _ = greedy.teacher.act(batches[0]["obs"].flatten(0, 1).numpy(), None, first)
    assert not torch.equal(mode, batches[0]["wanted"].flatten())


def test_samples_of_an_expert_that_draws_none_are_refused(tmp_path: Path, make_agent: MakeAgent) -> None:
    small = ["env=cartpole", "total_steps=64", "tuned=none", "eval.final_episodes=1", "log.console=false"]
    done = rlrun(["algo=dqn", *small], tmp_path)
    assert done.returncode == 0, done.stderr
    with pytest.raises(UserError, match=r"algo.expert_greedy=false: the policy of .* draws nothing"):
        bc(make_agent, f"algo.expert='{the_run(tmp_path)}'", "algo.expert_greedy=false").begin(new=True)


# --- State ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["algo.expert_greedy=false", "algo.beta=0.5"]])
def test_a_restored_clone_goes_on_bit_for_bit_without_the_experts_run(
    options: list[str], source: Path, tmp_path: Path, make_agent: MakeAgent, through_disk: Disk
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "expert" / "seed=0"))
    options = [f"algo.expert='{copy}'", *options]
    undisturbed = bc(make_agent, *options)
    undisturbed.step()
    state = through_disk(undisturbed.state_dict())
    shutil.rmtree(copy)
    restored = make_agent(*SMALL, "env=cartpole", "total_steps=1_000_000", *options).algorithm
    assert restored.begin(new=False) == {}
    restored.load_state_dict(state)
    for _ in range(3):
        expected, actual = undisturbed.step(), restored.step()
        assert {k: float(v) for k, v in expected.items()} == {k: float(v) for k, v in actual.items()}
    for one, other in zip(undisturbed.net.parameters(), restored.networks()["net"].parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_expert_plays_on_the_device_that_its_pupil_goes_on_on(
    source: Path, make_agent: MakeAgent, through_disk: Disk
) -> None:
    begun = bc(make_agent, f"algo.expert='{source}'")
    state = through_disk(begun.state_dict())
    state["teacher"]["config"]["device"]["kind"] = "cuda"  # where it began, and none is here
    restored = make_agent(*SMALL, "env=cartpole", "total_steps=1_000_000", f"algo.expert='{source}'").algorithm
    assert isinstance(restored, BC)
    restored.load_state_dict(state)
    assert restored.teacher.agent.device.kind == "cpu"  # type: ignore[attr-defined]
    restored.step()


def test_a_clones_run_records_its_expert_and_outlives_it(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "expert" / "seed=0"))
    done = rlrun(["algo=bc", "env=cartpole", "total_steps=1024", f"algo.expert={copy}", *SHORT], tmp_path)
    assert done.returncode == 0, done.stderr
    run = the_run(tmp_path / "outputs")
    origin = json.loads((run / "run.json").read_text())["origins"]["algo.expert"]
    best = max(copy.glob("checkpoints/best-*.json"), key=lambda path: int(path.stem.removeprefix("best-")))
    assert (origin["run"], origin["checkpoint"]) == (str(copy), "best")
    assert origin["sha256"] == json.loads(best.read_text())["sha256"]

    shutil.rmtree(copy)
    assert rlrun_here(["eval", str(run), "episodes=2"], tmp_path).returncode == 0
    again = rlrun_here(["resume", str(run), "total_steps=2048"], tmp_path)
    assert again.returncode == 0, again.stderr
    refused = rlrun_here(["algo=bc", "env=cartpole", "name=x", f"algo.expert={copy}", *SHORT], tmp_path)
    assert refused.returncode == 2
    assert f"algo.expert={copy}" in refused.stderr
    assert "does not exist" in refused.stderr


# --- Bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["algo.expert=cartpol"], ["algo.expert=cartpol does not exist", "Did you mean cartpole", "folder of a run"]),
        (["env=taxi"], ["algo.expert=null", "Taxi-v4"]),
        (["algo.expert=no/run"], ["algo.expert=no/run", "does not exist"]),
        (["algo.expert=no_such.script"], ["algo.expert=no_such.script", "cannot be imported"]),
        (["algo.expert=acrobot"], ["algo.expert=acrobot fails: IndexError"]),
        (["algo.beta=1.5"], ["algo.beta=1.5", "[0, 1]"]),
        (["algo.batch_size=3"], ["algo.batch_size=3 must divide"]),
    ],
)
def test_who_is_no_expert_is_refused_by_name(options: list[str], expected: list[str], make_agent: MakeAgent) -> None:
    with pytest.raises(UserError) as raised:
        bc(make_agent, *options)
    for fragment in expected:
        assert fragment in str(raised.value)


def test_an_expert_of_another_environment_is_refused_with_both_spaces(source: Path, make_agent: MakeAgent) -> None:
    with pytest.raises(UserError) as raised:
        bc(make_agent, "env=acrobot", f"algo.expert='{source}'")
    assert "learned on env=cartpole" in str(raised.value)
    assert "Discrete(3)" in str(raised.value)


def test_a_refused_expert_leaves_nothing_behind(tmp_path: Path) -> None:
    done = rlrun_here(["algo=bc", "env=cartpole", "algo.expert=outputs/none/seed=0", *SHORT], tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert list(tmp_path.iterdir()) == []
