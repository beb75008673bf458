"""The exported policy beside the original: the same answers to the same observations, the same episodes."""

import numpy as np
import torch

from rlrun.build import Agent
from rlrun.data.collector import State, to_policy
from rlrun.envs.base import Array
from rlrun.episodes import play_episodes
from rlrun.errors import RunFailed
from rlrun.exported_policy import ExportedPolicy
from rlrun.seeding import REPORT_SEEDS, preserved_rng

EPISODES, MAX_STEPS = 3, 2_000  # agent steps after which an episode is cut
RANDOM_OBS = 256
RTOL, ATOL = 1e-4, 1e-5  # of float32 sums in another order


class Check:
    """The exported policy beside the original, on whole episodes and on random observations."""

    def __init__(self, agent: Agent, policy: ExportedPolicy, model: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1  # several spin while they wait, which costs more than they compute
        self.agent, self.policy = agent, policy
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.num_obs, self.num_ties, self.worst = 0, 0, 0.0
        self.returns: list[float] = []  # of the original's episodes
        self.exported_returns: list[float] = []

    def __str__(self) -> str:
        ties = f", but for {self.num_ties} ties between two actions" if self.num_ties else ""
        if self.returns == self.exported_returns:
            exported = "the same"
        elif np.allclose(self.returns, self.exported_returns, RTOL):
            exported = "the same but for rounding"
        else:
            exported = _listed(self.exported_returns)
        return (
            f"checked with onnxruntime on {self.num_obs:,} observations: same actions{ties}, outputs within "
            f"{self.worst:.1g}; returns of {len(self.returns)} greedy episodes: {_listed(self.returns)}, exported: "
            f"{exported}"
        )

    def run(self, max_steps: int) -> None:
        """Play episodes of at most `max_steps` with each of the two.

        Raises RunFailed where they do not agree about an observation that the original met, or a random one. Where
        actions are continuous, or two are equally good, rounding may lead the episodes apart all the same.
        """
        self.compare(self.policy.random_obs(RANDOM_OBS).numpy())
        seeds = self.agent.seeds.episodes("export", REPORT_SEEDS, EPISODES)
        envs = self.agent.spec.make(EPISODES)
        try:
            with preserved_rng(0), torch.no_grad():
                for act, returns in ((self.original, self.returns), (self.exported, self.exported_returns)):
                    played = play_episodes(envs, act, seeds, min(max_steps, MAX_STEPS))
                    assert played is not None
                    returns += played.returns
        finally:
            envs.close()

    def original(self, obs: Array, state: State, first: Array) -> tuple[Array, State]:
        return self.compare(obs), None

    def exported(self, obs: Array, state: State, first: Array) -> tuple[Array, State]:
        action = self.session.run(["action"], {"obs": obs})[0]
        return action - getattr(self.policy.space, "start", 0), None  # environments here count from 0

    def compare(self, obs: Array) -> Array:
        """Return the original's actions for obs: [B, *obs]. Raises RunFailed unless the exported ones agree."""
        normalizer = self.agent.normalizer if self.agent.spec.normalize_obs else None
        with torch.no_grad():
            original, _ = self.agent.algorithm.act(
                to_policy(obs, normalizer, torch.device("cpu")), None, torch.ones(len(obs), dtype=torch.bool)
            )
            expected = [self.policy.to_env(original), *self.policy(torch.from_numpy(obs))[1:]]
        outputs = dict(zip(self.policy.names, self.session.run(self.policy.names, {"obs": obs}), strict=True))
        for name, tensor in zip(self.policy.names, expected, strict=True):
            if tensor.is_floating_point():
                self._compare_numbers(name, tensor.numpy(), outputs[name])
            else:
                self._compare_choices(tensor.numpy(), outputs)
        self.num_obs += len(obs)
        return original.numpy()

    def _compare_numbers(self, name: str, expected: Array, got: Array) -> None:
        finite = np.isfinite(expected)
        if got.shape != expected.shape or not np.allclose(got, expected, RTOL, ATOL, equal_nan=True):
            raise RunFailed(
                f"the exported policy does not do as the original does: {name} differs by up to "
                f"{np.abs(got - expected).max():.2g}; nothing was written"
            )
        self.worst = max(self.worst, float(np.abs(got - expected)[finite].max(initial=0.0)))

    def _compare_choices(self, expected: Array, outputs: dict[str, Array]) -> None:
        """Let another action pass only where its score equals the best one's but for rounding."""
        differing = np.flatnonzero((outputs["action"] != expected).reshape(len(expected), -1).any(axis=1))
        scores = outputs.get("scores")
        for b in differing:
            top = np.sort(scores[b])[-2:] if scores is not None else np.array([-np.inf, np.inf])
            if not np.isclose(top[0], top[1], RTOL, ATOL):
                raise RunFailed(
                    "the exported policy does not do as the original does: it chooses action "
                    f"{outputs['action'][b]} instead of {expected[b]}; nothing was written"
                )
        self.num_ties += len(differing)


def _listed(numbers: list[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
