"""Compare the speed of rlrun with Stable-Baselines3's, side by side in one run.

    pip install "rlrun[bench]"
    python scripts/compare_sb3.py --work ppo_cartpole,ppo_breakout,dqn_breakout --pairs 3 --seconds 20 --out speed.json

The same settings are given to both. Machines drift by a third over minutes, so the two take turns (A B A B
...), and the ratio is taken pair by pair. Each window is a process of its own, so that neither lives with the
other's allocator, threads or environment variables: rlrun's is the real command, logging to disk as it does;
SB3's is `learn` without a logger. Neither evaluates or writes checkpoints. The time to start and a
warm-up are left out on both sides. Of each side the most memory that its process held is noted, too.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

WARM_UP = 5.0  # seconds
TOTAL_STEPS = 10_000_000  # never reached: it only tells schedules where they end
NEVER = 10**12  # steps
PACKAGES = (
    "rlrun",
    "stable-baselines3",
    "torch",
    "numpy",
    "gymnasium",
    "ale-py",
    "opencv-python-headless",
    "mujoco",
)

# By rlrun's names. A number and its _end differ where it falls on a straight line.
Settings = dict[str, Any]
CARTPOLE: Settings = {  # SB3's defaults
    "num_envs": 1,
    "num_steps": 2048,
    "batch_size": 64,
    "num_epochs": 10,
    "learning_rate": 3e-4,
    "learning_rate_end": 3e-4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "clip_range_end": 0.2,
    "clip_value": False,
    "entropy_coef": 0.0,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
    "share_torso": False,
}
CARTPOLE_ZOO: Settings = {  # RL Baselines3 Zoo's
    **CARTPOLE,
    "num_envs": 8,
    "num_steps": 32,
    "batch_size": 256,
    "num_epochs": 20,
    "learning_rate": 1e-3,
    "learning_rate_end": 0.0,
    "gamma": 0.98,
    "gae_lambda": 0.8,
    "clip_range_end": 0.0,
}
BREAKOUT: Settings = {  # Schulman et al. (2017), Table 5, and Baselines' ppo2
    **CARTPOLE,
    "num_envs": 8,
    "num_steps": 128,
    "batch_size": 256,
    "num_epochs": 4,
    "learning_rate": 2.5e-4,
    "learning_rate_end": 0.0,
    "clip_range": 0.1,
    "clip_range_end": 0.1,
    "clip_value": True,
    "entropy_coef": 0.01,
    "share_torso": True,  # SB3's CnnPolicy always does, its MlpPolicy never does
}
DQN_BREAKOUT: Settings = {  # Mnih et al. (2015): a minibatch of 32 every 4 steps
    "num_envs": 1,
    "train_every": 4,
    "num_updates": 1,
    "batch_size": 32,
    "buffer_size": 100_000,
    "learning_starts": 100,
    "learning_rate": 1e-4,
    "gamma": 0.99,
    "target_every": 1_000,
    "max_grad_norm": 10.0,
    "epsilon_steps": 1_000,
}


SAC_HALFCHEETAH: Settings = {  # Haarnoja et al. (2018), Table 1; SB3's defaults
    "num_envs": 1,
    "train_every": 1,
    "num_updates": 1,
    "batch_size": 256,
    "buffer_size": 1_000_000,
    "learning_starts": 100,
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "tau": 0.005,
}
PPO_HALFCHEETAH: Settings = {  # Schulman et al. (2017), Table 3, as in Baselines and SB3
    **CARTPOLE,
    "clip_value": True,
}


@dataclass(frozen=True)
class Work:
    """What both sides train."""

    algo: str
    env: str
    settings: Settings
    hidden: tuple[int, ...] = (64, 64)  # of networks that are not convolutional
    activation: str = "tanh"


WORKS = {
    "ppo_cartpole": Work("ppo", "cartpole", CARTPOLE),
    "ppo_cartpole_zoo": Work("ppo", "cartpole", CARTPOLE_ZOO),
    "ppo_breakout": Work("ppo", "breakout", BREAKOUT),
    "dqn_breakout": Work("dqn", "breakout", DQN_BREAKOUT),
    "sac_halfcheetah": Work("sac", "halfcheetah", SAC_HALFCHEETAH, (256, 256), "relu"),
    "ppo_halfcheetah": Work("ppo", "halfcheetah", PPO_HALFCHEETAH),
}
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
SB3_NAMES = {
    "num_steps": "n_steps",
    "batch_size": "batch_size",
    "num_epochs": "n_epochs",
    "gamma": "gamma",
    "gae_lambda": "gae_lambda",
    "entropy_coef": "ent_coef",
    "value_coef": "vf_coef",
    "max_grad_norm": "max_grad_norm",
}


def main() -> None:
    options = parse_options()
    if options.sb3_window:
        use_threads(options.sb3_threads)
        print(sb3_window(WORKS[options.work[0]], options.seconds, options.seed))
        return
    results = {name: pairs_of(name, options) for name in options.work}
    print(markdown(results))
    if options.out is not None:
        measuring = {"seconds": options.seconds, "warm_up": WARM_UP, "sb3_threads": options.sb3_threads}
        report = {**facts(), **measuring, "work": results}
        options.out.write_text(json.dumps(report, indent=2) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--work", type=work_list, default=list(WORKS), help=f"some of {','.join(WORKS)}")
    parser.add_argument("--pairs", type=int, default=3, help="windows of each side (default 3)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a window (default 20)")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--sb3-threads", type=int, help="torch threads of SB3 (default: as torch chooses)")
    # One window of SB3, for this script's own subprocesses.
    parser.add_argument("--sb3-window", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pairs < 1 or options.seconds <= 0:
        parser.error(f"--pairs={options.pairs} --seconds={options.seconds}: expected at least 1, and more than 0")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out={options.out}: the folder {options.out.parent} does not exist")
    return options


def work_list(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in WORKS:
            raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(WORKS)}")
    return names


def pairs_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the steps per second of both sides in turn, and their ratios."""
    pairs = []
    for seed in range(options.pairs):
        load = os.getloadavg()[0]  # tells windows with a busy neighbour
        ours, our_memory = rlrun_window(WORKS[name], options.seconds, seed)
        theirs, their_memory = sb3_process(name, options, seed)
        memory = {"rlrun_gb": our_memory, "sb3_gb": their_memory}
        pairs.append({"rlrun": ours, "sb3": theirs, "ratio": ours / theirs, "load_before": load, **memory})
        progress = f"{name} {seed + 1}/{options.pairs}: rlrun {ours:,.0f}, SB3 {theirs:,.0f} steps/s"
        print(progress, file=sys.stderr)
    keys = ("rlrun", "sb3", "ratio", "rlrun_gb", "sb3_gb")
    return {"settings": WORKS[name].settings, "pairs": pairs, **{key: summary(pairs, key) for key in keys}}


def summary(pairs: list[dict[str, float]], key: str) -> dict[str, float]:
    values = [pair[key] for pair in pairs]
    return {"median": median(values), "min": min(values), "max": max(values)}


def steady_speed(marks: list[tuple[float, int]]) -> float:
    """Return steps per second after the warm-up; marks: (seconds since the start, steps so far)."""
    after = [mark for mark in marks if mark[0] >= WARM_UP]
    if len(after) < 2:
        raise SystemExit(f"error: no whole iteration fits after {WARM_UP:.0f} s of warm-up: give a larger --seconds")
    (start, first), (end, last) = after[0], after[-1]
    return (last - first) / (end - start)


# --- rlrun ----------------------------------------------------------------------------------------------


def rlrun_window(work: Work, seconds: float, seed: int) -> tuple[float, float]:
    """Train with the real command in a new process; return its steady steps per second and its memory in GB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rlrun", *rlrun_arguments(work, seconds, seed), f"outputs={folder}"]
        _, memory = output_of(command)
        (path,) = Path(folder).rglob("metrics.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    marks = [(row["time/time_elapsed"], row["step"]) for row in rows if "time/time_elapsed" in row]
    return steady_speed(marks), memory


def rlrun_arguments(work: Work, seconds: float, seed: int) -> list[str]:
    per_iteration = work.settings["num_envs"] * work.settings.get("num_steps", 100)
    network = [f"network.hidden={list(work.hidden)}", f"network.activation={work.activation}"]
    return [
        f"algo={work.algo}",
        f"env={work.env}",
        *(network if work.env != "breakout" else []),
        *(f"algo.{key}={value}" for key, value in work.settings.items()),
        f"seed={seed}",
        f"total_steps={TOTAL_STEPS}",
        f"stop.after_time={WARM_UP + seconds}",
        f"log.every={per_iteration}",
        f"eval.every={NEVER}",
        "eval.final_episodes=1",
        f"checkpoint.every={NEVER}",
        "name=speed",
    ]


def output_of(command: list[str]) -> tuple[str, float]:
    """Return what the command prints, and its peak memory in GB. Ends this program with its message if it fails."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, text=True)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        errors.seek(0)
        if status != 0:
            code = os.waitstatus_to_exitcode(status)
            raise SystemExit(f"{errors.read()}\nerror: {shlex.join(command)} ended with code {code}")
        return output.read(), usage.ru_maxrss * 1024 / 1e9


# --- Stable-Baselines3 ----------------------------------------------------------------------------------


def sb3_process(name: str, options: argparse.Namespace, seed: int) -> tuple[float, float]:
    command = [sys.executable, __file__, "--sb3-window", f"--work={name}", f"--seed={seed}"]
    command += [f"--seconds={options.seconds}"]
    command += [f"--sb3-threads={options.sb3_threads}"] if options.sb3_threads else []
    output, memory = output_of(command)
    return float(output.splitlines()[-1]), memory


def sb3_window(work: Work, seconds: float, seed: int) -> float:
    """Train in this process; return SB3's steady steps per second."""
    from stable_baselines3 import DQN, PPO, SAC
    from stable_baselines3.common.callbacks import BaseCallback

    class Clock(BaseCallback):
        """Note time and steps at each iteration's start, and end training at the first after the window."""

        def __init__(self) -> None:
            super().__init__()
            self.marks: list[tuple[float, int]] = []

        def _on_training_start(self) -> None:
            self.started = time.perf_counter()

        def _on_rollout_start(self) -> None:
            self.marks.append((time.perf_counter() - self.started, self.num_timesteps))

        def _on_step(self) -> bool:
            return self.marks[-1][0] < WARM_UP + seconds

    algorithm, arguments = {
        "dqn": (DQN, dqn_arguments),
        "ppo": (PPO, ppo_arguments),
        "sac": (SAC, sac_arguments),
    }[work.algo]
    envs = sb3_envs(work, seed)
    model = algorithm(sb3_policy(work), envs, seed=seed, policy_kwargs=sb3_network(work), **arguments(work.settings))
    clock = Clock()
    model.learn(TOTAL_STEPS, callback=clock)
    return steady_speed(clock.marks)


def use_threads(number: int | None) -> None:
    if number is not None:
        import torch

        torch.set_num_threads(number)


def sb3_policy(work: Work) -> str:
    return "CnnPolicy" if work.env == "breakout" else "MlpPolicy"


def sb3_network(work: Work) -> dict[str, Any] | None:
    if work.env == "breakout":
        return None
    from torch import nn

    return {"net_arch": list(work.hidden), "activation_fn": {"tanh": nn.Tanh, "relu": nn.ReLU}[work.activation]}


def sb3_envs(work: Work, seed: int) -> Any:
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


def ppo_arguments(settings: Settings) -> dict[str, Any]:
    """Return the settings as SB3 takes them."""
    return {
        **{theirs: settings[ours] for ours, theirs in SB3_NAMES.items()},
        "learning_rate": sb3_schedule(settings, "learning_rate"),
        "clip_range": sb3_schedule(settings, "clip_range"),
        "clip_range_vf": sb3_schedule(settings, "clip_range") if settings["clip_value"] else None,
    }


def sac_arguments(settings: Settings) -> dict[str, Any]:
    return {theirs: settings[ours] for ours, theirs in SAC_NAMES.items()}


def dqn_arguments(settings: Settings) -> dict[str, Any]:
    fraction = settings["epsilon_steps"] / TOTAL_STEPS
    return {**{theirs: settings[ours] for ours, theirs in DQN_NAMES.items()}, "exploration_fraction": fraction}


def sb3_schedule(settings: Settings, key: str) -> Any:
    """Return the number, or where it changes a function of the part of the training that is left."""
    start, end = settings[key], settings[f"{key}_end"]
    return start if start == end else lambda left: end + (start - end) * left


# --- The report -----------------------------------------------------------------------------------------


def markdown(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| work | rlrun, steps/s (min to max) | Stable-Baselines3 | ratio pair by pair | median ratio | memory, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        ratios = ", ".join(f"{pair['ratio']:.2f}" for pair in result["pairs"])
        sides = " | ".join(spread(result[side]) for side in ("rlrun", "sb3"))
        memory = f"{result['rlrun_gb']['median']:.2f}, {result['sb3_gb']['median']:.2f}"
        lines.append(f"| {name} | {sides} | {ratios} | {result['ratio']['median']:.2f} | {memory} |")
    return "\n".join(lines)


def spread(numbers: dict[str, float]) -> str:
    return f"{numbers['median']:,.0f} ({numbers['min']:,.0f} to {numbers['max']:,.0f})"


def facts() -> dict[str, Any]:
    """Return command, date, versions and machine. No host name: results get published."""
    import torch

    from rlrun.device import processor

    return {
        "command": shlex.join(["python", "scripts/compare_sb3.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.platform(),
        },
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
