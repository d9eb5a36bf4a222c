"""Load a finished run."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umeta.config import registry
from umeta.config.build import RunConfig, build
from umeta.config.reading import merge, read_yaml
from umeta.data.images import hash_each
from umeta.errors import LeftOut, UserError
from umeta.parts import Embedder, EmbedderOfRun
from umeta.runtime import artifacts
from umeta.runtime.checkpoints import Checkpoints
from umeta.runtime.devices import to_device
from umeta.stages.domains import IMAGES, domain_of
from umeta.train import check_fits, unpack
from umeta.types import MetaLearner, Theta

ADAPTED = "adapted.safetensors"  # in a run's folder: the policies that an evaluation ended with, one for each goal


@dataclass(frozen=True)
class Run:
    """A finished run, loaded: the learner and what it learnt."""

    folder: Path
    config: Any  # a RunConfig
    learner: MetaLearner
    theta: Theta
    true_labels: bool
    item_shape: tuple[int, ...]
    pretrained: str = ""
    """what it had learnt from before proposing and meta-training"""

    @property
    def proposed_with(self) -> str:
        """What labels had a part in it, in words."""
        before = f", after a network pre-trained on {self.pretrained}" if self.pretrained else ""
        return ("true labels" if self.true_labels else "no labels") + before

    @property
    def test_steps(self) -> int | None:
        """Inner steps at evaluation; None leaves them to the learner."""
        return self.config.evaluate.steps or self.learner.test_steps

    def check_on_images(self) -> None:
        """Raise UserError for a run on anything else, which has learnt nothing of images."""
        if domain_of(self.config) is not IMAGES:
            raise UserError(
                f"{self.folder}: this run is on {self.config.source}, and a run on images is needed; umeta evaluate "
                "tests runs of any kind, and umeta adapt RUN --reward NAME adapts a policy"
            )

    def hash_trained(self) -> set[bytes]:
        """Hash the images that it was meta-trained on, once for all; none where they are not there any more."""

        def make(temporary: Path) -> list[str]:
            hashes = b"".join(hash_each(self.config.data.read("train").pixels))
            artifacts.write_array(temporary / "hashes.npy", np.frombuffer(hashes, np.uint8).reshape(-1, 16))
            return ["hashes.npy"]

        with suppress(UserError), warnings.catch_warnings():
            warnings.simplefilter("ignore", LeftOut)
            learnt = artifacts.hash_file(self.folder / "manifest.json")
            name = f"trained/{artifacts.hash_value([learnt, self.config.plain.get('data')])}"
            folder = artifacts.make_cached(artifacts.find_cached(name, "trained"), "trained", make)
            return {row.tobytes() for row in artifacts.read_array(folder / "hashes.npy")}
        return set()

    def seconds(self) -> dict[str, float]:
        """Seconds each stage took, as far as it is still known."""
        found: dict[str, float] = {}
        for folder in (self.config.tasks_folder, self.folder):
            with suppress(UserError):
                found |= artifacts.read_sealed(folder / "seconds.json")
        return found

    def minutes(self, **seconds: float) -> dict[str, float]:
        """Return the same in minutes, for people, and of further stages that took these seconds."""
        return {stage: round(value / 60, 2) for stage, value in {**self.seconds(), **seconds}.items()}


def load_run(
    folder: Path | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    trusted: Collection[str] | None = (),
) -> Run:
    """Load a run's learner, ready to adapt.

    overrides: replace parts of its config, such as `{"evaluate": {...}}`.
    trusted: plug-ins that its config may name (files and modules whose code is then run); None for any.

    Raises:
        UserError: missing, unfinished or damaged, or it names a plug-in that is not trusted.
    """
    folder = Path(folder)
    manifest = artifacts.read_manifest(folder, "run")
    with artifacts.refuse_malformed(folder):
        plain = merge(read_yaml(folder / "config.yaml"), overrides or {})
        tasks = Path(plain.get("tasks", ""))
        beside = folder.parent.parent / "tasks" / tasks.name
        if tasks.name and not tasks.exists() and beside.exists():  # moved together, or seen from another directory
            plain["tasks"] = str(beside)
        data = plain["data"] if isinstance(plain.get("data"), dict) else {}
        root = str(data.get("root") or "")
        if root and not Path(root).exists() and (folder.parent.parent / root).exists():
            plain["data"] = {**data, "root": str(folder.parent.parent / root)}
        registry.refuse_plugins(plain, trusted, str(folder))
        config = build(plain)
        theta = unpack(artifacts.read_tensors(folder / "model.safetensors"), to_device(device))
        shape = tuple(manifest["item_shape"])
        spec = domain_of(config).spec(config, manifest)
        check_fits(theta.params, config.metalearner, spec, config.train.episode, folder)
        learner = config.metalearner.build(spec, config.train.episode)
        return Run(folder, config, learner, theta, manifest["true_labels"], shape, manifest.get("pretrained", ""))


def name_sources(*found: str) -> str:
    """Join what networks were learnt from before, each once."""
    return ", ".join(dict.fromkeys(one for one in found if one))


def load_parent(config: RunConfig, device: str) -> Run:
    """Load the run that this config starts from.

    It may name plug-ins that this config names, or that were found before.
    """
    assert config.parent is not None
    return load_run(config.parent, device=device, trusted=registry.loaded() | registry.find_plugins(config.plain))


def hand_over(embedder: Embedder, device: torch.device | str) -> None:
    """Load the run of an embedder that embeds with one, and hand it over; the run may name plug-ins found before."""
    if isinstance(embedder, EmbedderOfRun):
        embedder.receive(load_run(embedder.run, device=str(device), trusted=registry.loaded()))


def snapshots(run: Run, device: str = "auto") -> Iterator[tuple[float, Run]]:
    """Yield seconds of work and the learner at each snapshot of the run and of the rounds before it, in order."""
    before = 0.0
    if run.config.parent and Path(run.config.parent).exists():
        parent = load_parent(run.config, device)
        yield from snapshots(parent, device)
        before = sum(parent.seconds().values())
    before += sum(value for name, value in run.seconds().items() if name in ("embedding", "propose"))
    kept = Checkpoints(run.folder, "metatrain", "snapshots")
    for step in kept.steps():
        if found := kept.read(step):
            then = unpack(found[0], to_device(device))  # what is fitted when meta-training is over stands beside it
            yield before + found[2], replace(run, theta=replace(then, params={**run.theta.params, **then.params}))
