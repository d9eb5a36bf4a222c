"""The program that runs all tasks at once, against a plain loop over them and against `torch.func.vmap`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from umeta.models import kernels
from umeta.models.conv4 import Conv4
from umeta.models.functional import Pure
from umeta.models.kernels import Refused, TaskBatched, statistics
from umeta.models.mlp import MLP
from umeta.models.resnet12 import ResNet12

TASKS = 3


def every_layer() -> nn.Module:
    """Build the layers that are computed for all tasks at once; the lazy one has seen its inputs."""
    module = nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        nn.BatchNorm2d(4, affine=False),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(4, 6, 1),
        nn.BatchNorm2d(6, eps=0.1),
        nn.AvgPool2d(2, 1),
        nn.SiLU(inplace=True),
        nn.Flatten(),
        nn.LazyLinear(5, bias=False),
        nn.BatchNorm1d(5),
        nn.Dropout(0.5),
        nn.Linear(5, 4),
        nn.Sigmoid(),
    )
    module(torch.rand(2, 2, 12, 12))
    return module


class Functional(nn.Module):
    """Functions in place of layers, a sum, a product with a number, a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        z = F.leaky_relu(self.norm(self.conv(x)), negative_slope=0.2)
        return torch.tanh(2 * (z + x))


class Pooled(nn.Module):
    """Pooling after normalisation in all ways: with ReLU between, with a rest beside the windows, with windows that
    overlap, with weights below 0, beside another use."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2, (2, 3), (0, 1)))
        self.overlap = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(3, 1, 1))
        self.negative = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2))
        self.norm, self.pool, self.smooth = nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.AvgPool2d(2)
        with torch.no_grad():
            self.negative[1].weight[::2] = -1

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.negative(self.overlap(self.first(x))))
        return self.pool(z) + self.smooth(z)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv4": (lambda: Conv4(3, "pool_first").build((2, 16, 16)), (2, 16, 16)),
    "resnet12": (lambda: ResNet12([2, 3, 2, 3]).build((2, 16, 16)), (2, 16, 16)),
    "mlp": (lambda: MLP([6, 5]).build((2, 1, 3)), (2, 1, 3)),
    "every layer": (every_layer, (2, 12, 12)),
    "functional": (Functional, (2, 5, 6)),
    "pooled": (Pooled, (2, 19, 25)),
}


def meta_gradient(forward: Callable[[dict[str, Tensor], Tensor], Tensor], theta: dict[str, Tensor], x, y, query, steps):
    """Of the mean squared error on the query after `steps` inner steps; `forward` does all tasks."""
    fast = {name: p.expand(TASKS, *p.shape) for name, p in theta.items()}
    for _ in range(steps):
        loss = (forward(fast, x) - y).square().mean((1, 2)).sum()
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {name: p - 0.3 * g for (name, p), g in zip(fast.items(), grads, strict=True)}
    return torch.autograd.grad((forward(fast, query) - y).square().mean(), list(theta.values()))


def looping(module: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """The module at each task's weights, one task after the other; batch normalisation is torch's own, in training."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train()

    def looped(fast: dict[str, Tensor], x: Tensor) -> Tensor:
        per_task = [{n: p[t] for n, p in fast.items()} for t in range(TASKS)]
        return torch.stack([functional_call(module, p, (x[t],)).flatten(1) for t, p in enumerate(per_task)])

    return looped


@pytest.mark.parametrize("normalisation", ["batch", "support", "group"])
@pytest.mark.parametrize("name", MODULES)
def test_meta_gradient_equals_a_plain_loop(name: str, normalisation: str) -> None:
    """Two inner steps, second order. The loop calls the module as it is, whose batch normalisation is torch's own; the
    other two normalisations, which torch's layers do not have, are held against vmap's program."""
    build, shape = MODULES[name]
    torch.manual_seed(0)
    module = build().double().eval()
    pure = Pure(module, normalisation)
    assert pure.batched
    theta = {n: (p + 0.1 * torch.rand_like(p)).requires_grad_() for n, p in pure.params().items()}
    x, query = torch.rand(2, TASKS, 5, *shape, dtype=torch.float64)
    wide = {n: p.expand(TASKS, *p.shape) for n, p in theta.items()}
    y = torch.rand_like(pure.per_task(wide, x)[0])

    vmapped = Pure(module, normalisation)
    vmapped.batched = None
    reference = looping(module) if normalisation == "batch" else lambda p, x: vmapped.per_task(p, x)[0]
    expected = meta_gradient(reference, theta, x, y, query, 2)
    found = meta_gradient(lambda p, x: pure.per_task(p, x)[0], theta, x, y, query, 2)
    whole = torch.cat([e.flatten() for e in expected]).norm()
    off = torch.cat([(f - e).flatten() for f, e in zip(found, expected, strict=True)]).norm()
    assert whole > 1e-6
    assert off / whole < 1e-10


@pytest.mark.parametrize("name", MODULES)
def test_bfloat16_errs_no_more_than_in_a_plain_loop(name: str) -> None:
    build, shape = MODULES[name]
    torch.manual_seed(0)
    module = build().eval()
    pure = Pure(module, "batch")
    params = {n: p + 0.2 * torch.rand(TASKS, *p.shape) for n, p in pure.params().items()}
    params = {n: p.requires_grad_() for n, p in params.items()}
    x = torch.rand(TASKS, 9, *shape)

    def found(forward: Callable[[dict[str, Tensor], Tensor], Tensor], enabled: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = forward(params, x).float()
        grads = torch.autograd.grad(out.sin().sum(), list(params.values()))
        return [out.detach(), torch.cat([g.flatten() for g in grads])]

    def program(params: dict[str, Tensor], x: Tensor) -> Tensor:
        out, used = pure.per_task(params, x)
        assert all(value.dtype == torch.float32 for value in (out, *used.values()))
        return out

    exact = found(program, False)
    errors = [
        [(one - other).norm() / other.norm() for one, other in zip(found(forward, True), exact, strict=True)]
        for forward in (program, looping(module))
    ]
    for ours, theirs in zip(*errors, strict=True):
        assert 0 < ours < 1.2 * theirs + 0.05


@pytest.mark.parametrize("name", ["conv4", "every layer", "resnet12", "pooled"])
def test_what_is_made_of_the_statistics_has_their_gradient_too(name: str) -> None:
    """Queries normalised by the support's statistics, which depend on the weights, after a step."""
    build, shape = MODULES[name]
    torch.manual_seed(0)
    ours, theirs = (Pure(build().double(), "support") for _ in range(2))
    theirs.batched = None
    theta = {n: (p + 0.1 * torch.rand_like(p)).requires_grad_() for n, p in ours.params().items()}
    x, query = torch.rand(2, TASKS, 5, *shape, dtype=torch.float64)
    found = []
    for pure in (ours, theirs):
        fast = {n: p.expand(TASKS, *p.shape) for n, p in theta.items()}
        grads = torch.autograd.grad(pure.per_task(fast, x)[0].square().mean(), list(fast.values()), create_graph=True)
        fast = {n: p - 0.1 * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        stats = pure.per_task(fast, x)[1]
        out, used = pure.per_task(fast, query, stats)
        assert used.keys() == stats.keys()
        loss = out.sin().sum() + sum(s.square().sum() for s in stats.values())
        found.append(torch.autograd.grad(loss, list(theta.values())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")), "Conv2d"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), "Conv2d"),
        (nn.Sequential(nn.PReLU()), "PReLU"),
        (nn.Sequential(nn.Flatten(2)), "Flatten"),
        (Branching(), "cannot be traced"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(module: nn.Module, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        TaskBatched(module, ())
    pure = Pure(nn.Sequential(nn.PReLU()), "batch")  # and runs all the same
    x = torch.randn(2, 3, 4)
    slopes = torch.tensor([[0.1], [0.5]])
    expected = torch.where(x > 0, x, slopes[:, None] * x)
    torch.testing.assert_close(pure.per_task({"0.weight": slopes}, x)[0], expected)


class Elsewhere(Tensor):
    """Is not on the CPU, it says."""

    is_cpu = False


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_are_the_same_on_any_device(dtype: torch.dtype) -> None:
    """The mean, and the mean square distance from it: not that of a sample, of which three values would tell."""
    x = 3 + torch.randn(3, 4, 1, 1, generator=torch.Generator().manual_seed(0), dtype=dtype)
    by_hand = x.mean((0, 2, 3)), ((x - x.mean(0)) ** 2).mean((0, 2, 3))
    for given in (x, x.as_subclass(Elsewhere)):
        for found, expected in zip(statistics(given), by_hand, strict=True):
            torch.testing.assert_close(torch.Tensor(found), expected, check_dtype=False)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [((3, 3), (1, 1), (1, 1)), ((3, 2), (2, 1), (1, 0)), ((1, 1), (3, 2), (0, 0))]
)
def test_the_product_of_windows_is_the_gradient_for_the_weights(
    size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64)
    w = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, w, stride=stride, padding=padding)
    g = torch.randn_like(y)
    torch.testing.assert_close(kernels.weights_by_product(g, x, size, stride, padding), *torch.autograd.grad(y, w, g))


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every weight gradient that is computed as a product."""
    made: list[Tensor] = []
    product = kernels.weights_by_product
    monkeypatch.setattr(kernels, "weights_by_product", lambda *options: made.append(product(*options)) or made[-1])
    return made


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, (3, 2), stride=2, bias=False)])
@pytest.mark.parametrize("side", [4, 12])
def test_networks_of_any_kind_have_few_places_gradients_as_a_product(
    layer: nn.Conv2d, side: int, products: list[Tensor]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, side, side, requires_grad=True)
    inputs = [x, *layer.parameters()]

    def gradients(context: AbstractContextManager[Any]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16), context:
            y = layer(x)
        return list(torch.autograd.grad(y.float().square().sum(), inputs))

    found, expected = gradients(kernels.FewPlaces()), gradients(nullcontext())
    assert len(products) == (side == 4)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()
    with kernels.FewPlaces():
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding))


@pytest.mark.parametrize("side", [4, 5])
def test_in_bfloat16_few_places_make_one_product(side: int, products: list[Tensor]) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(8, 3, side, side), torch.randn(2, 3, 3, 3)
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        weights = w.to(kind).requires_grad_()
        y = kernels.Convolution.apply(x.to(kind), weights, ((1, 1), (1, 1), (1, 1), 1))
        (found[kind],) = torch.autograd.grad(y.float().square().sum(), weights)
    assert len(products) == (side == 4)
    apart = (found[torch.float32] - found[torch.bfloat16].float()).norm() / found[torch.float32].norm()
    assert apart < 0.02
