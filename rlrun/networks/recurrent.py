"""Networks that remember: a torso, then an LSTM, whose state is their memory of the episode so far.

The memory is one tensor, zeros at the start of each episode, so that a rollout stores it like anything else. T time,
B environments, F features, M numbers of one LSTM's memory, N torsos (one, or one for the policy and one for the value).

Hochreiter and Schmidhuber (1997), "Long Short-Term Memory". Weights start orthogonal and biases at zero, as in
Baselines' lstm policies.
"""

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.math.distributions import Distribution
from rlrun.networks.actor_critic import ActorCritic, Batch, Memory, sampled
from rlrun.networks.torsos import MLP, Activation, NatureCNN, Torso


class RecurrentTorso(nn.Module):
    """A torso and an LSTM on its features; the memory [B, M] is the LSTM's output h and its cell c, side by side.

    The LSTM computes in float32 under autocast, too: what adds up over an episode needs the digits.
    """

    def __init__(self, torso: Torso, lstm_size: int) -> None:
        if lstm_size < 1:
            raise ValueError(f"network.lstm_size={lstm_size} is out of range: expected at least 1")
        super().__init__()
        self.torso = torso
        self.lstm = nn.LSTM(torso.out_features, lstm_size)
        for name, parameter in self.lstm.named_parameters():
            (nn.init.zeros_ if "bias" in name else nn.init.orthogonal_)(parameter)
        self.out_features, self.memory_size = lstm_size, 2 * lstm_size

    def forward(self, obs: Tensor, memory: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step: obs [B, *obs], memory [B, M], first [B] bool -> features [B, F] and the memory after it."""
        features = self.torso(obs)
        with torch.autocast(features.device.type, enabled=False):
            # What nn.LSTM computes for one step, in a third of the time.
            h, c = torch.lstm_cell(features.float(), _begun(memory, first).chunk(2, dim=-1), *self.lstm.all_weights[0])
        return h, torch.cat([h, c], dim=-1)

    def unroll(self, obs: Tensor, memory: Tensor, first: Tensor) -> Tensor:
        """Run over sequences: obs [B, T, *obs], memory [B, M] before them, first [B, T] -> features [B, T, F].

        The parts of the sequences that belong to one episode run side by side, each from its own start, padded to the
        longest: that is several times as fast as T steps one after the other.
        """
        features = self.torso(obs.flatten(0, 1)).float()  # [B T, ...]: each sequence in one piece
        starts_part = first.clone()
        starts_part[:, 0] = True
        starts = starts_part.flatten().nonzero().squeeze(-1)
        part = starts_part.flatten().cumsum(0) - 1  # the part that each step is in, and its place there
        place = torch.arange(len(part), device=part.device) - starts[part]
        padded = features.new_zeros(int(place.max()) + 1, len(starts), features.shape[-1])
        padded[place, part] = features
        initial = memory.new_zeros(len(starts), self.memory_size)
        initial[part[:: first.shape[1]]] = _begun(memory, first[:, 0])
        h, c = initial.unsqueeze(0).chunk(2, dim=-1)
        with torch.autocast(features.device.type, enabled=False):
            output, _ = self.lstm(padded, (h.contiguous(), c.contiguous()))
        return output[place, part].unflatten(0, first.shape)


class RecurrentMLP(RecurrentTorso):
    """Fully connected layers, then an LSTM."""

    def __init__(
        self, obs_space: spaces.Space, hidden: list[int], activation: Activation, layer_norm: bool, lstm_size: int
    ) -> None:
        super().__init__(MLP(obs_space, hidden, activation, layer_norm), lstm_size)


class RecurrentNatureCNN(RecurrentTorso):
    """The convolutional network of Mnih et al. (2015), then an LSTM, as in Baselines' CnnLstmPolicy."""

    def __init__(
        self,
        obs_space: spaces.Space,
        channels: list[int],
        kernels: list[int],
        strides: list[int],
        hidden: int,
        activation: Activation,
        layer_norm: bool,
        lstm_size: int,
    ) -> None:
        super().__init__(NatureCNN(obs_space, channels, kernels, strides, hidden, activation, layer_norm), lstm_size)


class RecurrentActorCritic(ActorCritic):
    """pi(a_t|s_0...s_t) and V(s_0...s_t), on torsos that remember. Their memories are one tensor [B, N, M]."""

    policy_torso: RecurrentTorso  # type: ignore[assignment]  # what make_torso returned
    value_torso: RecurrentTorso  # type: ignore[assignment]

    def forward(  # type: ignore[override]  # what remembers cannot answer without its memory
        self, obs: Tensor, memory: Tensor, first: Tensor
    ) -> tuple[Distribution, Tensor, Tensor]:
        """Take one step: obs [B, *obs], memory [B, N, M], first [B] -> the policy, V [B], and the memory after it."""
        features, after = self.policy_torso(obs, memory[:, 0], first)
        memories = [after]
        value_features = features
        if self.value_torso is not self.policy_torso:
            value_features, value_after = self.value_torso(obs, memory[:, 1], first)
            memories.append(value_after)
        return self.policy_head(features), self._value(value_features), torch.stack(memories, dim=1)

    def step(self, obs: Tensor, memory: Memory, first: Tensor, noise: Tensor) -> tuple[Batch, Memory]:
        """Return what `act` does, with the memory before the step, and the one after it."""
        before = self._blank(obs) if memory is None else memory
        policy, value, after = self(obs, before, first)
        return {**sampled(policy, value, noise), "memory": before}, after

    def policy(self, obs: Tensor, memory: Memory, first: Tensor) -> tuple[Distribution, Memory]:
        """Return the action distribution and the memory after it, of the policy alone."""
        before = self._blank(obs) if memory is None else memory
        features, after = self.policy_torso(obs, before[:, 0], first)
        return self.policy_head(features), after.unsqueeze(1)

    def bootstrap_values(self, batch: Batch, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return V after a rollout, [B], and V of the last observations of the K episodes cut short in it, [K].

        Each is seen with the memory of the episode that it ends, which the next step finds before it begins anew.
        """
        assert memory is not None
        after = torch.cat([batch["memory"][1:], memory.unsqueeze(0)]).flatten(0, 1)
        memories = torch.cat([memory, after[batch["final_index"]]])
        obs = torch.cat([batch["next_obs"], batch["final_obs"]])
        # V of an observation that begins an episode is not looked at: nothing is bootstrapped across an end.
        going_on = torch.zeros(len(obs), dtype=torch.bool, device=obs.device)
        features, _ = self.value_torso(obs, memories[:, -1], going_on)
        last_value, final_value = self._value(features).split([len(memory), len(obs) - len(memory)])
        return last_value, final_value

    def samples(self, batch: Batch, columns: Batch) -> Batch:
        """Arrange a rollout as its environments' sequences, [B, T, ...], and the memory before them, [B, N, M]."""
        inputs = {name: batch[name] for name in ("obs", "first")}
        sequences = {name: t.transpose(0, 1) for name, t in {**inputs, **columns}.items()}
        return {**sequences, "memory": batch["memory"][0]}

    def unroll(self, samples: Batch) -> tuple[Distribution, Tensor]:
        """Return the action distribution and V, [B, T], of sequences; gradients flow back to their starts."""
        obs, memory, first = (samples[name] for name in ("obs", "memory", "first"))
        features = self.policy_torso.unroll(obs, memory[:, 0], first)
        value_features = features
        if self.value_torso is not self.policy_torso:
            value_features = self.value_torso.unroll(obs, memory[:, 1], first)
        return self.policy_head(features), self._value(value_features)

    def _blank(self, obs: Tensor) -> Tensor:
        num_torsos = 1 if self.value_torso is self.policy_torso else 2
        return torch.zeros(len(obs), num_torsos, self.policy_torso.memory_size, device=obs.device)


def _begun(memory: Tensor, first: Tensor) -> Tensor:
    """Return the memories [B, M], blank where an episode begins: first [B] bool."""
    return memory.masked_fill(first.unsqueeze(-1), 0.0)
