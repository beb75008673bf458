"""Atari 2600 games on the Arcade Learning Environment's own vector environment.

Bellemare et al. (2013), "The Arcade Learning Environment"; Machado et al. (2018), "Revisiting the Arcade
Learning Environment", arXiv:1709.06009, for the protocol with sticky actions. An agent step is
`frame_skip` frames.
"""

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rlrun.envs.base import NO_SEED, Array, Envs, EnvSpec, Transition
from rlrun.errors import UserError, nearest
from rlrun.sweep import CORES


@dataclass(kw_only=True)
class Atari(EnvSpec):
    """One game. Probabilities and frame counts are the protocol's: see conf/protocol/."""

    game: str  # a ROM's name, snake_case
    frame_skip: int  # frames an action is held
    frame_stack: int  # frames an observation shows
    image_size: int  # pixels, height and width
    repeat_action_probability: float  # sticky actions: 0.25 in Machado et al., 0 in Baselines
    life_loss: bool  # a lost life ends the learner's episode (the game goes on)
    fire_on_life_loss: bool  # press FIRE after a lost life, where the game has that button
    noop_max: int  # up to so many no-ops after a reset
    max_frames: int  # frames after which an episode is cut
    full_action_space: bool  # all 18 actions instead of the game's own

    def __post_init__(self) -> None:
        at_least = {"frame_skip": 1, "frame_stack": 1, "image_size": 8, "noop_max": 0, "max_frames": 1}
        for key, low in at_least.items():
            if getattr(self, key) < low:
                raise UserError(f"env.{key}={getattr(self, key)} is out of range: expected at least {low}")

    def make(self, num_envs: int, *, render: bool = False) -> Envs:
        return AtariEnvs(self, num_envs, render=render)

    def protocol(self) -> dict[str, Any]:
        return {
            "game": self.game,
            "frame_skip": self.frame_skip,
            "repeat_action_probability": self.repeat_action_probability,
            "life_loss": self.life_loss,
            "fire_on_life_loss": self.fire_on_life_loss,
            "noop_max": self.noop_max,
            "max_frames": self.max_frames,
            "full_action_space": self.full_action_space,
            "clip_reward": self.clip_reward,
        }

    def stacked_frames(self) -> int:
        return self.frame_stack

    def versions(self) -> dict[str, str]:
        return {"rom_sha256": hashlib.sha256(_rom(self.game).read_bytes()).hexdigest()}


class AtariEnvs:
    """B games in one `AtariVectorEnv`.

    Its automatic reset is never used: a masked `reset` right after an episode's end takes its place, and
    clears the pending one. Its `life_loss_info` and `episodic_life` are off too, because with the first a
    lost last-but-one life cannot be told from the end in games that count lives differently, and the
    second restarts the whole game; lives are compared here instead. Its rewards come unclipped.
    """

    def __init__(self, spec: Atari, num_envs: int, *, render: bool = False) -> None:
        _rom(spec.game)
        self._spec = spec
        self._games = _vector_env(spec, num_envs, height=spec.image_size, width=spec.image_size)
        # The screen in colour comes from a twin of game 0 that gets the same seeds and actions.
        self._screen = _vector_env(spec, 1, height=210, width=160, screen=True) if render else None
        self._picture: Array = np.zeros((210, 160, 3), np.uint8)
        self.num_envs = num_envs
        self.obs_space = self._games.single_observation_space
        self.action_space = self._games.single_action_space
        self._fire = _fire_action(self._games) if spec.fire_on_life_loss else None
        self._fire_next = np.zeros(num_envs, bool)
        self._lives = np.zeros(num_envs, np.int32)
        # A masked reset must follow a full one.
        obs, _ = self._games.reset(seed=0)
        self._obs: Array = obs
        if self._screen is not None:
            self._screen.reset(seed=0)

    def reset(self, mask: Array, seeds: Array) -> Array:
        if not mask.any():
            return self._obs
        self._obs, info = self._games.reset(seed=_seed(seeds[mask]), options={"reset_mask": mask})
        self._lives = info["lives"].copy()
        self._fire_next[mask] = False
        if self._screen is not None and mask[0]:
            picture, _ = self._screen.reset(seed=_seed(seeds[:1]), options={"reset_mask": np.ones(1, bool)})
            self._picture = picture[0, -1]
        return self._obs

    def step(self, action: Array, active: Array | None = None) -> Transition:
        # Games step together: an inactive one plays a no-op, and its caller resets it before use.
        executed = action.astype(np.int64)
        if active is not None:
            executed = np.where(active, executed, 0)
        if self._fire is not None:
            # Breakout hides the ball until FIRE is pressed. Seen from the agent this is the game's own
            # doing: whatever it chooses on that one step has the same effect, so no stored action,
            # probability or advantage is wrong.
            executed = np.where(self._fire_next, self._fire, executed)
        obs, reward, terminated, truncated, info = self._games.step(executed)
        lost_life = (info["lives"] < self._lives) & ~terminated
        self._obs, self._lives, self._fire_next = obs, info["lives"].copy(), lost_life
        over = terminated | truncated
        if self._spec.life_loss:
            terminated = terminated | lost_life
        if self._screen is not None:
            self._picture = self._screen.step(executed[:1])[0][0, -1]
        return Transition(obs, reward.astype(np.float64), terminated, truncated & ~terminated, over)

    def render(self) -> Array:
        return self._picture

    def close(self) -> None:
        self._games.close()


def _vector_env(spec: Atari, num_envs: int, *, height: int, width: int, screen: bool = False) -> Any:
    from ale_py.vector_env import AtariVectorEnv

    return AtariVectorEnv(
        spec.game,
        num_envs,
        max_num_frames_per_episode=spec.max_frames,
        repeat_action_probability=spec.repeat_action_probability,
        full_action_space=spec.full_action_space,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        img_height=height,
        img_width=width,
        grayscale=not screen,
        stack_num=1 if screen else spec.frame_stack,
        frameskip=spec.frame_skip,
        noop_max=spec.noop_max,
        episodic_life=False,
        life_loss_info=False,
        reward_clipping=False,
        use_fire_reset=spec.fire_on_life_loss,
        thread_affinity_offset=_first_core(num_envs),
    )


def _first_core(num_envs: int) -> int:
    """Return the core of the first of the games' threads, each of which gets one to itself; -1 leaves them free.

    The kernel often wakes two of them on one core while another one idles, and moves neither before the step is over.
    But where there are more cores than threads, bound ones would meet those of another run beside idle cores.
    """
    cores = os.cpu_count() or 1
    all_ours = os.sched_getaffinity(0) == set(range(cores)) and CORES not in os.environ
    return 0 if all_ours and num_envs >= cores > 1 else -1


def _rom(game: str) -> Any:
    from ale_py import roms

    known = roms.get_all_rom_ids()
    if game not in known:
        raise UserError(f"env.game={game} is not a ROM that ale-py brings.{nearest(game, known)} `rlrun list` has them")
    return roms.get_rom_path(game)


def _fire_action(games: Any) -> int | None:
    names = [action.name for action in games.ale.get_action_set()]
    assert isinstance(games.single_action_space, spaces.Discrete)
    return names.index("FIRE") if "FIRE" in names else None


def _seed(seeds: Array) -> Array:
    """ALE, too, reads -1 as "no seed"."""
    assert NO_SEED == -1
    return seeds.astype(np.int64)
