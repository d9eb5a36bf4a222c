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
the n values. Where max-pooling over windows comes next, the largest y of a window is that of its largest x, as long as
a > 0. So the pooling P, which picks, goes first: `y = a P h + b`, a quarter of the numbers, the statistics still of all
n. P' puts back what P picks, zero elsewhere; with neither pooling nor P the same holds. Writing E for the mean over
the n and G = P' g, the backward of y's cotangent g is

    dx = a r (G - E[G] - h E[G h]),   da = n E[G h],   db = n E[G].                                             (1)

For cotangents u of dx, p of da and q of db let `S = <u, dx> + p da + q db`. Then

    dS/dg = P (a r (u - E[u] - h E[u h]) + p h + q)                                                             (2)
    dS/da = <u, dx> / a = n r (E[u G] - E[u] E[G] - E[u h] E[G h]) =: r A                                       (3)
    dS/dx = r (s - E[s] - h E[s h]) - a A r^2 h / n,   s = (p - a r E[u h]) G - a r E[G h] u                    (4)

where the last term of (4) is the derivative through r. All sums with G are sums over windows, of g and what P picks.
(1) and (4) are sums of x, u and G with a coefficient for each channel: computed without G, then at the winners anew,
from what P picks of x and u, with g. So the windows have to lie apart; other pooling is done after the normalisation.

Images may be bfloat16, whose products have sums in float32; then only weights of convolutions and linear layers are
cast, and statistics and coefficients stay in float32 until they meet an image.

tests/models/test_kernels.py holds all of it against a plain loop in float64.
"""

from __future__ import annotations

import copy
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Identity, nn.Dropout)
FUNCTIONS = (F.relu, F.leaky_relu, F.gelu, F.silu, torch.relu, torch.tanh, torch.sigmoid, operator.add, operator.mul)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
Geometry = tuple[list[int], ...]  # of windows: height and width, stride, padding, dilation
CACHED = 2**21  # bytes that stay in a processor's cache
FEW_PLACES = 16  # positions of a map, up to which `weights_by_product` is faster than oneDNN in bfloat16
OVER = (0, 2, 3)  # what a channel's statistics are taken over


class Refused(Exception):
    """The module holds something that has no rule here."""


class TaskBatched:
    """A module's computation, node by node, on all tasks at once."""

    def __init__(self, module: nn.Module, own: tuple[type[nn.Module], ...]) -> None:
        """Trace the module.

        own: classes of normalisation layers that stand in for `BatchNorm`: with `weight`, `bias`, `eps`; those with
        `groups` are group normalisation, and those that are `kept` go by statistics of their own.

        Raises:
            Refused: a part of the module cannot run so; the message names it.
        """
        for layer in module.modules():
            if any(getattr(layer, hooks) for hooks in HOOKS) or "forward" in vars(layer):
                raise Refused(f"its {type(layer).__name__} has hooks, or another forward than its class")
        try:
            # a copy but for the parameters, as a forward may write to what the module holds
            module = copy.deepcopy(module, {id(value): value for value in module.parameters()})
            graph = Tracer(own).trace(module)
        except Exception as error:  # tracing runs code of the user's, which may do anything
            raise Refused(f"its forward cannot be traced ({type(error).__name__})") from error
        self.module, self.own = module, own
        self.nodes = list(graph.nodes)
        self.names = {id(value): name for name, value in module.named_parameters()}
        self.layers = dict(module.named_modules(remove_duplicate=False))
        calls: Counter[str] = Counter()
        self.calls: dict[fx.Node, str] = {}  # names of the nodes that are normalisations
        for node in self.nodes:
            self.check(node)
            if isinstance(self.layer(node), own):
                calls[str(node.target)] += 1
                self.calls[node] = name_call(str(node.target), calls[str(node.target)])
        self.inplace = any(getattr(self.layer(node), "inplace", False) for node in self.nodes)
        pools = {node: pool for node in self.nodes if (pool := self.pool_after(node))}
        self.pooled = {node: windows(self.layer(pool)) for node, pool in pools.items()}
        self.passed = set(pools.values())  # done with the normalisation before them

    def check(self, node: fx.Node) -> None:
        """Raise Refused where the node has no rule."""
        layer = self.layer(node)
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
        for value in (getattr(layer, name, None) for name in ("weight", "bias")):
            if isinstance(value, Tensor) and id(value) not in self.names:
                raise Refused(f"its {type(layer).__name__} has weights that are no parameters")

    def pool_after(self, node: fx.Node) -> fx.Node | None:
        """Return the max-pooling that can be done with this normalisation: right after it, or after ReLU.

        ReLU and pooling may change places, since what is largest stays the largest.
        """
        if not isinstance(self.layer(node), self.own):
            return None
        while len(node.users) == 1:
            node = next(iter(node.users))
            layer = self.layer(node)
            if isinstance(layer, nn.MaxPool2d):
                return node if apart(windows(layer)) else None
            if not isinstance(layer, nn.ReLU) and node.target not in (F.relu, torch.relu):
                return None
        return None

    def layer(self, node: fx.Node) -> nn.Module | None:
        return self.layers[str(node.target)] if node.op == "call_module" else None

    def __call__(
        self, params: Mapping[str, Tensor], x: Tensor, given: Mapping[str, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Return the output [T, N, features] for params [T, ...] and x [T, N, ...], and by call the statistics used.

        given: by call, mean and variance [T, channels] or [channels] to normalise by. It computes in the type of x;
        where that is bfloat16, parameters, their gradients and statistics are still float32.
        """
        values: dict[fx.Node, Any] = {}
        used: dict[str, tuple[Tensor, Tensor]] = {}
        tasks = len(x)
        for node in self.nodes:
            if node.op == "placeholder":
                items = maps(x) if x.dim() == 5 else x
                values[node] = items.clone() if self.inplace else items
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
                pool = self.pooled.get(node)
                call = self.calls[node]
                values[node], stats = self.normalised(layer, pool, params, inputs[0], tasks, given.get(call))
                if stats is not None:
                    used[call] = stats
            elif node in self.passed:
                values[node] = inputs[0]
            else:
                values[node] = self.applied(layer, params, inputs[0], tasks)
        raise AssertionError("a graph ends in its output")

    def weights(
        self, layer: nn.Module, params: Mapping[str, Tensor], dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the layer's weight and bias [T, ...], of that type."""
        own = (layer.weight, layer.bias)
        weight, bias = (params[self.names[id(p)]].to(dtype) if p is not None else None for p in own)
        return weight, bias

    def applied(self, layer: nn.Module, params: Mapping[str, Tensor], x: Tensor, tasks: int) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            weight, bias = self.weights(layer, params, x.dtype)
            assert weight is not None
            geometry = (layer.stride, layer.padding, layer.dilation, tasks * layer.groups)
            z = Convolution.apply(x, channels_last(weight.flatten(0, 1)), geometry)
            return z if bias is None else z + wide(bias.flatten(), z)
        if isinstance(layer, nn.Linear):
            weight, bias = self.weights(layer, params, x.dtype)
            assert weight is not None
            return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
        if isinstance(layer, nn.MaxPool2d):
            return MaxPool.apply(x, windows(layer))
        if isinstance(layer, nn.Flatten):
            return rows(x, tasks)
        return layer(x)

    def normalised(
        self,
        layer: Any,
        pool: Geometry | None,
        params: Mapping[str, Tensor],
        x: Tensor,
        tasks: int,
        given: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Normalised, and then pooled by `pool`; and the mean and variance [T, channels] that it took."""
        precise = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weights(layer, params, precise)
        flat = x.dim() == 3
        z = x.transpose(0, 1).flatten(1)[..., None, None] if flat else x  # [N, T * C, H, W]
        channels = z.shape[1]
        a = z.new_ones(channels, dtype=precise) if weight is None else weight.reshape(channels)
        b = z.new_zeros(channels, dtype=precise) if bias is None else bias.reshape(channels)
        stats = None
        if hasattr(layer, "groups"):
            grouped = z.reshape(len(z), tasks * layer.groups, -1)
            mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True, correction=0)
            z = ((grouped - mean) * (var + layer.eps).rsqrt()).reshape(z.shape) * wide(a, z) + wide(b, z)
        else:
            # Whether pooling may go first, see the top. A GPU would have to wait for the answer; tensors without
            # content (umeta/quickstart/memory.py) stand for a CPU's.
            kept = getattr(layer, "kept", False)
            if kept:
                given = layer.running_mean.to(a), layer.running_var.to(a)
            first = pool is not None and (a.is_meta or (a.is_cpu and bool((a > 0).all())))
            if given is None:
                z, mean, var = BatchNorm.apply(z, a, b, layer.eps, pool if first else None)
            else:
                mean, var = (value.expand(tasks, channels // tasks).reshape(channels) for value in given)
                scale = (var + layer.eps).rsqrt() * a
                z = MaxPool.apply(z, pool) if first else z
                # rounded once: coefficients in bfloat16 would put the same error on all of a channel
                z = torch.addcmul((b - mean * scale)[:, None, None], z, scale[:, None, None]).to(z.dtype)
            pool = None if first else pool
            stats = None if kept else (mean.view(tasks, -1), var.view(tasks, -1))
        z = z if pool is None else MaxPool.apply(z, pool)
        return z.view(len(z), tasks, -1).transpose(0, 1) if flat else z, stats


class Tracer(fx.Tracer):
    """Records torch's own layers and the normalisation layers as one node each."""

    def __init__(self, own: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.own = own

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.own or super().is_leaf_module(m, module_qualified_name)


def name_call(layer: str, number: int) -> str:
    """Name the first, second, ... call of a layer, as statistics are named."""
    return layer if number == 1 else f"{layer}[{number}]"


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


class FewPlaces(TorchFunctionMode):
    """A context in which any network's convolutions use `weights_by_product` where `TaskBatched` would."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (convolve if func is torch.conv2d else func)(*args, **(kwargs or {}))


def convolve(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve as `torch.conv2d` does, through `Convolution` where that makes the weight gradient one product."""
    kind = x.device.type
    lower = kind == "cpu" and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    if lower and torch.is_grad_enabled() and w.requires_grad and x.dim() == 4 and not isinstance(padding, str):
        geometry = (pair(stride), pair(padding), pair(dilation), groups)
        extents = zip(x.shape[2:], w.shape[2:], *geometry[:3], strict=True)
        places = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in extents]
        if by_product(math.prod(places), geometry):
            x, w = (channels_last(value.to(torch.bfloat16)) for value in (x, w))
            z = Convolution.apply(x, w, geometry)
            return z if bias is None else z + wide(bias, z)
    return torch.conv2d(x, w, bias, stride, padding, dilation, groups)


def by_product(places: int, geometry: tuple) -> bool:
    """Tell whether `weights_by_product` is faster than oneDNN, in bfloat16 on a CPU at this many output positions."""
    return places <= FEW_PLACES and (pair(geometry[2]), geometry[3]) == ([1, 1], 1)


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


def weights_by_product(
    g: Tensor, x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Compute W(g, x) as one matrix product over all images, after copying their windows side by side.

    oneDNN sums image by image, and the few positions of a small map do not fill the processor's bfloat16 units. For
    512 maps of 4 x 4, 128 channels to 256, the product takes a sixth to a third of the time; for 3 x 3, a tenth.
    """
    rows, columns = padding
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
    windows = x.unfold(1, size[0], stride[0]).unfold(2, size[1], stride[1])
    found = g.permute(0, 2, 3, 1).flatten(0, 2).T @ windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
    return found.unflatten(1, (*size, -1)).permute(0, 3, 1, 2)


class WeightGradient(torch.autograd.Function):
    """W(g, x); `w` is there for its shape."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, geometry: tuple) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.geometry = geometry
        lower = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        if lower and by_product(g[0, 0].numel(), geometry):
            return weights_by_product(channels_last(g), x, w.shape[2:], *geometry[:2])
        return convolution_backward(g, x, w, geometry, (False, True))[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple:
        g, x = ctx.saved_tensors
        for_g, for_x, _, _ = ctx.needs_input_grad
        v = channels_last(v)
        return (
            Convolution.apply(x, v, ctx.geometry) if for_g else None,
            DataGradient.apply(g, v, x, ctx.geometry) if for_x else None,
            None,
            None,
        )


class MaxPool(torch.autograd.Function):
    """Max-pooling: linear where its winners stay the same, so that its second derivative only picks and puts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, geometry: Geometry) -> Tensor:
        y, winners = largest(x, geometry)
        ctx.save_for_backward(winners)
        ctx.shape, ctx.geometry = x.shape, geometry
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return MaxPoolGradient.apply(g, *ctx.saved_tensors, ctx.shape, ctx.geometry), None


class MaxPoolGradient(torch.autograd.Function):
    """Puts g where the winners are."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, winners: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(winners)
        out = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=torch.channels_last)
        # of what was pooled the kernel asks for no more than the shape, which is that of `out`
        kernel = aten.max_pool2d_with_indices_backward.grad_input
        return kernel(channels_last(g), out.detach(), *geometry, False, winners, grad_input=out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple:
        return pick(u, *ctx.saved_tensors), None, None, None


def windows(layer: Any) -> Geometry:
    """Those of an `nn.MaxPool2d`."""
    return tuple(map(pair, (layer.kernel_size, layer.stride, layer.padding, layer.dilation)))


def apart(geometry: Geometry) -> bool:
    """Whether no two windows have a place in common."""
    size, stride, _, dilation = geometry
    return all((k - 1) * d < s for k, s, d in zip(size, stride, dilation, strict=True))


def largest(x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Return the largest of each window, and where in its map it is."""
    return aten.max_pool2d_with_indices(x, *geometry)


def pick(x: Tensor, winners: Tensor) -> Tensor:
    """P x: what x has where the winners are."""
    n, c, h, w = winners.shape
    return in_memory(x).gather(1, in_memory(winners)).view(x.dtype).view(n, h, w, c).permute(0, 3, 1, 2)


def pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class BatchNorm(torch.autograd.Function):
    """Batch normalisation by the statistics of x [N, C, H, W], then, for a > 0, max-pooling if `pool` says how.

    The statistics come out beside: (y, mean [C], variance [C]).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, eps: float, pool: Geometry | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if pool is None:
            top, winners = x, None
            y, mean, r = torch.native_batch_norm(x, a, b, None, None, True, 0.0, eps)
            var = (r**-2 - eps).clamp(min=0)
        else:
            mean, var = statistics(x)
            r = (var + eps).rsqrt()
            top, winners = largest(x, pool)
            y = F.batch_norm(top, mean, var, a, b, False, 0.0, eps)
        ctx.save_for_backward(x, a, mean, r, top, winners)
        ctx.set_materialize_grads(False)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_mean: Tensor | None, g_var: Tensor | None) -> tuple:
        x, a, mean, r, top, winners = ctx.saved_tensors
        dx = da = db = None
        if g is not None:
            dx, da, db = BatchNormGradient.apply(g, x, a, mean, r, top, winners)
        n = x.numel() // len(mean)
        if g_mean is not None:
            dx = (0 if dx is None else dx) + wide(g_mean / n, x).expand_as(x)
        if g_var is not None:
            dx = (0 if dx is None else dx) + wide(2 / n * g_var, x) * (x - wide(mean, x))
        return dx, da, db, None, None


class BatchNormGradient(torch.autograd.Function):
    """Equation (1), and in its backward (2) to (4)."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        a: Tensor,
        mean: Tensor,
        r: Tensor,
        top: Tensor,
        winners: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        g, n = channels_last(g), x.numel() // len(mean)
        if winners is None:
            dx, da, db = centred(g, x, a, mean, r)
        else:
            da, db = sums(g, top, mean, r)
            c_x = -a * r * r * da / n
            shift = -a * r * db / n - c_x * mean
            dx = total(shift, (c_x, x), put=(winners, total(shift, (c_x, top), (a * r, g))))
        ctx.save_for_backward(g, x, a, mean, r, da, db, top, winners)
        ctx.set_materialize_grads(False)
        return dx, da, db

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, p: Tensor | None, q: Tensor | None) -> tuple:
        g, x, a, mean, r, da, db, top, winners = ctx.saved_tensors
        n = x.numel() // len(mean)
        none = torch.zeros_like(mean)
        p, q = (none if value is None else value for value in (p, q))
        if u is None:
            u = torch.zeros_like(x)
        u = channels_last(u)
        if winners is None:
            dg, sum_uh, sum_u = centred(u, x, a, mean, r)
            dg.add_(wide(q - p * r * mean, dg)).addcmul_(wide(p * r, dg), x)
            picked = u
        else:
            sum_uh, sum_u = sums(u, x, mean, r)
            picked = pick(u, winners)
            c_top = r * (p - a * r * sum_uh / n)
            dg = total(q - a * r * sum_u / n - c_top * mean, (c_top, top), (a * r, picked))
        sum_ug, _ = sums(picked, g, none, torch.ones_like(r))
        e_uh, e_u, e_gh, e_g = sum_uh / n, sum_u / n, da / n, db / n
        s_g, s_u = p - a * r * e_uh, -a * r * e_gh
        e_s, e_sh = s_g * e_g + s_u * e_u, s_g * e_gh + s_u * e_uh
        big = sum_ug - n * (e_u * e_g + e_uh * e_gh)  # A
        c_x = -r * r * (e_sh + a * big * r / n)  # of x - mean
        shift = -r * e_s - c_x * mean
        dx = total(shift, (r * s_u, picked), (c_x, top), (r * s_g, g))
        if winners is not None:
            dx = total(shift, (r * s_u, u), (c_x, x), put=(winners, dx))
        return dg, dx, r * big, None, None, None, None


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [C]."""
    if x.is_cpu:  # where `var_mean` is fifty times slower
        precise = torch.promote_types(x.dtype, torch.float32)
        mean, var = torch.zeros(2, x.shape[1], dtype=precise)  # left alone; the answer has their type
        return torch.batch_norm_update_stats(x, mean, var, 0.0)
    var, mean = torch.var_mean(x, OVER, correction=0)
    return mean, var


def centred(g: Tensor, x: Tensor, a: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Equation (1) without pooling, in one kernel."""
    return aten.native_batch_norm_backward(g, x, a, None, None, mean, r, True, 0.0, [True] * 3)


def sums(g: Tensor, x: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """For each channel the sums of `g (x - mean) r` and of g, in one pass."""
    _, gh, alone = aten.native_batch_norm_backward(g, x, r, None, None, mean, r, True, 0.0, [False, True, True])
    return gh, alone


def total(shift: Tensor, *terms: tuple[Tensor, Tensor], put: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """`shift` [C] plus each coefficient [C] times its tensor [N, C, H, W]; with `put`, winners and values, those there.

    It does some items after the other, so few that they stay in the cache: else each pass waits for memory.
    """
    like = terms[0][1]
    shift = wide(shift, like)
    (scale, first), *rest = ((wide(coefficient, like), value) for coefficient, value in terms)
    out = torch.empty_like(like, memory_format=torch.channels_last)
    written = [in_memory(x) for x in (out, *put)] if put else []
    some = max(torch.get_num_threads(), CACHED // (like[0].numel() * like.element_size())) if like.is_cpu else len(like)
    for part in (slice(start, start + some) for start in range(0, len(like), some)):
        here = torch.addcmul(shift, scale, first[part], out=out[part])
        for coefficient, value in rest:
            here.addcmul_(coefficient, value[part])
        if written:
            into, winners, values = (x[part] for x in written)
            into.scatter_(1, winners, values)
    return out


def in_memory(x: Tensor) -> Tensor:
    """[N, C, H, W] as it lies in memory, [N, H * W, C], where picking and putting is twice as fast.

    What is bfloat16 is taken for integers: of them no kernel makes float32 on the way.
    """
    flat = x.permute(0, 2, 3, 1).flatten(1, 2)
    return flat.view(torch.int16) if x.element_size() == 2 else flat


def wide(coefficient: Tensor, like: Tensor) -> Tensor:
    """[C] to go with `like` [N, C, H, W]."""
    return coefficient.to(like.dtype)[:, None, None]
