from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlrun.device import Device
from rlrun.networks.recurrent import RecurrentActorCritic, RecurrentMLP, RecurrentNatureCNN, RecurrentTorso

OBS = spaces.Box(-1, 1, (3,), np.float32)
ACTION_SPACES: dict[str, Any] = {
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "Box": spaces.Box(-1, 1, (2,), np.float32),
}
# Where episodes begin, [B, T]: nowhere, everywhere, at the start, in the middle, at the end, side by side.
FIRST = {
    "one episode each": ["000000", "000000"],
    "an episode a step": ["111111", "111111"],
    "episodes that begin with the sequence": ["100000", "000000"],
    "episodes of all lengths": ["010010", "100001"],
    "one sequence": ["001001"],
    "one step": ["1", "0", "0"],
}


def device(precision: Literal["float32", "bf16"]) -> Device:
    return Device(kind="cpu", threads=1, precision=precision, compile=False, deterministic=True, replay_on_device=False)


def begins(rows: list[str]) -> Tensor:
    return torch.tensor([[c == "1" for c in row] for row in rows])


def make_torso(lstm_size: int = 5) -> RecurrentMLP:
    torso = RecurrentMLP(OBS, [7], "tanh", False, lstm_size)
    for parameter in torso.lstm.parameters():  # biases, too
        nn.init.normal_(parameter, std=0.5)
    return torso


def network(space: Any, *, share_torso: bool) -> RecurrentActorCritic:
    torch.manual_seed(0)
    return RecurrentActorCritic(make_torso, space, share_torso=share_torso, log_std_init=-0.5)  # type: ignore[arg-type]


def stepped(torso: RecurrentTorso, obs: Tensor, memory: Tensor, first: Tensor) -> Tensor:
    """Return the features [B, T, F] of steps taken one after the other."""
    rows = []
    for t in range(first.shape[1]):
        features, memory = torso(obs[:, t], memory, first[:, t])
        rows.append(features)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("case", FIRST)
def test_unrolling_is_stepping_with_a_blank_memory_at_each_start(case: str) -> None:
    torch.manual_seed(0)
    torso, first = make_torso(), begins(FIRST[case])
    obs, memory = torch.randn(*first.shape, 3), torch.randn(len(first), torso.memory_size)
    torch.testing.assert_close(
        torso.unroll(obs, memory, first), stepped(torso, obs, memory, first), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("case", FIRST)
def test_unrolling_has_the_gradients_of_stepping(case: str) -> None:
    torch.manual_seed(0)
    torso, first = make_torso(), begins(FIRST[case])
    obs, memory = torch.randn(*first.shape, 3), torch.randn(len(first), torso.memory_size)
    weights = torch.randn(*first.shape, torso.out_features)
    inputs = [obs.requires_grad_(), memory.requires_grad_(), *torso.parameters()]
    gradients = [
        torch.autograd.grad((run(obs, memory, first) * weights).sum(), inputs)
        for run in (torso.unroll, lambda *given: stepped(torso, *given))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_gradients_flow_back_through_time_to_the_episodes_start_and_no_further() -> None:
    torso, first = make_torso(), begins(["0001000"])
    obs, memory = torch.randn(1, 7, 3, requires_grad=True), torch.zeros(1, torso.memory_size, requires_grad=True)
    features = torso.unroll(obs, memory, first)
    of_last, of_memory = torch.autograd.grad(features[0, -1].sum(), [obs, memory], retain_graph=True)
    assert (of_last[0].abs().sum(-1) > 0).tolist() == [False] * 3 + [True] * 4
    assert not of_memory.any()
    of_third, of_memory = torch.autograd.grad(features[0, 2].sum(), [obs, memory])
    assert (of_third[0].abs().sum(-1) > 0).tolist() == [True] * 3 + [False] * 4
    assert of_memory.any()


def test_a_step_is_that_of_torchs_lstm() -> None:
    torso, obs, memory = make_torso(), torch.randn(4, 3), torch.randn(4, 10)
    features, after = torso(obs, memory, torch.zeros(4, dtype=torch.bool))
    h, c = (half.contiguous().unsqueeze(0) for half in memory.chunk(2, dim=-1))
    output, (h, c) = torso.lstm(torso.torso(obs).unsqueeze(0), (h, c))
    torch.testing.assert_close(features, output[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after, torch.cat([h[0], c[0]], dim=-1), atol=1e-6, rtol=1e-5)


def test_what_was_before_an_episode_makes_no_difference_to_it() -> None:
    torso, obs = make_torso(), torch.randn(2, 3)
    first = torch.tensor([True, False])
    one, other = (torso(obs, torch.full((2, 10), value), first) for value in (0.0, 3.0))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a[0], b[0])
        assert not torch.equal(a[1], b[1])


def test_lstms_start_orthogonal_with_no_bias() -> None:
    lstm = RecurrentMLP(OBS, [8], "tanh", False, 6).lstm
    for weight in (lstm.weight_ih_l0.detach(), lstm.weight_hh_l0.detach()):
        torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]), atol=1e-5, rtol=0)
    assert not lstm.bias_ih_l0.any()
    assert not lstm.bias_hh_l0.any()


def test_pictures_are_remembered_too() -> None:
    space = spaces.Box(0, 255, (1, 84, 84), np.uint8)
    torso = RecurrentNatureCNN(space, [4, 4, 4], [8, 4, 3], [4, 2, 1], 16, "relu", False, 5)
    obs = torch.randint(256, (2, 3, 1, 84, 84), dtype=torch.uint8)
    first, memory = begins(["010", "000"]), torch.randn(2, torso.memory_size)
    unrolled = torso.unroll(obs, memory, first)
    assert unrolled.shape == (2, 3, torso.out_features)
    torch.testing.assert_close(unrolled, stepped(torso, obs, memory, first), atol=1e-6, rtol=1e-5)


def test_a_memory_of_nothing_is_refused_by_key() -> None:
    with pytest.raises(ValueError, match=r"network\.lstm_size=0"):
        RecurrentMLP(OBS, [4], "tanh", False, 0)


# --- Policy and value -----------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("share_torso", [True, False])
def test_unrolled_samples_have_the_log_probs_and_values_of_the_steps(share_torso: bool, space: Any) -> None:
    net = network(space, share_torso=share_torso)
    first = begins(["0100100", "0000000", "1000011"]).T  # [T, B]
    obs, memory, rows = torch.randn(*first.shape, 3), None, []
    act = net.player(*first.shape, torch.Generator().manual_seed(0), device("float32"))
    with torch.no_grad():
        for t in range(len(first)):
            row, memory = act(obs[t], memory, first[t])
            rows.append(row)
    batch = {"obs": obs, "first": first, **{name: torch.stack([row[name] for row in rows]) for name in rows[0]}}
    assert batch["memory"].shape == (7, 3, 1 if share_torso else 2, 10)

    samples = net.samples(batch, {name: batch[name] for name in ("action", "log_prob", "value")})
    policy, value = net.unroll(samples)
    torch.testing.assert_close(policy.log_prob(samples["action"]), samples["log_prob"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(value, samples["value"], atol=1e-6, rtol=1e-5)
    # Some of the sequences, in any order, are what a minibatch is.
    some = torch.tensor([2, 0])
    _, part = net.unroll({name: t.index_select(0, some) for name, t in samples.items()})
    torch.testing.assert_close(part, samples["value"][some], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("share_torso", [True, False])
def test_the_policy_alone_acts_as_it_does_beside_the_value(share_torso: bool) -> None:
    net, first = network(ACTION_SPACES["Discrete"], share_torso=share_torso), begins(["10010", "11000"]).T
    memory, whole, obs = None, net._blank(torch.zeros(2, 3)), torch.randn(5, 2, 3)
    for t in range(5):
        policy, memory = net.policy(obs[t], memory, first[t])
        expected, _, whole = net(obs[t], whole, first[t])
        assert torch.equal(policy.mode(), expected.mode())
        assert torch.equal(policy.log_probs, expected.log_probs)  # type: ignore[attr-defined]


def test_autocast_leaves_the_memory_in_float32() -> None:
    net, first = network(ACTION_SPACES["Discrete"], share_torso=False), begins(["100000", "000100"]).T
    obs, memory, rows = torch.randn(6, 2, 3), None, []
    act = net.player(6, 2, torch.Generator().manual_seed(0), device("bf16"))
    with torch.no_grad():
        for t in range(6):
            row, memory = act(obs[t], memory, first[t])
            rows.append(row)
    with torch.autocast("cpu", torch.bfloat16):
        batch = {"obs": obs, "first": first, **{name: torch.stack([row[name] for row in rows]) for name in rows[0]}}
        policy, value = net.unroll(net.samples(batch, {}))
    assert memory is not None
    assert {memory.dtype, value.dtype, policy.log_probs.dtype} == {torch.float32}  # type: ignore[attr-defined]
    torch.testing.assert_close(value, batch["value"].T, atol=1e-2, rtol=1e-2)
