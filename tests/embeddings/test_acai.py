"""ACAI against its paper's formula, and learning: reconstruction improves and its neighbours are better than chance."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from embeddings.acai import ACAI
from umeta.data.digits import Digits
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.runtime.loop import RunContext


def made(n=12, side=28):
    return UnlabelledImages.of(np.random.default_rng(0).integers(0, 256, (n, side, side), dtype=np.uint8))


def test_losses_are_those_of_the_paper_worked_by_hand():
    acai = ACAI(dimensions=16, weight=0.5, gamma=0.2)

    class Sum(nn.Module):  # a critic whose answers can be worked out on paper
        def forward(self, x):
            return x.sum((1, 2, 3))

    acai._nets = nn.ModuleDict({"critic": Sum()})
    x, rebuilt = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), torch.tensor([0.5, 0.5]).view(2, 1, 1, 1)
    mixed, alpha = torch.tensor([0.4, 0.2]).view(2, 1, 1, 1), torch.tensor([0.3, 0.5])
    losses = acai.losses(x, rebuilt, mixed, alpha)
    # |x - rebuilt|^2 = 0.25 each; d(mix)^2 = 0.16, 0.04
    assert losses["coder"].item() == pytest.approx(0.25 + 0.5 * (0.16 + 0.04) / 2)
    # (d(mix) - alpha)^2 = 0.01, 0.09; gamma x + (1 - gamma) rebuilt = 0.6, 0.4
    assert losses["critic"].item() == pytest.approx((0.01 + 0.09) / 2 + (0.36 + 0.16) / 2)


def test_images_are_mixed_as_in_the_paper(monkeypatch):
    """a ~ U(0, 1/2), and a mixture is g(a f(x1) + (1 - a) f(x2)); each image is mixed with its mirror in the batch."""
    acai = ACAI(dimensions=64, depth=16, steps=3, batch=64)
    greys = np.linspace(0, 255, 12).astype(np.uint8)  # of noise, a network of random weights would make much the same
    losses, drawn = ACAI.losses, []

    def spy(self, x, rebuilt, mixed, alpha):
        drawn.append(alpha)
        share = alpha.view(-1, 1, 1, 1)
        with torch.no_grad():
            z = self._nets["encoder"](x)
            torch.testing.assert_close(rebuilt, self._nets["decoder"](z))
            torch.testing.assert_close(mixed, self._nets["decoder"](share * z + (1 - share) * z.flip(0)))
        return losses(self, x, rebuilt, mixed, alpha)

    monkeypatch.setattr(ACAI, "losses", spy)
    acai.fit(UnlabelledImages.of(greys[:, None, None].repeat(8, 1).repeat(8, 2)), RunContext())
    alpha = torch.cat(drawn)
    assert alpha.shape == (3 * 64,)
    assert 0 <= alpha.min() < 0.02
    assert 0.48 < alpha.max() <= 0.5
    assert alpha.mean().item() == pytest.approx(0.25, abs=5 * 0.5 / (12 * 3 * 64) ** 0.5)


def test_the_networks_are_those_of_the_appendix():
    """By torch's functions alone: pairs of 3x3 convolutions, leaky ReLU 0.2, halvings, and the way back."""
    acai = ACAI(dimensions=32, depth=3, steps=1, batch=2)
    acai.fit(made(4, 16), RunContext())
    state = acai.state_dict()

    def weights(part):
        named = [name for name in state if name.startswith(f"{part}.") and name.endswith(".weight")]
        return [(state[name], state[name.replace("weight", "bias")]) for name in named]

    def pair(x, layers):
        for weight, bias in layers:
            x = F.leaky_relu(F.conv2d(x, weight, bias, padding=1), 0.2)
        return x

    def encode(x, layers):
        x = F.conv2d(x, *layers[0])
        x = F.avg_pool2d(pair(x, layers[1:3]), 2)
        x = F.avg_pool2d(pair(x, layers[3:5]), 2)
        return F.conv2d(pair(x, layers[5:6]), *layers[6], padding=1)

    def decode(z, layers):
        for i in (0, 2):
            z = pair(z, layers[i : i + 2]).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return F.conv2d(pair(z, layers[4:5]), *layers[5], padding=1)

    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    nets = acai._nets
    with torch.no_grad():
        z = encode(x, weights("encoder"))
        assert z.shape == (3, 2, 4, 4)
        torch.testing.assert_close(nets["encoder"](x), z)
        torch.testing.assert_close(nets["decoder"](z), decode(z, weights("decoder")))
        torch.testing.assert_close(nets["critic"](x), encode(x, weights("critic")).mean((1, 2, 3)))
    assert [tuple(weight.shape[:2]) for weight, _ in weights("encoder")] == [
        (3, 1), (3, 3), (3, 3), (6, 3), (6, 6), (12, 6), (2, 12)
    ]  # fmt: skip
    assert [tuple(weight.shape[:2]) for weight, _ in weights("decoder")] == [
        (6, 2), (6, 6), (3, 6), (3, 3), (3, 3), (1, 3)
    ]  # fmt: skip


def test_weights_are_drawn_as_in_the_papers_code():
    """N(0, 1 / (fan_in (1 + 0.2^2))) before a leaky ReLU, and biases of zero."""
    nets = ACAI(dimensions=16, depth=64).networks((1, 8, 8))
    drawn = [layer[0] for layer in nets.modules() if isinstance(layer, nn.Sequential) and len(layer) == 2]
    wide = [layer for layer in drawn if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 10_000]
    assert len(wide) >= 6
    for layer in wide:
        expected = (layer.in_channels * 9 * (1 + 0.2**2)) ** -0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert layer.weight.mean().item() == pytest.approx(0, abs=0.05 * expected)
        assert (layer.bias == 0).all()


def test_a_step_has_two_images_for_each_process(monkeypatch):
    monkeypatch.setattr("umeta.runtime.distributed.size", lambda: 3)
    with pytest.raises(UserError, match="5 images per step are too few for 3 processes"):
        ACAI(dimensions=16, depth=2, steps=1, batch=5).fit(made(), RunContext())


@dataclass
class FirstStep(RunContext):
    """Takes the first step alone, and keeps what it says."""

    said: dict = field(default_factory=dict)

    def loop(self, name, steps, step, save, load, **_):
        self.said = step(0)


@pytest.mark.parametrize("batch", [6, 7])
def test_what_two_processes_log_adds_up_to_what_one_logs(batch, monkeypatch):
    def said(size, rank):
        for name, stand_in in (
            ("size", lambda: size),
            ("rank", lambda: rank),
            ("sum_tensors", dict),
            ("sum_numbers", dict),
        ):
            monkeypatch.setattr(f"umeta.runtime.distributed.{name}", stand_in)
        ctx = FirstStep()
        ACAI(dimensions=16, depth=2, batch=batch).fit(made(), ctx)
        return ctx.said

    whole, parts = said(1, 0), [said(2, 0), said(2, 1)]
    assert set(whole) == {"rebuild", "critic"}
    for name, value in whole.items():
        assert sum(part[name] for part in parts) == pytest.approx(value, rel=1e-4)


def test_each_network_learns_from_its_own_loss_alone():
    acai = ACAI(dimensions=16, depth=2, steps=1, batch=4)
    images = made()
    acai.fit(images, RunContext())
    x = acai._resize(images.floats(slice(0, 4)))
    nets, alpha = acai._nets, torch.full((4,), 0.3)
    z = nets["encoder"](x)
    losses = acai.losses(x, nets["decoder"](z), nets["decoder"](torch.lerp(z.flip(0), z, 0.3)), alpha)
    by_critic = torch.autograd.grad(losses["critic"], list(nets["critic"].parameters()), retain_graph=True)
    # the blend is detached: without the mixed term the critic's loss does not reach the decoder
    unmixed = nets["critic"](torch.lerp(nets["decoder"](z), x, 0.2).detach()).square().mean()
    assert all(g is None for g in torch.autograd.grad(unmixed, list(nets["decoder"].parameters()), allow_unused=True))
    assert all(g.abs().sum() > 0 for g in by_critic[:2])


@pytest.mark.parametrize(("side", "inner"), [(28, 32), (32, 32), (84, 64), (16, 16), (8, 8)])
def test_images_of_any_size_get_the_dimensions_asked_for(side, inner):
    acai = ACAI(dimensions=32, depth=2, steps=1, batch=2)
    images = made(4, side)
    acai.fit(images, RunContext())
    assert acai._resize(images.floats(slice(0, 2))).shape[-1] == inner
    assert acai.embed(images).shape == (4, 32)


def test_it_learns_on_digits():
    items = Digits().read("train")
    images = UnlabelledImages.of(items.pixels[::2])
    acai = ACAI(dimensions=32, depth=4, steps=1, batch=32, lr=2e-3)

    def error():
        x = acai._resize(images.floats(slice(0, 100)))
        with torch.no_grad():
            return (acai._nets["decoder"](acai._nets["encoder"](x)) - x).square().mean().item()

    acai.fit(images, RunContext())
    before = error()
    acai.steps = 160
    acai.fit(images, RunContext())
    assert error() < before / 2

    labels = items.labels[::2][images.rows]
    z = acai.embed(images)
    distance = torch.cdist(z, z).fill_diagonal_(torch.inf)
    agree = (labels[distance.argmin(1).numpy()] == labels).mean()
    assert agree > 0.8  # the share of the largest class is about 0.2


def test_interrupted_training_goes_on_to_the_same_bytes(tmp_path):
    images = made()
    whole = ACAI(dimensions=16, depth=2, steps=6, batch=4)
    whole.fit(images, RunContext(seed=3))

    half = ACAI(dimensions=16, depth=2, steps=3, batch=4)
    half.fit(images, RunContext(seed=3, folder=tmp_path))  # the last step writes a checkpoint
    rest = ACAI(dimensions=16, depth=2, steps=6, batch=4)
    rest.fit(images, RunContext(seed=3, folder=tmp_path, resume=True))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="multiple of 16"):
        ACAI(dimensions=100)
    with pytest.raises(UserError, match="too small"):
        ACAI(steps=1).fit(made(4, 6), RunContext())
