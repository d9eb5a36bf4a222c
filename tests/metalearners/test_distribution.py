"""Noise that a task's items decide, and mixtures of what is drawn with it, against published numbers and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from umeta.metalearners._distribution import count, draw_noise, likelihood, mix_classes, mix_numbers
from umeta.objectives import gaussian
from umeta.types import Batch


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(x: Tensor, mask: Tensor | None = None) -> Batch:
    there = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    return Batch(x, torch.zeros(x.shape[:2], dtype=torch.int64), there, 2)


def test_the_generator_is_splitmix64() -> None:
    # the first outputs of its authors' code for the seed 0
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [n % 2**64 for n in count(4, torch.device("cpu")).tolist()] == published


def test_noise_is_standard_normal_and_independent() -> None:
    noise = draw_noise(batch(draw(300, 4, 3)), 20, 7)
    assert noise.shape == (300, 20, 7)
    assert noise.isfinite().all()
    assert kstest(noise.flatten().numpy(), norm.cdf).pvalue > 1e-3
    across = np.corrcoef(noise.flatten(1).numpy())[np.triu_indices(300, 1)]
    assert np.abs(across).max() < 6 / math.sqrt(140)
    # as fine as float32 allows: no value twice among few
    assert len(noise[:2].flatten().unique()) == 280


def test_noise_is_that_of_the_items() -> None:
    x = draw(3, 4, 2)
    there = torch.tensor([[True] * 4, [True] * 4, [True, True, False, False]])
    noise = draw_noise(batch(x, there), 5)
    torch.testing.assert_close(draw_noise(batch(x[1:], there[1:]), 5), noise[1:], rtol=0, atol=0)
    hidden = x.clone()
    hidden[2, 2:] = 9.0
    assert torch.equal(draw_noise(batch(hidden, there), 5), noise)
    moved = x.clone()
    moved[0, 0, 0] += 1e-6
    assert not torch.equal(draw_noise(batch(moved, there), 5)[0], noise[0])
    swapped = x.clone()
    swapped[0] = x[0].flip(0)
    assert not torch.equal(draw_noise(batch(swapped, there), 5)[0], noise[0])


def test_mixtures_by_hand() -> None:
    logits, output = draw(2, 3, 4, 5), draw(2, 3, 4, 2, seed=1)
    torch.testing.assert_close(mix_classes(logits).exp(), logits.softmax(-1).mean(1))
    mean, log_std = gaussian(output)
    found_mean, found_log_std = gaussian(mix_numbers(output))
    torch.testing.assert_close(found_mean, mean.mean(1))
    second = (log_std.exp() ** 2 + mean**2).mean(1)  # moments about zero
    torch.testing.assert_close(found_log_std.exp() ** 2, second - mean.mean(1) ** 2)


@pytest.mark.parametrize("numbers", [False, True])
def test_the_likelihood_is_scipys(numbers: bool) -> None:
    output = draw(2, 3, 2)
    there = torch.tensor([[True, True, True], [True, False, True]])
    if numbers:
        y = draw(2, 3, 1, seed=1)
        mean, log_std = (v.numpy() for v in gaussian(output))
        each = norm.logpdf(y.numpy(), mean, np.exp(log_std))[..., 0]
    else:
        y = torch.tensor([[0, 1, 1], [1, 0, 0]])
        each = np.take_along_axis(output.log_softmax(-1).numpy(), y.numpy()[..., None], 2)[..., 0]
    expected = [each[t][there[t].numpy()].mean() for t in range(2)]
    np.testing.assert_allclose(likelihood(output, Batch(draw(2, 3, 1), y, there, 2)), expected, rtol=1e-5)
