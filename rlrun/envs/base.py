"""What every environment is to the rest of the program: a vector of games that one can step and reset.

B environments. Nothing resets by itself here: `step` leaves the last observation of an episode in place,
and the caller (collector or evaluation) resets the environments whose episode is over, with or without a
new seed. So there is one place that decides about seeds, and no observation is ever lost.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rlrun.envs.tabular import Model

Array = NDArray[Any]

NO_SEED = -1  # reset on with the environment's own generator


@dataclass
class Transition:
    """What one step of B environments gave.

    `terminated` is for the learner: do not bootstrap from here. `over` is for the caller: the game needs a
    reset. They differ where the protocol ends the learner's episode at a lost life and the game goes on.
    """

    obs: Array  # [B, *obs], before any reset
    reward: Array  # [B] float64, as the game gives it
    terminated: Array  # [B] bool
    truncated: Array  # [B] bool
    over: Array  # [B] bool


class Envs(Protocol):
    """B environments in step."""

    num_envs: int
    obs_space: spaces.Space
    action_space: spaces.Space

    def reset(self, mask: Array, seeds: Array) -> Array:
        """Reset where mask: [B] bool; return all observations [B, *obs].

        seeds: [B] int64. A seed makes the environment as good as new: what follows depends on the seed and
        the actions alone, whatever happened to the object before. NO_SEED begins its next episode.
        """

    def step(self, action: Array, active: Array | None = None) -> Transition:
        """Step with action: [B, *act]; where `active` is false the step need not happen."""

    def render(self) -> Array:
        """Return a picture of environment 0, [H, W, 3] uint8."""

    def close(self) -> None: ...


@dataclass(kw_only=True)
class EnvSpec(ABC):
    """An environment as the configuration names it: how to make it, and what it is called in results."""

    name: str  # the folder under outputs/
    normalize_obs: bool  # running mean 0 and variance 1, clipped to +-10; statistics are saved state
    normalize_reward: bool  # divided by the running deviation of the discounted return, clipped to +-10
    clip_reward: bool  # the learner sees the sign of the reward; logged returns stay true
    potential: str | None  # module.function that shapes the learner's reward (see shaping.py), before normalisation

    @abstractmethod
    def make(self, num_envs: int, *, render: bool = False) -> Envs:
        """Return `num_envs` environments. Raises UserError for an unknown name or a missing extra."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return what makes a score on this environment comparable with another's."""

    def model(self) -> "Model | None":
        """Return the transition table that the environment brings with it, if it does."""
        return None

    def stacked_frames(self) -> int:
        """Return how many frames the first axis of an observation shows, oldest first."""
        return 1

    def versions(self) -> dict[str, str]:
        """Return further facts for the record (the hash of a ROM)."""
        return {}


def as_array(values: list[Any], space: spaces.Space) -> Array:
    return np.asarray(values, dtype=space.dtype if isinstance(space, spaces.Box) else np.int64)
