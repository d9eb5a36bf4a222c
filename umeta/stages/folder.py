"""A stage's folder: begin it, resume it, compare it with what is asked for now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta.config import registry
from umeta.config.build import RunConfig
from umeta.config.reading import expand_names
from umeta.data.folder import Folder
from umeta.errors import UserError
from umeta.parts import Tracker
from umeta.runtime import artifacts, distributed
from umeta.runtime.devices import to_device
from umeta.runtime.lock import LOCK, hold_folder
from umeta.runtime.loop import RunContext, start_trackers

DATA = "data fingerprint"  # its name among what is asked for


@contextmanager
def open_folder(
    config: RunConfig,
    folder: Path,
    kind: str,
    asked: dict[str, Any],
    device: str,
    resume: bool,
    trackers: Sequence[Tracker],
) -> Iterator[RunContext | None]:
    """Return the context of a stage, alone in its folder; None when the stage is finished (see `begin`)."""
    with distributed.hold_together(hold_folder(folder)):
        if not distributed.run_once(lambda: begin(folder, kind, asked, resume)):
            yield None
            return
        ctx = RunContext(config.seed, to_device(device), folder, resume, progress=True, trackers=trackers)
        with start_trackers(trackers, folder):
            yield ctx


def begin(folder: Path, kind: str, plain: dict[str, Any], resume: bool) -> bool:
    """Make an owned folder ready to be written; False when it is finished and `resume` asks for nothing more.

    Raises:
        UserError: the directory exists and `resume` is not set, or it was begun with another configuration.
    """
    artifacts.remove_leftovers(folder)
    if not resume:
        refuse_begun(folder)
    elif has_begun(folder):
        finished = (folder / "manifest.json").exists()
        if finished:
            artifacts.read_manifest(folder, kind)
        if (folder / "asked.json").exists():
            before = artifacts.read_json(folder / "asked.json")
            if changed := describe_changes(expand_names(before), expand_names(plain)):
                other = before.get(DATA) != plain.get(DATA)
                learnt = folder.parent.parent / "runs" / folder.name
                hint = f", and start={learnt} to go on from there" if other and learnt.exists() else ""
                raise UserError(
                    f"{folder} was begun with another configuration ({changed}); choose another name=NAME{hint}"
                )
        if finished:
            return False
    artifacts.write_json(folder / "asked.json", plain)
    return True


def has_begun(folder: Path) -> bool:
    """Whether a stage has written anything into its folder that is worth keeping."""
    return folder.is_dir() and any(path.name not in ("asked.json", LOCK) for path in folder.iterdir())


def refuse_begun(folder: Path) -> None:
    """Raise UserError when a stage has begun in the folder."""
    if has_begun(folder):
        finished = (folder / "manifest.json").exists()
        state, way_out = ("", "keep it") if finished else (", unfinished", "go on")
        raise UserError(f"{folder} exists{state}: {way_out} with --resume, or choose another name=NAME")


def describe_changes(a: Any, b: Any, where: str = "") -> str:
    """Return the first keys in which two plain configurations differ, as text."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [describe_changes(a.get(k), b.get(k), f"{where}.{k}".strip(".")) for k in sorted({*a, *b})]
        return ", ".join([text for text in found if text][:3])
    if where == DATA and a != b:
        return "data: other content than before"  # hashes say no more
    return "" if a == b else f"{where}: {a} before, {b} now"


def read_embedding(folder: Path) -> tuple[dict[str, Tensor], Tensor, float]:
    """Of an embedding in the cache what it has learnt, the vectors, and the seconds that it took."""
    state = artifacts.read_tensors(folder / "embedder.safetensors")
    vectors = torch.from_numpy(np.array(artifacts.read_array(folder / "embeddings.npy")))
    return state, vectors, artifacts.read_json(folder / "seconds.json")


def hash_files(value: Any) -> dict[str, str]:
    """Hashes of the files that plain options name: a plug-in `mine.py:Mine` or `module:Mine`, or vectors in `path`."""
    if isinstance(value, str):
        path = registry.code_of(value) or Path(value)
        if (path / "manifest.json").is_file():  # an artefact, whose manifest holds the hashes of the rest
            path = path / "manifest.json"
        return {value: artifacts.hash_file(path)} if path.is_file() else {}
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return {name: digest for part in parts for name, digest in hash_files(part).items()}


def check_out(config: RunConfig) -> None:
    """Raise UserError when the stages cannot write, or would write among the images that they read."""
    artifacts.check_writable(Path(config.out))
    data = getattr(config, "data", None)
    if not isinstance(data, Folder):
        return
    out, root = Path(config.out), Path(data.root)
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"out: '{out}' lies within the images of '{root}'; set out=DIR to a place outside of them")


def check_one_round(config: RunConfig) -> None:
    """Raise UserError for a config of several rounds, which `umeta run` takes apart."""
    if config.rounds:
        raise UserError(
            f"{config.name}: it alternates propose and metatrain in {len(config.rounds) + 1} rounds, which umeta run "
            "does; for its first round alone add rounds=[]"
        )
