"""Every built-in keeps its contract (`umeta.testing`), and every check fails on something that breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from torch import Tensor

from embeddings.acai import ACAI
from embeddings.bigan import BiGAN
from embeddings.deepcluster import DeepCluster
from embeddings.pixels import Pixels
from embeddings.precomputed import Precomputed
from embeddings.random_network import RandomNetwork
from embeddings.simclr import SimCLR
from proposers.hyperplanes import Hyperplanes
from proposers.kmeans import KMeans
from proposers.progressive import Progressive
from proposers.random_labels import RandomLabels
from umeta.config import registry
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.runtime.loop import RunContext
from umeta.tasks.partition import Episodes, PartitionTasks
from umeta.testing import (
    RawPixels,
    check_embedder,
    check_metalearner,
    check_proposer,
    check_tasks,
    through_file,
    toy_images,
    toy_tasks,
)
from umeta.types import Adapted, Batch, EpisodeSpec, MetaLearner, TaskSpec, Theta

TINY = Conv4(filters=4)
NORMALISATIONS = ("batch", "support", "running", "group")


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize(("head", "first_order"), [("shared", False), ("fixed", True)])
def test_maml(head: str, first_order: bool, normalisation: str) -> None:
    learner = MAML(TINY, steps=2, head=head, first_order=first_order, normalisation=normalisation)
    check_metalearner(learner, transductive=normalisation == "batch")


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_protonet(distance: str, normalisation: str) -> None:
    learner = ProtoNet(TINY, distance=distance, normalisation=normalisation)
    check_metalearner(learner, transductive=normalisation == "batch")


EMBEDDERS = {
    "pixels": Pixels(),
    "whitened": Pixels(whiten=5),
    "zca": Pixels(contrast=True, zca=0.1),
    "random_network": RandomNetwork(TINY),
    "acai": ACAI(steps=3, depth=2, dimensions=16, batch=8),
    "simclr": SimCLR(TINY, steps=3, batch=8),
    "bigan": BiGAN(steps=3, depth=2, dimensions=8, batch=8),
    "deepcluster": DeepCluster(dimensions=4, model=TINY, k=6, every=2, steps=3, batch=8),
}


@pytest.mark.parametrize("name", EMBEDDERS)
def test_embedders(name: str) -> None:
    check_embedder(EMBEDDERS[name])


@pytest.mark.parametrize("name", EMBEDDERS)
def test_state_keeps_its_memory_layout_through_a_file(name: str) -> None:
    """Which kernel runs, and so how it rounds, depends on the layout; on some processors only, so compare that."""
    embedder: Any = copy.deepcopy(EMBEDDERS[name])
    embedder.fit(toy_images(), RunContext(0))
    fitted = embedder.state_dict()
    embedder.load_state_dict(through_file(fitted))
    loaded = embedder.state_dict()
    assert {n: t.stride() for n, t in fitted.items()} == {n: t.stride() for n, t in loaded.items()}


def test_precomputed(tmp_path: Path) -> None:
    images = toy_images()
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).random((len(images), 3)))
    check_embedder(Precomputed(str(tmp_path / "vectors.npy")), images)


@pytest.mark.parametrize(
    "proposer",
    [
        KMeans(k=6, partitions=3, smallest=4),
        Hyperplanes(zones=4, partitions=3, smallest=4, margin=0.01),
        RandomLabels(k=6, partitions=3),
    ],
    ids=["kmeans", "hyperplanes", "random_labels"],
)
def test_proposers(proposer: object) -> None:
    check_proposer(proposer)


@pytest.mark.parametrize("rotations", [False, True])
def test_progressive(rotations: bool) -> None:
    check_proposer(Progressive(neighbours=[8], similarity=0.2, k=[6], core=1.0, rotations=rotations))


# --- each check can fail ---


class Nearest(MetaLearner):
    """A sound learner to break: logits are minus the squared distances of pixels to class means, times theta."""

    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Self:
        return copy.copy(self)

    def init(self, seed: int) -> Theta:
        return Theta({"scale": torch.full((1,), 0.01 + seed * 1e-9)})

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        member = torch.nn.functional.one_hot(support.y, support.way).to(support.x.dtype) * support.mask[..., None]
        return Adapted({"means": member.mT @ support.x.flatten(2) / member.sum(1)[..., None].clamp(min=1)})

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        return -theta.params["scale"] * torch.cdist(x.flatten(2), adapted.params["means"]).square()


class ChangesOptions(Nearest):
    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Self:
        self.way = episode.way
        return copy.copy(self)


class RandomBuild(Nearest):
    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Self:
        torch.rand(1)
        return copy.copy(self)


class RandomInit(Nearest):
    def init(self, seed: int) -> Theta:
        return Theta({"scale": torch.rand(1)})


class ClockedInit(Nearest):
    calls = 0

    def init(self, seed: int) -> Theta:
        ClockedInit.calls += 1
        return Theta({"scale": torch.full((1,), float(self.calls))})


class NotFinite(Nearest):
    def init(self, seed: int) -> Theta:
        return Theta({"scale": torch.full((1,), torch.inf)})


class ChangesTheta(Nearest):
    def adapt(self, theta: Theta, support: Batch, **_: object) -> Adapted:
        with torch.no_grad():
            theta.params["scale"].add_(0.1)
        return super().adapt(theta, support)


class ChangesSupport(Nearest):
    def adapt(self, theta: Theta, support: Batch, **_: object) -> Adapted:
        support.x.mul_(0.5)
        return super().adapt(theta, support)


class ChangesAdapted(Nearest):
    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        out = super().predict(theta, adapted, x)
        with torch.no_grad():
            adapted.params["means"].mul_(2)
        return out


class WrongShape(Nearest):
    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        return super().predict(theta, adapted, x)[:, :1]


class OneClassMore(Nearest):
    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        logits = super().predict(theta, adapted, x)
        return torch.cat([logits, torch.zeros_like(logits[..., :1])], dim=-1)[..., : max(3, logits.shape[-1])]


class Endless(Nearest):
    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        logits = super().predict(theta, adapted, x)
        return logits if torch.is_grad_enabled() else logits / 0


class OtherWithoutGrad(Nearest):
    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        logits = super().predict(theta, adapted, x)
        return logits if torch.is_grad_enabled() else 2 * logits


class HiddenState(Nearest):
    def init(self, seed: int) -> Theta:
        self.hidden = 1 + seed
        return super().init(seed)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        return super().predict(theta, adapted, x) * self.hidden


class Transductive(Nearest):
    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        return super().predict(theta, adapted, x - x.mean(1, keepdim=True))


class TasksMixed(Nearest):
    def adapt(self, theta: Theta, support: Batch, **_: object) -> Adapted:
        means = super().adapt(theta, support).params["means"]
        return Adapted({"means": means - means.mean(0)})


class MixedInTraining(TasksMixed):
    def adapt(self, theta: Theta, support: Batch, **_: object) -> Adapted:
        return (super() if theta.running is None else super(TasksMixed, self)).adapt(theta, support)


class SeesPadding(Nearest):
    def adapt(self, theta: Theta, support: Batch, **_: object) -> Adapted:
        return super().adapt(theta, replace(support, mask=torch.ones_like(support.mask)))


def test_sound_learner() -> None:
    check_metalearner(Nearest())


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (ChangesOptions(), "build leaves the options"),
        (RandomBuild(), "build or init leaves the global random state alone"),
        (RandomInit(), "build or init leaves the global random state alone"),
        (ClockedInit(), "init with the same seed"),
        (ChangesTheta(), "leave theta"),
        (ChangesSupport(), "leave theta, support"),
        (ChangesAdapted(), "what adapt gave"),
        (Endless(), "finite"),
        (OtherWithoutGrad(), "with and without no_grad"),
        (HiddenState(), "all that was learnt"),
        (Transductive(), "one by one"),
        (TasksMixed(), "alone and in a meta-batch"),
        (MixedInTraining(), "task_chunk"),
        (SeesPadding(), "masked support"),
        (OneClassMore(), "another way"),
        (NotFinite(), "init gives finite parameters"),
        (MAML(TINY, steps=1, normalisation="batch"), "one by one"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_broken_learners(broken: Nearest, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_metalearner(broken)


def test_a_learner_without_the_base_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"inherits from umeta\.types\.MetaLearner"):
        check_metalearner(object())


@pytest.mark.parametrize("name", registry.built_in("metalearner"))
def test_options_alone_cannot_adapt(name: str) -> None:
    options = registry.build_part("metalearner", {"name": name, "model": {"name": "mlp", "hidden": [4]}})
    policy = getattr(options, "policies_only", False)
    spec = TaskSpec((4,), "policy", 2, 2) if policy else TaskSpec((4,))
    learner = options.build(spec, EpisodeSpec(2, 1, 1))
    theta, x, mask = learner.init(0), torch.ones(1, 2, 4), torch.ones(1, 2, dtype=torch.bool)
    y = torch.ones(1, 2, 2) if policy else torch.tensor([[0, 1]])
    told = {name: torch.ones(1, 2) for name in ("w", "logp", "reward")}
    support = Batch(x, y, mask, 1 if policy else 2, first=mask, **told)
    adapted = learner.adapt(theta, support)
    for ask in (
        lambda: options.init(0),
        lambda: options.adapt(theta, support),
        lambda: options.predict(theta, adapted, x),
    ):
        with pytest.raises(UserError, match=r"it has no network yet; use what its build\(spec, episode\) returns"):
            ask()


def test_broken_shape() -> None:
    class Zeros(Nearest):
        def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
            logits = super().predict(theta, adapted, x)
            return logits if torch.is_grad_enabled() else logits[:, :1]

    with pytest.raises(AssertionError, match=r"\[T, N, way\]"):
        check_metalearner(Zeros())


class Offset(Pixels):
    """Pixels plus what `offset` gives for the images."""

    offset: ClassVar[Callable[[UnlabelledImages], float | Tensor]]

    def embed(self, images: UnlabelledImages) -> Tensor:
        return super().embed(images) + type(self).offset(images)


class OnBatch(Offset):
    offset = staticmethod(lambda images: float(images.pixels.mean()))


class OnChance(Offset):
    offset = staticmethod(lambda images: torch.rand(()))


class OnClock(Pixels):
    calls = 0

    def embed(self, images: UnlabelledImages) -> Tensor:
        OnClock.calls += 1
        return super().embed(images) + self.calls


class Fitted(Pixels):
    """Draws something in `fit` and keeps it out of `state_dict`."""

    def fit(self, images: UnlabelledImages, ctx: RunContext) -> None:
        self.drawn = ctx.seed + 1

    def embed(self, images: UnlabelledImages) -> Tensor:
        return super().embed(images) + getattr(self, "drawn", 0)


class FitOnGlobal(Pixels):
    def fit(self, images: UnlabelledImages, ctx: RunContext) -> None:
        self._state = {"mean": torch.rand(256), "components": torch.eye(256)}


class FitOnNumpy(Pixels):
    def fit(self, images: UnlabelledImages, ctx: RunContext) -> None:
        np.random.rand()


class FitOnClock(Pixels):
    calls = 0

    def fit(self, images: UnlabelledImages, ctx: RunContext) -> None:
        FitOnClock.calls += 1
        self._state = {"mean": torch.full((256,), float(self.calls)), "components": torch.eye(256)}


class ChangesImages(Pixels):
    def fit(self, images: UnlabelledImages, ctx: RunContext) -> None:
        images.pixels[:] //= 2


class Doubles(Pixels):
    def embed(self, images: UnlabelledImages) -> Tensor:
        return super().embed(images).double()


class Flatless(Pixels):
    def embed(self, images: UnlabelledImages) -> Tensor:
        return super().embed(images)[:, None]


class Infinite(Pixels):
    def embed(self, images: UnlabelledImages) -> Tensor:
        return super().embed(images) / 0


class Graphed(Pixels):
    def embed(self, images: UnlabelledImages) -> Tensor:
        return super().embed(images).requires_grad_()


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (OnBatch(), "images embedded with it"),
        (OnChance(), "global random state"),
        (OnClock(), "asked again"),
        (Fitted(), "state_dict"),
        (FitOnGlobal(), "global random state"),
        (FitOnNumpy(), "global random state"),
        (FitOnClock(), "same seed"),
        (ChangesImages(), "leave the images"),
        (Doubles(), "float32"),
        (Flatless(), r"\[n, d\]"),
        (Infinite(), "finite"),
        (Graphed(), "without a graph"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_broken_embedders(broken: Pixels, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_embedder(broken)


@dataclass
class Broken:
    """Toy tasks whose draw is spoilt by `spoil(episodes, indices, seed)`."""

    spoil: Callable[[Episodes, np.ndarray, int], Episodes]

    def __post_init__(self) -> None:
        self.tasks = toy_tasks()
        self.spec, self.partitions = self.tasks.spec, self.tasks.partitions

    def sample(self, indices: Tensor, *, episode: EpisodeSpec, seed: int) -> Episodes:
        return self.spoil(self.tasks.sample(indices, episode=episode, seed=seed), np.asarray(indices), seed)


def overlap(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    index = e.query_index.clone()
    index[:, 0] = e.support_index[torch.arange(len(index)), (e.support_label == e.query_label[:, :1]).long().argmax(1)]
    return replace(e, query_index=index)


def strange(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    items = e.items.clone()
    items[:, 0, 0, 0] ^= 255
    return replace(e, items=items)


def mixed(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    return replace(e, query_index=e.query_index.roll(1, dims=1))


def in_order(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    label, order = e.query_label.sort(dim=1, stable=True)
    return replace(e, query_label=label, query_index=e.query_index.gather(1, order))


def unpermuted(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    tasks = toy_tasks(partitions=1)
    cluster = torch.from_numpy(tasks.partitions[0].astype(np.int64))
    fixed = tasks.sample(indices, episode=EpisodeSpec(3, 2, 2), seed=seed)

    def ranked(index: Tensor) -> Tensor:
        present = cluster[fixed.support_index].sort(dim=1).values[:, ::2]
        return (cluster[index][..., None] > present[:, None]).sum(-1)

    return replace(fixed, support_label=ranked(fixed.support_index), query_label=ranked(fixed.query_index))


def too_many(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    twice = [torch.cat([t, t[:, :1]], dim=1) for t in (e.support_index, e.support_label)]
    return replace(e, support_index=twice[0], support_label=twice[1])


def uneven(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    return replace(e, query_label=torch.zeros_like(e.query_label))


def by_batch(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    shift = int(len(indices) > 1)
    return replace(e, query_index=e.query_index.roll(shift, 1), query_label=e.query_label.roll(shift, 1))


def by_order(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    first = int(len(indices) > 1 and indices[0] == 63)
    return replace(e, query_index=e.query_index.roll(first, 1), query_label=e.query_label.roll(first, 1))


def by_chance(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    order = torch.randperm(e.query_index.shape[1])
    return replace(e, query_index=e.query_index[:, order], query_label=e.query_label[:, order])


def by_clock(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    by_clock.calls = getattr(by_clock, "calls", 0) + 1
    return replace(e, query_index=e.query_index.roll(by_clock.calls, 1))


def unseeded(e: Episodes, indices: np.ndarray, seed: int) -> Episodes:
    return toy_tasks().sample(indices, episode=EpisodeSpec(3, 2, 2), seed=0)


BROKEN_TASKS = [
    (overlap, "disjoint"),
    (strange, "one of the images"),
    (mixed, "all of one cluster"),
    (in_order, "shuffled"),
    (unpermuted, "permuted"),
    (too_many, "exactly way x 2 support items"),
    (uneven, "each class has exactly 2 query items"),
    (by_batch, "alone or in a batch"),
    (by_order, "order of numbers"),
    (by_chance, "global random state"),
    (by_clock, "same task again"),
    (unseeded, "another seed"),
]


@pytest.mark.parametrize(("spoil", "promise"), BROKEN_TASKS, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_tasks(spoil: Callable, promise: str) -> None:
    tasks = Broken(spoil)
    if spoil is unpermuted:
        tasks.partitions = toy_tasks(partitions=1).partitions
    with pytest.raises(AssertionError, match=promise):
        check_tasks(tasks, toy_images())


def test_sound_tasks() -> None:
    check_tasks(Broken(lambda e, indices, seed: e), toy_images())


class Proposes:
    domain: ClassVar[str] = "image"
    sees_labels: ClassVar[bool] = False

    def propose(self, source: UnlabelledImages, ctx: RunContext, embedder: object = None) -> PartitionTasks:
        return toy_tasks(source)


class NoDomain(Proposes):
    domain = "pictures"


class Unstamped(Proposes):
    sees_labels = None


class ByGlobal(Proposes):
    def propose(self, source: UnlabelledImages, ctx: RunContext, embedder: object = None) -> PartitionTasks:
        return PartitionTasks(source.pixels, torch.randint(6, (1, len(source))).numpy())


class ByClock(Proposes):
    calls = 0

    def propose(self, source: UnlabelledImages, ctx: RunContext, embedder: object = None) -> PartitionTasks:
        ByClock.calls += 1
        draw = np.random.default_rng(self.calls)
        return PartitionTasks(source.pixels, draw.permutation(np.arange(len(source)) % 6))


class Inverts(Proposes):
    def propose(self, source: UnlabelledImages, ctx: RunContext, embedder: object = None) -> PartitionTasks:
        tasks = toy_tasks(source)
        source.pixels[:] = 255 - source.pixels
        return tasks


class Upscales(Proposes):
    def propose(self, source: UnlabelledImages, ctx: RunContext, embedder: object = None) -> PartitionTasks:
        return PartitionTasks(source.pixels.repeat(2, axis=-1), toy_tasks(source).partitions)


class Spoilt(Proposes):
    def propose(self, source: UnlabelledImages, ctx: RunContext, embedder: object = None) -> Broken:
        return Broken(in_order)


def test_sound_proposer() -> None:
    check_proposer(Proposes(), embedder=RawPixels())


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (NoDomain(), "domain"),
        (Unstamped(), "sees_labels"),
        (ByGlobal(), "global random state"),
        (ByClock(), "same seed"),
        (Inverts(), "leaves the images"),
        (Upscales(), "item_shape"),
        (Spoilt(), "shuffled"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_broken_proposers(broken: Proposes, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_proposer(broken)


def test_errors_are_not_swallowed() -> None:
    with pytest.raises(UserError, match="3-way"):
        check_tasks(toy_tasks(classes=2), toy_images())


def test_toy_images_are_alike_within_a_class_alone() -> None:
    pixels = toy_images(classes=3, each=4, side=8).pixels
    assert pixels.shape == (12, 1, 8, 8)
    apart = np.abs(pixels[:, None].astype(int) - pixels[None]).mean((2, 3, 4))
    assert ((apart < 40).sum(1) == 4).all()
