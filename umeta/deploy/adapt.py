"""`umeta adapt`: a run and a few labelled images become a learner of its own, in a folder of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from umeta.data import archives, decode
from umeta.data.folder import classify, folders_of
from umeta.data.images import hash_each
from umeta.data.inputs import Format, describe_unreadable
from umeta.data.spreadsheet import read_table
from umeta.deploy.adapted import AdaptedLearner, load_source, refuse_to_overwrite, refuse_transductive
from umeta.errors import UserError, suggest
from umeta.stages.runs import Run, load_run

UNEVEN = 10  # times as many images in one class as in another
UNKNOWN = "unknown"  # the answer where no class is near

Example = tuple[str, str, Callable[[], bytes]]  # the image's name, its class, and how to read it


def adapt_run(
    folder: Path,
    support: Path,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    skip_bad: bool = True,
    trusted: Collection[str] | None = (),
) -> tuple[AdaptedLearner, list[str]]:
    """Adapt a run to labelled images and write the learner to `out`; return it and what the person must be told.

    The learner is calibrated where there are two examples of a class.

    support: a folder with a folder of images for each class, or a CSV with the columns path and label.
    options: of the run's meta-learner, to be changed.
    skip_bad: leave out images that cannot be read, and say so; else stop at the first.
    trusted: plug-ins that the run's config may name.

    Raises:
        UserError: a run, images or labels that cannot be used, or `out` exists.
    """
    refuse_to_overwrite(out)
    source, run = load_source(folder, options, device=device, trusted=trusted)
    refuse_transductive(source)
    examples = find_examples(support)
    items, names, bad = decode_examples(examples, source.format, support, skip_bad)
    notes = [decode.describe_left_out(bad)] if bad else []
    if len(items[0]) == 1 and (coloured := count_coloured(examples, source.format)):
        notes.append(f"{coloured} of the images have colours, and this learner sees grey ones: colours tell it nothing")
    notes += list_doubts(items, names, run)
    learner = AdaptedLearner.adapt(source, items, names, run.test_steps)
    return save_calibrated(learner, out, notes, "not")


def change_learner(
    folder: Path,
    out: Path,
    *,
    add: Path | None = None,
    remove: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    device: str = "auto",
    skip_bad: bool = True,
    trusted: Collection[str] | None = (),
) -> tuple[AdaptedLearner, list[str]]:
    """Adapt a learner again to other examples than before and write it to `out`: (learner, what must be told).

    add: more labelled images, as `support` of `adapt_run`.
    remove: classes, or `CLASS:N` for the Nth example of one, counted from 1 as in `support.png`; before adding.
    rename: new names of classes by the old ones, before adding.

    Raises:
        UserError: no such learner, class or example, images that cannot be used, or `out` exists.
    """
    refuse_to_overwrite(out)
    before = AdaptedLearner.load(folder, device=device, trusted=trusted)
    names = [str(name) for name in before.classes[before.labels]]
    drop = {i for one in remove for i in find_removed(one, names)}
    for old in rename or {}:
        if old not in names:
            raise UserError(f"--rename {old}: no such class{suggest(old, set(names))}")
    kept = [i for i in range(len(names)) if i not in drop]
    items, names = before.support[kept], [(rename or {}).get(names[i], names[i]) for i in kept]
    notes: list[str] = []
    if add is not None:
        more, labels, bad = decode_examples(find_examples(add), before.source.format, add, skip_bad)
        items, names = np.concatenate([items, more]), [*names, *labels]
        notes += [decode.describe_left_out(bad)] if bad else []
    if not names:
        raise UserError("--remove: no example is left; keep one, or add some")
    learner = AdaptedLearner.adapt(before.source, items, names, before.steps)
    with suppress(UserError):  # the run need not be there any more
        notes += list_doubts(items, names, load_run(before.source.run, device=device, trusted=trusted))
    return save_calibrated(learner, out, notes, "no longer")


def save_calibrated(learner: AdaptedLearner, out: Path, notes: list[str], how: str) -> tuple[AdaptedLearner, list[str]]:
    """Write a learner, calibrated where it can be; `how` it is not where it cannot is added to the notes."""
    try:
        learner = learner.calibrate()
    except UserError as error:
        notes.append(f"{how} calibrated, probabilities are a plain softmax and unknown cannot be told: {error}")
    learner.save(out)
    return learner, notes


def find_removed(what: str, names: list[str]) -> list[int]:
    """Return the examples that `CLASS` or `CLASS:N` names, of those with these classes."""
    if what in names:
        return [i for i, name in enumerate(names) if name == what]
    name, _, number = what.rpartition(":")
    places = [i for i, one in enumerate(names) if one == name]
    if places and number.isdigit() and 1 <= int(number) <= len(places):
        return [places[int(number) - 1]]
    if places:
        raise UserError(f"--remove {what}: '{name}' has {len(places)} examples, 1 to {len(places)}")
    raise UserError(f"--remove {what}: no such class{suggest(name or what, set(names))}")


def list_doubts(items: np.ndarray, names: list[str], run: Run) -> list[str]:
    """Return what about labelled items [n, C, H, W] may not be meant, or makes results look better than they are."""
    found: list[str] = []
    shots = Counter(names)
    places: dict[bytes, list[str]] = {}
    for key, name in zip(hash_each(items), names, strict=True):
        places.setdefault(key, []).append(name)
    if len(shots) == 1:
        found.append(f"there is one class only, '{names[0]}': every image will be answered with it")
    if mixed := [sorted(set(labels)) for labels in places.values() if len(set(labels)) > 1]:
        found.append(f"{len(mixed)} of the images are the same in several classes, such as {' and '.join(mixed[0])}")
    if copies := sum(len(labels) - len(set(labels)) for labels in places.values()):
        found.append(f"{copies} of the images are copies of others of their class, and teach nothing new")
    (most, many), (least, few) = shots.most_common(1)[0], shots.most_common()[-1]
    if many >= UNEVEN * few:
        found.append(f"the classes are very uneven: '{most}' has {many} images, '{least}' has {few}")
    if UNKNOWN in shots:
        found.append(f"a class is named '{UNKNOWN}', so that predict --unknown, which answers that, will be refused")
    if seen := sum(len(places[key]) for key in places.keys() & run.hash_trained()):
        found.append(f"{seen} of {len(items)} images are among those of meta-training: not a test of new ones")
    return found


def find_examples(support: Path) -> list[Example]:
    """Return the labelled images of a folder (or zip) with a folder per class, or of a CSV.

    Raises:
        UserError: missing, without images or labels, or not in that form.
    """
    if support.is_file() and not archives.is_archive(support):
        return read_csv(support)
    classes = classify(archives.list_files(support), support)
    filled = {support / name for file in classes if decode.is_picture(file.name) for name in folders_of(file)}
    known = {support / name for name in classes.values()}
    for place, _ in archives.walk_folders(support):
        if place not in {support, *filled} and not known.intersection(place.parents):
            raise UserError(f"{place}: a class without images; add at least one, or remove the folder")
    return [(str(support / file.name), name, file.read) for file, name in classes.items()]


def read_csv(path: Path) -> list[Example]:
    """Return the labelled images of a CSV with the columns path (relative to the CSV) and label."""
    found: list[Example] = []
    for _, row in read_table(path, ("path", "label")):
        image = path.parent / row["path"]
        if not os.path.exists(image):  # as Windows writes it
            image = path.parent / row["path"].replace("\\", "/")
        found.append((str(image), row["label"], partial(archives.read_contents, image)))
    if not found:
        raise UserError(f"{path}: lists no images")
    return found


def decode_examples(
    found: list[Example], format: Format, place: Path, skip_bad: bool
) -> tuple[np.ndarray, list[str], list[str]]:
    """Items uint8 [n, C, H, W], their classes' names, and the files that were left out.

    Raises:
        UserError: a file is not an image, or a class is left without any.
    """
    items, names, bad = [], [], []
    results = try_all(found, format.rule)
    for (name, label, _), result in zip(found, results, strict=True):
        if isinstance(result, np.ndarray):
            items.append(result)
            names.append(label)
        elif skip_bad and not isinstance(result, FileNotFoundError):
            bad += [name] if decode.is_picture(name) else []
        else:
            missing = isinstance(result, FileNotFoundError)
            hint = f"mend its row in {place}" if missing else "remove it, or leave it out: without --strict"
            raise UserError(f"{describe_unreadable(name, result)}; {hint}")
    if empty := sorted({label for _, label, _ in found} - set(names)):
        raise UserError(f"{place}: class '{empty[0]}' has no readable image; add at least one")
    return np.stack(items), names, bad


def count_coloured(found: list[Example], format: Format) -> int:
    """How many of the images have colours."""
    results = try_all(found, replace(format.rule, channels=3))
    return sum(isinstance(result, np.ndarray) and decode.has_colour(result) for result in results)


def try_all(found: list[Example], rule: decode.Rule) -> list[np.ndarray | Exception]:
    """Decode every file, or say why it cannot be read."""
    with decode.silence_pillow(), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(decode.try_decode, rule=rule), [read for _, _, read in found]))
