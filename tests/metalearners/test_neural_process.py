"""Neural processes: the bound against torch's distributions, looped, and mixtures against draws from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from helpers.toys import Itself, answers, batch, rand
from scipy.stats import kstest
from torch.distributions import Normal, kl_divergence

from umeta import seeds
from umeta.metalearners._distribution import draw_noise, mix_classes, mix_numbers, scramble
from umeta.metalearners.neural_process import NeuralProcess
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import Batch, EpisodeSpec, TaskSpec, Theta

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(NeuralProcess(Conv4(filters=4), hidden=8, draws=3))


def latent(w: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> Normal:
    """q(z | x, y) of one task: its items x [n, 3] and labels y [n, width]."""
    h = [(w["pair.0.weight"] @ torch.cat(pair) + w["pair.0.bias"]).relu() for pair in zip(x, y, strict=True)]
    r = (sum(w["pair.2.weight"] @ one + w["pair.2.bias"] for one in h) / len(x)).relu()
    mean, spread = (w["latent.1.weight"] @ r + w["latent.1.bias"]).split(5)
    return Normal(mean, 0.1 + 0.9 * spread.sigmoid())


def decode(w: dict[str, torch.Tensor], x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    h = (w["mixed.weight"] @ torch.cat([x, z]) + w["mixed.bias"]).relu()
    return w["answer.weight"] @ h + w["answer.bias"]


def test_answers_by_hand() -> None:
    """The mean of the probabilities over draws from what the support says."""
    learner = NeuralProcess(Itself(), hidden=5, draws=3).build(SPEC, EPISODE)
    theta = learner.init(0)
    w = {name.removeprefix("neuralprocess."): p for name, p in theta.params.items()}
    support, query = batch(rand(2, 4, 3), [[0, 0, 1, 1], [1, 0, 0, 1]], 2), rand(2, 3, 3, seed=1)
    found, noise = answers(learner, theta, support, query), draw_noise(support, 3, 5)
    for t in range(2):
        q = latent(w, support.x[t], F.one_hot(support.y[t], 2))
        for i in range(3):
            each = [decode(w, query[t, i], q.mean + q.stddev * e).softmax(0) for e in noise[t]]
            torch.testing.assert_close(found[t, i].exp(), sum(each) / 3)


def test_the_loss_is_minus_the_bound() -> None:
    """On numbers: E_q log p(y | x, z) - KL(q(z | support, query) || q(z | support)), for each item."""
    learner = NeuralProcess(Itself(), hidden=5, draws=3).build(TaskSpec((3,), "regression", 1), EpisodeSpec(1, 4, 6))
    theta = Theta(learner.init(0).params)
    w = {name.removeprefix("neuralprocess."): p for name, p in theta.params.items()}
    support, query = (Batch(rand(2, n, 3), rand(2, n, 1, seed=1), torch.ones(2, n).bool(), 1) for n in (4, 6))
    found = learner.meta_loss(theta, support, query)[1]
    for t in range(2):
        x, y = (torch.cat([getattr(b, name)[t] for b in (support, query)]) for name in ("x", "y"))
        prior, posterior = latent(w, support.x[t], support.y[t]), latent(w, x, y)
        both = Batch(x[None], y[None], torch.ones(1, 10).bool(), 1)
        fits = []
        for e in draw_noise(both, 3, 5)[0]:
            for item, truth in zip(query.x[t], query.y[t], strict=True):
                mean, log_std = decode(w, item, posterior.mean + posterior.stddev * e)
                fits.append(Normal(mean, log_std.exp()).log_prob(truth[0]))
        bound = sum(fits) / len(fits) - kl_divergence(posterior, prior).sum() / 6
        torch.testing.assert_close(found[t], -bound)


def test_mixtures_are_those_of_many_draws() -> None:
    output = rand(1, 4, 1, 2)
    mean, log_std = output[0, :, 0].T
    draws = Normal(mean, log_std.exp()).sample((100_000,)).flatten()
    expected = torch.stack([draws.mean(), draws.std().log()])
    torch.testing.assert_close(mix_numbers(output)[0, 0], expected, atol=0.02, rtol=0)
    torch.testing.assert_close(mix_classes(output).exp()[0, 0], output[0, :, 0].softmax(-1).mean(0))


def test_the_noise_of_a_task_is_its_own_and_stays() -> None:
    support = batch(rand(3, 4, 3), [[0, 0, 1, 1]] * 3, 2)
    noise = draw_noise(support, 50, 4)
    torch.testing.assert_close(draw_noise(support.chunk(1, 2), 50, 4)[0], noise[1])
    assert (noise[0] != noise[1]).all()
    padded = replace(support, x=F.pad(support.x, (0, 0, 0, 1), value=7.0), mask=F.pad(support.mask, (0, 1)))
    assert torch.equal(draw_noise(padded, 50, 4), noise)


def test_noise_is_normal_and_of_its_own_for_the_least_change() -> None:
    x = torch.zeros(2000, 2, 3)
    x[:, 1, 2] = torch.arange(2000) / 255
    noise = draw_noise(batch(x, [[0, 1]] * 2000, 2), 20)
    assert kstest(noise.flatten(), "norm").pvalue > 0.01
    apart = torch.corrcoef(torch.cat([noise[:-1], noise[1:]], 1).T) - torch.eye(40)  # of places, and of tasks alike
    assert apart.abs().max() < 0.1


def test_hashes_are_those_of_seeds() -> None:
    z = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000)
    expected = seeds._mix(z.view(np.uint64).copy())
    assert np.array_equal(scramble(torch.from_numpy(z)).numpy().view(np.uint64), expected)
