"""What a person has said of a folder of pictures, and what the learner makes of all others at each step."""

from __future__ import annotations

import csv
import math
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umeta.data import decode
from umeta.data.spreadsheet import guard
from umeta.deploy.adapted import AdaptedLearner, load_source, refuse_transductive
from umeta.deploy.pick import choose
from umeta.deploy.seen import Look, Seen
from umeta.errors import UserError
from umeta.metalearners._embedding import embeds_alone
from umeta.runtime import artifacts
from umeta.types import Batch

FIRST = 24  # pictures that are asked for before the learner's own doubts say which
SAMPLE = 4096  # pictures that those are chosen from, at most
THUMBNAIL = 128  # pixels
LONGEST = 80  # letters of a name
EXPORTS = ("learner", "predictions.csv", "sorted")


class Session:
    """The labels of one folder of pictures, saved at each step, and the learner that they make.

    The pictures are looked at in the background, and each takes part once it was seen. Every method may be called from
    several threads. A step is what one action changed: for each picture its label, None for none, and what the learner
    had answered before, where it could.
    """

    def __init__(
        self, run: Path, photos: Path, place: Path, *, device: str = "auto", allow_plugin: bool = False
    ) -> None:
        source, loaded = load_source(run, device=device, trusted=None if allow_plugin else ())
        refuse_transductive(source)
        learner = source.learner
        if not embeds_alone(learner):
            raise UserError(
                f"{run}: a {type(learner).__name__} adapts its whole network at each label, which takes too long here; "
                "meta-train protonet with normalisation=running, or use umeta adapt"
            )
        if place.resolve().is_relative_to(photos.resolve()):
            raise UserError(f"--out {place}: lies within the pictures of {photos}; choose a place outside of them")
        artifacts.check_writable(place)
        self.source, self.test_steps, self.place, self.photos = source, loaded.test_steps, place, photos
        self.head = learner.on_features()
        self.look = Look.at(source, photos)
        self.files = self.look.files
        self.index = {file.name: i for i, file in enumerate(self.files)}
        self.items: dict[int, np.ndarray] = {}  # of the pictures that were seen
        self.vectors: dict[int, torch.Tensor] = {}
        self.blocks: list[tuple[np.ndarray, torch.Tensor]] = []  # the same, many at a time
        self.looked, self.unreadable, self.trouble, self.closed = 0, 0, "", False
        self.first: list[int] = []
        self.lock = threading.RLock()
        self.steps: list[list[list[Any]]] = []
        self.version = 0
        if (file := place / "labels.json").exists():
            with artifacts.refuse_malformed(file):
                kept = artifacts.read_json(file)
                if kept["photos"] != str(photos.resolve()):
                    raise UserError(f"{place}: its labels are of {kept['photos']}; choose another --out")
                self.steps = [[[str(a), b, c] for a, b, c in step] for step in kept["steps"]]
        self.refresh()
        self.looking = threading.Thread(target=self.look_at_all, daemon=True)
        self.looking.start()

    def look_at_all(self) -> None:
        """Look at all pictures, those of one place and another in turn, and choose which to ask for as they come."""
        blocks, chosen_of = self.look.blocks(), 0
        try:
            order = np.random.default_rng(0).permutation(len(blocks)).tolist()
            for i in sorted(order, key=lambda i: all(file.name not in self.labels for file in self.files[blocks[i]])):
                if self.closed:
                    return
                self.add(self.look.see(blocks[i]))
                with self.lock:
                    self.looked += len(self.files[blocks[i]])
                if len(self.items) >= 2 * chosen_of or self.looked == len(self.files):
                    self.choose_first()
                    chosen_of = len(self.items)
            if not self.items:
                self.trouble = f"{self.photos}: none of its {len(self.files)} files is a readable image"
        except (UserError, OSError, RuntimeError) as error:  # a full disk, say, or too little memory
            self.trouble = f"not all pictures could be looked at: {error}"

    def close(self) -> None:
        """Look no further; another session goes on where this one ended."""
        self.closed = True
        self.looking.join()

    def add(self, seen: Seen) -> None:
        """Let pictures take part."""
        ids = np.array([self.index[file.name] for file in seen.files], dtype=int)
        z = torch.from_numpy(np.array(seen.vectors)).to(self.source.device)
        with self.lock:
            self.unreadable += len(seen.bad)
            if not len(ids):
                return
            self.blocks.append((ids, z))
            self.items.update(zip(ids.tolist(), seen.items, strict=True))
            self.vectors.update(zip(ids.tolist(), z, strict=True))
            if any(file.name in self.labels for file in seen.files):
                self.refresh()
            elif len(self.classes) > 1:
                self.probabilities[ids] = self.answer(z).cpu().numpy()

    def choose_first(self) -> None:
        """Choose the pictures that are asked for next, among some of those that were seen."""
        with self.lock:
            ids = sorted(self.vectors)
            given = self.list_labelled()
            ids = list(dict.fromkeys([*given, *ids[:: math.ceil(len(ids) / SAMPLE) or 1]]))
            names = [self.labels[self.files[i].name] for i in given]
            z = [self.vectors[i] for i in ids]
        if z:
            labels = np.unique(names, return_inverse=True)[1] if given else None
            chosen = choose(torch.stack(z).cpu().numpy(), FIRST, np.arange(len(given)), labels)
            with self.lock:
                self.first = [ids[i] for i in chosen]
                self.version += 1

    # what is known

    def refresh(self) -> None:
        """Replay the steps, adapt to the labels, and answer every picture."""
        said = {name: label for step in self.steps for name, label, _ in step}
        self.labels = {name: label for name, label in said.items() if label is not None}
        here = {self.index[name]: label for name, label in self.labels.items() if self.index.get(name) in self.items}
        self.classes = sorted(set(here.values()))
        self.probabilities = np.ones((len(self.files), max(1, len(self.classes))), np.float32)
        self.version += 1
        if len(self.classes) < 2:
            return
        shown = torch.stack([self.vectors[i] for i in here])
        y = torch.tensor([self.classes.index(label) for label in here.values()], device=shown.device)[None]
        with torch.no_grad():
            batch = Batch(shown[None], y, torch.ones_like(y, dtype=torch.bool), len(self.classes))
            self.adapted = self.head.adapt(self.source.theta, batch, steps=self.test_steps)
        for ids, z in self.blocks:
            self.probabilities[ids] = self.answer(z).cpu().numpy()

    def answer(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the probabilities [n, way] of features [n, d]."""
        with torch.no_grad():
            return self.head.predict(self.source.theta, self.adapted, vectors[None])[0].softmax(1)

    def list_labelled(self) -> list[int]:
        """List the pictures that have a label and were seen."""
        return [self.index[name] for name in self.labels if self.index.get(name) in self.items]

    def state(self) -> dict[str, Any]:
        """Return what is known, in numbers."""
        with self.lock:
            ids = np.array(list(self.items.keys() - set(self.list_labelled())), dtype=int)
            looks = np.bincount(self.probabilities[ids].argmax(1), minlength=max(1, len(self.classes)))
            looks = looks if len(self.classes) > 1 else 0 * looks
            given = Counter(self.labels.values())
            since = [said == label for step in self.steps for _, label, said in step if said and label]
            return {
                "version": self.version,
                "pictures": len(self.items),
                "looked": self.looked,
                "files": len(self.files),
                "unreadable": self.unreadable,
                "trouble": self.trouble,
                "labelled": len(self.labels),
                "classes": [
                    {"name": name, "labelled": given[name], "looks": int(count)}
                    for name, count in zip(self.classes, looks, strict=False)
                ],
                "right": sum(since),
                "told": len(since),
                "steps": len(self.steps),
                "out": str(self.place),
            }

    def pictures(self, view: str, start: int, count: int) -> dict[str, Any]:
        """Return some pictures of a view: `worth` a label, `labelled`, or `class:NAME` as it looks now.

        Those without a label come least sure first.
        """
        with self.lock:
            known = set(self.list_labelled())
            order = np.array(sorted(known if view == "labelled" else self.items.keys() - known), dtype=int)
            if view != "labelled":
                rows = self.probabilities[order]
                if view.startswith("class:"):
                    place = {name: i for i, name in enumerate(self.classes)}.get(view.removeprefix("class:"), -1)
                    looks = rows.argmax(1) == place
                    order, rows = order[looks], rows[looks]
                order = order[np.argsort(rows.max(1), kind="stable")]
            if view == "worth":
                first = [i for i in self.first if i not in known]
                order = np.concatenate([np.array(first, dtype=int), order[~np.isin(order, first)]])
            return {
                "total": len(order),
                "version": self.version,
                "pictures": [self.describe(int(i)) for i in order[start : start + count]],
            }

    def describe(self, i: int) -> dict[str, Any]:
        """Return a picture's name, label and answer."""
        row, several = self.probabilities[i], len(self.classes) > 1
        answer = self.classes[int(row.argmax())] if several else None
        confidence = round(float(row.max()), 4) if several else None
        name = self.files[i].name
        return {"id": i, "name": name, "label": self.labels.get(name), "answer": answer, "confidence": confidence}

    # what is said

    def label(self, pictures: Sequence[int], label: str | None) -> None:
        """Give pictures a label, or take theirs away."""
        with self.lock:
            if label is not None:
                check_name(label)
            if not pictures or any(i not in self.items for i in pictures):
                raise UserError(f"pictures: expected some of the {len(self.items)} seen, got {list(pictures)[:5]}")
            seen = {i: self.describe(i) for i in dict.fromkeys(pictures)}
            could = label in self.classes  # what is the first of its class could not be answered so
            said = {i: one["answer"] if could and not one["label"] else None for i, one in seen.items()}
            self.take([[one["name"], label, said[i]] for i, one in seen.items()])

    def rename(self, old: str, new: str | None) -> None:
        """Rename a class, into one that is there as well, or remove it with its labels."""
        with self.lock:
            if new is not None:
                check_name(new)
            if not (members := [name for name, label in self.labels.items() if label == old]):
                raise UserError(f"there is no class '{old}'")
            self.take([[name, new, None] for name in members])

    def take(self, step: list[list[Any]]) -> None:
        """Take a step, and save it before anything shows it; once all that was asked for has a label, ask for more."""
        self.steps.append(step)
        try:
            self.save()
        except OSError:
            self.steps.pop()
            raise
        self.refresh()
        if self.first and not self.looking.is_alive() and all(self.files[i].name in self.labels for i in self.first):
            self.looking = threading.Thread(target=self.choose_first, daemon=True)
            self.looking.start()

    def undo(self) -> None:
        """Take the last step back."""
        with self.lock:
            if not self.steps:
                raise UserError("there is nothing to undo")
            self.steps.pop()
            self.save()
            self.refresh()

    def save(self) -> None:
        """Write all steps."""
        artifacts.write_json(self.place / "labels.json", {"photos": str(self.photos.resolve()), "steps": self.steps})

    # what comes of it

    def predict(self, data: bytes) -> dict[str, Any]:
        """Answer one more picture, given as the content of a file."""
        found = decode.try_decode(lambda: data, self.source.format.rule)
        if isinstance(found, Exception):
            raise UserError(f"not a readable image ({decode.describe_error(found)})")
        with self.lock:
            self.check_adapted()
            row = self.answer(self.source.features(found[None]))[0].tolist()
            best = int(np.argmax(row))
            named = dict(zip(self.classes, row, strict=True))
            return {"label": self.classes[best], "confidence": row[best], "probabilities": named}

    def export(self, kind: str) -> dict[str, Any]:
        """Write the learner, the table of its answers, or a folder for each class; say where, and what is missing."""
        if kind not in EXPORTS:
            raise UserError(f"export: expected one of {', '.join(EXPORTS)}, got '{kind}'")
        with self.lock:
            self.check_adapted()
            target, missing = self.place / kind, 0
            if kind == "learner":
                rows = self.list_labelled()
                names = [self.labels[self.files[i].name] for i in rows]
                support = np.stack([self.items[i] for i in rows])
                learner = AdaptedLearner.adapt(self.source, support, names, self.test_steps)
                shutil.rmtree(target, ignore_errors=True)
                learner.save(target)
            elif self.looked < len(self.files):
                raise UserError(
                    f"{kind}: {self.looked:,} of {len(self.files):,} were looked at so far; wait for the others"
                )
            elif kind == "sorted":
                missing = self.sort(target)
            else:
                self.tabulate(target)
            return {"path": str(target), "missing": missing}

    def check_adapted(self) -> None:
        if len(self.classes) < 2:
            raise UserError("the learner knows no two classes yet; label a picture of each of at least two first")

    def tabulate(self, target: Path) -> None:
        """Write the answers as `umeta predict` does, and beside them the labels that were given."""
        with (
            artifacts.replace_atomically(target) as temporary,
            open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", "label", "confidence", *(f"p_{name}" for name in self.classes), "given"])
            for i in sorted(self.items):
                name, row = self.files[i].name, self.probabilities[i].tolist()
                best = self.classes[int(np.argmax(row))]
                numbers = [f"{p:.6g}" for p in (max(row), *row)]
                table.writerow(
                    [guard(str(self.photos / name)), guard(best), *numbers, guard(self.labels.get(name, ""))]
                )

    def sort(self, target: Path) -> int:
        """Copy each picture into a folder of its label, or else of its answer; return how many are no longer there."""
        missing = 0
        with artifacts.replace_atomically(target) as temporary:
            for i in sorted(self.items):
                file = self.files[i]
                name = self.labels.get(file.name) or self.classes[int(self.probabilities[i].argmax())]
                (temporary / name).mkdir(parents=True, exist_ok=True)
                try:
                    (temporary / name / f"{i}-{Path(file.name).name}").write_bytes(file.read())
                except FileNotFoundError:
                    missing += 1
        return missing

    @lru_cache(maxsize=8192)  # noqa: B019  there is one session
    def thumbnail(self, i: int) -> bytes:
        """Return a picture as a small JPEG, made when it is first looked at."""
        import io

        from PIL import Image

        if i not in self.items:
            raise UserError(f"there is no picture {i}")
        rule = decode.Rule(THUMBNAIL, 3, pad=True)
        try:
            found = decode.open_image(self.files[i].read(), rule, quick=True)
        except Exception as error:  # Pillow raises nearly anything
            raise UserError(f"{self.files[i].name}: no longer there, or not readable") from error
        out = io.BytesIO()
        Image.fromarray(np.moveaxis(found, 0, -1)).save(out, "JPEG", quality=80)
        return out.getvalue()


def check_name(name: str) -> None:
    """Raise UserError for a class's name that cannot name a folder."""
    odd = not name.strip() or len(name) > LONGEST or name[0] == "." or name != name.strip()
    if odd or any(c in "/\\" or not c.isprintable() for c in name):
        raise UserError(f"a class cannot be named {name[:LONGEST]!r}; take up to {LONGEST} letters, without / or \\")
