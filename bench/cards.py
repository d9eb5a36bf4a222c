"""What `make gpu` measures: sides that do the same work on the card, by name; each sets up and returns a call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import clusters, maml, maml_jax, protonet
from bench.machine import CONVOLUTION, convolution_flop
from bench.maml import OUTER_LR, Case
from embeddings.simclr import SimCLR, ntxent
from umeta.augment.drawing import Drawing
from umeta.data.images import UnlabelledImages
from umeta.models.conv4 import Conv4
from umeta.runtime.loop import RunContext
from umeta.tasks.clustering import kmeans
from umeta.tasks.partition import PartitionTasks
from umeta.train import BatchProblem
from umeta.types import EpisodeSpec

PLAIN = "plain loop"
Run = Callable[[], Any]


@dataclass(frozen=True)
class Measurement:
    """Sides that do the same work."""

    title: str
    sides: dict[str, Callable[[], Run]]
    unit: str = "step"
    flop: float = 0
    count: float = 1
    """how many of the `unit` a call does"""


def list_measurements(device: torch.device, quick: bool) -> dict[str, Measurement]:
    """All of them, those that matter most first; `quick` makes them tiny."""
    small = {"tasks": 2, "filters": 4, "query": 2} if quick else {}
    found = rooflines(device, quick)
    for name, title, case in (
        ("maml", "MAML, 5-way 1-shot, 5 steps, second order", {}),
        ("maml_1_step", "MAML, 1 step", {"steps": 1}),
        ("maml_first_order", "MAML, 5 steps, first order", {"first_order": True}),
        ("maml_1_step_first_order", "MAML, 1 step, first order", {"steps": 1, "first_order": True}),
        ("maml_20_way", "MAML, 20-way", {"way": 20}),
        ("maml_84", "MAML, 84 x 84 x 3, 32 filters", {"size": 84, "channels": 3, "filters": 32}),
        ("maml_resnet12", "MAML, ResNet-12, 84 x 84 x 3, 1 step", RESNET12),
        ("maml_resnet12_first_order", "MAML, ResNet-12, 84 x 84 x 3, 5 steps, first order", RESNET12 | FIRST_ORDER),
    ):
        if quick and name not in ("maml", "maml_resnet12"):
            continue
        sizes = {"size": 28} if quick and "size" in case else {}
        found[name] = maml_step(title, {**case, **small, **sizes, "device": str(device)})
    proto = {"tasks": 1, "way": 60, "shot": 5, "query": 5, **small, "device": str(device)}
    found["protonet"] = proto_step(proto)
    found["episodes"] = episodes(device, 40 if quick else 800)
    found["simclr"] = simclr(device, 2 if quick else 20, 16 if quick else 256)
    found["kmeans"] = clustering(device, *((500, 8, 10, 3) if quick else (60_000, 256, 500, 20)))
    return found if quick else {**found, **by_compiler(device, proto)}


RESNET12 = {"size": 84, "channels": 3, "model": "resnet12", "steps": 1, "tasks": 4}
FIRST_ORDER = {"steps": 5, "first_order": True}


def rooflines(device: torch.device, quick: bool) -> dict[str, Measurement]:
    """Tell what the card can do at best: products, MAML's convolution, copies, and how fast it takes orders."""
    n, calls = (64, 1) if quick else (8192, 20)
    conv = {**CONVOLUTION, "tasks": 8, "images": 25, "calls": calls}
    gigabyte = 1 << (10 if quick else 28)  # numbers

    def product(dtype: torch.dtype, lower: bool = False) -> Run:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        return in_tf32(lower, lambda: a @ b)

    def convolution(lower: bool) -> Run:
        x = torch.randn(conv["images"], conv["tasks"] * conv["filters"], *[conv["side"]] * 2, device=device)
        weight = torch.randn(conv["tasks"] * conv["filters"], conv["filters"], 3, 3, device=device)
        x, weight = (value.contiguous(memory_format=torch.channels_last) for value in (x, weight))
        return in_tf32(lower, lambda: [F.conv2d(x, weight, padding=1, groups=conv["tasks"]) for _ in range(calls)])

    def copy_within() -> Run:
        x = torch.zeros(gigabyte, device=device)
        return lambda: x.clone()

    def copy_to() -> Run:
        x = torch.zeros(gigabyte)
        x = x.pin_memory() if device.type == "cuda" else x
        return lambda: x.to(device, non_blocking=True, copy=True)

    def launch() -> Run:
        x = torch.zeros(1, device=device)
        return lambda: [x.add_(1) for _ in range(1000)]

    return {
        "matmul": Measurement(
            f"matrix product, {n} x {n}",
            {
                "float32": lambda: product(torch.float32),
                "TF32": lambda: product(torch.float32, lower=True),
                "bfloat16": lambda: product(torch.bfloat16),
            },
            flop=2 * n**3,
        ),
        "convolution": Measurement(
            "grouped 3x3 convolution, 14 x 14 x 64, 8 tasks of 25 images",
            {"float32": lambda: convolution(False), "TF32": lambda: convolution(True)},
            flop=convolution_flop(**conv),
        ),
        "copies": Measurement(
            f"copy of {4 * gigabyte / 1e9:.2f} GB",
            {"within the card": copy_within, "to the card": copy_to},
            unit="copy",
        ),
        "launches": Measurement("smallest kernel", {"float32": launch}, unit="kernel", count=1000),
    }


def in_tf32(lower: bool, run: Run) -> Run:
    """Let products and convolutions of float32 numbers run in TF32, or not."""

    def call() -> None:
        for kind in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
            kind.fp32_precision = "tf32" if lower else "ieee"
        run()

    return call


def maml_step(title: str, case: dict[str, Any]) -> Measurement:
    """MAML's meta-step by umeta and by others, Adam included; all but the two of lower precision in float32."""
    sides: dict[str, Callable[[], Run]] = {
        "umeta": lambda: in_tf32(False, maml.umeta(**case)),
        "umeta, TF32": lambda: in_tf32(True, maml.umeta(**case)),
        "umeta, queries in bfloat16": lambda: in_tf32(False, maml.umeta("bfloat16", **case)),
        "umeta, CUDA graph": lambda: in_tf32(False, record_graph(maml.umeta_problem(Case(**case)))),
        PLAIN: lambda: in_tf32(False, maml.peer("loop", **case)),
        "learn2learn": lambda: in_tf32(False, maml.peer("learn2learn", **case)),
    }
    if case.get("model") != "resnet12":
        sides["torch.func, vmap of grad"] = lambda: in_tf32(False, functional(Case(**case)))
        sides["JAX, jit of vmap of grad"] = lambda: maml_jax.step(**case)
    flop = 0 if case.get("model") == "resnet12" else Case(**case).flop
    return Measurement(title, sides, flop=flop)


def by_compiler(device: torch.device, proto: dict[str, Any]) -> dict[str, Measurement]:
    """Show what `torch.compile` makes of a step; last, as each takes a minute to compile."""
    case = {"steps": 1, "first_order": True, "device": str(device)}
    sides = {
        "maml": (lambda: compile_step(maml.umeta_problem(Case(**case))), lambda: maml.peer("loop", **case)),
        "protonet": (lambda: torch.compile(protonet.plain(**proto)), lambda: protonet.plain(**proto)),
        "simclr": (lambda: plain_simclr(device, 20, 256, True), lambda: plain_simclr(device, 20, 256, False)),
    }
    titles = {
        "maml": "MAML by umeta, 1 step, first order",
        "protonet": "ProtoNet, plain loop",
        "simclr": "SimCLR, plain loop",
    }
    return {
        f"compiled_{name}": Measurement(
            f"{titles[name]}, torch.compile",
            {
                "torch.compile": lambda made=made: in_tf32(False, made()),
                PLAIN: lambda plain=plain: in_tf32(False, plain()),
            },
            count=20 if name == "simclr" else 1,
        )
        for name, (made, plain) in sides.items()
    }


def record_graph(problem: BatchProblem) -> Run:
    """Record a meta-step's kernels once, and replay them: `torch.cuda.graph` around the meta-gradient and Adam."""
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA graphs need a card")
    params = problem.params
    optimiser = torch.optim.AdamW(list(params.values()), lr=OUTER_LR, weight_decay=0, capturable=True)

    def step() -> None:
        for name, gradient in gradients(problem).items():
            params[name].grad = gradient
        optimiser.step()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def gradients(problem: BatchProblem) -> dict[str, Tensor]:
    """Give the meta-gradient of all tasks in one chunk, without reading a metric."""
    return problem.differentiate(problem.supports, problem.query, 1.0, None)[1]


def compile_step(problem: BatchProblem) -> Run:
    """Give the whole meta-gradient to `torch.compile`."""
    optimiser = torch.optim.AdamW(list(problem.params.values()), lr=OUTER_LR, weight_decay=0)
    differentiate = torch.compile(lambda: gradients(problem))

    def step() -> None:
        for name, gradient in differentiate().items():
            problem.params[name].grad = gradient
        optimiser.step()

    return step


def logits(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """Conv4 and a linear head as a function; normalisation is written out, as vmap's second derivative needs."""
    for block in range(4):
        x = F.conv2d(x, params[f"{4 * block}.weight"], padding=1)
        x = (x - x.mean((0, 2, 3), keepdim=True)) * (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).rsqrt()
        scale, shift = (params[f"{4 * block + 1}.{name}"][:, None, None] for name in ("weight", "bias"))
        x = F.max_pool2d((x * scale + shift).relu(), 2)
    return F.linear(x.flatten(1), params["head.weight"], params["head.bias"])


def functional(case: Case) -> Run:
    """`torch.func`: the meta-loss of a task as a pure function, its gradient, and vmap over tasks."""
    net = case.network()
    params = dict(net.named_parameters())
    optimiser = torch.optim.Adam(net.parameters(), lr=OUTER_LR)
    support, query = case.batches()
    meta = functional_gradient(case)

    def step() -> None:
        found = meta({n: p.detach() for n, p in params.items()}, support.x, support.y, query.x, query.y)
        for name, value in found.items():
            params[name].grad = value.mean(0)
        optimiser.step()

    return step


def functional_gradient(case: Case) -> Callable[..., dict[str, Tensor]]:
    """Gradients of the tasks' meta-losses, [T, ...] by name."""

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits(params, x), y)

    def meta_loss(params: dict[str, Tensor], x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        fast = params
        for _ in range(case.steps):
            grads = torch.func.grad(loss)(fast, x, y)
            grads = {n: g.detach() if case.first_order else g for n, g in grads.items()}
            fast = {name: value - case.inner_lr * grads[name] for name, value in fast.items()}
        return loss(fast, query_x, query_y)

    return torch.func.vmap(torch.func.grad(meta_loss), in_dims=(None, 0, 0, 0, 0))


def proto_step(case: dict[str, Any]) -> Measurement:
    return Measurement(
        f"ProtoNet, {case['way']}-way {case['shot']}-shot",
        {
            "umeta": lambda: in_tf32(False, protonet.umeta("float32", **case)),
            "umeta, bfloat16": lambda: protonet.umeta("bfloat16", **case),
            "umeta, bfloat16, CUDA graph": lambda: record_graph(protonet.problem("bfloat16", **case)),
            PLAIN: lambda: in_tf32(False, protonet.plain(**case)),
        },
    )


def episodes(device: torch.device, tasks: int) -> Measurement:
    """Tasks of Omniglot's size, ready on the card: pictures that stay there, pictures sent, and one task at a time."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24_000, 1, 28, 28), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 1200, (24_000,), generator=random).numpy().astype(np.int32)
    episode = EpisodeSpec(5, 1, 5)

    def umeta(resident: bool) -> Run:
        distribution = PartitionTasks(images, labels)
        distribution = copy.copy(distribution) if not resident else distribution.to(device)
        distribution.device = device

        def run() -> None:
            for start in range(0, tasks, 8):
                batch = distribution.sample(np.arange(start, start + 8), episode=episode, seed=0)
                batch.support(), batch.query()

        return run

    def plain() -> Run:
        members = [np.flatnonzero(labels == c) for c in range(1200)]
        draw = np.random.default_rng(0)

        def run() -> None:
            for _ in range(tasks):
                classes = draw.choice(1200, 5, replace=False)
                items = np.stack([draw.choice(members[c], 6, replace=False) for c in classes])
                (images[items].float() / 255).to(device)

        return run

    sides = {"umeta": lambda: umeta(True), "umeta, pictures sent": lambda: umeta(False), PLAIN: plain}
    return Measurement("sampling tasks, 5-way 1-shot, 5 queries a class", sides, unit="task", count=tasks)


def simclr(device: torch.device, steps: int, batch: int) -> Measurement:
    """SimCLR's training step on drawings, Conv4: by umeta, and by a loop of the same operations as they come."""
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 1, 28, 28), dtype=np.uint8)
    images = UnlabelledImages(pixels, np.arange(len(pixels)))

    def umeta(precision: Any) -> Run:
        return lambda: SimCLR(steps=steps, batch=batch, precision=precision).fit(images, RunContext(0, device))

    sides: dict[str, Callable[[], Run]] = {
        "umeta": lambda: in_tf32(False, umeta("float32")),
        "umeta, bfloat16": lambda: umeta("bfloat16"),
        PLAIN: lambda: in_tf32(False, plain_simclr(device, steps, batch, False)),
    }
    return Measurement(f"SimCLR, Conv4, {batch} images", sides, count=steps)


def plain_simclr(device: torch.device, steps: int, batch: int, compile: bool) -> Run:
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 1, 28, 28), dtype=np.uint8)
    encoder = Conv4(halvings=3).build((1, 28, 28))
    net = nn.Sequential(encoder, nn.Linear(576, 576), nn.ReLU(), nn.Linear(576, 128)).to(device)
    forward = torch.compile(net) if compile else net
    augment, optimiser = Drawing(), torch.optim.Adam(net.parameters(), lr=2e-3)
    draw = np.random.default_rng(0)

    def run() -> None:
        for _ in range(steps):
            x = torch.from_numpy(pixels[draw.choice(len(pixels), batch, replace=False)]).to(device).float() / 255
            views = augment(x.repeat(2, 1, 1, 1), torch.rand(2 * batch, augment.randoms, device=device))
            loss = ntxent(forward(views), 0.2)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()

    return run


def clustering(device: torch.device, n: int, d: int, k: int, iterations: int) -> Measurement:
    """k-means on the card, on the CPU, and as a loop of `cdist`."""
    z = clusters.drawn(n, d)

    def plain() -> Run:
        there = torch.from_numpy(z).to(device)

        def run() -> None:
            means = there[torch.randperm(n, device=device)[:k]]
            for _ in range(iterations):
                label = torch.cdist(there, means).argmin(1)
                sums = torch.zeros_like(means).index_add_(0, label, there)
                means = sums / torch.bincount(label, minlength=k).clamp(min=1)[:, None]

        return run

    sides: dict[str, Callable[[], Run]] = {
        "umeta": lambda: lambda: kmeans(z, k, iterations, 0, device),
        "umeta, CPU": lambda: lambda: kmeans(z, k, iterations, 0),
        PLAIN: plain,
    }
    return Measurement(f"k-means of {n:,} x {d}, k = {k}, {iterations} iterations", sides, unit="clustering")


def version_of(package: str) -> str | None:
    """Give a package's version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
