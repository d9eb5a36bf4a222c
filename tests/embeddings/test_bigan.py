"""BiGAN against its paper's formula, and learning: what is encoded and generated comes back."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.toys import step_sizes
from torch import nn

from embeddings.bigan import BiGAN
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.runtime.loop import RunContext
from umeta.testing import same

TINY = {"dimensions": 8, "depth": 2, "batch": 4}


def made(n=12, side=28, channels=1):
    return UnlabelledImages.of(np.random.default_rng(0).integers(0, 256, (n, channels, side, side), dtype=np.uint8))


def fitted(images, steps):
    bigan = BiGAN(**TINY, steps=steps)
    bigan.fit(images, RunContext())
    return bigan.state_dict()


class Product(nn.Module):
    """A discriminator whose log-odds can be worked out on paper."""

    def forward(self, x, z):
        return x.flatten(1).sum(1) * z.sum(1)


def test_losses_are_those_of_the_paper_worked_by_hand():
    bigan = BiGAN(dimensions=2)
    bigan._nets = nn.ModuleDict({"discriminator": Product()})
    x, generated = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), torch.tensor([0.5, -1.0]).view(2, 1, 1, 1)
    code, z = torch.tensor([[0.5, 0.5], [-0.2, 0.1]]), torch.tensor([[1.0, 1.0], [0.3, 0.1]])
    losses = bigan.losses(x, code, generated, z)

    def share(odds):
        return 1 / (1 + math.exp(-odds))

    real, fake = [share(1.0 * 1.0), share(2.0 * -0.1)], [share(0.5 * 2.0), share(-1.0 * 0.4)]
    # equation 3: the expectation of log D(x, E(x)), and that of log(1 - D(G(z), z))
    value = sum(map(math.log, real)) / 2 + sum(math.log(1 - d) for d in fake) / 2
    inverse = sum(math.log(1 - d) for d in real) / 2 + sum(map(math.log, fake)) / 2
    assert losses["discriminator"].item() == pytest.approx(-value, rel=1e-5)
    assert losses["coders"].item() == pytest.approx(-inverse, rel=1e-5)


def test_both_coders_and_the_discriminator_learn():
    images = made()
    first, second = ({name: v.clone() for name, v in fitted(images, steps).items()} for steps in (1, 2))
    for part in ("encoder", "generator", "discriminator"):
        assert any(not torch.equal(first[n], second[n]) for n in first if n.startswith(part) and "weight" in n)


def test_the_step_size_falls_from_its_largest_by_a_cosine():
    """That of the coders; the discriminator's is a quarter of it."""
    with step_sizes() as sizes:
        BiGAN(**TINY, steps=4, lr=0.02).fit(made(side=16), RunContext())
    falling = [0.02, 0.02 * (2 + 2**0.5) / 4, 0.01, 0.02 * (2 - 2**0.5) / 4]
    assert sizes == pytest.approx([share * size for size in falling for share in (1, 0.25)])


def test_the_networks_are_those_of_dcgan():
    """By torch's functions alone, in evaluation mode."""
    bigan = BiGAN(**TINY, steps=3)
    bigan.fit(made(side=16), RunContext())
    encoder, generator, judge = (
        list(bigan._nets[name].children()) for name in ("encoder", "generator", "discriminator")
    )

    def convolved(x, layer):
        return F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1)

    def normalised(x, layer):
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    kinds = [type(layer).__name__ for layer in encoder]
    down = ["Conv2d", "LeakyReLU", "Conv2d", "BatchNorm2d", "LeakyReLU", "Flatten"]
    assert kinds == [*down, "Linear", "PriorMoments"]
    with torch.no_grad():
        z = F.leaky_relu(convolved(x, encoder[0]), 0.2)
        z = F.leaky_relu(normalised(convolved(z, encoder[2]), encoder[3]), 0.2)
        z = normalised(F.linear(z.flatten(1), encoder[6].weight, encoder[6].bias), encoder[7]) / 3**0.5
        torch.testing.assert_close(bigan._nets["encoder"](x), z)
        y = F.linear(z, generator[0].weight, generator[0].bias).view(3, -1, 4, 4)
        for i in (2, 5):
            y = normalised(y, generator[i]).relu()
            y = F.conv_transpose2d(y, generator[i + 2].weight, generator[i + 2].bias, stride=2, padding=1)
        torch.testing.assert_close(bigan._nets["generator"](z), y.sigmoid())

        def layers(part, x):
            for layer in part:
                x = F.leaky_relu(x, 0.2) if isinstance(layer, nn.LeakyReLU) else F.linear(x, layer.weight, layer.bias)
            return x

        image, pair, of_image, of_code = judge
        flat = F.leaky_relu(convolved(x, image[0]), 0.2)
        flat = F.leaky_relu(convolved(flat, image[2]), 0.2).flatten(1)
        odds = layers(pair, torch.cat([flat, z], 1))[:, 0] + (layers(of_image, flat) * layers(of_code, z)).sum(1)
        torch.testing.assert_close(bigan._nets["discriminator"](x, z), odds)
    assert len(of_image) == 3
    assert len(of_code) == 4


def test_codes_have_the_moments_of_the_prior_and_weights_have_norm_one():
    bigan = BiGAN(dimensions=5, depth=4, steps=1, batch=40)
    images = made(40, 16)
    bigan.fit(images, RunContext())
    nets = bigan._nets.train()
    with torch.no_grad():
        code = nets["encoder"](images.floats(slice(None)))
        for _ in range(200):  # power iterations, one each time
            nets["discriminator"](images.floats(slice(None)), code)
        nets.eval()
        layers = [layer for layer in nets["discriminator"].modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    torch.testing.assert_close(code.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(code.var(0, correction=0), torch.full((5,), 1 / 3), atol=1e-2, rtol=0)  # of U(-1, 1)
    assert len(layers) == 8
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, rel=0.05)


def blobs(count, side=16):
    """A bright spot anywhere: images of two unknowns."""
    row, column = np.random.default_rng(0).uniform(4, side - 4, (2, count, 1, 1))
    grid = np.arange(side)
    squared = (grid[:, None] - row) ** 2 + (grid - column) ** 2
    return UnlabelledImages.of((255 * np.exp(-squared / 8)).astype(np.uint8))


def test_what_is_encoded_and_generated_comes_back():
    """Both inversion errors fall below that of answering the mean, which no loss asks for."""
    images = blobs(500)
    x = images.floats(slice(0, 200))
    z = 2 * torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) - 1
    errors = {}
    for steps in (1, 600):
        bigan = BiGAN(dimensions=4, depth=16, steps=steps, batch=32)
        bigan.fit(images, RunContext())
        encode, generate = bigan._nets["encoder"], bigan._nets["generator"]
        with torch.no_grad():
            image = (generate(encode(x)) - x).square().mean() / x.var(0, correction=0).mean()
            code = (encode(generate(z)) - z).square().mean() / z.var(0, correction=0).mean()
        errors[steps] = (image.item(), code.item())
    assert min(errors[1]) > 0.95
    assert max(errors[600]) < 0.9


@pytest.mark.parametrize(("side", "inner", "channels"), [(16, 16, 1), (28, 32, 3), (96, 128, 1), (84, 64, 3)])
def test_images_of_any_size_get_the_dimensions_asked_for(side, inner, channels):
    bigan = BiGAN(**TINY, steps=1)
    images = made(5, side, channels)
    bigan.fit(images, RunContext())
    assert bigan._side == inner
    z = bigan.embed(images)
    assert z.shape == (5, 8)
    assert z.isfinite().all()


def test_interrupted_training_goes_on_to_the_same_bytes(tmp_path):
    """The step size depends on the number of steps, so it is the run itself that is cut short."""
    images = made()
    whole = BiGAN(**TINY, steps=6)
    whole.fit(images, RunContext(seed=3, folder=tmp_path / "whole"))

    class Failing(BiGAN):
        calls = 0

        def losses(self, *args):
            self.calls += 1
            if self.calls > 4:
                raise RuntimeError("the power went")
            return super().losses(*args)

    place = tmp_path / "half"
    with pytest.raises(RuntimeError, match="the power went"):
        Failing(**TINY, steps=6).fit(images, RunContext(seed=3, folder=place, checkpoint_seconds=0))
    rest = BiGAN(**TINY, steps=6)
    rest.fit(images, RunContext(seed=3, folder=place, resume=True))
    assert same(whole.state_dict(), rest.state_dict())
    assert (tmp_path / "whole/bigan.jsonl").read_bytes() == (place / "bigan.jsonl").read_bytes()


def test_what_cannot_be_is_named():
    with pytest.raises(UserError, match="4 images per step, but there are 3"):
        BiGAN(**TINY, steps=1).fit(made(3), RunContext())
    with pytest.raises(UserError, match="6x6 are too small"):
        BiGAN(**TINY, steps=1).fit(made(4, 6), RunContext())
