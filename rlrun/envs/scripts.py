"""Policies written by hand: what control theory and common sense achieve before anything is learned.

Each takes raw observations [B, *obs] and returns actions [B, *act] as the environment's own `step` takes them.
What it returns depends on its argument alone. Imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from gymnasium import spaces

from rlrun.envs.base import Array
from rlrun.errors import UserError, nearest
from rlrun.imports import imported

Script = Callable[[Array], Array]


def cartpole(obs: Array) -> Array:
    """Push towards the side that the pole leans to; the cart's place and all velocities are left out of account.

    Géron (2019), "Hands-On Machine Learning with Scikit-Learn, Keras, and TensorFlow", 2nd ed., chapter 18.
    """
    angle = obs[:, 2]
    return np.where(angle < 0, 0, 1)


def mountaincar(obs: Array) -> Array:
    """Push the way the car rolls, so that every push adds energy."""
    velocity = obs[:, 1]
    return np.where(velocity < 0, 0, 2)


def mountaincar_continuous(obs: Array) -> Array:
    """Push the way the car rolls, at half the force: the cost is quadratic in it, the time only about inverse."""
    velocity = obs[:, 1:2]
    return np.where(velocity < 0, -0.5, 0.5)


def acrobot(obs: Array) -> Array:
    """Turn the driven joint the way it turns: torque times velocity, the power put in, is never negative.

    Spong (1995), "The Swing Up Control Problem for the Acrobot", pumps energy too, by a law that needs the model.
    """
    velocity = obs[:, 5]  # of the second joint, the only driven one
    return np.where(velocity < 0, 0, 2)


def pendulum(obs: Array) -> Array:
    """Bring the energy to that of standing upright, and near the top hold with a PD controller.

    Åström and Furuta (2000), "Swinging up a pendulum by energy control", Automatica 36. The gains are our own.
    """
    cos, sin, velocity = obs[:, 0], obs[:, 1], obs[:, 2]
    # Of Gymnasium's rod with m = l = 1, g = 10, turning about its end; 5 when it stands upright at rest.
    energy = velocity**2 / 6 + 5 * cos
    swing_up = 2 * (5 - energy) * np.where(velocity < 0, -1, 1)
    hold = -10 * np.arctan2(sin, cos) - 2 * velocity
    near_the_top = (cos > 0.8) & (np.abs(velocity) < 6)
    return np.clip(np.where(near_the_top, hold, swing_up), -2, 2)[:, None]


def lunarlander(obs: Array) -> Array:
    """Ask the heuristic that Gymnasium brings with the environment."""
    return _gymnasiums_lander(obs, continuous=False)


def lunarlander_continuous(obs: Array) -> Array:
    """Ask the heuristic that Gymnasium brings with the environment, for continuous engines."""
    return _gymnasiums_lander(obs, continuous=True)


def _gymnasiums_lander(obs: Array, *, continuous: bool) -> Array:
    from gymnasium.envs.box2d.lunar_lander import heuristic

    # Of the environment it reads this one attribute.
    lander = SimpleNamespace(continuous=continuous)
    lander.unwrapped = lander
    return np.array([heuristic(lander, row) for row in obs])


BY_ID: dict[str, Script] = {
    "CartPole-v0": cartpole,
    "CartPole-v1": cartpole,
    "MountainCar-v0": mountaincar,
    "MountainCarContinuous-v0": mountaincar_continuous,
    "Acrobot-v1": acrobot,
    "Pendulum-v1": pendulum,
    "LunarLander-v3": lunarlander,
    "LunarLanderContinuous-v3": lunarlander_continuous,
}


@dataclass(frozen=True)
class ScriptedPolicy:
    """A script as a policy for a space: it counts Discrete actions from 0, as the policies of algorithms do."""

    name: str  # the configuration's key and value that named it
    script: Script
    action_space: spaces.Space

    def actions(self, obs: Array) -> Array:
        """obs: [B, *obs], raw -> actions [B, *act]."""
        action, space = self._as_written(obs), self.action_space
        return action - space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else action

    def check(self, obs: Array) -> None:
        """Raise UserError unless the script takes these observations and returns actions of the space."""
        space = self.action_space
        expected = f"expected {len(obs)} actions of {space} for observations of shape {obs.shape}"
        try:
            action = self._as_written(obs)
        except Exception as error:  # whatever the script makes of them
            raise UserError(f"{self.name} fails: {type(error).__name__}: {error}; {expected}") from error
        shape = (len(obs), *(space.shape or ()))
        # A continuous action may lie outside of the bounds: the environment clips it.
        continuous = isinstance(space, spaces.Box)
        if action.shape != shape or not (np.isfinite(action).all() if continuous else all(map(space.contains, action))):
            raise UserError(f"{self.name} returned {action.dtype} {action.tolist()}; {expected}")

    def _as_written(self, obs: Array) -> Array:
        """Return the script's actions, [B, *act], in the action space's type."""
        # A copy: these are the collector's own observations, and a script may change what it is given.
        action = np.asarray(self.script(obs.copy()))
        if isinstance(self.action_space, spaces.Box):
            return action.astype(self.action_space.dtype)
        return action.astype(np.int64) if action.dtype.kind == "b" else action


def find(name: str | None, env_id: str | None, key: str = "algo.script") -> Script:
    """Return the policy of a name, of a dotted path, or, for None, of an environment's Gymnasium id.

    Raises UserError, which names the configuration's key, if there is none.
    """
    known = {script.__name__: script for script in BY_ID.values()}
    listed = f"Known: {', '.join(known)}; your own is {key}=module.function"
    if name is None:
        if env_id in BY_ID:
            return BY_ID[env_id]
        raise UserError(f"{key}=null: no policy is written by hand for {env_id or 'this environment'}. {listed}")
    if name in known:
        return known[name]
    if "." not in name:
        raise UserError(f"{key}={name} does not exist.{nearest(name, known)} {listed}")
    return imported(key, name)
