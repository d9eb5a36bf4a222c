"""`umeta predict`: a learner's answers to any number of images, as a table that is written as they come."""

from __future__ import annotations

import csv
import itertools
import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from umeta.data import archives, decode
from umeta.data.arrays import load
from umeta.data.inputs import Format, describe_unreadable
from umeta.data.spreadsheet import guard
from umeta.deploy.adapt import UNKNOWN
from umeta.deploy.adapted import AdaptedLearner
from umeta.deploy.truth import Truth
from umeta.draw import mosaic
from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.runtime.progress import Progress

BATCH = 256  # images the network sees at a time
AHEAD = 3  # batches that are being decoded meanwhile

File = tuple[str, Callable[[], bytes]]  # a name, and how to read it
Batch = tuple[list[str], np.ndarray]  # names [n] and items uint8 [n, C, H, W]


def predict_images(
    learner: AdaptedLearner,
    images: Sequence[Path],
    out: Path,
    *,
    unknown: bool = False,
    least_sure_first: bool = False,
    overwrite: bool = False,
    skip_bad: bool = True,
    preview: Path | None = None,
    truth: bool = False,
) -> dict[str, Any]:
    """Write a CSV with the columns path, label, confidence and, for each class, `p_CLASS`; return counts by label.

    Memory does not grow with the number of images. The table is there when all is done, or not at all.

    images: image files, folders and archives of them, and `.npy` arrays of items, whose rows are named `file.npy[17]`.
    unknown: answer `unknown` where no class is near.
    least_sure_first: in the order of confidence, which is the largest of the probabilities.
    overwrite: in place of a file that is there.
    skip_bad: leave out images that cannot be read; else stop at the first.
    preview: a picture of the first answers of each class, to be written there.
    truth: the images lie in a folder per class; also return how often the answers are right, and write the confusion
        matrix and the wrong pictures into `OUT-truth.csv` and `.png`.

    Raises:
        UserError: images that are missing, unreadable or of another size, or a learner that cannot tell the unknown.
    """
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file to write, such as {out / 'predictions.csv'}")
    for place in {path.parent for path in (out, preview) if path is not None}:
        artifacts.check_writable(place)
    images, twice = without_repeats(images)
    given = {path.resolve() for path in images}
    for written in (out, preview):
        if written is not None and written.resolve() in given:
            raise UserError(f"{written}: is one of the images, and would be overwritten; name another file to write")
    if preview is not None and (preview.suffix.lower() != ".png" or preview.resolve() == out.resolve()):
        raise UserError(f"--preview {preview}: expected a file to write, such as {out.with_suffix('.png')}")
    confusion = out.with_name(f"{out.stem}-truth.csv")
    for written in (out, preview, confusion if truth else None):
        if written is not None and written.exists() and not overwrite:
            raise UserError(f"{written} exists; name another file to write, or add --overwrite")
    names = [str(name) for name in learner.classes]
    if unknown:
        learner.threshold()
        if UNKNOWN in names:
            raise UserError(f"unknown: a class of the learner has that name ('{UNKNOWN}'); rename the class")
    known = Truth(images) if truth else None
    bar = Progress("predict", sum(count(path, learner.source.format) for path in images))
    counts: Counter[str] = Counter()
    shown: dict[str, list[np.ndarray]] = {}
    bad: list[str] = []
    with artifacts.replace_atomically(out) as temporary, decode.silence_pillow():
        # names of files are bytes; those that are not text go through unchanged
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", "label", "confidence", *(f"p_{name}" for name in names)])
            for paths, pixels in read_batches(images, learner.source.format, bad if skip_bad else None):
                found, probabilities = learner.answers(pixels, unknown)
                labels = [names[i] if i >= 0 else UNKNOWN for i in found.tolist()]
                for path, label, row in zip(paths, labels, probabilities.tolist(), strict=True):
                    table.writerow([guard(path), guard(label), *(f"{p:.6g}" for p in (max(row), *row))])
                counts.update(labels)
                if known is not None:
                    known.count(paths, labels, pixels)
                if preview is not None:
                    for label, item in zip(labels, pixels, strict=True):
                        if len(tiles := shown.setdefault(label, [])) < mosaic.COLUMNS:
                            tiles.append(mosaic.tile(item))
                bar.update(counts.total() + len(bad))
        bar.close()
        if not counts:
            raise UserError(f"{', '.join(map(str, images))}: holds no readable image")
        if least_sure_first:
            sort_by_confidence(temporary)
    if preview is not None:
        mosaic.save(draw_preview(learner, shown, counts), preview)
    result = {"images": counts.total(), "labels": dict(counts.most_common()), "left_out": bad, "twice": twice}
    if known is None:
        return result
    known.write(confusion)
    return {**result, "truth": known.summarize(), "confusion": str(confusion)}


def without_repeats(images: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Of places those that are not one, or part of one, that is given as well; and the others' names."""
    places = {path.resolve(): path for path in reversed(images)}  # the first of those that are one place
    folders = {place for place in places if place.is_dir()}
    apart = {path for place, path in places.items() if folders.isdisjoint(place.parents)}
    given = Counter(images)
    return [path for path in given if path in apart], [str(p) for p in given if p not in apart or given[p] > 1]


def sort_by_confidence(path: Path) -> None:
    """Put the rows of a table in order of confidence; only that and where each row is are held in memory."""
    confidence, ends = array("d"), array("q")
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        read = (file.readline() for _ in itertools.count())  # `tell` works between lines that are read so
        table = csv.reader(iter(lambda: next(read), ""))
        next(table)
        ends.append(file.tell())
        for row in table:
            confidence.append(float(row[2]))
            ends.append(file.tell())
    order = np.argsort(np.frombuffer(confidence), kind="stable")
    with artifacts.replace_atomically(path) as sorted_path, open(path, "rb") as file, open(sorted_path, "wb") as out:
        out.write(file.read(ends[0]))
        for i in order:
            file.seek(ends[i])
            out.write(file.read(ends[i + 1] - ends[i]))


def draw_preview(learner: AdaptedLearner, shown: dict[str, list[np.ndarray]], counts: Counter[str]) -> np.ndarray:
    """Return a row for each label that was answered: an example of the class, framed, and what got its label."""
    rows = []
    for label, _ in counts.most_common(mosaic.ROWS):
        index = np.flatnonzero(learner.classes.astype(str) == label)
        example = [mosaic.tile(learner.support[learner.labels == i][0], mosaic.EXAMPLE) for i in index]
        blank = [] if example else [np.full_like(shown[label][0], 255)]
        rows.append((f"{label} ({counts[label]})", [*example, *blank, *shown[label]]))
    return mosaic.add_captions(rows)


def count(path: Path, format: Format) -> int:
    """How many images there are in one place.

    Raises:
        UserError: none, or an array that holds no items of the learner.
    """
    if path.suffix == ".npy":
        array = load(path, "images")
        if array.ndim == 0 or len(array) == 0:
            raise UserError(f"{path}: holds no images")
        items(path, array[:1], format)
        return len(array)
    if not path.exists():
        raise UserError(f"{path}: no such image or folder")
    if not (number := sum(1 for _ in list_files([path]))):
        raise UserError(f"{path}: holds no files; expected images")
    return number


def items(path: Path, array: np.ndarray, format: Format) -> np.ndarray:
    """Rows of an array file as items; an error names the file."""
    try:
        return format.arrays(array)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_batches(images: Sequence[Path], format: Format, bad: list[str] | None) -> Iterator[Batch]:
    """Names and items, `BATCH` at a time, in the order of the arguments.

    bad: where the names of unreadable files go; None to stop at the first.
    """
    for arrays, places in itertools.groupby(images, lambda path: path.suffix == ".npy"):
        if not arrays:
            yield from decode_files(list_files(places), format, bad)
            continue
        for path in places:
            array = load(path, "images")
            for start in range(0, len(array), BATCH):
                names = [f"{path}[{i}]" for i in range(start, min(start + BATCH, len(array)))]
                yield names, items(path, array[start : start + BATCH], format)


def list_files(places: Iterable[Path]) -> Iterator[File]:
    """Every file in these places, one by one: folders are walked in the order of their names, hidden files left out."""
    for place in places:
        walked = archives.walk_folders(place) if place.is_dir() else [(place.parent, [place.name])]
        for path in (folder / name for folder, names in walked for name in names):
            if archives.is_archive(path) and (path == place or path.suffix.lower() != ".zip"):
                for file in archives.list_files(path):
                    yield str(path / file.name), file.read
            else:
                yield str(path), partial(archives.read_contents, path)


def decode_files(found: Iterator[File], format: Format, bad: list[str] | None) -> Iterator[Batch]:
    """Files as items, decoded by all cores a few batches ahead of whoever takes them."""
    rule = format.rule
    ahead: deque[tuple[list[str], list[Future[np.ndarray | Exception]]]] = deque()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        while True:
            while len(ahead) < AHEAD and (chunk := list(itertools.islice(found, BATCH))):
                ahead.append(([name for name, _ in chunk], [pool.submit(decode.try_decode, r, rule) for _, r in chunk]))
            if not ahead:
                return
            names, futures = ahead.popleft()
            kept = []
            for name, future in zip(names, futures, strict=True):
                result = future.result()
                if isinstance(result, np.ndarray):
                    kept.append((name, result))
                elif bad is None:
                    raise UserError(
                        f"{describe_unreadable(name, result)}; remove it, or leave it out: without --strict"
                    )
                elif decode.is_picture(name):
                    bad.append(name)
            if kept:
                yield [name for name, _ in kept], np.stack([item for _, item in kept])
    finally:
        pool.shutdown(cancel_futures=True)
