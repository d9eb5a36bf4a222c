"""MAML's meta-step by umeta and by others: the same network, data, inner step size and outer optimiser.

Each of them takes its tasks from `Case.tasks`, starts at the weights of `Case.network` and works as its own examples
do: one task after the other with a backward pass each, where it has no way to batch tasks. Batch normalisation
normalises by whatever is passed, which is all that the others can do.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from umeta.metalearners.maml import MAML
from umeta.models.conv4 import Conv4
from umeta.models.precision import Precision
from umeta.models.resnet12 import ResNet12
from umeta.outer.adam import Adam
from umeta.train import BatchProblem
from umeta.types import Batch, EpisodeSpec, TaskSpec, Theta

OUTER_LR = 1e-3


@dataclass(frozen=True)
class Case:
    """A meta-step's size; by default that of CACTUs' Omniglot models."""

    tasks: int = 8
    way: int = 5
    shot: int = 1
    query: int = 5
    steps: int = 5
    first_order: bool = False
    size: int = 28
    channels: int = 1
    filters: int = 64
    inner_lr: float = 0.4
    double: bool = False
    model: Literal["conv4", "resnet12"] = "conv4"
    device: str = "cpu"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    def network(self) -> nn.Sequential:
        """Conv4 as it is usually written, or ResNet-12, and a linear head; named as in umeta's learner."""
        torch.manual_seed(0)
        if self.model == "resnet12":
            net = self.options.build((self.channels, self.size, self.size))
            net.add_module("head", nn.Linear(self.options.filters[-1], self.way))
            return net.to(self.device, self.dtype)
        layers: list[nn.Module] = []
        width, side = self.channels, self.size
        for _ in range(4):
            layers += [nn.Conv2d(width, self.filters, 3, padding=1, bias=False), nn.BatchNorm2d(self.filters)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            width, side = self.filters, side // 2
        net = nn.Sequential(*layers, nn.Flatten())
        net.add_module("head", nn.Linear(self.filters * side**2, self.way))
        return net.to(self.device, self.dtype)

    @property
    def options(self) -> Any:
        """The network as umeta has it; ResNet-12's filters grow from `filters`."""
        f = self.filters
        return ResNet12([f, 5 * f // 2, 5 * f, 10 * f]) if self.model == "resnet12" else Conv4(f)

    def batch(self, items: int, seed: int) -> Batch:
        """`items` of each class of each task: uniform noise, brighter at a pixel of its class's own."""
        random = torch.Generator().manual_seed(seed)
        y = torch.arange(self.way).repeat_interleave(items).expand(self.tasks, -1).contiguous()
        x = torch.rand(self.tasks, self.way * items, self.channels, self.size, self.size, generator=random)
        x += F.one_hot(y, self.size**2).view(self.tasks, -1, 1, self.size, self.size)
        batch = Batch(x.to(self.dtype), y, torch.ones_like(y, dtype=torch.bool), self.way)
        return batch.map_tensors(lambda value: value.to(self.device))

    def batches(self) -> tuple[Batch, Batch]:
        return self.batch(self.shot, 1), self.batch(self.query, 2)

    def each(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Support x and y, query x and y of each task."""
        support, query = self.batches()
        return list(zip(support.x, support.y, query.x, query.y, strict=True))

    @property
    def flop(self) -> float:
        """Floating-point operations that the convolutions of a meta-step need, a multiply-add counting as two.

        A convolution's backward pass is two of its size, and one at the first layer, whose input needs no gradient. An
        inner step is a forward and a backward pass, 3; through it, each of these three has two derivatives: 6 more.
        """
        forward = []
        width, side = self.channels, self.size
        for _ in range(4):
            forward.append(2 * 9 * width * self.filters * side**2)
            width, side = self.filters, side // 2
        first, rest = forward[0], sum(forward[1:])
        inner = 2 * first + 3 * rest if self.first_order else 4 * first + 9 * rest
        outer = 2 * first + 3 * rest
        return self.tasks * self.way * (self.steps * self.shot * inner + self.query * outer)


Gradient = Callable[[], Any]  # leaves the meta-gradient in the `grad` of a network's parameters


def learn2learn_gradient(case: Case, net: nn.Module) -> Gradient:
    l2l = package("learn2learn", "algorithms")
    maml = l2l.algorithms.MAML(net, lr=case.inner_lr, first_order=case.first_order)
    tasks = case.each()

    def gradient() -> None:
        for x, y, query_x, query_y in tasks:
            learner = maml.clone()
            for _ in range(case.steps):
                learner.adapt(F.cross_entropy(learner(x), y))
            (F.cross_entropy(learner(query_x), query_y) / len(tasks)).backward()

    return gradient


def higher_gradient(case: Case, net: nn.Module) -> Gradient:
    import higher

    inner = torch.optim.SGD(net.parameters(), lr=case.inner_lr)
    tasks = case.each()

    def gradient() -> None:
        for x, y, query_x, query_y in tasks:
            with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast, optimiser):
                for _ in range(case.steps):
                    optimiser.step(F.cross_entropy(fast(x), y))
                (F.cross_entropy(fast(query_x), query_y) / len(tasks)).backward()

    return gradient


def torchopt_gradient(case: Case, net: nn.Module) -> Gradient:
    import torchopt

    inner = torchopt.MetaSGD(net, lr=case.inner_lr)
    tasks = case.each()

    def gradient() -> None:
        states = [(owner, torchopt.extract_state_dict(owner, by="reference")) for owner in (net, inner)]
        for x, y, query_x, query_y in tasks:
            for _ in range(case.steps):
                inner.step(F.cross_entropy(net(x), y))
            (F.cross_entropy(net(query_x), query_y) / len(tasks)).backward()
            for owner, state in states:
                torchopt.recover_state_dict(owner, state)

    return gradient


def loop_gradient(case: Case, net: nn.Module) -> Gradient:
    """Nothing but PyTorch: `functional_call` at weights that are tensors of the graph."""
    tasks = case.each()

    def gradient() -> None:
        start = dict(net.named_parameters())
        for x, y, query_x, query_y in tasks:
            fast = start
            for _ in range(case.steps):
                loss = F.cross_entropy(functional_call(net, fast, (x,)), y)
                grads = torch.autograd.grad(loss, list(fast.values()), create_graph=not case.first_order)
                fast = {n: p - case.inner_lr * g for (n, p), g in zip(fast.items(), grads, strict=True)}
            (F.cross_entropy(functional_call(net, fast, (query_x,)), query_y) / len(tasks)).backward()

    return gradient


def jax_gradient(case: Case, net: nn.Module) -> Gradient:
    from bench import maml_jax  # which imports this file

    return maml_jax.gradient(case, net)


PEERS = {
    "learn2learn": learn2learn_gradient,
    "higher": higher_gradient,
    "torchopt": torchopt_gradient,
    "loop": loop_gradient,
    "JAX": jax_gradient,
}


def peer(name: str, **options: Any) -> Callable[[], None]:
    """Return a meta-step by one of the others, with PyTorch's Adam."""
    case = Case(**options)
    net = case.network()
    optimiser = torch.optim.Adam(net.parameters(), lr=OUTER_LR)
    gradient = PEERS[name](case, net)

    def step() -> None:
        optimiser.zero_grad()
        gradient()
        optimiser.step()

    return step


def umeta(precision: Precision = "float32", **options: Any) -> Callable[[], None]:
    """Return a meta-step as `umeta metatrain` takes it; the precision is that of the queries."""
    problem = umeta_problem(Case(**options), precision)
    outer = Adam(lr=OUTER_LR)
    outer.start(problem.theta.params)

    def step() -> None:
        outer.step(problem, 0.0)

    return step


def umeta_problem(case: Case, precision: Precision = "float32") -> BatchProblem:
    support, query = case.batches()
    spec = TaskSpec(tuple(support.x.shape[2:]))
    options = MAML(
        case.options,
        inner_lr=case.inner_lr,
        steps=case.steps,
        first_order=case.first_order,
        head="fixed",
        normalisation="batch",
        precision=precision,
    )
    learner = options.build(spec, EpisodeSpec(case.way, case.shot, case.query))
    names = learner.init(seed=0).params
    weights = dict(case.network().named_parameters())
    theta = Theta({name: weights[name].detach().clone().requires_grad_() for name in names})  # on the case's device
    return BatchProblem(learner, theta, spec, [support], query, case.tasks)


def agreement(**options: Any) -> Callable[[], dict[str, float]]:
    """Return the largest relative distance of each one's meta-gradient from the plain loop's, in float64.

    With `double=False` in float32, and JAX's too: on a CPU its gradients in float64 are not numbers (jaxlib 0.10.2),
    whether tasks are mapped over or written out.
    """
    case = Case(**{"tasks": 3, "double": True, **options})

    def compare() -> dict[str, float]:
        truth = gradients(case, loop_gradient)
        found = {"umeta": umeta_problem(case).loss_and_grad()[1]}
        for name in [name for name in PEERS if name != "loop" and not (name == "JAX" and case.double)]:
            try:
                found[name] = gradients(case, PEERS[name])
            except ImportError:
                continue
        return {name: distance(grads, truth) for name, grads in found.items()}

    return compare


def gradients(case: Case, maker: Callable[[Case, nn.Module], Gradient]) -> dict[str, Tensor]:
    net = copy.deepcopy(case.network())
    maker(case, net)()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def distance(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Return the largest over the parameters of `|found - truth| / |truth|`."""
    return max(float((found[name] - truth[name]).norm() / truth[name].norm()) for name in truth)


def package(name: str, *modules: str) -> types.ModuleType:
    """Submodules of a package without the rest of it: learn2learn's environments need gym, which is no longer kept.

    Raises:
        ImportError: the package is not there.
    """
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"No module named '{name}'")
        bare = types.ModuleType(name)
        bare.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = bare
    for module in modules:
        importlib.import_module(f"{name}.{module}")
    return sys.modules[name]
