"""Policies without rlrun: what is exported does what the original does, or is refused with the reason."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from harness import rlrun_here, the_run
from safetensors.torch import load_file

import rlrun as package
from rlrun.build import Agent
from rlrun.checkpoint import Checkpoints
from rlrun.difference import first_difference
from rlrun.errors import RunFailed, UserError
from rlrun.export import as_safetensors, export, make_greedy
from rlrun.export_check import Check
from rlrun.exported_policy import ExportedPolicy, as_onnx
from rlrun.inspect_run import LoadedRun

MakeAgent = Callable[..., Agent]


class Odd(gymnasium.Env[Any, Any]):
    """Spaces with all that is unusual: float64 observations, actions that do not count from 0, bounded boxes."""

    observation_space = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
    action_spaces: ClassVar[dict[str, spaces.Space]] = {
        "discrete": spaces.Discrete(3, start=5),
        "multi": spaces.MultiDiscrete([2, 4], start=[1, 0]),
        "box": spaces.Box(-0.01, 0.02, (2, 2), np.float32),
    }

    def __init__(self, kind: str = "discrete") -> None:
        self.action_space = self.action_spaces[kind]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.steps += 1
        return self._obs(), float(np.sum(action)), self.steps == 20, False, {}

    def _obs(self) -> np.ndarray:
        return self.np_random.normal(3.0, 5.0, (2, 3))


gymnasium.register("Odd-v0", Odd)

ODD = ("env=gym", "env.id=Odd-v0")
SMALL_DQN = ("algo=dqn", "env=cartpole", "algo.buffer_size=1000")
AGENTS = {
    "ppo on a vector": ("env=cartpole",),
    "ppo on normalised vectors": ("env=pendulum", "env.normalize_obs=true"),
    "ppo on numbered states": ("env=frozenlake",),
    "ppo on frames, sampled": ("env=breakout", "env.max_frames=200", "network.hidden=16"),
    "actions that count from 5": (*ODD,),
    "several actions at once": (*ODD, "+env.kwargs.kind=multi"),
    "actions to be clipped and shaped": (*ODD, "+env.kwargs.kind=box", "env.normalize_obs=true"),
    "half precision": ("env=cartpole", "device.precision=bf16"),
    "dqn": SMALL_DQN,
    "dueling and noisy dqn": (*SMALL_DQN, "algo.dueling=true", "algo.noisy_sigma=0.5"),
    "dqn that also acts at random": (*SMALL_DQN, "algo.eval_epsilon=0.5"),
    "a distribution of returns": ("algo=c51", "env=cartpole", "algo.buffer_size=1000"),
}


def greedy_agent(make_agent: MakeAgent, *overrides: str) -> Agent:
    """Make an agent whose normaliser has seen something, as `export` loads it."""
    agent = make_agent(*overrides)
    agent.device.precision = "float32"
    moments = agent.normalizer.obs_moments
    if agent.spec.normalize_obs:
        shape = agent.algorithm.setup.obs_space.shape or ()
        agent.normalizer.update_obs(np.random.default_rng(0).normal(2.0, 3.0, (50, *shape)))
        assert np.any(moments.mean)
    make_greedy(agent.algorithm)
    return agent


def session_of(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


# --- The same policy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", AGENTS)
def test_the_exported_policy_does_what_the_original_does(case: str, make_agent: MakeAgent) -> None:
    agent = greedy_agent(make_agent, *AGENTS[case])
    policy = ExportedPolicy(agent)
    model = as_onnx(policy)
    check = Check(agent, policy, model)
    check.run(max_steps=40)
    assert len(check.returns) == len(check.exported_returns) == 3
    assert check.returns == pytest.approx(check.exported_returns, rel=1e-4)

    space: Any = agent.algorithm.setup.action_space
    session = session_of(model)
    chosen_by_scores = not isinstance(space, spaces.Box)
    assert (len(policy.names) > 1) is chosen_by_scores
    obs = policy.random_obs(5).numpy()
    for count in (1, 5):  # any number of observations
        action = session.run(["action"], {"obs": obs[:count]})[0]
        assert len(action) == count
        for a in action:
            assert space.contains(a)
    if policy.names == ["action", "scores"]:
        action, scores = session.run(None, {"obs": obs})
        np.testing.assert_array_equal(scores.argmax(-1) + int(space.start), action)


def test_another_policy_is_found_out(make_agent: MakeAgent) -> None:
    agent, other = (greedy_agent(make_agent, "env=pendulum", f"seed={seed}") for seed in (0, 1))
    policy = ExportedPolicy(agent)
    with pytest.raises(RunFailed, match="does not do as the original does"):
        Check(agent, policy, as_onnx(ExportedPolicy(other))).run(max_steps=5)


def test_a_choice_between_equal_scores_passes_and_any_other_does_not(make_agent: MakeAgent) -> None:
    agent = greedy_agent(make_agent, "env=cartpole")
    policy = ExportedPolicy(agent)
    check = Check(agent, policy, as_onnx(policy))
    tie = {"action": np.array([0]), "scores": np.array([[0.5, 0.5 + 1e-8]], np.float32)}
    check._compare_choices(np.array([1]), tie)
    assert check.num_ties == 1
    with pytest.raises(RunFailed, match="chooses action 0 instead of 1"):
        check._compare_choices(np.array([1]), {**tie, "scores": np.array([[0.4, 0.6]], np.float32)})


def test_weights_are_stored_once_under_the_names_that_load_them(make_agent: MakeAgent, tmp_path: Path) -> None:
    agent = make_agent("env=breakout", "network.hidden=16")  # Atari's PPO shares a torso between policy and value
    run = LoadedRun(path=tmp_path, config={}, agent=agent, step=0)
    (tmp_path / "policy.safetensors").write_bytes(as_safetensors(run))
    tensors = load_file(tmp_path / "policy.safetensors")
    weights = agent.algorithm.net.state_dict()  # type: ignore[attr-defined]
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in agent.algorithm.net.parameters())  # type: ignore[attr-defined]
    for name, tensor in tensors.items():
        assert torch.equal(tensor, weights[name.removeprefix("net.")])
    assert len(tensors) < len(weights)


# --- What cannot be exported ----------------------------------------------------------------------------


def test_what_is_no_function_of_one_observation_is_refused_with_the_reason(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = greedy_agent(make_agent, "env=cartpole")
    algorithm: Any = agent.algorithm
    act = type(algorithm).act
    cases = {
        "recurrent": lambda obs, state, first: (act(algorithm, obs, state, first)[0], torch.zeros(1)),
        "draws random numbers": lambda obs, state, first: (torch.randint(2, (len(obs),)), state),
    }
    for reason, changed in cases.items():
        with monkeypatch.context() as patched:
            patched.setattr(algorithm, "act", changed)
            with pytest.raises(UserError, match=f"PPO cannot be exported: .*{reason}"):
                ExportedPolicy(agent)
    monkeypatch.setattr(algorithm, "acting_networks", dict)
    with pytest.raises(UserError, match="a table or a script"):
        ExportedPolicy(agent)


def test_a_network_that_onnx_cannot_express_is_named(make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = greedy_agent(make_agent, "env=cartpole")
    policy = ExportedPolicy(agent)
    monkeypatch.setattr(policy, "act", lambda obs: (torch.tensor(np.linalg.svd(obs.numpy())[1]), None))
    with pytest.raises(UserError, match="PPO cannot be expressed as ONNX"):
        as_onnx(policy)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(UserError, match=r"needs onnx: pip install 'rlrun\[export\]'"):
        export([str(tmp_path)])


# --- The command ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    cadences = ["eval.every=500", "eval.episodes=3", "eval.final_episodes=4", "log.console=false"]
    done = rlrun_here(["env=cartpole", "total_steps=2000", "env.normalize_obs=true", *cadences], folder)
    assert done.returncode == 0, done.stderr
    return the_run(folder)


def snippet(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


def test_the_cards_own_program_plays_the_policy_without_rlrun(run: Path, tmp_path: Path) -> None:
    done = rlrun_here(["export", str(run)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "same actions" in done.stdout
    folder = run / "export"
    assert {p.name for p in folder.iterdir()} == {"policy.onnx", "policy.safetensors", "README.md", "config.yaml"}
    assert (folder / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    assert [p.name for p in run.glob(".*")] == [".lock"]

    program = snippet((folder / "README.md").read_text())
    assert "rlrun" not in program
    played = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert played.returncode == 0, played.stderr
    assert float(played.stdout) == return_of(run, seed=0)


def return_of(run: Path, seed: int) -> float:
    """Play one episode with the original policy, as the card's program does with the exported one."""
    loaded, env = package.load(run, "last"), gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(loaded.act(obs))
        total, over = total + float(reward), terminated or truncated
    return total


def test_the_card_says_what_the_policy_scores_and_where_it_comes_from(run: Path, tmp_path: Path) -> None:
    assert export([str(run), f"to={tmp_path / 'last'}"]) == 0
    card = (tmp_path / "last/README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    record = json.loads((run / "run.json").read_text())
    assert f"Return {result['mean_return']:.2f} (95% interval" in card
    assert "over 4 episodes, on seeds that neither trained nor chose it" in card
    for fact in (record["command"], record["packages"]["torch"], "| max_episode_steps | 500 |", "rlrun reproduce"):
        assert fact in card
    tensors = load_file(tmp_path / "last/policy.safetensors")
    state, _ = Checkpoints(run, keep=1).load(Checkpoints(run, keep=1).steps()[-1])
    stored = {f"net.{name}": tensor for name, tensor in state["algorithm"]["net"].items()}
    exported = {name: tensor for name, tensor in tensors.items() if not name.startswith("normalizer.")}
    assert first_difference(dict(sorted(stored.items())), dict(sorted(exported.items()))) is None
    assert tensors["normalizer.mean"].shape == (4,)


def test_the_best_policys_score_is_said_to_be_the_one_that_chose_it(run: Path, tmp_path: Path) -> None:
    assert export([str(run), "checkpoint=best", f"to={tmp_path / 'best'}"]) == 0
    card = (tmp_path / "best/README.md").read_text()
    assert "in the evaluation that chose it" in card
    assert "| policy | best, greedy |" in card
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    best = max(row["mean_return"] for row in evaluations)
    assert f"Return {best:.2f}" in card


def test_a_policy_that_was_scored_while_acting_at_random_says_so(tmp_path: Path) -> None:
    short = ["env=cartpole", "total_steps=200", "algo.eval_greedy=false", "eval.final_episodes=2", "log.console=false"]
    assert rlrun_here(short, tmp_path).returncode == 0
    assert export([str(the_run(tmp_path)), f"to={tmp_path / 'out'}"]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "also acts at random" in card
    assert "softmax(scores)" in card


def test_breakouts_card_plays_breakout(make_agent: MakeAgent, tmp_path: Path) -> None:
    from rlrun.model_card import snippet as program_of

    agent = greedy_agent(make_agent, "env=breakout", "env.max_frames=400", "network.hidden=16")
    (tmp_path / "policy.onnx").write_bytes(as_onnx(ExportedPolicy(agent)))
    program = program_of(LoadedRun(path=tmp_path, config={}, agent=agent, step=0))
    played = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert played.returncode == 0, played.stderr
    assert float(played.stdout) >= 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("checkpoint=7", "checkpoint=7 is not there"),
        ("too=x", "Did you mean to"),
        ("to=/proc/none", "to=/proc/none cannot be written"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(run: Path, argument: str, message: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "seed=0", ignore=shutil.ignore_patterns("export")))
    with pytest.raises(UserError, match=message):
        export([str(copy), argument])
    assert not (copy / "export").exists()
