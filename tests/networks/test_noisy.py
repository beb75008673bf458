import math

import pytest
import torch
from torch import Tensor, nn

from rlrun.networks.noisy import NoisyLinear, quiet, resample


def layer_with_noise(fan_in: int = 5, fan_out: int = 3, sigma: float = 0.5) -> NoisyLinear:
    torch.manual_seed(0)
    layer = NoisyLinear(fan_in, fan_out, sigma)
    layer.resample(torch.Generator().manual_seed(1))
    return layer


def flat(x: Tensor) -> list[float]:
    return x.detach().flatten().tolist()


def test_a_noisy_layer_is_equation_9_written_out() -> None:
    layer, x = layer_with_noise(), torch.randn(4, 5)
    y = layer(x).tolist()
    w, w_sigma, b, b_sigma = (p.tolist() for p in (layer.weight, layer.weight_sigma, layer.bias, layer.bias_sigma))
    noise_in, noise_out = layer.noise_in.tolist(), layer.noise_out.tolist()
    for m in range(4):
        for j in range(3):
            expected = b[j] + b_sigma[j] * noise_out[j]
            expected += sum((w[j][i] + w_sigma[j][i] * noise_out[j] * noise_in[i]) * float(x[m, i]) for i in range(5))
            assert y[m][j] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_noise_is_the_signed_root_of_normal_numbers() -> None:
    layer = NoisyLinear(5, 3, 0.5)
    layer.resample(torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    normal = [torch.randn(n, generator=generator) for n in (5, 3)]
    for noise, x in zip((layer.noise_in, layer.noise_out), normal, strict=True):
        assert flat(noise) == pytest.approx([math.copysign(math.sqrt(abs(v)), v) for v in x.tolist()])


def test_noise_has_mean_0_and_the_moments_of_roots_of_normal_numbers() -> None:
    layer = NoisyLinear(100_000, 1, 0.5)
    layer.resample(torch.Generator().manual_seed(2))
    assert float(layer.noise_in.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(layer.noise_in.square().mean()) == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)  # E|x|


def test_a_layer_begins_as_the_paper_says() -> None:
    torch.manual_seed(0)
    layer = NoisyLinear(64, 2000, 0.5)
    bound = 1 / 8
    for mean in (layer.weight, layer.bias):
        assert float(mean.detach().abs().max()) <= bound
        assert float(mean.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for sigma in (layer.weight_sigma, layer.bias_sigma):
        assert (sigma == 0.5 / 8).all()


def test_before_the_first_draw_there_is_no_noise() -> None:
    layer, x = NoisyLinear(5, 3, 0.5), torch.randn(4, 5)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_new_noise_gives_new_outputs_and_the_same_generator_the_same() -> None:
    layer, x, outputs = layer_with_noise(), torch.randn(4, 5), []
    for seed in (1, 2, 1):
        layer.resample(torch.Generator().manual_seed(seed))
        outputs.append(layer(x))
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_noise_is_drawn_from_the_given_generator_alone() -> None:
    before = torch.get_rng_state()
    NoisyLinear(5, 3, 0.5).resample(torch.Generator().manual_seed(1))
    layers_own = torch.get_rng_state()  # the constructor draws weights, resampling must not
    torch.set_rng_state(before)
    NoisyLinear(5, 3, 0.5)
    assert torch.equal(torch.get_rng_state(), layers_own)


def test_noise_is_learned_where_it_matters() -> None:
    layer, x = layer_with_noise(), torch.randn(4, 5)
    layer(x).sum().backward()
    expected = torch.outer(layer.noise_out, layer.noise_in) * x.sum(0)
    assert layer.weight_sigma.grad is not None
    assert layer.bias_sigma.grad is not None
    torch.testing.assert_close(layer.weight_sigma.grad, expected)
    torch.testing.assert_close(layer.bias_sigma.grad, 4 * layer.noise_out)


def test_quiet_switches_the_noise_of_all_layers_off_and_on_again() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(NoisyLinear(5, 4, 0.5), nn.ReLU(), nn.Sequential(NoisyLinear(4, 2, 0.5))), torch.randn(3, 5)
    means = net(x)
    resample(net, torch.Generator().manual_seed(1))
    noisy = net(x)
    assert not torch.equal(noisy, means)
    with quiet(net):
        assert torch.equal(net(x), means)
    assert torch.equal(net(x), noisy)
    with pytest.raises(KeyError), quiet(net):
        raise KeyError
    assert torch.equal(net(x), noisy)


def test_resampling_a_network_draws_different_noise_for_each_layer() -> None:
    net = nn.Sequential(NoisyLinear(4, 4, 0.5), nn.Linear(4, 4), NoisyLinear(4, 4, 0.5))
    resample(net, torch.Generator().manual_seed(1))
    first, last = net[0], net[2]
    assert isinstance(first, NoisyLinear)
    assert isinstance(last, NoisyLinear)
    noises = [flat(n) for n in (first.noise_in, first.noise_out, last.noise_in, last.noise_out)]
    assert len({tuple(n) for n in noises}) == 4


def test_the_noise_is_saved_with_the_weights() -> None:
    one, other = layer_with_noise(), NoisyLinear(5, 3, 0.1)
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(one(x), other(x))


def test_no_sigma_is_a_linear_layer_whatever_the_noise() -> None:
    layer, x = layer_with_noise(sigma=0.0), torch.randn(4, 5)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
