"""Episodes that leave training untouched: other environments, other seeds, borrowed generators."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlrun.algos.algorithm import Algorithm
from rlrun.data.collector import State, to_policy
from rlrun.envs.base import NO_SEED, Envs, EnvSpec
from rlrun.envs.normalizer import Normalizer
from rlrun.seeding import preserved_rng

MAX_PARALLEL = 10  # episodes played side by side


@dataclass
class Evaluation:
    """The episodes of one evaluation, in the order of their seeds."""

    seeds: list[int]
    returns: list[float]
    lengths: list[int]

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std_return(self) -> float:
        return float(np.std(self.returns))

    @property
    def mean_length(self) -> float:
        return float(np.mean(self.lengths))

    def row(self) -> dict[str, Any]:
        return {
            "mean_return": self.mean_return,
            "std_return": self.std_return,
            "returns": self.returns,
            "lengths": self.lengths,
            "seeds": self.seeds,
        }


class Evaluator:
    """Plays a policy on environments of its own. `normalizer` is None where observations stay raw.

    An episode is cut after `max_steps` agent steps: some environments have no limit of their own, and a policy
    that never ends an episode must not hang its run.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        spec: EnvSpec,
        normalizer: Normalizer | None,
        device: torch.device,
        max_steps: int,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.algorithm, self.spec, self.normalizer, self.device = algorithm, spec, normalizer, device
        self.max_steps, self.interrupted = max_steps, interrupted
        self._envs: Envs | None = None

    def evaluate(self, seeds: list[int]) -> Evaluation | None:
        """Play one episode for each seed and return them all, or None if interrupted.

        Each environment takes the next seed when it is free, and every episode begun is played to its
        end: stopping at the first so many that finish would favour short episodes.
        """
        envs = self._make_envs(min(len(seeds), MAX_PARALLEL))
        with preserved_rng(seeds[0]), torch.no_grad():
            return self._play(envs, seeds)

    def close(self) -> None:
        if self._envs is not None:
            self._envs.close()
        self._envs = None

    def _make_envs(self, num_envs: int) -> Envs:
        if self._envs is None or self._envs.num_envs != num_envs:
            self.close()
            self._envs = self.spec.make(num_envs)
        return self._envs

    def _play(self, envs: Envs, seeds: list[int]) -> Evaluation | None:
        num_envs, state = envs.num_envs, None
        result = Evaluation(seeds, [0.0] * len(seeds), [0] * len(seeds))
        episode = np.arange(num_envs)  # which one each environment plays
        waiting = iter(range(num_envs, len(seeds)))
        active, first = np.ones(num_envs, bool), np.ones(num_envs, bool)
        obs = envs.reset(active, np.array(seeds[:num_envs]))
        while active.any():
            if self.interrupted():
                return None
            action, state = self._act(obs, state, first)
            transition = envs.step(action, active)
            obs, first = transition.obs, transition.over
            begin = np.zeros(num_envs, bool)
            for b in np.flatnonzero(active):
                result.returns[episode[b]] += float(transition.reward[b])
                result.lengths[episode[b]] += 1
                if transition.over[b] or result.lengths[episode[b]] >= self.max_steps:
                    following = next(waiting, None)
                    active[b] = begin[b] = following is not None
                    episode[b] = episode[b] if following is None else following
            # Games that have no episode left still step along where environments step together.
            restart = begin | (transition.over & ~active)
            if restart.any():
                new = [seeds[e] if fresh else NO_SEED for e, fresh in zip(episode, begin, strict=True)]
                obs = envs.reset(restart, np.array(new))
        return result

    def _act(self, obs: np.ndarray, state: State, first: np.ndarray) -> tuple[np.ndarray, State]:
        observed = to_policy(obs, self.normalizer, self.device)
        action, state = self.algorithm.act(observed, state, torch.from_numpy(first).to(self.device))
        return action.cpu().numpy(), state
