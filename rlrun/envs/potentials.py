"""Potentials for `env.potential`: rough guesses of how good a state is, to shape rewards with.

Each takes raw observations [B, *obs] and returns Phi [B]; see rlrun/envs/shaping.py. Where a step costs 1, -Phi is a
guess of the steps to go, and 0 at the goal. Imports no torch.
"""

import numpy as np

from rlrun.envs.base import Array


def mountaincar(obs: Array) -> Array:
    """Return the energy that the car lacks to come to rest at the goal, as about so many steps."""
    position, velocity = obs[:, 0].astype(np.float64), obs[:, 1].astype(np.float64)
    # The hill is sin(3x). Gravity is 0.0025 cos(3x), so that v^2 / 2 is worth 3 / 0.0025 of that height.
    energy = np.sin(3 * position) + 600 * velocity**2  # -1 in the valley, about 1 at the goal
    return 25 * np.minimum(energy - 1, 0)
