"""Stable-Baselines3's side: `learn` without a logger, in a process that runs this module.

    python -m benchmarking.sb3 speed WORK SEED WARM_UP SECONDS THREADS
    python -m benchmarking.sb3 target WORK SEED STEPS THREADS
    python -m benchmarking.sb3 first_step SEED

It prints its numbers as JSON. THREADS: torch's, 0 for as many as torch chooses.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarking import FIRST_STEP_ID, STEPPED
from benchmarking.goals import Sample
from benchmarking.processes import Mark, Window, run, steady_speed
from benchmarking.works import WORKS, Settings, Target, Training

EPISODES = 100  # in SB3's buffer of the latest ones

OFF_POLICY_NAMES = {
    "train_every": "train_freq",
    "num_updates": "gradient_steps",
    "batch_size": "batch_size",
    "buffer_size": "buffer_size",
    "learning_starts": "learning_starts",
    "learning_rate": "learning_rate",
    "gamma": "gamma",
}
SAC_NAMES = {**OFF_POLICY_NAMES, "tau": "tau"}
DQN_NAMES = {
    **OFF_POLICY_NAMES,
    "target_every": "target_update_interval",
    "max_grad_norm": "max_grad_norm",
}
PPO_NAMES = {
    "num_steps": "n_steps",
    "batch_size": "batch_size",
    "num_epochs": "n_epochs",
    "gamma": "gamma",
    "gae_lambda": "gae_lambda",
    "entropy_coef": "ent_coef",
    "value_coef": "vf_coef",
    "max_grad_norm": "max_grad_norm",
}


# --- As the benchmark asks for it -----------------------------------------------------------------------


def speed(name: str, window: Window, seed: int, threads: int) -> Sample:
    """Train in a new process; return the steady steps per second and the memory."""
    ended = run("benchmarking.sb3", ["speed", name, *map(str, (seed, window.warm_up, window.seconds, threads))])
    return {"value": float(ended.last_line), "memory_gb": ended.memory_gb}


def seconds_to(name: str, total_steps: int, seed: int, threads: int) -> Sample:
    """Train in a new process; return seconds and steps of training until the target, infinite if never."""
    ended = run("benchmarking.sb3", ["target", name, *map(str, (seed, total_steps, threads))])
    reached = json.loads(ended.last_line)
    return {key: math.inf if value is None else value for key, value in reached.items()}


def first_step(seed: int) -> Sample:
    """Return the seconds from the command to the first step of an environment."""
    return {"value": run("benchmarking.sb3", ["first_step", str(seed)], expected=STEPPED).seconds}


# --- In the process of its own --------------------------------------------------------------------------


def main(kind: str, *arguments: str) -> None:
    if kind == "first_step":
        take_first_step(int(arguments[0]))
    name, seed, *numbers, threads = arguments
    if int(threads):
        import torch

        torch.set_num_threads(int(threads))
    work = WORKS[name]
    if isinstance(work, Training):
        warm_up, seconds = map(float, numbers)
        print(speed_here(work, Window(seconds, warm_up), int(seed)))
    elif isinstance(work, Target):
        print(json.dumps(reach(replace(work, total_steps=int(numbers[0])), int(seed))))


def take_first_step(seed: int) -> None:
    """Begin to train; the environment ends the process."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    import benchmarking.first_step  # noqa: F401  (registers the environment)

    PPO("MlpPolicy", make_vec_env(FIRST_STEP_ID, 1, seed), seed=seed).learn(1)


def speed_here(work: Training, window: Window, seed: int) -> float:
    """Return SB3's steady steps per second."""
    marks = learn(work, seed, lambda marks, _: marks[-1][0] >= window.warm_up + window.seconds)
    return steady_speed(marks, window.warm_up)


def reach(work: Target, seed: int) -> dict[str, float | None]:
    """Return seconds and steps until the mean return of the last 100 training episodes is the target; None if never."""
    hits: list[Mark] = []

    def reached(marks: list[Mark], model: Any) -> bool:
        returns = [episode["r"] for episode in model.ep_info_buffer or ()]
        if len(returns) == EPISODES and sum(returns) / EPISODES >= work.target:
            hits.append(marks[-1])
        return bool(hits)

    learn(work, seed, reached)
    seconds, steps = hits[0] if hits else (None, None)
    return {"value": seconds, "steps": steps}


def learn(work: Training | Target, seed: int, over: Callable[[list[Mark], Any], bool]) -> list[Mark]:
    """Train until `over` says so of the marks, at the start of an iteration; return these, one for each iteration."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Clock(BaseCallback):
        """Note time and steps at each iteration's start, when the update before it is done."""

        def __init__(self) -> None:
            super().__init__()
            self.marks: list[Mark] = []
            self.over = False

        def _on_training_start(self) -> None:
            self.started = time.perf_counter()

        def _on_rollout_start(self) -> None:
            self.marks.append((time.perf_counter() - self.started, self.num_timesteps))
            self.over = over(self.marks, self.model)

        def _on_step(self) -> bool:
            return not self.over

    clock = Clock()
    model = make_model(work, seed)
    model.learn(work.total_steps, callback=clock)
    if not clock.over:  # the last update has no iteration after it
        clock._on_rollout_start()
    return clock.marks


def make_model(work: Training | Target, seed: int) -> Any:
    from stable_baselines3 import DQN, PPO, SAC

    algorithm, arguments = {
        "dqn": (DQN, dqn_arguments),
        "ppo": (PPO, ppo_arguments),
        "sac": (SAC, sac_arguments),
    }[work.algo]
    envs = make_envs(work, seed)
    policy = "CnnPolicy" if work.env == "breakout" else "MlpPolicy"
    return algorithm(policy, envs, seed=seed, policy_kwargs=network(work), **arguments(work))


def network(work: Training | Target) -> dict[str, Any] | None:
    if work.env == "breakout":
        return None
    from torch import nn

    return {"net_arch": list(work.hidden), "activation_fn": {"tanh": nn.Tanh, "relu": nn.ReLU}[work.activation]}


def make_envs(work: Training | Target, seed: int) -> Any:
    """Return SB3's usual vector environment: one after the other, in this process."""
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

    num_envs = work.settings["num_envs"]
    if work.env == "cartpole":
        return make_vec_env("CartPole-v1", num_envs, seed, vec_env_cls=DummyVecEnv)
    if work.env == "halfcheetah":
        envs = make_vec_env("HalfCheetah-v5", num_envs, seed, vec_env_cls=DummyVecEnv)
        return VecNormalize(envs) if work.algo == "ppo" else envs  # as rlrun's tuned file does
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    games = make_atari_env("BreakoutNoFrameskip-v4", num_envs, seed, vec_env_cls=DummyVecEnv)
    return VecTransposeImage(VecFrameStack(games, 4))


def ppo_arguments(work: Training | Target) -> dict[str, Any]:
    """Return the settings as SB3 takes them."""
    settings = work.settings
    return {
        **{theirs: settings[ours] for ours, theirs in PPO_NAMES.items()},
        "learning_rate": schedule(settings, "learning_rate"),
        "clip_range": schedule(settings, "clip_range"),
        "clip_range_vf": schedule(settings, "clip_range") if settings["clip_value"] else None,
    }


def sac_arguments(work: Training | Target) -> dict[str, Any]:
    return {theirs: work.settings[ours] for ours, theirs in SAC_NAMES.items()}


def dqn_arguments(work: Training | Target) -> dict[str, Any]:
    fraction = work.settings["epsilon_steps"] / work.total_steps
    return {**{theirs: work.settings[ours] for ours, theirs in DQN_NAMES.items()}, "exploration_fraction": fraction}


def schedule(settings: Settings, key: str) -> Any:
    """Return the number, or where it changes a function of the part of the training that is left."""
    start, end = settings[key], settings[f"{key}_end"]
    return start if start == end else lambda left: end + (start - end) * left


if __name__ == "__main__":
    main(*sys.argv[1:])
