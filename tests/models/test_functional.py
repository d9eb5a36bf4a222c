"""Modules as pure functions, and their normalisation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from umeta.errors import UserError
from umeta.models.conv4 import Conv4
from umeta.models.functional import MOMENTUM, GroupNorm, Pure, StatNorm, average, draw, exchange
from umeta.models.kernels import channels_last

BODY = nn.Sequential(
    nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten()
)


def random_params(pure: Pure, seed: int = 0) -> dict[str, Tensor]:
    """Float64 and away from the initial ones and zeros of normalisation layers."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(p.shape, generator=generator, dtype=torch.float64) for n, p in pure.params().items()}


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("normalisation", ["batch", "support", "running", "group"])
def test_per_task_is_shared_task_by_task(normalisation: str) -> None:
    pure = Pure(BODY.double(), normalisation)
    params = [random_params(pure, seed) for seed in range(3)]
    x = images(3, 5, 2, 6, 6)
    stacked = {name: torch.stack([p[name] for p in params]) for name in params[0]}
    out, stats = pure.per_task(stacked, x)
    for t in range(3):
        alone, used = pure.shared(params[t], x[t])
        torch.testing.assert_close(out[t], alone)
        assert used.keys() == stats.keys() == (set() if normalisation == "group" else {"1.mean", "1.var"})
        if used:
            torch.testing.assert_close(stats["1.mean"][t], used["1.mean"])
            n = 5 * 4 * 4  # `shared` hands out the unbiased variance, as nn.BatchNorm2d keeps it
            torch.testing.assert_close(stats["1.var"][t] * n / (n - 1), used["1.var"])


@pytest.mark.parametrize("per_task", [False, True])
def test_given_statistics_are_used_and_make_items_independent(per_task: bool) -> None:
    pure = Pure(BODY.double(), "support")
    params, x = random_params(pure), images(2, 5, 2, 6, 6)
    stats = {"1.mean": images(4), "1.var": 1 + images(4)}
    layer = copy_of_batch_norm(params, stats)
    expected = torch.stack([layer(task) for task in x])
    if per_task:
        wide = {name: p.expand(2, *p.shape) for name, p in params.items()}
        out, used = pure.per_task(wide, x, stats)
        own = {name: value.expand(2, 4) for name, value in stats.items()}
        torch.testing.assert_close(pure.per_task(wide, x, own)[0], expected)
        torch.testing.assert_close(pure.per_task(wide, x[:, :1], own)[0], expected[:, :1])
        torch.testing.assert_close(used, own)
    else:
        out, used = pure.shared(params, x.flatten(0, 1), stats)
        out = out.unflatten(0, (2, 5))
        torch.testing.assert_close(used, stats)
    torch.testing.assert_close(out, expected)


def copy_of_batch_norm(params: dict[str, Tensor], stats: dict[str, Tensor]) -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    ).double()
    running = {"1.running_mean": stats["1.mean"], "1.running_var": stats["1.var"]}
    body.load_state_dict({**params, **running, "1.num_batches_tracked": torch.tensor(0)})
    return body.eval()


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (6, 1), (8, 2), (16, 4), (32, 8), (64, 8)])
def test_group_normalisation_is_torchs(channels: int, groups: int) -> None:
    layer = nn.BatchNorm2d(channels).double()
    pure = Pure(layer, "group")
    params, x = random_params(pure), images(3, channels, 2, 2)
    expected = F.group_norm(x, groups, params["weight"], params["bias"])
    torch.testing.assert_close(pure.shared(params, x)[0], expected.flatten(1))


@pytest.mark.parametrize("program", ["batched", "vmap"])
def test_second_order_gradients_through_batch_norm_are_exact(program: str) -> None:
    """The trap: native batch norm under vmap, its weight and bias adapted, silently gave wrong meta-gradients in some
    versions of torch. Both programs must equal native batch norm in a plain loop, whatever the version does."""
    pure = Pure(BODY.double(), "batch")
    pure.batched = pure.batched if program == "batched" else None
    theta = {name: p.requires_grad_() for name, p in random_params(pure).items()}
    x, x_query, y = images(3, 5, 2, 6, 6), images(3, 5, 2, 6, 6, seed=2), images(3, 5, 16, seed=3)

    def forward(p: dict[str, Tensor], x: Tensor) -> Tensor:
        z = F.conv2d(x, p["0.weight"], p["0.bias"])
        z = F.relu(F.batch_norm(z, None, None, p["1.weight"], p["1.bias"], True))
        return F.adaptive_avg_pool2d(z, 2).flatten(1)

    def adapted(loss_of, fast: dict[str, Tensor]) -> dict[str, Tensor]:
        for _ in range(2):
            grads = torch.autograd.grad(loss_of(fast), list(fast.values()), create_graph=True)
            fast = {n: p - 0.4 * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        return fast

    looped = []
    for t in range(3):
        fast = adapted(lambda p, t=t: (forward(p, x[t]) - y[t]).square().mean(), theta)
        looped.append((forward(fast, x_query[t]) - y[t]).square().mean())
    expected = torch.autograd.grad(torch.stack(looped).mean(), list(theta.values()))

    wide = {name: p.expand(3, *p.shape) for name, p in theta.items()}
    fast = adapted(lambda p: (pure.per_task(p, x)[0] - y).square().mean((1, 2)).sum(), wide)
    found = torch.autograd.grad((pure.per_task(fast, x_query)[0] - y).square().mean(), list(theta.values()))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-12 * max(theirs.norm(), 1e-3)


def test_the_module_is_copied_and_left_alone() -> None:
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9))
    before = {name: value.clone() for name, value in body.state_dict().items()}
    pure = Pure(body, "batch")
    params = {name: 2 * value for name, value in pure.params().items()}
    one, _ = pure.shared(params, torch.rand(6, 3))
    assert body.training
    assert isinstance(body[1], nn.BatchNorm1d)
    for name, value in before.items():
        assert torch.equal(value, body.state_dict()[name])
    assert all(torch.equal(params[name], 2 * value) for name, value in pure.params().items())
    assert (one != 0).all()  # no dropout


def test_the_seed_decides_the_weights_and_nothing_else_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    monkeypatch.delattr(torch.cuda, "manual_seed_all")  # what `torch.manual_seed` does to every GPU
    one, again, other = (
        Pure(draw(lambda: Conv4(filters=4).build((1, 16, 16)), seed), "batch").params() for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])


@pytest.mark.parametrize("normalisation", ["support", "group"])
def test_a_batch_norm_may_be_the_module_itself(normalisation: str) -> None:
    pure = Pure(nn.BatchNorm1d(4, affine=False), normalisation)
    assert pure.params() == {}
    x = torch.rand(2, 5, 4)
    out, stats = pure.per_task({}, x)
    if normalisation == "support":
        expected = torch.stack([F.batch_norm(task, None, None, None, None, True) for task in x])
        assert stats[".mean"].shape == (2, 4)
    else:
        expected = F.group_norm(x.flatten(0, 1), 1).unflatten(0, (2, 5))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(pure.shared({}, x[0])[0], expected[0])


@pytest.mark.parametrize("normalisation", ["support", "group"])
def test_a_batch_norm_may_have_a_weight_and_no_bias(normalisation: str) -> None:
    layer = nn.BatchNorm1d(4)
    layer.register_parameter("bias", None)
    pure = Pure(layer, normalisation)
    x, weight = torch.rand(2, 5, 4), torch.rand(2, 4)
    out, _ = pure.per_task({"weight": weight}, x)
    unweighted, _ = Pure(nn.BatchNorm1d(4, affine=False), normalisation).per_task({}, x)
    torch.testing.assert_close(out, unweighted * weight[:, None])
    torch.testing.assert_close(pure.shared({"weight": weight[0]}, x[0])[0], out[0])


def test_a_layer_may_be_used_in_two_places() -> None:
    layer = nn.BatchNorm1d(3)
    pure = Pure(nn.Sequential(layer, nn.Linear(3, 3), layer), "batch")
    assert list(pure.params()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    params = {name: torch.rand_like(p) for name, p in pure.params().items()}
    x = torch.rand(6, 3)
    out, stats = pure.shared(params, x)
    affine = (params["0.weight"], params["0.bias"])
    z = F.linear(F.batch_norm(x, None, None, *affine, True), params["1.weight"], params["1.bias"])
    torch.testing.assert_close(out, F.batch_norm(z, None, None, *affine, True))
    assert set(stats) == {"0.mean", "0.var", "0[2].mean", "0[2].var"}
    torch.testing.assert_close(stats["0[2].mean"], z.mean(0))


class Custom(nn.Module):
    """Branches, a buffer, in-place operations, an output that is not flat, parameters and a layer that are not used."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 1, 1))
        self.unused = nn.Parameter(torch.ones(1))
        self.body = nn.ModuleDict({"conv": nn.Conv2d(2, 2, 3, padding=1), "norm": nn.BatchNorm2d(2)})
        self.spare = nn.BatchNorm2d(7)
        self.register_buffer("shift", torch.full((2, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        z = self.body["norm"](self.body["conv"](x))
        z *= self.scale
        return z.relu_().add_(self.shift) + x


def test_modules_of_any_kind() -> None:
    pure = Pure(Custom(), "support")
    x = torch.rand(2, 3, 2, 4, 4)
    kept = x.clone()
    wide = {name: p.expand(2, *p.shape) for name, p in pure.params().items()}
    out, stats = pure.per_task(wide, x)
    assert out.shape == (2, 3, 32)
    assert torch.equal(x, kept)
    torch.testing.assert_close(out[1], pure.shared(pure.params(), x[1])[0], atol=1e-5, rtol=1e-4)
    assert set(stats) == {"body.norm.mean", "body.norm.var"}
    torch.testing.assert_close(pure.per_task(wide, x, stats)[0], out)


def test_the_running_average_by_hand() -> None:
    first = average({}, {"a": torch.tensor([1.0, 2.0])})
    second = average(first, {"a": torch.tensor([3.0, 0.0])})
    torch.testing.assert_close(second["a"], torch.tensor([1 + 2 * MOMENTUM, 2 - 2 * MOMENTUM]))
    grown = average(first, {"a": torch.tensor([3.0, 0.0]), "new layer": torch.tensor([5.0])})
    assert torch.equal(grown["a"], second["a"])
    assert grown["new layer"].tolist() == [5.0]


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_changes_the_layout_alone(channels: int) -> None:
    x = torch.rand(2, channels, 5, 6)
    out = channels_last(x)
    assert torch.equal(out, x)
    assert out.stride() == (channels * 30, 1, channels * 6, channels)


@pytest.mark.parametrize(("down", "features"), [("pool", 4), ("stride", 4)])
def test_conv4(down: str, features: int) -> None:
    net = Conv4(filters=4, down=down).build((1, 28, 28))
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, features)
    assert Pure(net, "batch").features((1, 28, 28)) == features
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in net) == (4 if down == "pool" else 0)
    assert all(layer.bias is None for layer in net if isinstance(layer, nn.Conv2d))


def test_conv4_says_what_it_takes() -> None:
    with pytest.raises(UserError, match="15x28 is too small"):
        Conv4().build((1, 15, 28))
    with pytest.raises(UserError, match="takes images"):
        Conv4().build((10,))
    Conv4(filters=4, down="stride").build((1, 8, 8))


@pytest.mark.parametrize(("halvings", "features"), [(4, 1), (3, 9), (2, 49)])
def test_conv4_halves_as_often_as_asked(halvings, features):
    assert Pure(Conv4(4, halvings=halvings).build((1, 28, 28)), "running").features((1, 28, 28)) == 4 * features
    strided = Pure(Conv4(4, "stride", halvings).build((1, 28, 28)), "running")
    assert strided.features((1, 28, 28)) == 4  # averaged over positions
    with pytest.raises(UserError, match=f"halves {halvings} times"):
        Conv4(4, halvings=halvings).build((1, 3, 3))


def test_conv4_may_widen_from_block_to_block() -> None:
    net = Conv4(filters=[2, 3, 5, 7], halvings=2).build((1, 16, 16))
    shapes = [tuple(layer.weight.shape[:2]) for layer in net if isinstance(layer, nn.Conv2d)]
    assert shapes == [(2, 1), (3, 2), (5, 3), (7, 5)]
    assert [layer.num_features for layer in net if isinstance(layer, nn.BatchNorm2d)] == [2, 3, 5, 7]
    assert net(torch.rand(2, 1, 16, 16)).shape == (2, 7 * 4 * 4)
    for wrong in ([], [4], [4] * 5):
        with pytest.raises(ValueError, match="expected one number or four"):
            Conv4(filters=wrong)
    same = (Conv4(filters=filters).build((1, 16, 16)).state_dict() for filters in (4, [4] * 4))
    assert len({tuple((name, value.shape) for name, value in state.items()) for state in same}) == 1


@pytest.mark.parametrize("filters", ["[2, 3, 5]", "[2, 3, 5, 0]", "0", "wide"])
def test_bad_widths_in_a_config_are_named(filters: str) -> None:
    from umeta.config.registry import build_part

    assert build_part("model", {"name": "conv4", "filters": [2, "3", 5, 7]}) == Conv4([2, 3, 5, 7])
    with pytest.raises(UserError, match="filters"):
        build_part("model", {"name": "conv4", "filters": yaml.safe_load(filters)})


@pytest.mark.parametrize("training", [False, True])
def test_pool_first_by_hand(training: bool) -> None:
    """Convolution, halving, normalisation, ReLU; the last block of three halvings keeps its size."""
    net = Conv4(filters=[2, 3, 4, 4], down="pool_first", halvings=3).build((1, 16, 16)).train(training)
    convs, norms = ([layer for layer in net if isinstance(layer, cls)] for cls in (nn.Conv2d, nn.BatchNorm2d))
    generator = torch.Generator().manual_seed(0)
    z = x = torch.rand(3, 1, 16, 16, generator=generator)
    for block, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        for value in (norm.weight.data, norm.bias.data, norm.running_mean):
            value.uniform_(-1, 1, generator=generator)  # with no negative weight the order would not matter
        z = F.conv2d(z, conv.weight, padding=1)
        z = F.max_pool2d(z, 2) if block < 3 else z
        stats = (None, None) if training else (norm.running_mean.clone(), norm.running_var.clone())
        z = F.relu(F.batch_norm(z, *stats, norm.weight, norm.bias, training))
    assert z.shape == (3, 4, 2, 2)
    other = Conv4(filters=[2, 3, 4, 4], halvings=3).build((1, 16, 16)).train(training)
    other.load_state_dict(dict(zip(other.state_dict(), net.state_dict().values(), strict=True)))
    torch.testing.assert_close(net(x), z.flatten(1))
    assert not torch.allclose(other(x), z.flatten(1), atol=1e-2)
    with pytest.raises(UserError, match="halves 3 times: 7x16 is too small, resize to 8"):
        Conv4(4, "pool_first", 3).build((1, 7, 16))


def test_a_layer_that_is_exchanged_for_groups_keeps_no_averages() -> None:
    for kind, kept in ((StatNorm, True), (GroupNorm, False)):
        net = exchange(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), kind)
        assert isinstance(net[1], kind)
        assert (net[1].running_mean is not None) == kept
        assert {name for name, _ in net.named_parameters()} == {"0.weight", "0.bias", "1.weight", "1.bias"}
