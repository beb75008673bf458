"""MinAtar: five Atari games on a 10 x 10 grid, with one channel for each kind of object.

Young and Tian (2019), "MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement
Learning Experiments", arXiv:1903.03176. Sticky actions (0.1) and rising difficulty are its defaults. Needs the
extra minatar.
"""

from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium import spaces

from rlrun.envs.gym import Gym
from rlrun.errors import UserError


@dataclass(kw_only=True)
class MinAtar(Gym):
    """One game, with its channels first, as convolutions take them."""

    def _register(self) -> None:
        try:
            from minatar.gym import register_envs
        except ImportError as error:
            raise UserError(
                f"env.id={self.id} needs the package MinAtar; remedy: pip install 'rlrun[minatar]', in a clone "
                "sh scripts/setup.sh minatar"
            ) from error
        if "MinAtar/Breakout-v1" not in gymnasium.registry:
            register_envs()
        super()._register()

    def make_one(self, *, render: bool = False) -> gymnasium.Env:
        env = super().make_one(render=render)
        height, width, channels = env.observation_space.shape or ()
        space = spaces.Box(0, 1, (channels, height, width), np.bool_)  # type: ignore[arg-type]
        return gymnasium.wrappers.TransformObservation(env, lambda obs: np.moveaxis(obs, -1, 0), space)
