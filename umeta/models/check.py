"""Check a network before anything long begins: can it be used, and which program computes what it computes?

A network is code of anybody's. What the fast programs take it for is compared with the module itself, called task by
task: features, their gradient, and the features by given statistics. Where they differ, the next slower program is
taken, and the log says so.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode  # here, as it imports triton, which crashes after a renderer

from umeta import seeds
from umeta.errors import UserError
from umeta.models.functional import Pure
from umeta.parts import Model
from umeta.types import Stats

MIXES = "what it makes of an item depends on the items beside it"
CHECKPOINTS = "leave torch.utils.checkpoint out of it; MAML takes less memory with metalearner.recompute: true"
SKIPPED = {"torch", "importlib"}  # whose lines are not where a person finds the error
CHEAP = 3e8  # operations on an item that a trial takes as they are
Program = Callable[[dict[str, Tensor], Tensor, Stats | None], tuple[Tensor, Stats]]


def build_module(model: Model, item_shape: tuple[int, ...], option: str = "metalearner.model") -> nn.Module:
    """Build a model's module, and check that it can be run at any weights.

    option: where the model comes from, for messages.

    Raises:
        UserError: it cannot be built, or it is not such a module.
    """
    name = type(model).__name__
    try:
        module = model.build(item_shape)
    except UserError:
        raise
    except Exception as error:  # code of the user's may raise anything
        raise UserError(f"{option}: {name}.build({item_shape}) raises {describe(error)}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{option}: {name}.build gives a {type(module).__name__}, expected a torch.nn.Module")
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(
            f"{option}: {name}.build gives a {type(module).__name__}; return the module in it (`.module`), as umeta "
            "shares tasks out itself (docs/scaling.md)"
        )
    for place, layer in module.named_modules():
        compiled = type(layer).__name__ == "OptimizedModule"
        if compiled or isinstance(layer, torch.jit.ScriptModule):
            shown = f"its '{place}' is" if place else "it is"
            shown += " compiled" if compiled else " TorchScript"
            raise UserError(
                f"{option}: {name}: {shown}, whose weights cannot be exchanged; return the plain torch.nn.Module"
            )
    for place, value in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(value):
            raise UserError(
                f"{option}: {name}: '{place}' has no size yet (a Lazy layer); in build, call the module once on "
                f"torch.zeros(2, {', '.join(map(str, item_shape))}), or give the size"
            )
    for place, value in module.named_parameters():
        if value.dtype != torch.float32:
            raise UserError(
                f"{option}: {name}: '{place}' is {str(value.dtype).removeprefix('torch.')}, expected float32; leave "
                ".half(), .double() and the like out, and set the learner's `precision` for a faster pass"
            )
        if value._backward_hooks:
            raise UserError(
                f"{option}: {name}: '{place}' has a hook on its gradient, which the weights of a task would not have; "
                "change the gradient in forward, or fix the parameter with requires_grad_(False)"
            )
    return module


def choose_program(network: Pure, item_shape: tuple[int, ...]) -> int:
    """Choose the fastest program that computes what the module does, on random tasks; length of the feature vector.

    What was chosen is in the network's `program` afterwards, and what else is to be known of it in `remarks`.

    Raises:
        UserError: the module itself cannot take such items.
    """
    if torch.empty(0).is_meta:  # tensors without content: there is nothing to compare
        return network.features(item_shape)
    trial = Trial(network, shrink(network, item_shape))
    if set(network.names) - network.fixed and not trial.expected.gradients:
        raise UserError(
            f"metalearner.model: no gradient reaches the parameters of {type(network.module).__name__}: its forward "
            "gives integers, or is under torch.no_grad or .detach(); leave that out, or fix them, requires_grad_(False)"
        )
    if len(item_shape) not in (1, 3):
        network.refuse_batched(f"items have shape {item_shape}")
    if (batched := network.batched) and (why := trial.compare(partial(network.run_batched, batched))):
        network.refuse_batched(f"all tasks in one program {why}")
    if not network.batched and (why := trial.compare(network.run_vmapped)):
        network.vmapped = False
        network.reasons.append(f"torch.func.vmap {why}")
    network.once = "" if network.batched else trial.differentiate_twice(network.per_task)
    dropout = any(isinstance(layer, _DropoutNd) and layer.p > 0 for layer in network.module.modules())
    remarks = {
        "its dropout is off": dropout,
        "it draws random numbers": trial.random,
        MIXES: trial.mixes and not trial.random,
        f"{len(network.fixed)} of its {len(network.names)} parameters stay as they are": bool(network.fixed),
    }
    network.remarks = [remark for remark, holds in remarks.items() if holds]
    return trial.expected.features.shape[2]


def shrink(network: Pure, item_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give smaller images to look at a large network on, of which it makes as many features; the same where it cannot.

    A trial takes about a hundred of its passes.
    """
    with torch.random.fork_rng(devices=[]), suppress(Exception):  # of the user's code, which the trial tells of
        with FlopCounterMode(display=False) as counter:
            features = network.features(item_shape)
        cost = counter.get_total_flops() / 2  # of an item
        for fraction in (2, 4, 8):
            smaller = (item_shape[0], *(length // fraction for length in item_shape[1:]))
            if cost > CHEAP and cost / fraction**2 <= CHEAP and network.features(smaller) == features:
                return smaller
    return item_shape


@dataclass(frozen=True)
class Outcome:
    """What a program gives for a trial."""

    features: Tensor
    again: Tensor  # the same items by the statistics of the first time, without a graph
    alone: Tensor  # the first item of each task by them
    gradients: list[Tensor]


class Trial:
    """Two random tasks of three items, to see whether a program computes what the module does.

    In float64, where rounding is no excuse, or in float32 where the module knows of nothing else.
    """

    def __init__(self, network: Pure, item_shape: tuple[int, ...]) -> None:
        self.fixed = network.fixed
        generator = torch.Generator().manual_seed(0)
        self.params = {
            name: (p + 0.02 * torch.randn(2, *p.shape, generator=generator)).double()
            for name, p in network.params().items()
        }
        self.x = torch.rand(2, 3, *item_shape, generator=generator).double()
        try:
            self.expected = self.run(network.run_loop)
        except Exception:
            self.params = {name: value.float() for name, value in self.params.items()}
            self.x = self.x.float()
            try:
                self.expected = self.run(network.run_loop)
            except UserError:
                raise
            except Exception as error:  # code of the user's may raise anything
                name = type(network.module).__name__
                message = f"metalearner.model: {name} cannot take items of shape {item_shape}: {describe(error)}"
                raise UserError(message) from error
        self.near = 1e-5 if self.expected.features.dtype == torch.float64 else 1e-3
        with seeds.seed_torch(1), torch.no_grad():
            other, _ = network.run_loop(self.params, self.x, None)
        self.random = self.far(other, self.expected.features)
        self.mixes = self.far(self.expected.alone, self.expected.again[:, :1])

    def run(self, program: Program) -> Outcome:
        """Run a program, forwards and backwards."""
        params, leaves = self.leaves()
        # checkpoints would compute again when the module has its own weights back
        apart = torch.autograd.graph.disable_saved_tensors_hooks(CHECKPOINTS)
        with seeds.seed_torch(0), torch.enable_grad(), apart:
            out, stats = program(params, self.x, None)
            grads = torch.autograd.grad(weigh(out), leaves, materialize_grads=True) if out.requires_grad else []
        stats = {name: value.detach() for name, value in stats.items()}
        with seeds.seed_torch(0), torch.no_grad():
            again, _ = program(params, self.x, stats)
            alone, _ = program(params, self.x[:, :1], stats)
        return Outcome(out.detach(), again, alone, list(grads))

    def compare(self, program: Program) -> str:
        """Say what is wrong with a program, or nothing."""
        try:
            found = self.run(program)
        except Exception as error:  # torch's own, or the user's
            return f"raises {describe(error)}"
        largest = max((scale(gradient) for gradient in self.expected.gradients), default=0.0)
        off = len(found.gradients) != len(self.expected.gradients) or any(
            self.far(a, b, 100, largest / 100) for a, b in zip(found.gradients, self.expected.gradients, strict=True)
        )
        off |= any(self.far(getattr(found, n), getattr(self.expected, n)) for n in ("features", "again", "alone"))
        return "computes something else than the module" if off else ""

    def differentiate_twice(self, program: Program) -> str:
        """Say why torch cannot, or nothing."""
        params, leaves = self.leaves()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            out, _ = program(params, self.x, None)
            if not out.requires_grad:
                return ""
            try:
                grads = torch.autograd.grad(weigh(out), leaves, create_graph=True, materialize_grads=True)
                if slopes := [grad.square().sum() for grad in grads if grad.requires_grad]:
                    torch.autograd.grad(slopes, leaves, allow_unused=True)
            except RuntimeError as error:
                return describe(error)
        return ""

    def leaves(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the parameters to differentiate by: all of them, and those that may move."""
        params = {name: p.clone().requires_grad_(name not in self.fixed) for name, p in self.params.items()}
        return params, [value for value in params.values() if value.requires_grad]

    def far(self, a: Tensor, b: Tensor, times: float = 1, least: float = 0) -> bool:
        """Whether two results are further apart than rounding takes them."""
        if a.shape != b.shape or a.dtype != b.dtype:
            return True
        near = self.near * times * max(scale(b), least) + 1e-12
        return not torch.allclose(a, b, rtol=0, atol=near, equal_nan=True)


def scale(x: Tensor) -> float:
    """Return the largest size of a number in x."""
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0


def weigh(out: Tensor) -> Tensor:
    """Sum up with a weight for each number, so that no two have the same gradient."""
    return (out * torch.linspace(1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum()


def describe(error: Exception) -> str:
    """Say in a line what was raised, and where in code that is not torch's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not SKIPPED.intersection(Path(f.filename).parts)]
    own = [f for f in frames if Path(f.filename).parent != Path(__file__).parent]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}{place}"
