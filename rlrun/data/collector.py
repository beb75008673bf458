"""Stepping environments with a policy. T steps, B environments."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from rlrun.data.rollout import Batch, Rollout
from rlrun.distributed import LONE, World
from rlrun.envs.base import Array, Transition
from rlrun.envs.normalizer import Normalizer
from rlrun.envs.replayed import ReplayedEnvs
from rlrun.envs.shaping import Shaping
from rlrun.errors import RunFailed
from rlrun.stateful import Stateful

State = Any  # a recurrent policy's memory; None for the others
Cut = tuple[list[int], Array]  # flat positions t * B + b where episodes were cut short, and their last observations
Policy = Callable[[Tensor, State, Tensor], tuple[Batch, State]]

RECENT = 100  # episodes in the running mean of returns, as in Stable-Baselines3
LONGEST_EPISODE = 108_000  # steps: half an hour of an Atari game whose frames are not skipped; longer is endless
FIRST_ROOM = 1_000  # steps, for episodes whose length is not known


@dataclass(kw_only=True, eq=False)
class Collector(Stateful):
    """Environments, where each of them stands, and the statistics of their episodes.

    It also is the one counter of environment steps: resets are neither counted nor stored. Of a run that is split it
    steps this process's share, and counts the steps and episodes of all. With `raw` it
    returns observations and rewards as the environment gave them, on the CPU, for a replay that normalises
    what it returns; the policy sees normalised ones all the same, and the statistics are kept here.
    """

    transient: ClassVar[frozenset[str]] = frozenset({"rollout", "spare_rollout", "ended"})

    envs: ReplayedEnvs
    normalizer: Normalizer
    normalize_obs: bool
    normalize_reward: bool
    clip_reward: bool
    device: torch.device
    raw: bool = False
    shaping: Shaping | None = None  # of the learner's rewards; episodes are reported with their true returns
    first_env: int = 0  # the number of its first environment, where there are several collectors
    steps_elsewhere: Callable[[], int] = lambda: 0  # how many steps the others have taken
    world: World = LONE  # the processes that step as many each, at the same time

    def __post_init__(self) -> None:
        self.num_envs = self.envs.num_envs
        self.steps = 0
        self.obs: Array = self._received(self.envs.start())
        self.first: Array = np.ones(self.num_envs, bool)
        self.policy_state: State = None
        self.episode_return: Array = np.zeros(self.num_envs)
        self.episode_length: Array = np.zeros(self.num_envs, np.int64)
        if self.normalize_reward:
            self.discounted_return: Array = np.zeros(self.num_envs)
        self.recent_returns: deque[float] = deque(maxlen=RECENT)
        self.recent_lengths: deque[int] = deque(maxlen=RECENT)
        self.episodes: list[dict[str, float]] = []
        self.ended: list[dict[str, float]] = []  # since the beginning of the present call
        self.rollout, self.spare_rollout = self._new_rollout(), self._new_rollout()

    @torch.no_grad()
    def collect(self, policy: Policy, num_steps: int) -> Batch:
        """Step T = num_steps times and return what happened.

        obs: [T, B, *obs]; action, and whatever else the policy returned: [T, B, ...]; reward: [T, B], as
        the learner shall see it; terminated, truncated, first: [T, B] bool; next_obs: [B, *obs], the
        observation after the last step. Of the K episodes that were cut short: final_obs: [K, *obs], the
        last observation, and final_index: [K], the flat position t * B + b of the last step. over: [T, B]
        bool, a game ended here; it differs from terminated | truncated where a lost life ends an episode.

        The tensors are overwritten by the next call, unless `keep_rollout` is called before.
        """
        cuts: list[Cut] = []
        for t in range(num_steps):
            self._step(policy, t, num_steps, cuts)
        self._gather_episodes()
        return self._batch(num_steps, cuts)

    def keep_rollout(self) -> None:
        """Leave the tensors of the last rollout alone until the one after the next."""
        self.rollout, self.spare_rollout = self.spare_rollout, self.rollout

    @torch.no_grad()
    def collect_episodes(self, policy: Policy, count: int) -> Batch:
        """Play `count` episodes of the only environment, from here to the last one's end; return what `collect` does.

        An episode is the game's own, whose end is `over`; T is the sum of their lengths and B is 1. Raises RunFailed
        where an episode does not end.
        """
        cuts: list[Cut] = []
        t = 0
        while count > 0:
            self._step(policy, t, self._room(t), cuts)
            t += 1
            if not self.episode_length[0]:
                count -= 1
            elif self.episode_length[0] >= LONGEST_EPISODE:
                raise RunFailed(
                    f"an episode has not ended after {LONGEST_EPISODE:,} steps, and this algorithm learns from whole "
                    "episodes: give the environment a limit, such as env.max_episode_steps=1000"
                )
        self._gather_episodes()
        return self._batch(t, cuts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        # There is no memory yet whose device it could take, and a checkpoint is read on the CPU.
        self.policy_state = tree_map_only(Tensor, lambda t: t.to(self.device), self.policy_state)

    def pop_episodes(self) -> list[dict[str, float]]:
        """Return the episodes that ended since the last call: step, env, return and length of each."""
        episodes, self.episodes = self.episodes, []
        return episodes

    def bytes_per_step(self) -> int:
        """Return the memory that one stored environment step takes, without the policy's extras."""
        return self.obs[0].nbytes + 16

    def _step(self, policy: Policy, t: int, room: int, cuts: list[Cut]) -> None:
        """Step once and write what happened as row t of `room`; episodes that are cut short go to `cuts`."""
        seen = self._seen(self.obs)
        obs, first = torch.from_numpy(seen).to(self.device), torch.from_numpy(self.first).to(self.device)
        extras, self.policy_state = policy(obs, self.policy_state, first)
        action = extras["action"].numpy(force=True)  # of a GPU: here the program waits for it, once a step
        transition = self.envs.step(action)
        ended = transition.terminated | transition.truncated
        on_cpu = self.raw or self.device.type == "cpu"
        columns: dict[str, Any] = extras
        if on_cpu:
            columns = {name: action if name == "action" else extra.numpy(force=True) for name, extra in extras.items()}
        row = {
            "obs": self._stored(self.obs) if self.raw else seen if on_cpu else obs,
            "first": self.first,
            "reward": self._learner_reward(transition, ended),
            "terminated": transition.terminated,
            "truncated": transition.truncated,
            "over": transition.over,
            **columns,
        }
        self.rollout.write(t, room, row)
        if transition.truncated.any():
            cut = np.flatnonzero(transition.truncated)
            cuts.append(((t * self.num_envs + cut).tolist(), self._stored(transition.obs[cut])))
        self._advance(transition, ended)

    def _batch(self, num_steps: int, cuts: list[Cut]) -> Batch:
        device = self.rollout.device
        next_obs = self._stored(self.obs)
        final_obs = np.concatenate([obs for _, obs in cuts]) if cuts else next_obs[:0]
        final_index = [k for positions, _ in cuts for k in positions]
        return {
            **self.rollout.read(num_steps),
            "next_obs": torch.from_numpy(next_obs).to(device),
            "final_obs": torch.from_numpy(final_obs).to(device),
            "final_index": torch.tensor(final_index, dtype=torch.int64, device=device),
        }

    def _advance(self, transition: Transition, ended: Array) -> None:
        self.steps += self.num_envs * self.world.size
        self.episode_return += transition.reward
        self.episode_length += 1
        obs = transition.obs
        if transition.over.any():
            for b in np.flatnonzero(transition.over):
                self._finish_episode(int(b))
            obs = self.envs.next_episode(transition.over)
        self.obs, self.first = self._received(obs), ended | transition.over

    def _finish_episode(self, b: int) -> None:
        score, length = float(self.episode_return[b]), int(self.episode_length[b])
        step, env = self.steps + self.steps_elsewhere(), self.first_env + b
        self.ended.append({"step": step, "env": env, "return": score, "length": length})
        self.episode_return[b], self.episode_length[b] = 0.0, 0

    def _gather_episodes(self) -> None:
        """Report the episodes that have ended in this call, those of other processes in their places."""
        ended, self.ended = self.ended, []
        if self.world.size > 1:
            everyones = [episode for part in self.world.everyones(ended) for episode in part]
            ended = sorted(everyones, key=lambda episode: (episode["step"], episode["env"]))
        self.episodes += ended
        self.recent_returns.extend(episode["return"] for episode in ended)
        self.recent_lengths.extend(int(episode["length"]) for episode in ended)

    def _received(self, obs: Array) -> Array:
        if self.normalize_obs:
            self.normalizer.update_obs(obs)
        return obs

    def _seen(self, obs: Array) -> Array:
        """Return observations as the policy sees them."""
        return as_seen(obs, self.normalizer if self.normalize_obs else None)

    def _stored(self, obs: Array) -> Array:
        """Return observations as the learner gets them."""
        return as_seen(obs, None) if self.raw else self._seen(obs)

    def _learner_reward(self, transition: Transition, ended: Array) -> Array:
        reward = transition.reward
        if self.clip_reward:
            reward = np.sign(reward)
        # After clipping, which would turn hints into more than that; before scaling, which changes no preference.
        if self.shaping is not None:
            reward = self.shaping.shaped(reward, self.obs, transition.obs, transition.terminated)
        if self.normalize_reward:
            scaled = self.normalizer.reward(reward, ended, self.discounted_return)
            reward = reward if self.raw else scaled
        return reward.astype(np.float32)

    def _new_rollout(self) -> Rollout:
        return Rollout(torch.device("cpu") if self.raw else self.device)

    def _room(self, t: int) -> int:
        """Return for how many steps there is room: more than t, twice as many where t steps have filled it."""
        if t and t == self.rollout.room():
            self.rollout.double()
        return self.rollout.room() or FIRST_ROOM


def to_policy(obs: Array, normalizer: Normalizer | None, device: torch.device) -> Tensor:
    """Return observations as a policy takes them: bytes stay bytes, all else is float32 or int64."""
    return torch.from_numpy(as_seen(obs, normalizer)).to(device)


def as_seen(obs: Array, normalizer: Normalizer | None) -> Array:
    """Return observations normalised, if they are to be, and in one of those types."""
    if normalizer is not None:
        return normalizer.obs(obs)
    return obs.astype(np.float32) if obs.dtype == np.float64 else obs
