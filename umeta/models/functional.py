"""Any `nn.Module` as a pure function of (parameters, input, normalisation statistics).

Adaptation needs a network evaluated at many weights without changing it, and batch normalisation is where such code
goes wrong: it hides state, and on queries it silently makes a learner transductive. So the module's `BatchNorm` layers
become a `StatNorm`, whose statistics are an explicit input and output of each call. Four options:

- `batch`: statistics of whatever is passed. Transductive on queries; how MAML's and CACTUs' numbers were made.
- `support`: statistics of the task's support set, at the adapted weights, also used for its queries. Inductive.
- `running`: statistics of the task's batch in meta-training; their running average, frozen, at evaluation. Inductive.
- `group`: group normalisation (Wu and He 2018), which has no statistics beyond the single item. Inductive.

What a module says of itself holds: parameters that need no gradient stay as they are; a running average that is already
there is what `running` begins with, and where the layer's parameters are fixed too it is kept under all four options;
forwards, hooks and parameters of one's own in a `BatchNorm` subclass are run. Dropout is off, in meta-training as well:
the inner loop and the gradient through it are of one function, and not of another one at each step.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from umeta import seeds
from umeta.errors import UserError
from umeta.models.kernels import FewPlaces, Refused, TaskBatched, channels_last, name_call
from umeta.models.precision import autocast_kind
from umeta.types import Stats

Normalisation = Literal["batch", "support", "running", "group"]
M = TypeVar("M")
MOMENTUM = 0.05  # of the running average, per meta-step


class Statistics:
    """What normalisation layers go by in one evaluation of a network: what is `given` to them and `used`, by call."""

    def __init__(self, given: Stats | None, written_out: bool) -> None:
        self.given, self.written_out = paired(given or {}), written_out
        self.used: dict[str, tuple[Tensor, Tensor]] = {}
        self.calls: Counter[str] = Counter()

    def count(self, layer: str) -> str:
        """Count a call of this layer, and give its name."""
        self.calls[layer] += 1
        return name_call(layer, self.calls[layer])


class StatNorm(_BatchNorm):
    """Batch normalisation whose statistics are handed in or taken from the input, and handed out: see `Statistics`.

    With `written_out` the formula is spelt in elementary operations, for `torch.func.vmap` and to be differentiated:
    the native kernel hands out statistics without their gradient, under vmap not even each task's, and some versions of
    torch (2.13, but not 2.15) silently gave wrong second derivatives of it there when weight and bias are adapted.
    tests/models/test_functional.py holds this path against a plain loop.
    """

    evaluation: tuple[str, Statistics] | None = None  # the layer's name, and what it goes by
    kept = False  # whether it goes by a running average of its own

    def forward(self, x: Tensor) -> Tensor:
        if self.kept:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        assert self.evaluation is not None
        name, statistics = self.evaluation
        call = statistics.count(name)
        given = statistics.given.get(call)
        if not statistics.written_out:
            if given is not None:
                statistics.used[call] = given
                return F.batch_norm(x, *given, self.weight, self.bias, False, 0.0, self.eps)
            precise = torch.promote_types(x.dtype, torch.float32)  # statistics of bfloat16 images are float32
            mean, var = (torch.empty(x.shape[1], dtype=precise, device=x.device).fill_(value) for value in (0, 1))
            out = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            statistics.used[call] = mean, var
            return out
        over = [0, *range(2, x.dim())]
        mean, var = statistics.used[call] = given or (x.mean(over), x.var(over, correction=0))
        return normalise(self, x, mean, var)


def normalise(layer: _BatchNorm, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Normalise x [n, channels, ...] by these statistics, as the layer does."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    scale = (var + layer.eps).rsqrt()
    scale = scale if layer.weight is None else scale * layer.weight
    scaled = x * scale.view(shape)
    shift = -mean * scale if layer.bias is None else layer.bias - mean * scale
    return scaled + shift.view(shape)


class GroupNorm(_BatchNorm):
    """Group normalisation in place of a batch normalisation layer, written out (see `StatNorm`).

    At most 8 groups, of at least 4 channels: a single value normalised by itself says nothing.
    """

    @property
    def groups(self) -> int:
        """How many groups the channels are in."""
        return next((g for g in (8, 4, 2) if self.num_features % g == 0 and self.num_features >= 4 * g), 1)

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], self.groups, -1)
        mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True, correction=0)
        x = ((grouped - mean) * (var + self.eps).rsqrt()).reshape(x.shape)
        shape = [1, -1] + [1] * (x.dim() - 2)
        x = x if self.weight is None else x * self.weight.view(shape)
        return x if self.bias is None else x + self.bias.view(shape)


class Pure:
    """A module as a pure function. The module is copied, put in eval mode (no dropout) and never changed again.

    Of its programs for many tasks it runs the fastest that can do the module; umeta/models/check.py makes sure of that.
    """

    def __init__(self, module: nn.Module, normalisation: Normalisation) -> None:
        self.normalisation = normalisation
        self.module = exchange(copy_module(module).eval(), GroupNorm if normalisation == "group" else StatNorm)
        self.names = [name for name, _ in self.module.named_parameters()]
        self.fixed = frozenset(n for n, p in self.module.named_parameters() if not p.requires_grad)
        norms = {name: layer for name, layer in self.module.named_modules() if isinstance(layer, StatNorm)}
        self.layers = {name: layer for name, layer in norms.items() if not layer.kept}
        # each place of a tensor, as one may be held in several; those of a layer that is are one place
        first = {id(value): name for name, value in self.module.named_parameters()}
        parts = list(self.module.named_modules())
        self.places = {
            join(m, n): first[id(p)] for m, part in parts for n, p in part._parameters.items() if p is not None
        }
        unread = {id(layer) for layer in self.layers.values() if type(layer) is StatNorm}
        read = [(name, part) for name, part in parts if id(part) not in unread]
        self.buffers = [join(m, n) for m, part in read for n, value in part._buffers.items() if value is not None]
        self.recurrent = any(isinstance(layer, nn.RNNBase) for layer in self.module.modules())
        self.remarks: list[str] = []  # what else is to be known of it
        self.once = ""  # why torch cannot differentiate it twice
        self.vmapped, self.reasons = True, list[str]()  # against the faster programs
        try:
            self.batched: TaskBatched | None = TaskBatched(self.module, (StatNorm, GroupNorm))
        except Refused as error:
            self.refuse_batched(str(error))

    def refuse_batched(self, reason: str) -> None:
        """Leave all tasks in one program to other modules."""
        self.batched = None
        self.reasons.append(reason)

    @property
    def program(self) -> str:
        """How many tasks run, for the log."""
        if self.batched:
            return "all tasks in one program"
        slower = "under torch.func.vmap, which is slower" if self.vmapped else "task by task, which is slowest"
        return f"{slower}: {'; '.join(self.reasons)}"

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
        with FewPlaces():
            return self._call(self._own(params), channels_last(x), stats, written_out=False)

    def per_task(self, params: dict[str, Tensor], x: Tensor, stats: Stats | None = None) -> tuple[Tensor, Stats]:
        """Weights [T, ...] and x [T, N, ...], statistics of each task's own: ([T, N, features], statistics [T, ...]).

        `stats` are given as [T, channels], or as [channels] for all tasks. Vectors and images run through
        `TaskBatched` where it has a rule for each part of the module; all else runs under `torch.func.vmap`, or, where
        the module branches on values, draws random numbers or has parts that vmap cannot do, task by task: the same
        numbers, slower. Within `autocast` the first computes in its type; of vmap it reaches no more than some matrix
        products.
        """
        if stats and len(x) == 1 and not torch.is_grad_enabled():  # one adapted learner at work: faster native kernels
            given = {name: value[0] if value.dim() == 2 else value for name, value in stats.items()}
            out, used = self.shared({name: params[name][0] for name in self.names}, x[0], given)
            return out[None], {name: value[None] for name, value in used.items()}
        params = self._own(params)
        if self.batched and x.dim() in (3, 5):
            return self.run_batched(self.batched, params, x, stats)
        return self.run_vmapped(params, x, stats) if self.vmapped else self.run_loop(params, x, stats)

    def _own(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: params[name].detach() if name in self.fixed else params[name] for name in self.names}

    def run_batched(
        self, batched: TaskBatched, params: dict[str, Tensor], x: Tensor, stats: Stats | None
    ) -> tuple[Tensor, Stats]:
        """Run all tasks in one program."""
        kind = autocast_kind(x.device)
        lower = torch.is_autocast_enabled(kind) and x.dtype == torch.float32
        with torch.autocast(kind, enabled=False):  # which would not reach the program's derivatives
            images = x.to(torch.get_autocast_dtype(kind)) if lower else x
            out, pairs = batched(params, images, paired(stats or {}))
        return out.to(x.dtype), named(pairs)

    def run_vmapped(self, params: dict[str, Tensor], x: Tensor, stats: Stats | None) -> tuple[Tensor, Stats]:
        """Run all tasks under `torch.func.vmap`."""
        dims = {name: 0 if value.dim() == 2 else None for name, value in (stats or {}).items()}
        call = vmap(lambda p, x, s: self._call(p, x, s, written_out=True), in_dims=(0, 0, dims if stats else None))
        return call(params, x, stats)

    def run_loop(self, params: dict[str, Tensor], x: Tensor, stats: Stats | None) -> tuple[Tensor, Stats]:
        """Run one task after the other."""
        found = []
        for t, items in enumerate(x):
            given = {name: value[t] if value.dim() == 2 else value for name, value in (stats or {}).items()}
            found.append(self._call({name: value[t] for name, value in params.items()}, items, given, written_out=True))
        calls = [name for name in found[0][1] if all(name in used for _, used in found)]
        return torch.stack([out for out, _ in found]), {n: torch.stack([used[n] for _, used in found]) for n in calls}

    def _call(
        self, params: dict[str, Tensor], x: Tensor, stats: Stats | None, written_out: bool
    ) -> tuple[Tensor, Stats]:
        statistics = Statistics(stats, written_out)
        kept = [(vars(part), dict(vars(part))) for part in self.module.modules()]
        try:
            for name, layer in self.layers.items():
                layer.evaluation = name, statistics
            # copies, as a forward may write to its input and its buffers
            buffers = {name: copy_buffer(self.module.get_buffer(name), x) for name in self.buffers}
            weights = {place: params[name] for place, name in self.places.items()}
            with differentiable_kernels(self.recurrent):
                out = functional_call(self.module, {**weights, **buffers}, (x.clone(),), tie_weights=False)
        finally:
            for now, before in kept:  # what a forward has put there belongs to this call
                now.clear()
                now.update(before)
        if not isinstance(out, Tensor) or out.shape[:1] != x.shape[:1]:
            shown = f"a tensor {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise UserError(
                f"metalearner.model: {type(self.module).__name__} gives {shown} for {len(x)} items; let its "
                f"forward return a tensor [{len(x)}, features]"
            )
        return out.flatten(1) if out.dim() > 1 else out[:, None], named(statistics.used)


def join(module: str, name: str) -> str:
    """Name a tensor of a module of this name as torch does."""
    return f"{module}.{name}" if module else name


def draw(make: Callable[[], M], seed: int) -> M:
    """Call `make` with torch seeded on the CPU, and leave the global random state alone, a GPU's too."""
    with seeds.seed_torch(seed):
        return make()


def named(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Stats:
    """Means and variances by layer as statistics by name."""
    return {f"{n}.{k}": v for n, pair in pairs.items() for k, v in zip(("mean", "var"), pair, strict=True)}


def paired(stats: Stats) -> dict[str, tuple[Tensor, Tensor]]:
    """Undo `named`."""
    means = [name.removesuffix(".mean") for name in stats if name.endswith(".mean")]
    return {name: (stats[f"{name}.mean"], stats[f"{name}.var"]) for name in means}


def exchange(module: nn.Module, kind: type[StatNorm] | type[GroupNorm]) -> nn.Module:
    """Make every `BatchNorm` layer of the module one of this kind, in place, with all else that it has.

    A subclass keeps its forward, in which `super().forward` is then that of the kind.
    """
    for layer in module.modules():
        if not isinstance(layer, _BatchNorm):
            continue
        own, norm = list(layer.parameters()), cast(Any, layer)
        if own and not any(p.requires_grad for p in own) and preset(layer):
            norm.__class__ = mix_class(layer, StatNorm)
            norm.kept = True
        else:
            norm.__class__ = mix_class(layer, kind)
            if kind is GroupNorm:
                norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return module


def mix_class(layer: _BatchNorm, kind: type[nn.Module]) -> type[nn.Module]:
    """Return this kind as a class: itself in place of torch's own layer, mixed in for a subclass of that."""
    known = type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return kind if known else type(type(layer).__name__, (type(layer), kind), {})


def preset(layer: _BatchNorm) -> bool:
    """Whether the layer has a running average that is not the one that torch begins with."""
    mean, var = layer.running_mean, layer.running_var
    return mean is not None and var is not None and not mean.is_meta and bool((mean != 0).any() or (var != 1).any())


def preset_statistics(module: nn.Module) -> Stats:
    """Return the running averages that a module brings with it, by layer."""
    norms = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm) and preset(layer)}
    averages = {name: cast(tuple[Tensor, Tensor], (n.running_mean, n.running_var)) for name, n in norms.items()}
    return named({name: (mean.clone(), var.clone()) for name, (mean, var) in averages.items()})


def copy_module(module: nn.Module) -> nn.Module:
    """Copy a module; what it has computed of its parameters, as `weight_norm` does, is copied without its graph."""
    for layer in module.modules():
        for name, value in vars(layer).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                setattr(layer, name, value.detach())
    return copy.deepcopy(module)


def copy_buffer(value: Tensor, x: Tensor) -> Tensor:
    """Copy a buffer to where x is; of float64 where x is."""
    dtype = torch.promote_types(value.dtype, x.dtype) if value.is_floating_point() else value.dtype
    return value.to(x.device, dtype, copy=True)


@contextmanager
def differentiable_kernels(recurrent: bool) -> Iterator[None]:
    """Leave out fused kernels of attention and of recurrent layers that torch cannot differentiate twice."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def average(running: Stats | None, new: Stats) -> Stats:
    """Return the running average after one more meta-step, whose statistics are `new`."""
    if not running:
        return new
    # a layer that the run it starts from did not have begins with what there is
    return {name: torch.lerp(running.get(name, value), value, MOMENTUM) for name, value in new.items()}
