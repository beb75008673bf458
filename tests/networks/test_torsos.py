import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rlrun.networks.torsos import MLP, Flatten, ImpalaCNN, NatureCNN, Residual, Torso, orthogonal

PICTURES = spaces.Box(0, 255, (4, 84, 84), np.uint8)


def nature(space: spaces.Space) -> NatureCNN:
    return NatureCNN(space, [32, 64, 64], [8, 4, 3], [4, 2, 1], 512, "relu", False)


def impala(space: spaces.Space) -> ImpalaCNN:
    return ImpalaCNN(space, [16, 32, 32], 256, "relu", False)


def num_weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_nature_cnn_is_the_network_of_mnih() -> None:
    convolutions = (4 * 8 * 8 + 1) * 32 + (32 * 4 * 4 + 1) * 64 + (64 * 3 * 3 + 1) * 64
    assert num_weights(nature(PICTURES)) == convolutions + (7 * 7 * 64 + 1) * 512


def test_impala_cnn_is_the_network_of_espeholt() -> None:
    def block(fan_in: int, fan_out: int) -> int:
        return (fan_in * 9 + 1) * fan_out + 4 * (fan_out * 9 + 1) * fan_out

    assert num_weights(impala(PICTURES)) == block(4, 16) + block(16, 32) + block(32, 32) + (11 * 11 * 32 + 1) * 256


@pytest.mark.parametrize("make", [nature, impala])
def test_convolutional_torsos_say_how_wide_they_are(make: Callable[[spaces.Space], Any]) -> None:
    torso = make(PICTURES)
    assert torso(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape == (2, torso.out_features)


@pytest.mark.parametrize("make", [nature, impala])
def test_bytes_are_scaled_to_the_unit_interval(make: Callable[[spaces.Space], Any]) -> None:
    torch.manual_seed(0)
    for_bytes = make(PICTURES)
    torch.manual_seed(0)
    for_floats = make(spaces.Box(0, 1, (4, 84, 84), np.float32))
    picture = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    torch.testing.assert_close(for_bytes(picture), for_floats(picture / 255), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [nature, impala])
def test_pictures_may_have_their_channels_last(make: Callable[[spaces.Space], Any]) -> None:
    torch.manual_seed(0)
    last = make(spaces.Box(0, 255, (60, 50, 3), np.uint8))
    torch.manual_seed(0)
    first = make(spaces.Box(0, 255, (3, 60, 50), np.uint8))
    picture = torch.randint(256, (2, 60, 50, 3), dtype=torch.uint8)
    assert torch.equal(last(picture), first(picture.permute(0, 3, 1, 2)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_observations_are_laid_out_with_what_is_read_together_side_by_side(dtype: torch.dtype) -> None:
    torso = nature(PICTURES)
    stacks = torch.randint(256, (6, 5, 84, 84), dtype=torch.uint8).to(dtype)
    obs = stacks[:, 1:]  # as out of a replay, with gaps between
    laid_out = torso.laid_out(obs)
    assert torch.equal(laid_out, obs)
    assert laid_out.is_contiguous(memory_format=torch.channels_last)
    assert torso.laid_out(laid_out) is laid_out
    assert torch.equal(torso(laid_out), torso(obs))


def test_what_is_no_image_is_left_as_it_is() -> None:
    obs, pictures = torch.zeros(2, 3), torch.zeros(2, 60, 50, 3, dtype=torch.uint8)
    assert MLP(spaces.Box(-1, 1, (3,), np.float32), [4], "tanh", False).laid_out(obs) is obs
    assert nature(spaces.Box(0, 255, (60, 50, 3), np.uint8)).laid_out(pictures) is pictures


def test_a_torso_without_layers_leaves_observations_as_they_are() -> None:
    obs = torch.zeros(2, 3)
    assert Torso().laid_out(obs) is obs


def test_flattening_is_torchs_with_its_derivatives() -> None:
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(Flatten()(x), x.flatten(1))
    weights = torch.randn(3, 40, dtype=torch.float64)
    (found,) = torch.autograd.grad((Flatten()(x) * weights).sum(), x)
    assert torch.equal(found, weights.view(3, 2, 4, 5))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradgradcheck(lambda x: Flatten()(x).square(), x)


@pytest.mark.parametrize("make", [nature, impala])
def test_convolutional_torsos_refuse_vectors_and_say_what_to_take(make: Callable[[spaces.Space], Any]) -> None:
    with pytest.raises(ValueError, match="network=mlp"):
        make(spaces.Box(-1, 1, (4,), np.float32))


def test_a_residual_block_with_zero_weights_is_the_identity() -> None:
    block = Residual((3, 8, 8), "relu", False)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(block(x), x)


def test_an_mlp_is_its_layers_written_out() -> None:
    torso = MLP(spaces.Box(-1, 1, (3,), np.float32), [5, 4], "tanh", False)
    first, second = (layer for layer in torso if isinstance(layer, nn.Linear))
    x = torch.randn(6, 3)
    expected = torch.tanh(torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    torch.testing.assert_close(torso(x), expected)
    assert torso.out_features == 4


def test_an_mlp_flattens_what_it_gets() -> None:
    torso = MLP(spaces.Box(-1, 1, (2, 3), np.float64), [5], "relu", False)
    assert torso(torch.zeros(7, 2, 3, dtype=torch.float64)).shape == (7, 5)


def test_an_mlp_scales_bytes() -> None:
    torso = MLP(spaces.Box(0, 255, (3,), np.uint8), [], "relu", False)
    assert torso(torch.tensor([[0, 51, 255]], dtype=torch.uint8)).tolist() == [[0.0, pytest.approx(0.2), 1.0]]


def test_an_mlp_without_hidden_layers_passes_its_input_on() -> None:
    torso = MLP(spaces.Discrete(3), [], "relu", False)
    assert torso.out_features == 3
    assert torso(torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_numbered_states_are_counted_from_the_start_of_the_space() -> None:
    torso = MLP(spaces.Discrete(3, start=-1), [], "relu", False)
    assert torso(torch.tensor([-1, 1])).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_an_mlp_refuses_a_space_that_it_cannot_read_by_name() -> None:
    with pytest.raises(ValueError, match="MultiBinary"):
        MLP(spaces.MultiBinary(3), [4], "relu", False)


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (5, 5)])
def test_linear_layers_start_orthogonal_with_gain_sqrt_2_and_no_bias(shape: tuple[int, int]) -> None:
    layer = orthogonal(nn.Linear(shape[1], shape[0]))
    weight = layer.weight.detach()
    gram = weight @ weight.T if shape[0] <= shape[1] else weight.T @ weight
    torch.testing.assert_close(gram, 2 * torch.eye(min(shape)), atol=1e-5, rtol=0)
    assert not layer.bias.any()


def test_all_layers_of_the_torsos_start_orthogonal() -> None:
    for torso in (nature(PICTURES), impala(PICTURES), MLP(spaces.Discrete(4), [64, 64], "tanh", False)):
        for layer in torso.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
                torch.testing.assert_close(singular, torch.full_like(singular, math.sqrt(2)), atol=1e-4, rtol=0)
                assert layer.bias is not None
                assert not layer.bias.any()
