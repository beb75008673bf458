"""Episodes that leave training untouched: other environments, other seeds, borrowed generators."""

from collections.abc import Callable

import numpy as np
import torch

from rlrun.algos.algorithm import Algorithm
from rlrun.data.collector import State, to_policy
from rlrun.envs.base import Envs, EnvSpec
from rlrun.envs.normalizer import Normalizer
from rlrun.episodes import MAX_PARALLEL, Evaluation, play_episodes
from rlrun.seeding import preserved_rng


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
        """Play one episode for each seed and return them all, or None if interrupted."""
        envs = self._make_envs(min(len(seeds), MAX_PARALLEL))
        with preserved_rng(seeds[0]), torch.no_grad():
            return play_episodes(envs, self._act, seeds, self.max_steps, self.interrupted)

    def close(self) -> None:
        if self._envs is not None:
            self._envs.close()
        self._envs = None

    def _make_envs(self, num_envs: int) -> Envs:
        if self._envs is None or self._envs.num_envs != num_envs:
            self.close()
            self._envs = self.spec.make(num_envs)
        return self._envs

    def _act(self, obs: np.ndarray, state: State, first: np.ndarray) -> tuple[np.ndarray, State]:
        observed = to_policy(obs, self.normalizer, self.device)
        action, state = self.algorithm.act(observed, state, torch.from_numpy(first).to(self.device))
        return action.cpu().numpy(), state
