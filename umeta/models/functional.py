"""Any `nn.Module` as a pure function of (parameters, input, normalisation statistics).

Adaptation needs a network evaluated at many weights without changing it, and batch normalisation is where such code
goes wrong: it hides state, and on queries it silently makes a learner transductive. So the module's `BatchNorm` layers
are exchanged for `StatNorm`, whose statistics are an explicit input and output. Four options:

- `batch`: statistics of whatever is passed. Transductive on queries; how MAML's and CACTUs' numbers were made.
- `support`: statistics of the task's support set, at the adapted weights, also used for its queries. Inductive.
- `running`: statistics of the task's batch in meta-training; their running average, frozen, at evaluation. Inductive.
- `group`: group normalisation (Wu and He 2018), which has no statistics beyond the single item. Inductive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from umeta.models.kernels import Refused, TaskBatched, channels_last
from umeta.models.precision import autocast_kind
from umeta.types import Stats

Normalisation = Literal["batch", "support", "running", "group"]
M = TypeVar("M")
MOMENTUM = 0.05  # of the running average, per meta-step


class StatNorm(nn.Module):
    """Batch normalisation whose statistics are handed in (`given`) or taken from the input, and handed out (`used`).

    With `written_out` the formula is spelt in elementary operations, for `torch.func.vmap`: there the native kernel
    cannot hand out each task's statistics, and some versions of torch (2.13, but not 2.15) silently gave wrong second
    derivatives of it when weight and bias are adapted. a test holds this path against a plain loop.
    """

    weight: Tensor | None
    bias: Tensor | None
    given: tuple[Tensor, Tensor] | None
    used: tuple[Tensor, Tensor] | None

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.given, self.used, self.written_out = None, None, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.written_out:
            if self.given is not None:
                return F.batch_norm(x, *self.given, self.weight, self.bias, False, 0.0, self.eps)
            precise = torch.promote_types(x.dtype, torch.float32)  # statistics of bfloat16 images are float32
            mean, var = (torch.empty(x.shape[1], dtype=precise, device=x.device).fill_(value) for value in (0, 1))
            out = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            self.used = (mean, var)
            return out
        over = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean, var = self.given or (x.mean(over), x.var(over, correction=0))
        self.used = (mean, var)
        scale = (var + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        scaled = x * scale.view(shape)
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return scaled + shift.view(shape)


class GroupNorm(nn.Module):
    """Group normalisation in place of a batch normalisation layer, written out (see `StatNorm`).

    At most 8 groups, of at least 4 channels: a single value normalised by itself says nothing.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.groups = next((g for g in (8, 4, 2) if layer.num_features % g == 0 and layer.num_features >= 4 * g), 1)

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], self.groups, -1)
        mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True, correction=0)
        x = ((grouped - mean) * (var + self.eps).rsqrt()).reshape(x.shape)
        shape = [1, -1] + [1] * (x.dim() - 2)
        x = x if self.weight is None else x * self.weight.view(shape)
        return x if self.bias is None else x + self.bias.view(shape)


class Pure:
    """A module as a pure function. The module is copied, put in eval mode (no dropout) and never changed again."""

    def __init__(self, module: nn.Module, normalisation: Normalisation) -> None:
        self.normalisation = normalisation
        self.module = exchanged(copy.deepcopy(module).eval(), GroupNorm if normalisation == "group" else StatNorm)
        self.names = [name for name, _ in self.module.named_parameters()]
        self.layers = {name: layer for name, layer in self.module.named_modules() if isinstance(layer, StatNorm)}
        try:
            self.batched: TaskBatched | None = TaskBatched(self.module, (StatNorm, GroupNorm))
            self.program = "all tasks in one program"
        except Refused as error:
            self.batched = None
            self.program = f"under torch.func.vmap, which is slower: {error}"

    def params(self) -> dict[str, Tensor]:
        """Copy the module's own parameters."""
        return {name: value.detach().clone() for name, value in self.module.named_parameters()}

    def features(self, item_shape: tuple[int, ...]) -> int:
        """Length of the feature vector."""
        with torch.no_grad():
            return self.shared(self.params(), torch.zeros(2, *item_shape))[0].shape[1]

    def shared(self, params: dict[str, Tensor], x: Tensor, stats: Stats | None = None) -> tuple[Tensor, Stats]:
        """One set of weights for all of x [n, ...]: ([n, features], the statistics used).

        Entries of `params` that are not the module's own are passed over, here and in `per_task`.
        """
        return self._call(params, channels_last(x), stats, written_out=False)

    def per_task(self, params: dict[str, Tensor], x: Tensor, stats: Stats | None = None) -> tuple[Tensor, Stats]:
        """Weights [T, ...] and x [T, N, ...], statistics of each task's own: ([T, N, features], statistics [T, ...]).

        `stats` are given as [T, channels], or as [channels] for all tasks. Vectors and images run through
        `TaskBatched` where it has a rule for each part of the module; all else runs under `torch.func.vmap`: the same
        numbers, slower, and the module may not branch on values. Within `autocast` the first computes in its type; of
        the second it reaches no more than some matrix products.
        """
        if stats and len(x) == 1 and not torch.is_grad_enabled():  # one adapted learner at work: faster native kernels
            given = {name: value[0] if value.dim() == 2 else value for name, value in stats.items()}
            out, used = self.shared({name: value[0] for name, value in params.items()}, x[0], given)
            return out[None], {name: value[None] for name, value in used.items()}
        if self.batched and x.dim() in (3, 5):
            pairs = {name: (stats[f"{name}.mean"], stats[f"{name}.var"]) for name in self.layers} if stats else {}
            kind = autocast_kind(x.device)
            lower = torch.is_autocast_enabled(kind) and x.dtype == torch.float32
            with torch.autocast(kind, enabled=False):  # which would not reach the program's derivatives
                out, pairs = self.batched(params, x.to(torch.get_autocast_dtype(kind)) if lower else x, pairs)
            return out.to(x.dtype), named(pairs)
        dims = {name: 0 if value.dim() == 2 else None for name, value in (stats or {}).items()}
        call = vmap(lambda p, x, s: self._call(p, x, s, written_out=True), in_dims=(0, 0, dims if stats else None))
        return call(params, x, stats)

    def _call(
        self, params: dict[str, Tensor], x: Tensor, stats: Stats | None, written_out: bool
    ) -> tuple[Tensor, Stats]:
        try:
            for name, layer in self.layers.items():
                mean, var = f"{name}.mean", f"{name}.var"
                layer.given = (stats[mean], stats[var]) if stats and mean in stats else None
                layer.written_out = written_out
            own = {name: params[name] for name in self.names}
            buffers = {name: value.to(x.device) for name, value in self.module.named_buffers()}
            out = functional_call(self.module, {**own, **buffers}, (x,))
            used = {name: layer.used or layer.given for name, layer in self.layers.items()}
            return out.flatten(1), named({name: pair for name, pair in used.items() if pair})
        finally:
            for layer in self.layers.values():
                layer.given = layer.used = None


def draw(make: Callable[[], M], seed: int) -> M:
    """Make something random of a seed, and leave the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def named(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Stats:
    """Means and variances by layer as statistics by name."""
    return {f"{n}.{k}": v for n, pair in pairs.items() for k, v in zip(("mean", "var"), pair, strict=True)}


def exchanged(module: nn.Module, new: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    """Replace every `BatchNorm` layer in the module, or the module itself if it is one, by `new(layer)`."""
    if isinstance(module, _BatchNorm):
        return new(module)
    for name, child in module._modules.items():  # `named_children` leaves out a layer's second place
        if child is not None:
            setattr(module, name, exchanged(child, new))
    return module


def average(running: Stats | None, new: Stats) -> Stats:
    """Return the running average after one more meta-step, whose statistics are `new`."""
    if not running:
        return new
    # a layer that the run it starts from did not have begins with what there is
    return {name: torch.lerp(running.get(name, value), value, MOMENTUM) for name, value in new.items()}
