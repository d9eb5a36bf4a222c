"""A network at many weights in one program: what `Pure.per_task` runs where it can.

MAML needs a network evaluated at T sets of weights, differentiated twice. A loop over tasks or `torch.func.vmap` issues
T times as many kernels, or the wrong ones (vmap's convolution, normalisation and their second derivatives are made of
many elementwise passes). Here the weights carry the task dimension, and one kernel does all tasks:

- images of T tasks are one batch [N, T * C, H, W], channels last in memory, task-major: item n of every task is one
  picture of T * C channels;
- a convolution with weights [T, O, C, k, k] is one with T groups;
- batch normalisation of each task is plain batch normalisation of T * C channels;
- pooling and nonlinearities need no change; rows of features are [T, N, F], a linear layer is `baddbmm`.

First and second derivatives come from four `autograd.Function`s made of torch's own kernels.

**Convolution** is bilinear: `y = x * w`. With `D(g, w)` the gradient for x and `W(g, x)` that for w, each is linear in
both arguments, and the derivative of each is the other two: for a cotangent u of D(g, w), that of g is `u * w` and that
of w is `W(g, u)`; for a cotangent v of W(g, x), that of g is `x * v` and that of x is `D(g, v)`. Autograd's own double
backward gets the same numbers by a convolution for each group.

**Batch normalisation**, per channel: `h = (x - m) r`, `y = a h + b`, m and r the mean and inverse standard deviation of
the n values. Writing E for the mean over them, its backward is

    dx = a r (g - E[g] - h E[g h]),   da = n E[g h],   db = n E[g].                                             (1)

For cotangents u of dx, p of da and q of db let `S = <u, dx> + p da + q db`. Then

    dS/dg = a r (u - E[u] - h E[u h]) + p h + q                                                                 (2)
    dS/da = <u, dx> / a = n r (E[u g] - E[u] E[g] - E[u h] E[g h]) =: r A                                       (3)
    dS/dx = r (s - E[s] - h E[s h]) - a A r^2 h / n,   s = (p - a r E[u h]) g - a r E[g h] u                    (4)

where the last term of (4) is the derivative through r. The first part of (2) is (1) for u, one native kernel, which
also gives E[u] and E[u h]; (4) is a sum of u, g and x with a coefficient for each channel.

tests/test_batched.py holds all of it against a plain loop in float64.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Identity, nn.Dropout)
FUNCTIONS = (F.relu, F.leaky_relu, F.gelu, F.silu, torch.relu, torch.tanh, torch.sigmoid, operator.add, operator.mul)
OVER = (0, 2, 3)  # what a channel's statistics are taken over


class Refused(Exception):
    """The module holds something that has no rule here."""


class TaskBatched:
    """A module's computation, node by node, on all tasks at once."""

    def __init__(self, module: nn.Module, own: tuple[type[nn.Module], ...]) -> None:
        """own: classes of normalisation layers that stand in for `BatchNorm`: with `weight`, `bias`, `eps`; those with
        `groups` are group normalisation.

        Raises:
            Refused: a part of the module cannot run so; the message names it.
        """
        try:
            graph = Tracer(own).trace(module)
        except Exception as error:  # tracing runs code of the user's, which may do anything
            raise Refused(f"its forward cannot be traced ({type(error).__name__})") from error
        self.module, self.own = module, own
        self.nodes = list(graph.nodes)
        self.names = {id(value): name for name, value in module.named_parameters()}
        self.layers = dict(module.named_modules(remove_duplicate=False))
        for node in self.nodes:
            self.check(node)

    def check(self, node: fx.Node) -> None:
        """Raises Refused where the node has no rule."""
        layer = self.layers[str(node.target)] if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d):
            known = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        elif isinstance(layer, nn.MaxPool2d):
            known = not layer.ceil_mode and not layer.return_indices
        elif isinstance(layer, nn.Flatten):
            known = (layer.start_dim, layer.end_dim) == (1, -1)
        elif layer is not None:
            known = isinstance(layer, (nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d, *self.own, *ELEMENTWISE))
        elif node.op == "call_function":
            known = node.target in FUNCTIONS and not node.kwargs.get("inplace", False)
        else:
            known = node.op in ("placeholder", "output")
        if not known:
            raise Refused(
                f"it has {type(layer).__name__ if layer else node.target}, for which there is no batched rule"
            )

    def __call__(
        self, params: Mapping[str, Tensor], x: Tensor, given: Mapping[str, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The output [T, N, features] for params [T, ...] and x [T, N, ...], and by layer the statistics used.

        given: by layer, mean and variance [T, channels] or [channels] to normalise by.
        """
        values: dict[fx.Node, Any] = {}
        used: dict[str, tuple[Tensor, Tensor]] = {}
        tasks = len(x)
        for node in self.nodes:
            if node.op == "placeholder":
                values[node] = maps(x) if x.dim() == 5 else x
                continue
            inputs = fx.node.map_arg(node.args, values.__getitem__)
            if node.op == "output":
                return rows(inputs[0], tasks).flatten(2), used
            if node.op == "call_function":
                assert callable(node.target)
                values[node] = node.target(*inputs, **fx.node.map_arg(node.kwargs, values.__getitem__))
                continue
            name = str(node.target)
            layer = self.layers[name]
            if isinstance(layer, self.own):
                values[node], stats = self.normalised(layer, params, inputs[0], tasks, given.get(name))
                if stats is not None:
                    used[name] = stats
            else:
                values[node] = self.applied(layer, params, inputs[0], tasks)
        raise AssertionError("a graph ends in its output")

    def weights(self, layer: nn.Module, params: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """The layer's weight and bias [T, ...]."""
        weight, bias = (params[self.names[id(p)]] if p is not None else None for p in (layer.weight, layer.bias))
        return weight, bias

    def applied(self, layer: nn.Module, params: Mapping[str, Tensor], x: Tensor, tasks: int) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            weight, bias = self.weights(layer, params)
            assert weight is not None
            geometry = (layer.stride, layer.padding, layer.dilation, tasks * layer.groups)
            z = Convolution.apply(x, weight.flatten(0, 1), geometry)
            return z if bias is None else z + bias.flatten()[:, None, None]
        if isinstance(layer, nn.Linear):
            weight, bias = self.weights(layer, params)
            assert weight is not None
            return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
        if isinstance(layer, nn.MaxPool2d):
            return MaxPool.apply(x, (layer.kernel_size, layer.stride, layer.padding, layer.dilation))
        if isinstance(layer, nn.Flatten):
            return rows(x, tasks)
        return layer(x)

    def normalised(
        self,
        layer: Any,
        params: Mapping[str, Tensor],
        x: Tensor,
        tasks: int,
        given: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        weight, bias = self.weights(layer, params)
        flat = x.dim() == 3
        z = x.transpose(0, 1).flatten(1)[..., None, None] if flat else x  # [N, T * C, H, W]
        channels = z.shape[1]
        a = z.new_ones(channels) if weight is None else weight.reshape(channels)
        b = z.new_zeros(channels) if bias is None else bias.reshape(channels)
        stats = None
        if hasattr(layer, "groups"):
            grouped = z.reshape(len(z), tasks * layer.groups, -1)
            mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True, correction=0)
            z = ((grouped - mean) * (var + layer.eps).rsqrt()).reshape(z.shape) * a[:, None, None] + b[:, None, None]
        elif given is None:
            z, mean, var = BatchNorm.apply(z, a, b, layer.eps)
            stats = mean.view(tasks, -1), var.view(tasks, -1)
        else:
            mean, var = (value.expand(tasks, channels // tasks).reshape(channels) for value in given)
            scale = (var + layer.eps).rsqrt() * a
            z = torch.addcmul((b - mean * scale)[:, None, None], z, scale[:, None, None])
            stats = mean.view(tasks, -1), var.view(tasks, -1)
        return z.view(len(z), tasks, -1).transpose(0, 1) if flat else z, stats


class Tracer(fx.Tracer):
    """Records torch's own layers and the normalisation layers as one node each."""

    def __init__(self, own: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.own = own

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.own) or super().is_leaf_module(m, module_qualified_name)


def maps(x: Tensor) -> Tensor:
    """Images [T, N, C, H, W] as one batch [N, T * C, H, W], channels last in memory."""
    t, n, c, h, w = x.shape
    last = x.permute(1, 3, 4, 0, 2).reshape(n, h, w, t * c).contiguous()
    # strides of dimensions of length one are anything, but the kernels read them
    return last.as_strided((n, t * c, h, w), (h * w * t * c, 1, w * t * c, t * c), last.storage_offset())


def rows(x: Tensor, tasks: int) -> Tensor:
    """Feature maps [N, T * C, H, W] as [T, N, C * H * W]; what is rows already is left alone."""
    if x.dim() == 3:
        return x
    return x.unflatten(1, (tasks, -1)).transpose(0, 1).flatten(2)


def channels_last(x: Tensor) -> Tensor:
    """Images with channels last in memory: several times faster pooling and normalisation on a CPU."""
    if x.dim() == 4 and x.shape[1] == 1:  # `contiguous` sees no difference here, the convolution does
        return x.contiguous().as_strided(x.shape, (x[0].numel(), 1, x.shape[3], 1))
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


class Convolution(torch.autograd.Function):
    """`x * w`: x [N, G * C, H, W], w [G * O, C, k, k], geometry: stride, padding, dilation, groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, geometry: tuple) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return F.conv2d(x, w, None, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        x, w = ctx.saved_tensors
        for_x, for_w, _ = ctx.needs_input_grad
        return (
            DataGradient.apply(g, w, x, ctx.geometry) if for_x else None,
            WeightGradient.apply(g, x, w, ctx.geometry) if for_w else None,
            None,
        )


def convolution_backward(g: Tensor, x: Tensor, w: Tensor, geometry: tuple, mask: tuple[bool, bool]) -> tuple:
    stride, padding, dilation, groups = geometry
    return aten.convolution_backward(
        channels_last(g), x, w, None, stride, padding, dilation, False, [0, 0], groups, [*mask, False]
    )


class DataGradient(torch.autograd.Function):
    """D(g, w); `x` is there for its shape."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, x: Tensor, geometry: tuple) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.geometry = geometry
        return convolution_backward(g, x, w, geometry, (True, False))[0]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple:
        g, w = ctx.saved_tensors
        for_g, for_w, _, _ = ctx.needs_input_grad
        u = channels_last(u)
        return (
            Convolution.apply(u, w, ctx.geometry) if for_g else None,
            WeightGradient.apply(g, u, w, ctx.geometry) if for_w else None,
            None,
            None,
        )


class WeightGradient(torch.autograd.Function):
    """W(g, x); `w` is there for its shape."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, geometry: tuple) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.geometry = geometry
        return convolution_backward(g, x, w, geometry, (False, True))[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple:
        g, x = ctx.saved_tensors
        for_g, for_x, _, _ = ctx.needs_input_grad
        return (
            Convolution.apply(x, v, ctx.geometry) if for_g else None,
            DataGradient.apply(g, v, x, ctx.geometry) if for_x else None,
            None,
            None,
        )


class MaxPool(torch.autograd.Function):
    """Max-pooling: linear where its winners stay the same, so that its second derivative only picks and puts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, geometry: tuple) -> Tensor:
        y, winners = aten.max_pool2d_with_indices(x, *map(pair, geometry))
        ctx.save_for_backward(winners, x)
        ctx.geometry = geometry
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        winners, x = ctx.saved_tensors
        return MaxPoolGradient.apply(g, winners, x.detach(), ctx.geometry), None


class MaxPoolGradient(torch.autograd.Function):
    """Puts g where the winners are; `x` is there for its shape."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, winners: Tensor, x: Tensor, geometry: tuple) -> Tensor:
        ctx.save_for_backward(winners)
        return aten.max_pool2d_with_indices_backward(channels_last(g), x, *map(pair, geometry), False, winners)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple:
        (winners,) = ctx.saved_tensors
        return u.flatten(2).gather(2, winners.flatten(2)).view(winners.shape), None, None, None


def pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class BatchNorm(torch.autograd.Function):
    """Batch normalisation by the statistics of x [N, C, H, W], which come out beside: (y, mean [C], variance [C])."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, r = torch.native_batch_norm(x, a, b, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, a, mean, r)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return y, mean, (r**-2 - eps).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_mean: Tensor | None, g_var: Tensor | None) -> tuple:
        x, a, mean, r = ctx.saved_tensors
        dx = da = db = None
        if g is not None:
            dx, da, db = BatchNormGradient.apply(g, x, a, mean, r, ctx.eps)
        n = x.numel() // len(mean)
        if g_mean is not None:
            dx = (0 if dx is None else dx) + (g_mean / n)[:, None, None].expand_as(x)
        if g_var is not None:
            centred = x - x.mean(OVER, keepdim=True)
            dx = (0 if dx is None else dx) + (2 / n * g_var)[:, None, None] * centred
        return dx, da, db, None


class BatchNormGradient(torch.autograd.Function):
    """Equation (1), and in its backward (2) to (4)."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, a: Tensor, mean: Tensor, r: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        g = channels_last(g)
        dx, da, db = aten.native_batch_norm_backward(g, x, a, None, None, mean, r, True, eps, [True] * 3)
        ctx.save_for_backward(g, x, a, mean, r, da, db)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return dx, da, db

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, p: Tensor | None, q: Tensor | None) -> tuple:
        g, x, a, mean, r, da, db = ctx.saved_tensors
        n = x.numel() // len(mean)
        none = torch.zeros_like(mean)
        p, q = (none if value is None else value for value in (p, q))
        if u is None:
            u = torch.zeros_like(x)
        u = channels_last(u)
        dg, sum_uh, sum_u = aten.native_batch_norm_backward(u, x, a, None, None, mean, r, True, ctx.eps, [True] * 3)
        e_uh, e_u, e_gh, e_g = sum_uh / n, sum_u / n, da / n, db / n
        s_g, s_u = p - a * r * e_uh, -a * r * e_gh
        e_s, e_sh = s_g * e_g + s_u * e_u, s_g * e_gh + s_u * e_uh
        big = (u * g).sum(OVER) - n * (e_u * e_g + e_uh * e_gh)  # A
        c_x = -r * r * (e_sh + a * big * r / n)  # of x - mean
        dg = added(dg, (p * r, x), shift=q - p * r * mean)
        dx = added(None, (r * s_g, g), (r * s_u, u), (c_x, x), shift=-r * e_s - c_x * mean)
        return dg, dx, r * big, None, None, None


def added(total: Tensor | None, *terms: tuple[Tensor, Tensor], shift: Tensor) -> Tensor:
    """`total`, which is overwritten, plus `shift` [C] and each coefficient [C] times its tensor [N, C, H, W]."""
    wide = shift[:, None, None]
    total = wide if total is None else total.add_(wide)
    for coefficient, value in terms:
        total = torch.addcmul(total, coefficient[:, None, None], value)
    return total
