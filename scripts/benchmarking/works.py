"""What is measured beside Stable-Baselines3, with which settings, and what the outcome should be.

Settings go by rlrun's names and are given to both sides. A number and its _end differ where it falls on a
straight line.
"""

from dataclasses import dataclass, field
from typing import Any

from benchmarking.goals import Goal, Limit

Settings = dict[str, Any]
PEER, OURS, BF16 = "peer", "rlrun", "rlrun_bf16"  # the sides, in the order of their turns

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


@dataclass(frozen=True, kw_only=True)
class Training:
    """Steady steps per second of training."""

    title: str
    algo: str
    env: str
    settings: Settings  # empty: rlrun's tuned ones
    goals: tuple[Goal, ...]
    hidden: tuple[int, ...] = (64, 64)  # of networks that are not convolutional
    activation: str = "tanh"
    sides: tuple[str, ...] = (PEER, OURS)
    log_every: int | None = None  # steps between marks; None: those of an iteration
    total_steps: int = 10_000_000  # never reached: it only tells schedules where they end
    unit: str = "steps/s"
    needs: tuple[str, ...] = ()  # modules

    @property
    def iteration(self) -> int:
        """Return the number of steps between two marks."""
        return self.log_every or self.settings["num_envs"] * self.settings.get("num_steps", 100)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Seconds of training until the mean return of the last 100 training episodes is high enough."""

    title: str
    algo: str
    env: str
    settings: Settings  # SB3's; rlrun takes its tuned ones
    target: float
    total_steps: int
    goals: tuple[Goal, ...]
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    sides: tuple[str, ...] = (PEER, OURS)
    unit: str = "s"
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StartUp:
    """Seconds from a command to the first environment step of PPO on CartPole, or to the end of the help page."""

    title: str
    goals: tuple[Goal, ...]
    sides: tuple[str, ...]  # SB3 has no command, and so no help page
    settings: Settings = field(default_factory=dict)
    unit: str = "s"
    needs: tuple[str, ...] = ()


Work = Training | Target | StartUp


def times(side: str, least: float) -> Goal:
    """Return the goal that a side is so many times as fast as the peer."""
    return Goal(side, Limit(least), ratio=True)


WORKS: dict[str, Work] = {
    "ppo_breakout": Training(
        title="PPO Breakout, 8 x 128",
        algo="ppo",
        env="breakout",
        settings=BREAKOUT,
        sides=(PEER, OURS, BF16),
        goals=(times(OURS, 1.5), times(BF16, 2.5)),
        needs=("cv2",),
    ),
    "dqn_breakout": Training(
        title="DQN Breakout, batch 32, every 4",
        algo="dqn",
        env="breakout",
        settings=DQN_BREAKOUT,
        sides=(PEER, OURS, BF16),
        goals=(times(OURS, 1.8), times(BF16, 2.5)),
        needs=("cv2",),
    ),
    "sac_halfcheetah": Training(
        title="SAC HalfCheetah, batch 256, one update a step",
        algo="sac",
        env="halfcheetah",
        settings=SAC_HALFCHEETAH,
        hidden=(256, 256),
        activation="relu",
        goals=(times(OURS, 2.0),),
        needs=("mujoco",),
    ),
    "ppo_halfcheetah": Training(
        title="PPO HalfCheetah, 1 x 2048",
        algo="ppo",
        env="halfcheetah",
        settings=PPO_HALFCHEETAH,
        goals=(times(OURS, 2.0),),
        needs=("mujoco",),
    ),
    "ppo_cartpole": Training(
        title="PPO CartPole, SB3's defaults, 1 x 2048",
        algo="ppo",
        env="cartpole",
        settings=CARTPOLE,
        goals=(times(OURS, 3.0),),
    ),
    "ppo_cartpole_zoo": Training(
        title="PPO CartPole, the Zoo's settings, 8 x 32",
        algo="ppo",
        env="cartpole",
        settings=CARTPOLE_ZOO,
        goals=(times(OURS, 2.0),),
    ),
    "cartpole_475": Target(
        title="PPO CartPole to a mean of 475",
        algo="ppo",
        env="cartpole",
        settings=CARTPOLE_ZOO,
        target=475.0,
        total_steps=100_000,
        goals=(Goal(OURS, Limit(10.0, at_most=True)),),
    ),
    "q_learning_frozenlake": Training(
        title="Q-learning FrozenLake",
        algo="q_learning",
        env="frozenlake",
        settings={},
        sides=(OURS,),
        log_every=10_000,
        total_steps=1_000_000_000,
        goals=(Goal(OURS, Limit(100_000.0)),),
    ),
    "first_step": StartUp(
        title="Start-up, first environment step",
        sides=(PEER, OURS),
        goals=(Goal(OURS, Limit(3.0, at_most=True)),),
    ),
    "help": StartUp(
        title="Start-up, `--help`",
        sides=(OURS,),
        goals=(Goal(OURS, Limit(0.7, at_most=True)),),
    ),
}
