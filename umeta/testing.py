"""Contract checks for parts of your own: what every embedding, proposer, model and meta-learner promises.

    from umeta.testing import check_metalearner

    def test_my_learner():
        check_metalearner(MyLearner(Conv4(filters=4)))

Each check makes its own toy data where none is given and raises AssertionError with the promise that is broken. What is
checked is the mechanics, not whether anything is learnt.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from umeta.config.images import TrainConfig
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.models.check import MIXES, build_module, choose_program
from umeta.models.functional import Normalisation, Pure, draw
from umeta.outer.adam import Adam
from umeta.parts import Context, Embedder, Images, Model, Proposer, TaskTraits
from umeta.runtime import artifacts
from umeta.runtime.loop import RunContext
from umeta.tasks.partition import PartitionTasks
from umeta.train import BatchProblem, metatrain
from umeta.types import Batch, EpisodeSpec, MetaLearner, TaskDistribution, Theta

EPISODE = EpisodeSpec(way=3, shot=2, query=2)


def toy_images(classes: int = 6, each: int = 8, side: int = 16) -> UnlabelledImages:
    """Distinct images [classes * each, 1, side, side]: each class is a random pattern, each image that and noise."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(0, 200, (classes, 1, 1, side, side))
    noise = draw.integers(0, 56, (classes, each, 1, side, side))
    return UnlabelledImages.of((patterns + noise).reshape(-1, 1, side, side).astype(np.uint8))


def toy_tasks(images: UnlabelledImages | None = None, classes: int = 6, partitions: int = 2) -> PartitionTasks:
    """Tasks on random partitions of the images into equal classes."""
    images = images or toy_images()
    labels = np.arange(len(images)) % classes
    draws = [np.random.default_rng(p).permutation(labels) for p in range(partitions)]
    return PartitionTasks(images.pixels, np.stack(draws))


def check_embedder(embedder: Embedder, images: UnlabelledImages | None = None, seed: int = 0) -> None:
    """Check an embedding: reproducible, whole in its `state_dict`, image by image, and harmless to the images.

    Raises:
        AssertionError: names the promise that is broken.
    """
    images = images or toy_images()
    pixels = images.pixels.copy()

    def fitted() -> Embedder:
        one = copy.deepcopy(embedder)
        with unchanged_randomness("fit or embed"):
            one.fit(images, RunContext(seed))
            one.embed(images)
        require(np.array_equal(images.pixels, pixels), "fit and embed leave the images as they are")
        return one

    first = fitted()
    z = first.embed(images)
    require(z.dim() == 2 and len(z) == len(images), f"embed gives [n, d], here [{len(images)}, d], not {list(z.shape)}")
    require(z.dtype == torch.float32, f"embed gives float32, not {z.dtype}")
    require(not z.requires_grad, "embed gives plain vectors, without a graph behind them")
    require(bool(z.isfinite().all()), "embed gives finite numbers")
    require(torch.equal(z, first.embed(images)), "embed gives the same vectors when asked again")
    require(torch.equal(z, fitted().embed(images)), "fit and embed with the same seed give the same vectors")
    restored = copy.deepcopy(embedder)
    restored.load_state_dict(through_file(first.state_dict()))
    require(torch.equal(z, restored.embed(images)), "state_dict, saved and loaded, gives the same vectors")
    some = np.arange(1, len(images), 3)
    part = first.embed(UnlabelledImages(images.pixels[some], np.arange(len(some))))
    require(close(part, z[some]), "the vector of an image does not depend on the images embedded with it")


def check_proposer(
    proposer: Proposer,
    source: Any = None,
    embedder: Embedder | None = None,
    episode: EpisodeSpec = EPISODE,
    seed: int = 0,
) -> None:
    """Check a proposer of image tasks: reproducible, and its tasks sound (`check_tasks`).

    source: distinct images; embedder: a fitted one, by default raw pixels.

    Raises:
        AssertionError: names the promise that is broken.
    """
    domains = ("image", "env", "regression")
    require(getattr(proposer, "domain", None) in domains, f"a proposer says its domain, one of {', '.join(domains)}")
    require(isinstance(getattr(proposer, "sees_labels", None), bool), "a proposer says whether it sees_labels")
    source = source if source is not None else toy_images()
    images = getattr(source, "images", source)
    pixels = images.pixels.copy()

    def proposed() -> TaskDistribution:
        with unchanged_randomness("propose"):
            tasks = copy.deepcopy(proposer).propose(source, RunContext(seed), embedder or RawPixels())
        require(np.array_equal(images.pixels, pixels), "propose leaves the images as they are")
        return tasks

    tasks = proposed()
    drawn, again = (sampled(t, np.arange(16), episode, seed) for t in (tasks, proposed()))
    require(same(drawn, again), "propose with the same seed gives the same tasks")
    require(tuple(tasks.spec.item_shape) == images.item_shape, "the tasks' spec has the images' item_shape")
    check_tasks(tasks, images, episode, seed)


def check_tasks(
    tasks: TaskDistribution, images: UnlabelledImages, episode: EpisodeSpec = EPISODE, seed: int = 0, count: int = 64
) -> None:
    """Check the tasks themselves; where they have `partitions`, against these clusters of the (distinct) images too.

    Raises:
        AssertionError: names the promise that is broken.
    """
    numbers = np.arange(count)
    with unchanged_randomness("sample"):
        support, query = sampled(tasks, numbers, episode, seed)
    require(same((support, query), sampled(tasks, numbers, episode, seed)), "a task number gives the same task again")
    alone = sampled(tasks, numbers[3:4], episode, seed)
    together = tuple(batch.chunk(3, 4) for batch in (support, query))
    require(same(alone, together), "task i is the same sampled alone or in a batch")
    backwards = tuple(batch.chunk(0, 1) for batch in sampled(tasks, numbers[::-1].copy(), episode, seed))
    require(
        same(backwards, tuple(b.chunk(count - 1, count) for b in (support, query))), "order of numbers is no matter"
    )
    other = sampled(tasks, numbers, episode, seed + 1)
    require(not same((support, query), other), "another seed gives other tasks")
    for name, batch, each in (("support", support, episode.shot), ("query", query, episode.query)):
        shape = (count, episode.way * each)
        require(batch.y.shape == shape, f"a task has exactly way x {each} {name} items")
        require(batch.x.shape == (*shape, *images.item_shape), f"{name} items have shape [T, N, {images.item_shape}]")
        require(batch.mask.shape == shape and bool(batch.mask.all()), f"sampled tasks have no padding ({name})")
        require(batch.way == episode.way, f"the {name} knows its way")
        counts = torch.nn.functional.one_hot(batch.y, episode.way).sum(1)
        require(bool((counts == each).all()), f"each class has exactly {each} {name} items")
    ordered = query.y.sort(dim=1).values
    if episode.query * episode.way > 2:
        require(not torch.equal(query.y, ordered), "queries are shuffled, not in the order of their classes")

    partitions = TaskTraits.of(tasks).partitions
    if partitions is not None:
        _check_clusters(np.asarray(partitions), images, support, query)


def _check_clusters(partitions: np.ndarray, images: UnlabelledImages, support: Batch, query: Batch) -> None:
    """Each task's items are distinct images, its classes clusters of one partition, numbered in no fixed order."""
    rows = {bytes(image): row for row, image in enumerate(images.pixels.reshape(len(images), -1))}
    x = torch.cat([support.x, query.x], dim=1)
    drawn = (x * 255).round().to(torch.uint8).flatten(0, 1).flatten(1).cpu().numpy()
    found = [rows.get(bytes(image), -1) for image in drawn]
    require(min(found) >= 0, "every item of a task is one of the images")
    items = np.reshape(found, x.shape[:2])
    labels, way = torch.cat([support.y, query.y], dim=1).cpu().numpy(), support.way
    distinct = all(len(set(row)) == len(row) for row in items)
    require(distinct, "no item is twice in a task: support and query are disjoint")
    ascending = 0
    for item, label in zip(items, labels, strict=True):
        clusters = partitions[:, item]  # [P, N]
        numbers = np.stack([clusters[:, label == c][:, 0] for c in range(way)], axis=1)  # [P, way]
        whole = (clusters == numbers[:, label]).all(1) & (numbers >= 0).all(1)
        apart = np.array([len(set(row)) == way for row in numbers])
        require(bool((whole & apart).any()), "the items of a class are all of one cluster, those of others of others")
        ascending += bool((np.diff(numbers[whole & apart][0]) > 0).all())
    require(way < 2 or ascending < len(items), "label ids are permuted in each task, not in the order of the clusters")


def check_model(model: Model, item_shape: tuple[int, ...] = (1, 16, 16), seed: int = 0) -> None:
    """Check a model: built of a seed, and a function of weights and items, the same for one task and for several.

    What a learner does with the module is looked at under each kind of normalisation. The same is done, but for what
    takes time, wherever a learner is built, so that a run begins nothing long with a model that cannot be used.

    Raises:
        UserError: it gives no module that can be run at weights of one's own, or one that cannot take such items.
        AssertionError: names the promise that is broken.
    """

    def built() -> nn.Module:
        return draw(lambda: build_module(model, item_shape), seed)

    with unchanged_randomness("build or forward"):
        module = built()
        require(same(dict(module.state_dict()), dict(built().state_dict())), "build with the same seed gives the same")
        for normalisation in get_args(Normalisation):
            network = Pure(module, normalisation)
            features = choose_program(network, item_shape)
            require(MIXES not in network.remarks, "what it makes of an item depends on no other item")
            for tasks in (1, 3):
                _check_tasks_apart(network, (tasks, 4, *item_shape), features)


def _check_tasks_apart(network: Pure, shape: tuple[int, ...], features: int) -> None:
    """Check that several tasks at weights of their own get what each gets alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    before = x.clone()
    params = {n: p + 0.02 * torch.randn(len(x), *p.shape, generator=generator) for n, p in network.params().items()}
    with torch.no_grad():
        together = draw(lambda: network.per_task(params, x)[0], seed=0)
        alone = [network.shared({n: p[t] for n, p in params.items()}, items)[0] for t, items in enumerate(x)]
    require(bool(together.isfinite().all()), "features are finite numbers")
    require(together.shape == (*shape[:2], features), f"an item has {features} features, however many there are")
    require(torch.equal(x, before), "forward leaves the items as they are")
    require(close(together, torch.stack(alone)), "a task's features are the same alone and beside other tasks")


def check_metalearner(
    learner: MetaLearner,
    tasks: TaskDistribution | None = None,
    episode: EpisodeSpec = EPISODE,
    *,
    transductive: bool = False,
    seed: int = 0,
) -> None:
    """Check a meta-learner: pure, reproducible, savable, indifferent to how tasks and queries are grouped.

    transductive: its predictions may depend on the queries they are made with.

    Raises:
        AssertionError: names the promise that is broken.
    """
    require(isinstance(learner, MetaLearner), "a meta-learner inherits from umeta.types.MetaLearner")
    tasks = tasks or toy_tasks()
    options, unbuilt = learner, copy.deepcopy(vars(learner))
    with unchanged_randomness("build or init"):
        learner = options.build(tasks.spec, episode)
        first = learner.init(seed)
    require(same(vars(options), unbuilt), "build leaves the options as they are")
    require(same(first, learner.init(seed)), "init with the same seed gives the same theta")
    require(all(torch.isfinite(p).all() for p in first.params.values()), "init gives finite parameters")

    config = TrainConfig(Adam(), steps=2, way=episode.way, shot=episode.shot, query=episode.query, meta_batch=3)
    theta = metatrain(learner, tasks, config, RunContext(seed))
    again = metatrain(options.build(tasks.spec, episode), tasks, config, RunContext(seed))
    require(same(theta, again), "meta-training repeats")
    support, query = sampled(tasks, np.arange(3), episode, seed)

    def answers(learner: MetaLearner, theta: Theta, support: Batch, x: Tensor) -> Tensor:
        with torch.no_grad():
            return learner.predict(theta, learner.adapt(theta, support), x)

    before = copy.deepcopy((theta, support, query))
    with torch.no_grad(), unchanged_randomness("adapt"):
        adapted = learner.adapt(theta, support)
    kept = copy.deepcopy(adapted)
    with torch.no_grad(), unchanged_randomness("predict"):
        logits = learner.predict(theta, adapted, query.x)
    require(same(before, (theta, support, query)), "adapt and predict leave theta, support and query as they are")
    require(same(kept, adapted), "predict leaves what adapt gave as it is")
    shape = (*query.y.shape, episode.way)
    require(logits.shape == shape, f"predict gives [T, N, way], here {list(shape)}, not {list(logits.shape)}")
    require(bool(logits.isfinite().all()), "predict gives finite numbers")
    require(not logits.requires_grad, "under no_grad nothing carries a graph")
    require(torch.equal(logits, answers(learner, theta, support, query.x)), "adapt and predict repeat")
    with torch.no_grad():
        each = learner.predict_each(theta, adapted, query.x)
    mixed = close(each.softmax(-1).mean(1), logits.softmax(-1))
    require(mixed, "the probabilities of predict are the means of those of predict_each, [T, S, N, way]")
    with torch.enable_grad():
        graphed = learner.predict(theta, learner.adapt(theta, support), query.x)
    require(close(graphed.detach(), logits), "answers are the same with and without no_grad")

    restored = options.build(tasks.spec, episode)
    restored.init(seed + 1)  # of which nothing stays
    saved = through_file({f"params.{n}": p for n, p in theta.params.items()})
    running = theta.running and through_file(theta.running)
    loaded = Theta({name.removeprefix("params."): p for name, p in saved.items()}, running)
    require(same(theta.params, loaded.params), "theta is unchanged by saving and loading")
    message = "theta is all that was learnt: saved, and loaded into a new learner, it gives the same answers"
    require(torch.equal(logits, answers(restored, loaded, support, query.x)), message)

    for t in range(len(support)):
        alone = answers(learner, theta, support.chunk(t, t + 1), query.x[t : t + 1])
        require(close(alone, logits[t : t + 1]), "a task is answered the same alone and in a meta-batch")
    if not transductive:
        singly = torch.cat([answers(learner, theta, support, query.x[:, i : i + 1]) for i in range(shape[1])], dim=1)
        require(close(singly, logits), "queries are answered the same one by one and together (or it is transductive)")
    _check_padding(lambda batch: answers(learner, theta, batch, query.x), support)
    _check_other_way(answers, learner, theta, tasks, episode, seed)
    _check_chunks(learner, theta, tasks, episode, seed)


def _check_padding(answers: Callable[[Batch], Tensor], support: Batch) -> None:
    """Check that padding does not matter: the last item of each task's support, whatever its label says."""
    mask = support.mask.clone()
    mask[:, -1] = False
    label = support.y.clone()
    label[:, -1] = (label[:, -1] + 1) % support.way
    one, other = (answers(replace(support, mask=mask, y=y)) for y in (support.y, label))
    require(torch.equal(one, other), "labels of masked support items change nothing")


def _check_other_way(
    answers: Callable, learner: MetaLearner, theta: Theta, tasks: TaskDistribution, episode: EpisodeSpec, seed: int
) -> None:
    """At another way it answers for that many classes, or says that it cannot."""
    other = replace(episode, way=episode.way - 1)
    support, query = sampled(tasks, np.arange(2), other, seed)
    try:
        logits = answers(learner, theta, support, query.x)
    except UserError:
        return
    shape = (*query.y.shape, other.way)
    require(logits.shape == shape, "asked for another way, it gives as many logits or raises UserError")


def _check_chunks(learner: MetaLearner, theta: Theta, tasks: TaskDistribution, episode: EpisodeSpec, seed: int) -> None:
    """Check that the meta-gradient in float64 does not depend on how many tasks are worked on at a time."""
    support, query = (replace(b, x=b.x.double()) for b in sampled(tasks, np.arange(3), episode, seed))
    params = {name: p.detach().double().requires_grad_() for name, p in theta.params.items()}
    found = []
    for chunk in (3, 1, 2):
        problem = BatchProblem(learner, Theta(params), tasks.spec, [support], query, chunk)
        metrics, grads = problem.loss_and_grad()
        found.append(({name: torch.tensor(value) for name, value in metrics.items()}, grads, problem.stats))
    alike = all(same(found[0], other, exact=False) for other in found[1:])
    require(alike, "task_chunk changes no loss, gradient or statistics beyond rounding")


class RawPixels:
    """The pixels themselves as vectors, for proposers that need an embedding."""

    def fit(self, images: Images, ctx: Context) -> None:
        pass

    def embed(self, images: Images) -> Tensor:
        return images.floats(slice(None)).flatten(1)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass


@contextmanager
def unchanged_randomness(what: str) -> Iterator[None]:
    """Check that the block leaves the global random states alone: randomness comes from the seed that is given."""
    before = random_states()
    yield
    alone = before == random_states()
    require(alone, f"{what} leaves the global random state alone and draws from the seed it is given")


def random_states() -> tuple[list[int], list[int], int]:
    """torch's, and numpy's: what it draws from and how much of that is used up."""
    state: Any = np.random.get_state(legacy=False)
    return torch.get_rng_state().tolist(), state["state"]["key"].tolist(), state["state"]["pos"]


def sampled(tasks: TaskDistribution, numbers: np.ndarray, episode: EpisodeSpec, seed: int) -> tuple[Batch, Batch]:
    """Support and query of the tasks of these numbers."""
    batch = tasks.sample(torch.from_numpy(numbers), episode=episode, seed=seed)
    return batch.support(), batch.query()


def through_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Written to safetensors and read again."""
    with tempfile.TemporaryDirectory() as folder:
        artifacts.write_tensors(Path(folder) / "tensors", tensors)
        return artifacts.read_tensors(Path(folder) / "tensors")


def require(holds: bool, promise: str) -> None:
    """`assert`, also under `python -O`."""
    if not holds:
        raise AssertionError(f"broken promise: {promise}")


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of sums taken in another order."""
    scale = max(float(b.abs().max()), 1.0)
    return a.shape == b.shape and bool((a - b).abs().max() <= (1e-9 if b.dtype == torch.float64 else 1e-4) * scale)


def same(a: Any, b: Any, exact: bool = True) -> bool:
    """Whether two nests of tuples, dicts and dataclasses hold the same tensors."""
    if isinstance(a, Tensor):
        return torch.equal(a, b) if exact else close(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(value, b[key], exact) for key, value in a.items())
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y, exact) for x, y in zip(a, b, strict=True))
    if is_dataclass(a):
        return same(vars(a), vars(b), exact)
    return bool(a == b)
