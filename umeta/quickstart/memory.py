"""An estimate of the memory that a stage takes: the peak of resident memory on a CPU.

The stage's largest step is carried out on torch's `meta` device, where tensors have a shape and no content, and the
bytes of those that are alive at a time are counted. Data, arrays and libraries are added.
"""

from __future__ import annotations

import copy
import resource
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from umeta.benchmarks.baselines import from_scratch
from umeta.benchmarks.protocols import resolve_episodes
from umeta.config import registry
from umeta.config.base import RunConfig, TrainConfig
from umeta.config.environments import Config as EnvConfig
from umeta.config.images import Config as ImageConfig
from umeta.config.regression import Config as RegressionConfig
from umeta.data.images import UnlabelledImages
from umeta.evaluation.images import CHUNK, RATES, build_variants
from umeta.parts import Embedder, Environment, ProposerTraits
from umeta.runtime.loop import RunContext
from umeta.tasks.reward import policy_spec
from umeta.train import BatchProblem
from umeta.types import Batch, EpisodeSpec, MetaLearner, TaskSpec, Theta

SLACK = 1.15  # the allocator's gaps
MB = 1 << 20
PART = 1000  # images embedded at a time
BOUNDED = ("kmeans", "instances", "random_labels", "hyperplanes")  # proposers whose memory is that of their arrays
IMPORTS = 220 << 20  # bytes: libraries that are imported where they are first used (faiss, scikit-learn, matplotlib)


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and the most there were. Numbers read out of tensors are 1."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.largest = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 1
        kwargs = kwargs or {}
        meta = [getattr(value, "type", None) for value in (kwargs.get("device"), getattr(args[0], "device", None))]
        if "generator" in kwargs and "meta" in meta:  # seeds have generators of the CPU; here there is nothing to draw
            kwargs = {**kwargs, "generator": None}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "meta":
            kwargs = {**kwargs, "device": torch.device("meta")}
        out = func(*args, **kwargs)
        made = sum(self.count(value) for value in tree_leaves(out) if isinstance(value, Tensor))
        if "convolution" in func.__name__:  # oneDNN works on copies in a layout of its own
            taken = sum(value.nbytes for value in tree_leaves(args) if isinstance(value, Tensor))
            self.largest = max(self.largest, made + taken)
        self.most = max(self.most, self.now)
        return out

    def count(self, value: Tensor) -> int:
        """Take note of a tensor's storage until it is freed; its bytes where it is new."""
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return 0

        def freed(_: object) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        return size

    @property
    def peak(self) -> int:
        """Bytes that the work is expected to take, with what the libraries take beside the tensors."""
        return int(SLACK * self.most) + self.largest


def simulate(work: Callable[[], Any], default: str = "meta") -> Live:
    """Count what some work takes, done without content. `default`: the device of tensors that name none."""
    live = Live()
    with torch.random.fork_rng(devices=[]), torch.device(default), live:
        work()
    return live


def simulate_metatraining(
    learner: MetaLearner,
    spec: TaskSpec,
    config: TrainConfig,
    horizon: int = 1,
) -> Live:
    """Count what a meta-step takes. `horizon`: steps of an episode."""
    outer = copy.deepcopy(config.outer)

    def work() -> None:
        built = learner.build(spec, config.episode)
        theta = Theta({n: v.requires_grad_() for n, v in built.init(0).params.items()})
        episode, tasks = config.episode, config.meta_batch
        supports = [batch(spec, tasks, episode.way, episode.way * episode.shot * horizon) for _ in range(config.rounds)]
        query = batch(spec, tasks, episode.way, episode.way * episode.query * horizon)
        problem = BatchProblem(built, theta, spec, supports, query, config.task_chunk)
        outer.start(problem.params)
        outer.step(problem, 0.0)

    return simulate(work)


def simulate_adaptation(
    learner: MetaLearner, spec: TaskSpec, episode: EpisodeSpec, tasks: int, steps: int | None
) -> Live:
    """Count what adapting to a chunk of tasks and answering takes: no more for many steps than for 3."""
    steps = steps or learner.steps

    def work() -> None:
        built = learner.build(spec, episode)
        theta = built.init(0)
        support = batch(spec, tasks, episode.way, episode.way * episode.shot)
        query = batch(spec, tasks, episode.way, episode.way * episode.query)
        with torch.no_grad():
            adapted = built.adapt(theta, support, steps=steps and min(steps, 3))
            built.predict(theta, adapted, query.x)

    return simulate(work)


def batch(spec: TaskSpec, tasks: int, way: int, items: int) -> Batch:
    """Tasks of that size, without content."""
    x = torch.empty(tasks, items, *spec.item_shape)
    mask = torch.ones(tasks, items, dtype=torch.bool)
    if not spec.outputs:
        return Batch(x, torch.zeros(tasks, items, dtype=torch.int64), mask, way)
    if not spec.interactive:
        return Batch(x, torch.empty(tasks, items, spec.outputs), mask, way)
    y, w, score = torch.empty(tasks, items, spec.outputs), torch.empty(tasks, items), torch.empty(tasks, items)
    return Batch(x, y, mask, 1, w, w.clone(), score)


@dataclass
class FewSteps(RunContext):
    """One step of each loop, on the meta device."""

    device: torch.device | str = "meta"

    def loop(
        self,
        name: str,
        steps: int,
        step: Callable[[int], dict[str, float]],
        *saving: Any,
        **options: Any,
    ) -> None:
        step(0)


def simulate_embedding(embedder: Embedder, images: UnlabelledImages) -> tuple[int, int]:
    """Bytes that a step of an embedding's training and embedding a part of the images take, and numbers in a vector."""
    embedder, width = copy.deepcopy(embedder), 0

    def work() -> None:
        nonlocal width
        embedder.fit(images, FewSteps())
        width = embedder.embed(UnlabelledImages(images.pixels[:PART], images.rows[:PART])).shape[1]

    return simulate(work, "cpu").peak, width


@dataclass(frozen=True)
class Need:
    """What a stage takes on a CPU."""

    stage: str
    bytes: int | None
    """None where it is not known: the stage has parts that cannot be simulated"""
    reduce: str
    """options that lower it"""

    def __str__(self) -> str:
        size = "not known before it runs" if self.bytes is None else f"about {self.bytes / MB:,.0f} MB"
        return f"{self.stage}: {size}, lower {self.reduce} for less"


def estimate_stage(stage: str, reduce: str, work: Callable[[], int]) -> Need:
    """Estimate the need of a stage whose data this process holds by now: `work` gives the bytes of the rest.

    Parts that cannot do without the content of tensors, such as plug-ins, leave it unknown.
    """
    held = resident_bytes()
    try:
        rest = work()
    except Exception:  # whatever a part raises for tensors without content
        return Need(stage, None, reduce)
    return Need(stage, max(peak_bytes(), held) + IMPORTS + rest, reduce)


def estimate_on_images(config: ImageConfig, images: UnlabelledImages) -> list[Need]:
    """Estimate what all stages take."""
    partitions = ProposerTraits.of(config.proposer).partitions * len(images) * 4
    reduce = "train.task_chunk, train.meta_batch, train.way, train.query or data.size"
    needs = [
        estimate_propose(config, images),
        estimate_metatrain(config, TaskSpec(images.item_shape), reduce, arrays=partitions),
    ]
    return [*needs, estimate_evaluate(config, images.item_shape)] if config.evaluated else needs


def estimate_on_an_environment(config: EnvConfig, env: Environment) -> list[Need]:
    """Estimate what `metatrain` takes."""
    reduce = "train.task_chunk, train.meta_batch or train.episodes"
    return [estimate_metatrain(config, policy_spec(env), reduce, horizon=env.horizon)]


def estimate_on_functions(config: RegressionConfig, source: None) -> list[Need]:
    """Estimate what `metatrain` takes."""
    spec = config.proposer.propose(source, RunContext(config.seed)).spec
    return [estimate_metatrain(config, spec, "train.task_chunk or train.meta_batch")]


def estimate_propose(config: ImageConfig, images: UnlabelledImages) -> Need:
    """Estimate what `propose` takes on these images, by a step of the embedding's training."""

    def work() -> int:
        n, proposer = len(images), config.proposer
        if registry.name_of("proposer", proposer) not in BOUNDED:
            raise NotImplementedError
        step, width = simulate_embedding(config.embedding, images) if config.embedding is not None else (0, 0)
        vectors = 6 * n * width * 4  # as tensor, array, scaled, and copies in between
        partitions = 6 * n * ProposerTraits.of(proposer).partitions * 4  # with order, and a checkpoint of them
        return max(step, partitions) + vectors + images.pixels.nbytes

    return estimate_stage("propose", "data.size, proposer.partitions or the embedding's batch", work)


def estimate_metatrain(config: RunConfig, spec: TaskSpec, reduce: str, arrays: int = 0, horizon: int = 1) -> Need:
    """Estimate what `metatrain` takes.

    reduce: the options that lower it; arrays: bytes of what the tasks are kept as; horizon: steps of an episode.
    """
    return estimate_stage(
        "metatrain",
        reduce,
        lambda: simulate_metatraining(config.metalearner, spec, config.train, horizon).peak + 3 * arrays,
    )


def estimate_evaluate(config: ImageConfig, item_shape: tuple[int, ...]) -> Need:
    """Estimate what `evaluate` takes, beside its test images."""
    learners, settings = [config.metalearner, *build_variants(config).values()], config.evaluate
    episodes, count = resolve_episodes(settings)
    tasks = min(CHUNK, count)
    if "scratch" in settings.baselines and (model := getattr(config.metalearner, "model", None)):
        learners.append(from_scratch(model, RATES[0], settings.scratch_steps))
        tasks = min(tasks, settings.scratch_tasks)
    steps = settings.steps or getattr(config.metalearner, "test_steps", None)
    spec = TaskSpec(item_shape)

    def work() -> int:
        return max(simulate_adaptation(learner, spec, e, tasks, steps).peak for learner in learners for e in episodes)

    return estimate_stage("evaluate", "data.size, evaluate.query or evaluate.episodes", work)


def resident_bytes() -> int:
    """Bytes of this process that are in memory; where the system does not say, the most there were."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return peak_bytes()


def peak_bytes() -> int:
    """Return the most bytes of this process that were in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
