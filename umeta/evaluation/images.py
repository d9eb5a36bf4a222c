"""Evaluate on images: adapt to tasks with true labels, and answer their queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta.benchmarks import baselines
from umeta.benchmarks.descriptors import compute_colour_histogram, compute_hog
from umeta.benchmarks.distorted import Distorted
from umeta.benchmarks.labelled import LabelledImages
from umeta.benchmarks.protocols import load_test_images, resolve_episodes
from umeta.benchmarks.unbalanced import Unbalanced
from umeta.config import registry
from umeta.config.images import Config
from umeta.config.reading import merge
from umeta.data.images import hash_each
from umeta.deploy.calibration import expected_calibration_error, reliability
from umeta.draw.curves import Curve
from umeta.errors import UserError, suggest
from umeta.evaluation.chunks import CHUNK, adapt_chunks
from umeta.evaluation.readings import measure_readings
from umeta.evaluation.result import Cell, Result, Rows, summarize, trace
from umeta.evaluation.rows import Kept, describe_provenance, describe_question, read_results, record_result
from umeta.metalearners._embedding import embeds_alone
from umeta.metalearners.protonet import ProtoNet
from umeta.objectives import accuracy
from umeta.parts import Embedder, Model, ModelTraits, TaskTraits, Tracker
from umeta.report import write as report
from umeta.runtime import artifacts, distributed
from umeta.runtime.checkpoints import Checkpoints
from umeta.runtime.devices import to_device
from umeta.runtime.loop import start_trackers
from umeta.runtime.progress import Progress, note
from umeta.stages.runs import Run, hand_over, snapshots
from umeta.stages.tasks import load_tasks
from umeta.tasks.ambiguous import Ambiguous
from umeta.tasks.distracted import Distracted
from umeta.tasks.instances import Augmented
from umeta.tasks.partition import PartitionTasks
from umeta.tasks.shifted import Shifted
from umeta.train import unpack
from umeta.types import Batch, EpisodeSpec, FeatureLearner, MetaLearner, TaskDistribution, TaskSpec, Theta

ON_EMBEDDING = ("knn", "linear", "mlp", "cluster_matching")
BASELINES = ("pixels_knn", "hog", "histogram", *ON_EMBEDDING, "untrained", "random", "scratch")
CLUSTERS = 500  # of cluster matching, where the proposer has no such number
RATES = (0.1, 0.03, 0.3)  # step sizes that training from scratch is tuned over; without a val split the first
TUNING = 24  # validation tasks that it is tuned on
SEEN = 256  # images that a pre-trained network sees at a time
# of what is kept
PARTS = (
    "rows",
    "scratch_lr",
    "curves",
    "step_curves",
    "extrapolation",
    "regret",
    "calibration",
    "readings",
    "unbalanced",
)
CHANGES: dict[str, Callable[[TaskDistribution, Any], TaskDistribution]] = {  # that test tasks can be made harder by
    "shear": lambda tasks, strength: Augmented(tasks, Distorted(shear=strength)),
    "scale": lambda tasks, strength: Augmented(tasks, Distorted(scale=strength)),
    "distractors": lambda tasks, classes: Distracted(tasks, classes),
    "domains": lambda tasks, count: Shifted(tasks, count) if count > 1 else tasks,
}


def evaluate(
    learner: MetaLearner,
    theta: Theta,
    tasks: TaskDistribution,
    episode: EpisodeSpec,
    *,
    count: int = 1000,
    seed: int = 0,
    steps: int | None = None,
    label: str = "",
) -> np.ndarray:
    """Accuracy on each of `count` tasks [count], by the same `adapt` and `predict` as in meta-training.

    steps: inner steps, where the learner takes any; by default its own.
    """
    found = []
    bar = Progress(label, count, enabled=bool(label))
    for logits, query in answers(learner, theta, tasks, episode, count, seed, steps):
        found.append(accuracy(logits, query))
        bar.update(min(CHUNK * len(found) * distributed.size(), count))
    bar.close()
    return torch.cat(distributed.gather([torch.cat(found).cpu()] if found else [])).numpy()


def answers(
    learner: MetaLearner,
    theta: Theta,
    tasks: TaskDistribution,
    episode: EpisodeSpec,
    count: int,
    seed: int,
    steps: int | None,
) -> Iterator[tuple[Tensor, Batch]]:
    """Logits [T, N, way] of the queries of tasks 0 to `count`, and the queries, a chunk of tasks at a time.

    Several processes share the chunks out: each gives its own.
    """
    for batch, adapted in adapt_chunks(learner, theta, tasks, episode, count, seed, steps):
        with torch.no_grad():
            query = batch.query()
            yield learner.predict(theta, adapted, query.x), query


def evaluate_run(run: Run, device: str, record: Path | None = None, trackers: Sequence[Tracker] = ()) -> Result:
    """Evaluate a run on labelled images, as `umeta.evaluation.run.evaluate_run`.

    Raises:
        UserError: as `check`, or images of another shape than the learner takes.
    """
    test = check(run.config, record)
    settings = run.config.evaluate
    episodes, count = resolve_episodes(settings)
    if test.images.item_shape != run.item_shape:
        raise UserError(
            f"data: the {settings.split} images are {test.images.item_shape}, the learner takes {run.item_shape}"
        )
    asked = describe_question(run, episodes=[asdict(e) for e in episodes], count=count, data=test.fingerprint)
    kept = Kept(run.folder / "evaluation.json", asked, PARTS)
    done = kept.parts
    tasks = test.tasks(device=str(to_device(device)))
    learners = list_learners(run, tasks, test)
    rows = list_baselines(run, test, device, done["scratch_lr"])
    rows |= {name: partial(test_learner, *seen) for name, seen in learners.items()}
    few = min(count, 200)
    first, title = episodes[0], run.config.title or run.config.name
    with kept.open() as compute:
        for name, method in rows.items():
            for e in episodes:
                compute(done["rows"].setdefault(name, {}), str(e), measure, method, e)
        for e in episodes:
            if run.config.train.snapshots:
                compute(done["curves"], str(e), trace_learning, run, tasks, e, few, device)
            if settings.step_curve:
                compute(done["step_curves"], str(e), trace_steps, run, tasks, e, few)
        for change, make in CHANGES.items():
            for strength in getattr(settings, change):
                part = done["extrapolation"].setdefault(change, {})
                compute(part, f"{strength:g}", measure, partial(test_learner, run, make(tasks, strength)), first)
        if settings.dirichlet is not None:
            for name, (one, its) in learners.items():
                unbalanced = partial(test_learner, one, Unbalanced(its, settings.dirichlet))
                for e in episodes:
                    compute(done["unbalanced"].setdefault(name, {}), str(e), measure, unbalanced, e)
        if settings.ambiguous:
            compute(done["readings"], str(first), measure_readings, run, tasks, first, count)
        compute(done["calibration"], str(first), measure_calibration, *learners[title], first, few)
        if run.config.train.snapshots:
            compute(done["regret"], f"tasks met, {run.config.train.episode}", trace_regret, run, few, device)
    result: Result = {
        "name": run.config.name,
        "title": title,
        "rows": {name: done["rows"][name] for name in rows},
        "protocol": {
            "name": settings.protocol,
            "split": f"{run.config.plain['data'].get('split', '')} {settings.split}".strip(),
            "classes": len(test.names),
            "images": len(test.images),
            "attributes": 0 if test.attributes is None else test.attributes.shape[1],  # which tasks are then made of
            "queries": first.query,
            "tasks": count,
            "seed": settings.seed,
            "steps": run.test_steps or run.learner.steps,
            "normalisation": run.learner.normalisation,
            "inference": "transductive" if run.learner.transductive else "inductive",
            "proposed_with": run.proposed_with,
        },
        "minutes": run.minutes(evaluate=kept.seconds),
        "scratch_lr": done["scratch_lr"] if "from scratch" in rows else {},
        "curves": {name: found for name, found in done["curves"].items() if found},
        "step_curves": {f"{name}, by steps": found for name, found in done["step_curves"].items()},
        "extrapolation": {
            **{f"{change}, {first}": {title: part} for change, part in done["extrapolation"].items()},
            **{name: part for name, part in done["regret"].items() if part},
        },
        "unbalanced": pair_balanced(done["rows"], done["unbalanced"], settings.dirichlet),
        "readings": {f"ambiguous, {name}": {title: cells} for name, cells in done["readings"].items()},
        "calibration": done["calibration"][str(first)],
        **describe_provenance(run),
    }
    if known := distributed.run_once(lambda: count_seen(run, test)):
        result["seen"] = known

    def write() -> Result:
        with start_trackers(trackers, run.folder):
            report.write(run, test, result, first, trackers)
        if record is not None:
            record_result(record, result)
        return result

    return distributed.run_once(write)


def check(config: Config, record: Path | None = None) -> LabelledImages:
    """Find what would stop an evaluation, before anything long begins; return the labelled test images.

    Raises:
        UserError: an unknown protocol or baseline, no labelled data, data that cannot give the episodes, a learner that
            cannot do their way or distractors, a network that cannot be used, or a results file that is not one.
    """
    settings = config.evaluate
    episodes, _ = resolve_episodes(settings)
    if unknown := [name for name in settings.baselines if name not in BASELINES]:
        raise UserError(f"evaluate.baselines: no baseline is named '{unknown[0]}'{suggest(unknown[0], BASELINES)}")
    build_variants(config)
    if settings.distractors and not config.metalearner.unlabelled:
        name = config.plain["metalearner"]["name"]
        raise UserError(f"evaluate.distractors: {name} needs the label of each item of a support; take semiproto")
    test = load_test_images(settings, config.data)
    tasks = test.tasks()
    for episode in episodes:
        tasks.sample(np.zeros(1), episode=episode, seed=settings.seed)
        if config.metalearner.one_way and episode.way != config.train.way:
            name = config.plain["metalearner"]["name"]
            asked = "with its options it answers the way of its meta-training alone"
            raise UserError(f"{name}: {asked}, {config.train.way}; evaluate.episodes asks for {episode.way}")
        if settings.dirichlet is not None:
            Unbalanced(tasks, settings.dirichlet).sample(np.zeros(1), episode=episode, seed=settings.seed)
    if settings.ambiguous:
        Ambiguous(tasks).sample(np.zeros(1), episode=episodes[0], seed=settings.seed)
    config.metalearner.build(tasks.spec, config.train.episode)
    if record is not None:
        read_results(record)
    return test


def count_seen(run: Run, test: LabelledImages) -> int:
    """How many of the test images are among those of meta-training."""
    trained = run.hash_trained()
    return sum(key in trained for key in hash_each(test.images.pixels))


def list_baselines(
    run: Run, test: LabelledImages, device: str, rates: dict[str, float]
) -> dict[str, Callable[[EpisodeSpec], np.ndarray]]:
    """Return the rows of the table before the learner's own: a function from episode to accuracies per task, by name.

    rates: takes the step size of training from scratch, by episode, once that has run.
    """
    settings = run.config.evaluate
    count = resolve_episodes(settings)[1]
    seed = settings.seed
    images, pixels = test.tasks(device=str(to_device(device))), test.images.pixels
    learners: dict[str, Callable[[EpisodeSpec], np.ndarray]] = {
        "chance": lambda episode: np.full(count, 1 / episode.way)
    }
    if "pixels_knn" in settings.baselines:
        flat = pixels.reshape(len(pixels), -1)
        learners["raw pixels, 1-NN"] = lambda e: baselines.nearest_neighbour(test.tasks(flat), e, count, seed)
    if "hog" in settings.baselines:
        hog = cache(lambda: test.tasks(compute_hog(pixels)))
        learners["HOG, linear"] = lambda e: baselines.linear(hog(), e, count, seed)
    if "histogram" in settings.baselines and pixels.shape[1] == 3:
        histogram = cache(lambda: test.tasks(compute_colour_histogram(pixels)))
        learners["colour histogram, linear"] = lambda e: baselines.linear(histogram(), e, count, seed, c=10)
    if run.config.embedding is not None and set(ON_EMBEDDING) & set(settings.baselines):
        try:
            vectors = test.tasks(load_embedding(run).embed(test.images).cpu().numpy())
            training = np.array(artifacts.read_array(run.config.tasks_folder / "embeddings.npy"))
        except UserError as error:
            note(f"baselines on the embedding left out: {error}")
        else:
            k = getattr(run.config.proposer, "k", None)
            k = min(k if isinstance(k, int) else CLUSTERS, len(training))
            means = cache(lambda: baselines.centroids(training, k, seed))
            known: dict[str, tuple[str, Callable[[EpisodeSpec], np.ndarray]]] = {
                "knn": ("1-NN", lambda e: baselines.nearest_neighbour(vectors, e, count, seed)),
                "linear": ("linear", lambda e: baselines.linear(vectors, e, count, seed)),
                "mlp": ("MLP", lambda e: baselines.mlp(vectors, e, count, seed)),
                "cluster_matching": (
                    "cluster matching",
                    lambda e: baselines.cluster_matching(vectors, means(), e, count, seed),
                ),
            }
            title = run.config.plain["embedding"]["name"]
            wanted = [known[name] for name in ON_EMBEDDING if name in settings.baselines]
            learners |= {f"{title}, {method}": answer for method, answer in wanted}
    if isinstance(run.learner, FeatureLearner):
        traits = ModelTraits.of(run.learner.model)
        if "untrained" in settings.baselines and traits.untrained is not None:
            options: Any = run.learner
            alone = replace(options, model=traits.untrained).build(TaskSpec(run.item_shape), run.config.train.episode)
            seen = cache(lambda: see_once(replace(run, learner=alone), images, test))
            learners["descriptors alone"] = lambda e: test_learner(*seen(), e)
        model = traits.trained or run.learner.model
        if "random" in settings.baselines:
            untrained = ProtoNet(model, normalisation="support")
            label = "random weights"
            learners[f"{label}, prototypes"] = lambda e: test_untrained(untrained, images, e, count, seed, label)
        if "scratch" in settings.baselines:
            learners["from scratch"] = lambda e: train_from_scratch(run, images, model, e, rates)
    return learners


def list_learners(run: Run, images: PartitionTasks, test: LabelledImages) -> dict[str, tuple[Run, PartitionTasks]]:
    """Return the learner, then its variants, by their rows' names: each a run, and tasks for it as `see_once` has them.

    A variant whose answers depend on other queries says so in its name.
    """
    title = run.config.title or run.config.name
    spec, episode = TaskSpec(run.item_shape), run.config.train.episode
    learners = {title: run.learner}
    for name, options in build_variants(run.config).items():
        learner = options.build(spec, episode)
        learners[f"{title}, {name}{', transductive' if learner.transductive else ''}"] = learner
    return {name: see_once(replace(run, learner=learner), images, test) for name, learner in learners.items()}


def see_once(run: Run, images: PartitionTasks, test: LabelledImages) -> tuple[Run, PartitionTasks]:
    """Let a network whose features depend on no task see each test image once: a run on its features, and their tasks.

    Where all tasks together look at fewer images than there are, all stays as it is.
    """
    learner = run.learner
    episodes, count = resolve_episodes(run.config.evaluate)
    looks = count * sum(e.way * (e.shot + e.query) for e in episodes)
    if looks < len(test.images) or not embeds_alone(learner):
        return run, images
    device = run.theta.device
    with torch.no_grad():
        starts = distributed.shard(range(0, len(test.images), SEEN))
        parts = [learner.features(run.theta, test.images.floats(slice(i, i + SEEN), device)) for i in starts]
    vectors = torch.cat(distributed.gather(parts)).cpu().numpy()
    return replace(run, learner=learner.on_features()), test.tasks(vectors, device=str(device))


def test_learner(run: Run, tasks: TaskDistribution, episode: EpisodeSpec) -> np.ndarray:
    """Accuracy of the run's learner on each test task."""
    settings = run.config.evaluate
    count = resolve_episodes(settings)[1]
    return evaluate(
        run.learner,
        run.theta,
        tasks,
        episode,
        count=count,
        seed=settings.seed,
        steps=run.test_steps,
        label=f"evaluate {episode}",
    )


def measure_calibration(run: Run, tasks: PartitionTasks, episode: EpisodeSpec, count: int) -> dict[str, Any]:
    """How sure the learner is on test tasks, not calibrated: mean log-probability of the right class, and its errors.

    The latter are the expected calibration error and the reliability diagram.
    """
    seed = run.config.evaluate.seed
    chunks = answers(run.learner, run.theta, tasks, episode, count, seed, run.test_steps)
    found = [(logits.softmax(-1).flatten(0, 1).cpu(), query.y.flatten().cpu()) for logits, query in chunks]
    probabilities, labels = (torch.cat(parts).numpy() for parts in zip(*distributed.gather(found), strict=True))
    ece = expected_calibration_error(probabilities, labels)
    right = np.take_along_axis(probabilities, labels[:, None], 1).clip(np.finfo(np.float32).tiny)
    sure = {"log_likelihood": float(np.log(right).mean()), "ece": ece, "bins": reliability(probabilities, labels)}
    return {"episode": str(episode), **sure}


def trace_learning(
    run: Run, tasks: PartitionTasks, episode: EpisodeSpec, count: int, device: str
) -> Curve | dict[str, Any]:
    """Accuracy on the first `count` test tasks against minutes of work, at the snapshots of the run and its rounds.

    Empty where the snapshots are gone.
    """
    points = list(snapshots(run, device))
    if not points:
        return {}
    cells = [
        percent(
            evaluate(r.learner, r.theta, tasks, episode, count=count, seed=r.config.evaluate.seed, steps=r.test_steps)
        )
        for _, r in points
    ]
    return trace([round(seconds / 60, 2) for seconds, _ in points], cells, "minutes of proposing and meta-training")


def trace_regret(run: Run, count: int, device: str) -> dict[str, dict[str, Cell]]:
    """Accuracy on the tasks of a sequence that come after each snapshot: as it was then, and as the run ended.

    Empty where tasks are in no sequence, or gone.
    """
    config = run.config
    if not artifacts.is_intact(config.tasks_folder, "tasks"):
        return {}
    if artifacts.read_manifest(config.tasks_folder, "tasks")["tasks"]["kind"] != "sequence":
        return {}
    traits = TaskTraits.of(load_tasks(config)[0].to(str(to_device(device))))
    assert traits.coming is not None
    kept = Checkpoints(run.folder, "metatrain", "snapshots")
    found: dict[str, dict[str, Cell]] = {"when they came": {}, "in hindsight": {}}
    total = config.train.steps * config.train.meta_batch // traits.updates
    for step in kept.steps():
        met = step * config.train.meta_batch // traits.updates
        state, coming = kept.read(step), min(count, total - met)
        if state is None or coming < 2:
            continue
        for theta, part in zip((unpack(state[0], to_device(device)), run.theta), found.values(), strict=True):
            each = evaluate(
                run.learner, theta, traits.coming(met), config.train.episode, count=coming, seed=config.seed
            )
            part[str(met)] = percent(each)
    return found


def trace_steps(run: Run, tasks: PartitionTasks, episode: EpisodeSpec, count: int) -> Curve:
    """Accuracy on the first `count` test tasks against the number of steps that the learner adapts by."""
    s = run.config.evaluate
    found = [evaluate(run.learner, run.theta, tasks, episode, count=count, seed=s.seed, steps=n) for n in s.step_curve]
    return trace(s.step_curve, [percent(accuracies) for accuracies in found], "steps of adaptation")


def measure(method: Callable[[EpisodeSpec], np.ndarray], episode: EpisodeSpec) -> Cell:
    """Return the cell of a row's method."""
    return percent(method(episode))


def pair_balanced(balanced: Rows, unbalanced: Rows, concentration: float | None) -> dict[str, Rows]:
    """Return the table of Dirichlet queries, as far as there is one: beside each column that of balanced ones."""
    if concentration is None:
        return {}
    rows = {
        name: {
            f"{episode}, {kind}": cell
            for episode in cells
            for kind, cell in (("balanced", balanced[name][episode]), ("Dirichlet", cells[episode]))
        }
        for name, cells in unbalanced.items()
    }
    return {f"Dirichlet queries, {concentration:g} a class": rows}


def percent(accuracies: np.ndarray) -> Cell:
    """Return a table's cell of accuracies [tasks], in percent."""
    return summarize(100 * accuracies)


def build_variants(config: Config) -> dict[str, MetaLearner]:
    """Return the learner with some of its options changed as `evaluate.variants` says, by name.

    Raises:
        UserError: the learner has no such option.
    """
    return {
        name: registry.build_part(
            "metalearner", merge(config.plain["metalearner"], change), f"evaluate.variants.{name}"
        )
        for name, change in config.evaluate.variants.items()
    }


def load_embedding(run: Run) -> Embedder:
    """Return the embedding that the run's tasks were proposed with.

    Raises:
        UserError: the tasks are gone, or are not those the run was trained on.
    """
    folder = run.config.tasks_folder
    trained_on = artifacts.read_json(run.folder / "tasks.json")["hash"]
    if artifacts.hash_value(artifacts.read_manifest(folder, "tasks")) != trained_on:
        raise UserError(f"{folder} is not what the run was trained on")
    hand_over(run.config.embedding, "cpu")
    run.config.embedding.load_state_dict(artifacts.read_tensors(folder / "embedder.safetensors"))
    return run.config.embedding


def train_from_scratch(
    run: Run, tasks: PartitionTasks, model: Model, episode: EpisodeSpec, rates: dict[str, float]
) -> np.ndarray:
    """Training from scratch on each task's support, on the first `scratch_tasks` test tasks; `rates` takes its lr."""
    settings = run.config.evaluate
    count = min(settings.scratch_tasks, resolve_episodes(settings)[1])

    def accuracies(tasks: PartitionTasks, lr: float, count: int, seed: int, label: str) -> np.ndarray:
        learner = baselines.from_scratch(model, lr, settings.scratch_steps)
        return test_untrained(learner, tasks, episode, count, seed, label)

    lr = settings.scratch_lr
    if lr is None:
        lr = RATES[0]
        try:
            val = load_test_images(replace(settings, split="val"), run.config.data).tasks(device=str(tasks.device))
            # of another seed, as the tasks to test on may be of the val split too
            means = [
                accuracies(val, rate, min(TUNING, count), settings.seed + 1, f"from scratch, step size {rate}").mean()
                for rate in RATES
            ]
            lr = RATES[int(np.argmax(means))]
        except UserError as error:
            note(f"from scratch: step size {lr}, not tuned: {error}")
    rates[str(episode)] = lr
    return accuracies(tasks, lr, count, settings.seed, f"from scratch {episode}")


def test_untrained(
    learner: MetaLearner, tasks: PartitionTasks, episode: EpisodeSpec, count: int, seed: int, label: str
) -> np.ndarray:
    """Accuracy on each test task of a learner with random weights."""
    learner = learner.build(tasks.spec, episode)
    theta = Theta({name: value.to(tasks.device) for name, value in learner.init(seed).params.items()})
    return evaluate(learner, theta, tasks, episode, count=count, seed=seed, label=label)
