"""Photographs as a run sees them: its features of each picture of a folder, computed once and kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from umeta.data import archives, decode
from umeta.deploy.adapted import MetaLearnt
from umeta.deploy.calibration import has_own_features
from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.runtime.progress import Progress

BATCH = 256  # pictures that the network sees at a time


@dataclass(frozen=True)
class Seen:
    """The readable pictures of a folder or zip, and what a run makes of them."""

    root: Path
    files: list[archives.File]
    items: np.ndarray  # [n, C, H, W] uint8, memory-mapped
    vectors: np.ndarray  # [n, d] float32, memory-mapped


def see(source: MetaLearnt, root: Path) -> Seen:
    """Return what a run sees in the pictures below a folder or in a zip, from the cache where nothing has changed.

    Raises:
        UserError: no pictures, or a learner whose features of a picture depend on others.
    """
    if not has_own_features(source.learner, source.theta, source.format.shape):
        raise UserError(
            f"{source.run}: its {type(source.learner).__name__} gives a picture no features that are independent of "
            "the pictures beside it; meta-train with metalearner.normalisation=running or group"
        )
    found = archives.list_files(root)
    rule = source.format.rule
    items, kept = decode.decode(found, rule, root=root, skip_bad=True)
    files = [found[i] for i in kept]
    learnt = artifacts.hash_file(Path(source.run) / "manifest.json")
    identity = [learnt, str(root.resolve()), [(file.name, *file.stamp) for file in files], asdict(rule)]
    folder = artifacts.find_cached(f"seen/{artifacts.hash_value(identity)}", "seen")

    def make(temporary: Path) -> list[str]:
        bar = Progress("look at pictures", len(items))
        parts = []
        for start in range(0, len(items), BATCH):
            parts.append(source.features(np.asarray(items[start : start + BATCH])).cpu().numpy())
            bar.update(min(start + BATCH, len(items)))
        bar.close()
        artifacts.write_array(temporary / "vectors.npy", np.concatenate(parts).astype(np.float32))
        return ["vectors.npy"]

    artifacts.make_cached(folder, "seen", make)
    return Seen(root, files, items, artifacts.read_array(folder / "vectors.npy"))
