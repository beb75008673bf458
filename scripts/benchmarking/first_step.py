"""CartPole that ends its process at the first step: what a start costs is how long the process has lived."""

import os
from typing import Any, NoReturn

import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from benchmarking import FIRST_STEP_ID, FIRST_STEP_MODULE, STEPPED


class FirstStep(CartPoleEnv):
    def step(self, action: Any) -> NoReturn:
        os._exit(STEPPED)


gymnasium.register(FIRST_STEP_ID, entry_point=f"{FIRST_STEP_MODULE}:FirstStep", max_episode_steps=500)
