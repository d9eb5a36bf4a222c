"""`umeta run --images`: a config for unlabelled images of which nothing else is known.

Instance tasks first, then clusters of what was learnt by then, with the settings that did best on Omniglot (config
omniglot_best) and on photographs of CIFAR-FS, and as many meta-steps as there is time for.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from umeta.benchmarks.labelled import LabelledImages
from umeta.benchmarks.protocols import choose_settings
from umeta.config import reading, registry
from umeta.config.build import build, build_rounds
from umeta.config.images import Config
from umeta.config.reading import expand_names, merge
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.evaluation.images import check
from umeta.parts import Augment
from umeta.quickstart.survey import Survey, survey
from umeta.quickstart.views import MILD, choose_views
from umeta.runtime import artifacts
from umeta.runtime.devices import to_device
from umeta.runtime.loop import RunContext
from umeta.runtime.progress import note
from umeta.stages.domains import read_images
from umeta.stages.folder import check_out
from umeta.tasks.instances import Augmented, InstanceTasks
from umeta.train import metatrain

MINUTES = 30.0
LARGEST, DRAWING = 84, 28  # pixels a side that photographs, and drawings, need at most
SCALE = 16.0  # of cosines at the start, of small photographs
SMALL = 32  # pixels a side up to which the network halves three times
STEPS = (3000, 2000)  # of the two rounds at most: more hardly help drawings
PASSES = 400  # over the photographs at most, as many as published methods make
LEAST = 300  # meta-steps in all: fewer are not worth the wait
CLUSTERED = 300  # images from which on there is something to cluster
FEW = 200  # images
TIMED = 2.0  # seconds that meta-steps are timed for
DESCRIBE = 0.01  # seconds at most for a photograph to be described, as all are before they are clustered


def write_recipe(
    images: Path,
    test: Path | None,
    changes: list[str],
    *,
    minutes: float,
    device: str = "auto",
    resume: bool = False,
    hold_out: int = 0,
    began: float | None = None,
) -> Path:
    """Write the config file `OUT/NAME.yaml` for these images, and say what was seen and decided.

    With `resume` and the file there already, it is that file as it is: timing anew would give another config.

    test: labelled images, a folder per class; None for no evaluation.
    changes: `key=value` overrides of what is decided here; `name` is by default that of the images' folder.
    hold_out: about how many pictures are kept back from meta-training, at most a fifth.
    minutes: how long it may take to the end of meta-training, from `began` on, a time of `time.monotonic`, or now.

    Raises:
        UserError: images, labelled images or overrides that cannot be used, fewer than two different images, too
            few minutes, or a run of this name exists.
    """
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes {minutes:g}: expected more than 0, such as --minutes 30")
    began = time.monotonic() if began is None else began
    wanted = reading.parse_overrides(changes)
    place = images.resolve()
    name = str(wanted.get("name", place.name if place.is_dir() else place.stem))
    out = Path(str(wanted.get("out", ".")))
    path = out / f"{name}.yaml"
    if path.exists() and resume:
        return same(path, images, test)
    refuse_to_overwrite(path, [out / kind / stem for kind in ("tasks", "runs") for stem in (name, f"{name}-0")])

    artifacts.check_writable(out)
    seen = survey(images)
    data = data_options(seen, images, test)
    data |= {"hold_out": round(min(0.2, hold_out / seen.files), 4)} if hold_out else {}
    basis = {"name": name, "data": data, "evaluate": {"episodes": []}}
    plan = Plan(seen, basis, wanted, {"name": "drawing"} if seen.drawings else MILD)
    draft = plan.config(choose_side(seen), seen.files)  # a mistake in the overrides is found before all images are read
    check_out(draft)
    if test is not None:
        plan.basis["evaluate"] = choose_settings(LabelledImages.load(draft.data, "test"))
        draft = plan.config(choose_side(seen), seen.files)
    if draft.evaluated:
        check(draft)
    note(f"reading {seen.files:,} files in {images}")
    items = read_images(draft)
    size, different = items.item_shape[-1], distinct(items)
    if different < 2:
        what = "there is one image" if len(items) == 1 else f"all {len(items):,} images are the same"
        raise UserError(f"{images}: {what}; expected different ones, better thousands than hundreds")

    why = ""
    if not seen.drawings and not plan.names_augment:
        augment, why = choose_views(items, draft.seed)
        plan = replace(plan, augment=augment)
    if not seen.drawings and not plan.steps_given and DESCRIBE * different > 0.2 * 60 * minutes:
        plan.wanted.setdefault("rounds", [])  # the time is better spent on instance tasks
    read, each, known, left = time.monotonic() - began, 0.0, 1, math.inf
    for scale in SCALES:
        timed = plan.config(size, different, scale)
        work = timed.data.size**2 * timed.train.way  # to which the time is proportional, about
        if scale is not SCALES[-1] and LEAST * each * work / known > left:
            continue  # it need not be timed
        known = work
        each = seconds_a_step(timed, items, registry.build_part("augment", plan.views(timed.data.size)), device)
        again = read if timed.data.size < size else 0.0  # they are read once more, to become smaller
        left = 60 * minutes - (time.monotonic() - began) - again
        if plan.steps_given or left / each >= LEAST:
            break
    else:
        least = math.ceil((60 * minutes - left + LEAST * each) / 6) / 10
        raise UserError(
            f"--minutes {minutes:g}: too few here, even for small pictures and a small network; the {LEAST} meta-steps "
            f"that are the least worth the wait take about {least:g}. Give --minutes {least:g}, or train.steps=N"
        )
    most = 0 if seen.drawings else PASSES * different // timed.train.way
    steps = share_steps(int(left / each), bool(timed.rounds), most)
    final = timed if plan.steps_given else plan.config(size, different, scale, steps, left / 60)
    about = describe_minutes(final, each)
    lines = [
        describe_images(seen, len(items), final.data.size),
        *list_advice(seen, len(items), different),
        *filter(None, [why]),
        describe_plan(final),
        f"{about} on this machine{'' if plan.steps_given else '; --minutes changes it'}",
    ]
    if scale is not SCALES[0]:
        lines.append(f"smaller pictures, tasks or network than are best, to keep within {minutes:g} minutes")
    comment = "".join(f"# {line}\n" for line in lines)
    artifacts.write_text(path, comment + reading.dump_yaml({k: v for k, v in final.plain.items() if k != "name"}))
    note("\n".join([*lines, f"{path} holds all of this; a changed copy of it runs with umeta run COPY.yaml"]))
    return path


@dataclass(frozen=True)
class Scale:
    """How large what is learnt with may be."""

    side: int
    """of the pictures, pixels"""
    way: int
    """of a task"""
    divide: int = 1
    """the numbers of filters by this"""


SCALES = (Scale(84, 128), Scale(56, 32), Scale(28, 32), Scale(28, 16, 2))  # from the best to the fastest


@dataclass(frozen=True)
class Plan:
    """What is decided from a survey, and what the person wants otherwise."""

    seen: Survey
    basis: dict[str, Any]
    """the name, data and evaluate of a config"""
    wanted: dict[Any, Any]
    """overrides, as a nested mapping"""
    augment: dict[str, Any]
    """what makes another view of such pictures"""

    @property
    def names_augment(self) -> bool:
        """Whether an override says how views are made."""
        proposer = self.wanted.get("proposer", {})
        return isinstance(proposer, dict) and "augment" in proposer

    @property
    def steps_given(self) -> bool:
        return "steps" in self.wanted.get("train", {})

    def views(self, size: int) -> dict[str, Any]:
        """Return what makes views of pictures of that size: of small photographs smaller ones, which take less time."""
        return {**self.augment, "side": size * 3 // 4} if self.small(size) else self.augment

    def small(self, size: int) -> bool:
        """Whether pictures of that size are small photographs."""
        return not self.seen.drawings and 16 <= size <= SMALL

    def config(
        self,
        size: int,
        different: int,
        scale: Scale | None = None,
        steps: tuple[int, int] = STEPS,
        minutes: float | None = None,
    ) -> Config:
        """Return the config for `images` different images of this size, with these meta-steps in its rounds.

        minutes: for all of it; a tenth is left for the clustering and the report.

        Raises:
            UserError: an override that does not fit.
        """
        scale = scale or SCALES[0]
        data = {"data": {"size": min(size, scale.side)}}
        decided = merge(merge(self.basis, data), self.learning(min(size, scale.side), different, scale))
        decided["train"]["steps"] = steps[0]
        shares = [share / sum(STEPS) for share in STEPS] if steps[1] else [1.0]
        if minutes is not None:
            decided["train"]["minutes"] = round(0.9 * minutes * shares[0], 3)
        first = of_images(merge(decided, self.wanted))
        if different < CLUSTERED or "rounds" in self.wanted:
            return first
        later = max(1, first.train.steps * 2 // 3) if self.steps_given else steps[1]
        second = clustering(first, different, later)
        if minutes is not None:
            second["train"]["minutes"] = round(0.9 * minutes * shares[-1], 3)
        return of_images({**first.plain, "rounds": [second]})

    def learning(self, size: int, different: int, scale: Scale) -> dict[str, Any]:
        """Return the first round, on images of this size: its proposer, learner and outer loop."""
        return expand_names(
            {
                "proposer": {"name": "instances", "augment": self.views(size), "rotations": self.seen.drawings},
                "metalearner": {
                    "name": "protonet",
                    "distance": "cosine",
                    "scale": SCALE if self.small(size) else 10.0,
                    "precision": "auto",
                    "model": self.choose_network(size, scale),
                },
                "train": {
                    "outer": {"name": "adam", "lr": 2e-3, "schedule": "cosine"},
                    "way": min(scale.way if self.seen.drawings else 2 * scale.way, max(2, different // 2)),
                    "shot": 1,
                    "query": 2 if self.seen.drawings else 1,
                    "meta_batch": 1,
                },
            }
        )

    def choose_network(self, size: int, scale: Scale) -> dict[str, Any]:
        """Return the network for such pictures: of photographs it learns what edges and colours leave open."""
        first, halvings = (64, 3) if size <= SMALL else (32, 4)
        network: dict[str, Any] = {"name": "conv4", "down": "pool_first", "halvings": halvings}
        if self.small(size):
            first, network = 32, {"name": "resnet9"}
        network["filters"] = [n // scale.divide for n in (first, 64, 128, 256)]
        return network if self.seen.drawings else {"name": "described", "model": network}


def same(path: Path, images: Path, test: Path | None) -> Path:
    """Return the path, of a config for these images. Raises UserError when it is for others."""
    data = reading.read(path)["data"]
    for option, given, before in (("--images", images, data.get("root")), ("--test", test, data.get("test"))):
        if before != (None if given is None else str(given)):
            raise UserError(
                f"{path} was written with {option} {before or 'left out'}, this is {given or 'left out'}; resume with "
                "the same, or choose another name=NAME"
            )
    note(f"going on with {path}")
    return path


def refuse_to_overwrite(path: Path, folders: list[Path]) -> None:
    """Raise UserError when there is a config or an artefact of this name."""
    if path.exists():
        raise UserError(
            f"{path} exists: go on with --resume, run the file itself with umeta run {path}, or choose another "
            "name=NAME"
        )
    for folder in folders:
        if folder.exists():
            raise UserError(f"{folder} exists: choose another name=NAME")


def data_options(seen: Survey, images: Path, test: Path | None) -> dict[str, Any]:
    """Return the data source of a config."""
    options: dict[str, Any] = {"name": "folder", "root": str(images)}
    if test is not None:
        options["test"] = str(test)
    invert = seen.drawings and seen.dark_ink
    options |= {"size": choose_side(seen), "channels": 3 if seen.colour else 1, "invert": invert}
    return {**options, "pad": True} if pads(seen) else options


def pads(seen: Survey) -> bool:
    """Whether the whole of each picture is to be seen, as many are long, and not its centred square."""
    return seen.long >= 0.25


def choose_side(seen: Survey) -> int:
    """Return the side that pictures are resized to: what they have themselves, up to 84 pixels, and 28 for drawings.

    It halves well: a multiple of 8, but for those two and 28 itself.
    """
    side = max(seen.width, seen.height) if pads(seen) else seen.side
    largest = DRAWING if seen.drawings else LARGEST
    if side >= 0.9 * largest:
        return largest
    return DRAWING if DRAWING <= side < 32 else max(8, side // 8 * 8)


def of_images(plain: dict[Any, Any]) -> Config:
    """Build the typed config; raise UserError where an override makes it one on something else."""
    config = build(plain)
    if not isinstance(config, Config):
        raise UserError(f"{config.source or 'proposer'}: --images learns from pictures; leave it out")
    return config


def clustering(first: Config, different: int, steps: int) -> dict[str, Any]:
    """Return the second round, as a change to the first.

    Mutual neighbours are the better clusters, but few pictures, or all unlike, leave fewer of them than a task has
    classes. So k-means adds a partition of ten items a cluster, and a task takes no more than half of its clusters.
    """
    before = first.plain["proposer"]
    views = {key: before[key] for key in ("augment", "rotations") if key in before}
    return {
        "proposer": {"name": "progressive", "k": [min(1000, different // 10)], **views},
        "train": {"steps": steps, "way": min(first.train.way, different // 20), "outer": {"lr": 1e-3}},
    }


def share_steps(steps: int, rounds: bool, most: int = 0) -> tuple[int, int]:
    """Divide the meta-steps there is time for between the first round and the second, if there are `rounds`.

    most: how many are worth taking in all, where that is more than `STEPS`.
    """
    whole = sum(STEPS) if rounds else STEPS[0]
    total = min(max(steps, LEAST), max(most, whole))
    first = total * STEPS[0] // whole
    return first, total - first


def seconds_a_step(planned: Config, images: UnlabelledImages, augment: Augment, device: str) -> float:
    """How long a meta-step takes here: the mean of two, or of two seconds' worth, after one to warm up."""
    ctx = RunContext(planned.seed, to_device(device))
    side = planned.data.size
    tasks = Augmented(InstanceTasks(images.pixels[..., :side, :side]), augment).to(ctx.device)
    learner = planned.metalearner.build(tasks.spec, planned.train.episode)

    def time_steps(steps: int) -> float:
        began = time.monotonic()
        metatrain(learner, tasks, replace(planned.train, steps=steps), ctx)
        return (time.monotonic() - began) / steps

    time_steps(1)
    each = time_steps(2)
    return min(each, time_steps(int(TIMED / each))) if 3 * each < TIMED else each


def describe_minutes(final: Config, each: float) -> str:
    """Describe the time of all rounds at these seconds a meta-step, as `about 28 minutes`."""
    count = round(sum(turn.train.steps for turn in build_rounds(final)) * each / 60)
    return f"about {count} minutes" if count > 1 else "about a minute" if count else "less than a minute"


def distinct(images: UnlabelledImages) -> int:
    """How many of the images differ from all others; copies lie side by side, as images are in order of content."""
    pairs = zip(images.pixels, images.pixels[1:], strict=False)
    return len(images) - sum(bool((a == b).all()) for a, b in pairs)


def describe_plan(final: Config) -> str:
    """Return what will be done, in a line."""
    turns = build_rounds(final)
    what = "instance tasks, then clusters of what was learnt" if len(turns) > 1 else "instance tasks"
    return f"{what}: {' and '.join(f'{turn.train.steps:,}' for turn in turns)} meta-steps"


def describe_images(seen: Survey, count: int, size: int) -> str:
    """Return what the images are, in a line."""
    ink = "dark on light, to be inverted" if seen.dark_ink else "light on dark"
    kind = "colour" if seen.colour else f"grey line drawings, {ink}" if seen.drawings else "grey"
    return f"{count:,} images, {kind}, usually {seen.width}x{seen.height} -> {size}x{size}"


def list_advice(seen: Survey, count: int, different: int) -> list[str]:
    """Return what about the images limits the result, and what can be done."""
    found = []
    if count < FEW:
        found.append(f"few images: expect limited results, {FEW} are little and thousands are better")
    if seen.side < DRAWING:
        found.append(f"very small pictures, usually {seen.side} pixels: only coarse differences can be learnt")
    if different < 0.9 * count:
        copies = count - different
        found.append(
            f"{copies:,} of the images ({copies / count:.0%}) are copies of others, and copies are taken for "
            "different things: better remove them"
        )
    if pads(seen):
        found.append(
            f"{seen.long:.0%} of the pictures are about 1.5 times as long as wide, or as wide as long, or more: the "
            "whole of each is seen, on a square; data.pad=false takes their centred square alone"
        )
    return found
