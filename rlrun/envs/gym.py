"""Any Gymnasium environment, stepped one after the other in this process."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TransformObservation

from rlrun.envs.base import NO_SEED, Array, Envs, EnvSpec, Transition, as_array
from rlrun.envs.tabular import Model, model_of
from rlrun.errors import UserError, nearest

# Which extra brings what Gymnasium says is missing.
EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "pygame": "classic"}


@dataclass(kw_only=True)
class Gym(EnvSpec):
    """`gymnasium.make(id, **kwargs)`, after importing `module` if the environment lives in a package."""

    id: str
    kwargs: dict[str, Any]
    module: str | None
    max_episode_steps: int | None  # agent steps; null leaves the environment's own limit
    observe: list[int] | None  # the indices of a vector that the agent sees, in this order; null: all of it

    def __post_init__(self) -> None:
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise UserError(f"env.max_episode_steps={self.max_episode_steps} is out of range: expected at least 1")

    def make(self, num_envs: int, *, render: bool = False) -> Envs:
        self._register()
        return GymEnvs(self, num_envs, render=render)

    def make_one(self, *, render: bool = False) -> gymnasium.Env:
        """Return one new environment, without Gymnasium's checker: its warnings are for the environment's author."""
        options = dict(self.kwargs)
        if render:
            options["render_mode"] = "rgb_array"
        try:
            with _models_without_deprecations(self.id, options):
                env = gymnasium.make(
                    self.id, max_episode_steps=self.max_episode_steps, disable_env_checker=True, **options
                )
        except gymnasium.error.DependencyNotInstalled as error:
            extra = next((e for key, e in EXTRAS.items() if key in str(error).lower()), None)
            remedy = f"pip install 'rlrun[{extra}]', in a clone sh scripts/setup.sh {extra}" if extra else str(error)
            raise UserError(f"env.id={self.id} needs a package that is not installed; remedy: {remedy}") from error
        except Exception as error:  # whatever the environment's constructor makes of its arguments
            raise UserError(
                f"env.id={self.id} with env.kwargs={self.kwargs} cannot be made: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(env.observation_space, spaces.Box | spaces.Discrete):
            env = FlattenObservation(env)
        return env if self.observe is None else self._observed(env, self.observe)

    def model(self) -> Model | None:
        self._register()
        env = self.make_one()
        try:
            return model_of(env)
        finally:
            env.close()

    def protocol(self) -> dict[str, Any]:
        self._register()
        limit = self.max_episode_steps or gymnasium.spec(self.id).max_episode_steps
        # Only where it is set: the stamps of all other runs shall stay equal to those of older ones.
        seen = {} if self.observe is None else {"observe": self.observe}
        return {"id": self.id, "kwargs": self.kwargs, "max_episode_steps": limit, **seen}

    def _observed(self, env: gymnasium.Env, indices: list[int]) -> gymnasium.Env:
        """Hide all but some numbers of a vector. Raises UserError for anything else than a choice of them."""
        space = env.observation_space
        key = f"env.observe={indices}"
        if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
            raise UserError(f"{key} chooses numbers of a vector, and env.id={self.id} observes {space}: leave it out")
        size = space.shape[0]
        if not indices or len(set(indices)) < len(indices) or not all(0 <= i < size for i in indices):
            raise UserError(
                f"{key} is out of range: env.id={self.id} observes {size} numbers, and expected are different indices "
                f"from 0 to {size - 1}, such as [0]"
            )
        seen = spaces.Box(space.low[indices], space.high[indices], dtype=space.dtype.type)
        return TransformObservation(env, lambda obs: obs[indices], seen)

    def _register(self) -> None:
        if self.module is not None:
            try:
                importlib.import_module(self.module)
            except ImportError as error:
                raise UserError(f"env.module={self.module} cannot be imported: {error}") from error
        try:
            gymnasium.spec(self.id)
        except gymnasium.error.Error as error:
            hint = nearest(self.id, gymnasium.registry)
            raise UserError(
                f"env.id={self.id} is not a registered Gymnasium environment.{hint} "
                f"If it lives in another package, name that in env.module. ({error})"
            ) from error


@contextmanager
def _models_without_deprecations(id: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Keep MuJoCo from saying of each environment that is made that Gymnasium's model file is written in an old way.

    That is for the file's author. What else it warns of while it makes one is shown, and while it steps one all is.
    """
    gymnasiums = str(gymnasium.spec(id).entry_point).startswith("gymnasium.envs.mujoco") and "xml_file" not in kwargs
    mujoco = _imported_mujoco() if gymnasiums else None
    if mujoco is None:
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_show_unless_deprecation)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _imported_mujoco() -> Any:
    try:
        import mujoco
    except ImportError:  # gymnasium.make says what to do about it
        return None
    return mujoco


def _show_unless_deprecation(message: str) -> None:
    if "deprecated" not in message:
        print(f"WARNING: {message}", file=sys.stderr)


class GymEnvs:
    """B environments of one kind. A seeded reset replaces the object: some (BipedalWalker) keep things
    across `reset`, and only a new object makes the seed tell everything."""

    def __init__(self, spec: Gym, num_envs: int, *, render: bool = False) -> None:
        self._spec, self._render = spec, render
        self._envs = [spec.make_one(render=render) for _ in range(num_envs)]
        self.num_envs = num_envs
        self.obs_space = self._envs[0].observation_space
        self.action_space = self._envs[0].action_space
        if isinstance(self.obs_space, spaces.Box):
            self._obs = np.zeros((num_envs, *self.obs_space.shape), self.obs_space.dtype)
        else:
            self._obs = as_array([0] * num_envs, self.obs_space)

    def reset(self, mask: Array, seeds: Array) -> Array:
        for i in np.flatnonzero(mask):
            seed = int(seeds[i])
            if seed == NO_SEED:
                self._obs[i], _ = self._envs[i].reset()
            else:
                self._envs[i].close()
                self._envs[i] = self._spec.make_one(render=self._render)
                self._obs[i], _ = self._envs[i].reset(seed=seed)
        return self._obs.copy()

    def step(self, action: Array, active: Array | None = None) -> Transition:
        reward = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, bool)
        truncated = np.zeros(self.num_envs, bool)
        for i, (env, a) in enumerate(zip(self._envs, self._to_env(action), strict=True)):
            if active is None or active[i]:
                self._obs[i], reward[i], terminated[i], truncated[i], _ = env.step(a)
        return Transition(self._obs.copy(), reward, terminated, truncated, terminated | truncated)

    def render(self) -> Array:
        frame = self._envs[0].render()
        return np.asarray(frame)

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _to_env(self, action: Array) -> Any:
        """Shape the policy's actions for the environments: clipped where continuous, counted from start."""
        space = self.action_space
        if isinstance(space, spaces.Box):
            return np.minimum(np.maximum(action.reshape(self.num_envs, *space.shape), space.low), space.high)
        if isinstance(space, spaces.Discrete):
            return (action + space.start).tolist()
        return action + space.start if isinstance(space, spaces.MultiDiscrete) else action
