"""Photographs as a learner sees them: its features of each picture of a folder, computed once and kept."""

from __future__ import annotations

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from umeta.data import archives, decode
from umeta.deploy.adapted import MetaLearnt
from umeta.deploy.calibration import has_own_features
from umeta.errors import LeftOut, UserError
from umeta.runtime import artifacts
from umeta.runtime.progress import Progress

BLOCK = 128  # files looked at and kept together: where work was stopped, or files were added, the others stay


@dataclass(frozen=True)
class Seen:
    """Readable pictures, and what a learner makes of them."""

    files: list[archives.File]
    items: list[np.ndarray]  # n of [C, H, W] uint8, memory-mapped
    vectors: np.ndarray  # [n, d] float32
    bad: list[str]  # names of what looks like a picture, and is not readable


@dataclass(frozen=True)
class Look:
    """A way to look at the pictures of a folder or zip, some at a time."""

    source: MetaLearnt
    root: Path
    files: list[archives.File]

    @classmethod
    def at(cls, source: MetaLearnt, root: Path) -> Self:
        """List what there is to see.

        Raises:
            UserError: nothing there, or a learner whose features of a picture depend on others.
        """
        if not has_own_features(source.learner, source.theta, source.format.shape):
            raise UserError(
                f"{source.run}: its {type(source.learner).__name__} gives a picture no features that are independent "
                "of the pictures beside it; meta-train with metalearner.normalisation=running or group"
            )
        return cls(source, root, archives.list_files(root))

    def blocks(self) -> list[slice]:
        """Return how the files are divided."""
        return [slice(start, start + BLOCK) for start in range(0, len(self.files), BLOCK)]

    def see(self, block: slice) -> Seen:
        """Look at some of the files, or remember it, where neither they nor the learner have changed."""
        files, rule = self.files[block], self.source.format.rule
        identity = [
            self.source.fingerprint,
            str(self.root.resolve()),
            [(file.name, *file.stamp) for file in files],
            asdict(rule),
        ]

        def make(temporary: Path) -> list[str]:
            with decode.silence_pillow(), ThreadPoolExecutor(os.cpu_count()) as pool:
                found = list(pool.map(lambda file: decode.try_decode(file.read, rule), files))
            good = {i: one for i, one in enumerate(found) if isinstance(one, np.ndarray)}
            bad = [(i, decode.describe_error(one)) for i, one in enumerate(found) if isinstance(one, Exception)]
            if good:
                items = np.stack(list(good.values()))
                artifacts.write_array(temporary / "items.npy", items)
                artifacts.write_array(temporary / "vectors.npy", self.source.features(items).float().cpu().numpy())
            artifacts.write_text(temporary / "files.json", json.dumps({"kept": list(good), "bad": bad}))
            return ["files.json", *(["items.npy", "vectors.npy"] if good else [])]

        folder = artifacts.find_cached(f"seen/{artifacts.hash_value(identity)}", "seen")
        artifacts.make_cached(folder, "seen", make)
        found = artifacts.read_json(folder / "files.json")
        bad = [f"{files[i].name} ({why})" for i, why in found["bad"] if decode.is_picture(files[i].name)]
        if not found["kept"]:
            return Seen([], [], np.empty((0, 0), np.float32), bad)
        items, vectors = (artifacts.read_array(folder / f"{name}.npy") for name in ("items", "vectors"))
        return Seen([files[i] for i in found["kept"]], list(items), vectors, bad)


def see(source: MetaLearnt, root: Path) -> Seen:
    """Look at all readable pictures below a folder or in a zip.

    Raises:
        UserError: as `Look.at`, or none is readable.
    """
    look = Look.at(source, root)
    bar = Progress("look at pictures", len(look.files))
    parts: list[Seen] = []
    for block in look.blocks():
        parts.append(look.see(block))
        bar.update(min(block.stop, len(look.files)))
    bar.close()
    bad = [name for part in parts for name in part.bad]
    files = [file for part in parts for file in part.files]
    if not files:
        why = f", such as {bad[0]}" if bad else ""
        raise UserError(f"{root}: none of its {len(look.files)} files is a readable image{why}")
    if bad:
        warnings.warn(LeftOut(f"{root}: {decode.describe_left_out(bad)}"), stacklevel=2)
    items = [item for part in parts for item in part.items]
    return Seen(files, items, np.concatenate([part.vectors for part in parts if part.files]), bad)
