"""The two stages that never see a label, as files: `propose` writes `tasks/NAME`, `metatrain` writes `runs/NAME`.

Nothing here imports `umeta.benchmarks`, except for an oracle that the config names; that is stamped on its artefact.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import artifacts, pictures, registry
from umeta.config import Config, build, dump, joined
from umeta.context import RunContext, duration
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.tasks import store
from umeta.train import metatrain as train
from umeta.train import part
from umeta.types import Embedder, MetaLearner, TaskDistribution, TaskSpec, Theta, to_device
from umeta.version import __version__


def context(config: Config, folder: Path | None, *, device: str = "auto", resume: bool = False) -> RunContext:
    """What a stage of this config runs in."""
    return RunContext(config.seed, to_device(device), folder, resume, progress=True)


def begin(folder: Path, kind: str, plain: Mapping[str, Any], resume: bool) -> bool:
    """Makes ready to write an artefact; False when it is finished already and `resume` asks for nothing more.

    Raises:
        UserError: the directory exists and `resume` is not set, or it was begun with another configuration.
    """
    if folder.exists() and any(path.name != "asked.json" for path in folder.iterdir()):
        finished = (folder / "manifest.json").exists()
        if not resume:
            state, way_out = ("", "keep it") if finished else (", unfinished", "go on")
            raise UserError(f"{folder} exists{state}: {way_out} with --resume, or choose another name=NAME")
        if finished:
            artifacts.read_manifest(folder, kind)
        if (folder / "asked.json").exists():
            before = artifacts.read_json(folder / "asked.json")
            if changed := differences(before, dict(plain)):
                raise UserError(f"{folder} was begun with another configuration ({changed}); choose another name=NAME")
        if finished:
            return False
    try:
        artifacts.write_json(folder / "asked.json", dict(plain))
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error})") from error
    return True


def differences(a: Any, b: Any, where: str = "") -> str:
    """The first keys in which two plain configurations differ, as text."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [differences(a.get(k), b.get(k), f"{where}.{k}".strip(".")) for k in sorted({*a, *b})]
        return ", ".join([text for text in found if text][:3])
    return "" if a == b else f"{where}: {a} before, {b} now"


def unlabelled(config: Config) -> UnlabelledImages:
    """The training images, without labels."""
    return UnlabelledImages.of(config.data.read("train").pixels)


@dataclass
class Embedded:
    """An embedder together with the vectors it has already computed for the training images."""

    embedder: Embedder
    fingerprint: str
    vectors: Tensor  # [n, d]

    def embed(self, images: UnlabelledImages) -> Tensor:
        return self.vectors if images.fingerprint == self.fingerprint else self.embedder.embed(images)


def embed(config: Config, images: UnlabelledImages, ctx: RunContext) -> tuple[Embedded, float]:
    """The fitted embedding of the images and the seconds its training took, from the cache where it is there.

    The cache key is the embedding's options with the content of the files they name, the data's fingerprint and the
    seed.
    """
    embedder = config.embedding
    options = config.plain["embedding"]
    key = artifacts.value_hash([options, named_files(options), images.fingerprint, config.seed, __version__])
    folder = artifacts.cache_folder() / "embeddings" / key
    try:
        artifacts.read_manifest(folder, "embedding")
        ctx.note(f"embedding: from the cache ({folder})")
    except UserError:
        began = time.monotonic()
        embedder.fit(images, ctx)
        vectors = embedder.embed(images).cpu()
        with artifacts.replacing(folder) as temporary:
            temporary.mkdir(parents=True)
            artifacts.write_tensors(temporary / "embedder.safetensors", embedder.state_dict())
            artifacts.write_array(temporary / "embeddings.npy", vectors.numpy())
            artifacts.write_json(temporary / "seconds.json", time.monotonic() - began)
            files = ["embedder.safetensors", "embeddings.npy"]
            artifacts.write_manifest(temporary, "embedding", {}, files)
    embedder.load_state_dict(artifacts.read_tensors(folder / "embedder.safetensors"))
    vectors = torch.from_numpy(np.array(artifacts.read_array(folder / "embeddings.npy")))
    return Embedded(embedder, images.fingerprint, vectors), artifacts.read_json(folder / "seconds.json")


def named_files(value: Any) -> dict[str, str]:
    """Hashes of the files that plain options name, such as a plug-in `mine.py:Mine` or vectors in `path`."""
    if isinstance(value, str):
        path = Path(value.rpartition(":")[0] if ".py:" in value else value)
        return {value: artifacts.file_hash(path)} if path.is_file() else {}
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return {name: digest for part in parts for name, digest in named_files(part).items()}


def without_labels(data: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a data source but for those of labelled data, which these stages do not read."""
    return {key: value for key, value in data.items() if key not in ("test", "val")}


def propose(config: Config, *, device: str = "auto", resume: bool = False) -> Path:
    """Proposes tasks on the unlabelled training images and writes them to `tasks/NAME`.

    Raises:
        UserError: bad data or options, or the directory exists.
    """
    folder = config.tasks_folder
    asked = {key: config.plain.get(key) for key in ("embedding", "proposer", "seed")}
    asked["data"] = without_labels(config.plain["data"])
    if not begin(folder, "tasks", asked, resume):
        return folder
    ctx = context(config, folder, device=device, resume=resume)
    oracle = config.proposer.sees_labels
    if oracle:
        from umeta.benchmarks.labelled import LabelledImages

        source: Any = LabelledImages.load(config.data, "train")
        images = source.images
    else:
        source = images = unlabelled(config)
    ctx.note(
        f"images: {len(images)} of {'x'.join(map(str, images.item_shape))}{', with true labels' if oracle else ''}"
    )
    seconds = {}
    embedded = None
    if config.embedding is not None and not oracle:
        embedded, seconds["embedding"] = embed(config, images, ctx)
    began = time.monotonic()
    tasks = config.proposer.propose(source, ctx, embedded)
    seconds["propose"] = time.monotonic() - began
    check_usable(tasks, config)

    description = store.save(tasks, folder)
    files = ["asked.json", "summary.md", "preview.png", *store.files(description)]
    if embedded is not None:
        artifacts.write_tensors(folder / "embedder.safetensors", embedded.embedder.state_dict())
        artifacts.write_array(folder / "embeddings.npy", embedded.vectors.numpy())
        files += ["embedder.safetensors", "embeddings.npy"]
    artifacts.write_text(folder / "summary.md", summary(tasks, config))
    pictures.save(pictures.proposed(tasks, config.train.episode), folder / "preview.png")
    artifacts.write_json(folder / "seconds.json", seconds)
    content = {
        "umeta": __version__,
        "fingerprint": images.fingerprint,
        "true_labels": oracle,
        "tasks": description,
    }
    artifacts.write_manifest(folder, "tasks", content, files)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    ctx.note(f"tasks: {folder} ({duration(sum(seconds.values()))})")
    return folder


def check_usable(tasks: TaskDistribution, config: Config) -> None:
    """Raises UserError when the tasks cannot give meta-training's episodes: better now than after hours of work."""
    tasks.sample(np.arange(32), episode=config.train.episode, seed=0)


def summary(tasks: TaskDistribution, config: Config) -> str:
    """What was proposed, in numbers."""
    lines = "\n".join(f"- {line}" for line in tasks.describe(config.train.episode))
    return f"# Proposed tasks: {config.name}\n\n{lines}\n\n![samples of proposed classes](preview.png)\n"


def load_tasks(config: Config) -> tuple[TaskDistribution, dict[str, Any]]:
    """The proposed tasks that the config names, on their images, and their manifest.

    Raises:
        UserError: missing, damaged, or proposed on other images.
    """
    if not config.tasks_folder.exists():
        raise UserError(f"{config.tasks_folder}: no such tasks; make them with umeta propose, or set tasks=tasks/NAME")
    manifest = artifacts.read_manifest(config.tasks_folder, "tasks")
    images = unlabelled(config)
    if images.fingerprint != manifest["fingerprint"]:
        raise UserError(
            f"{config.tasks_folder}: proposed on other images than those of data (fingerprint {images.fingerprint} "
            f"instead of {manifest['fingerprint']}); use the data it was proposed on, or propose again"
        )
    registry.refuse_plugins(manifest["tasks"], registry.plugins(config.plain), str(config.tasks_folder))
    return store.load(manifest["tasks"], config.tasks_folder, images), manifest


def metatrain(config: Config, *, device: str = "auto", resume: bool = False) -> Path:
    """Meta-trains on the proposed tasks and writes the learner to `runs/NAME`.

    Raises:
        UserError: tasks that do not fit the data or the episodes, or the directory exists.
    """
    folder = config.run_folder
    tasks, manifest = load_tasks(config)
    # the run's config says what its tasks were made with, whatever this command's config says
    made = artifacts.read_json(config.tasks_folder / "asked.json")
    plain = {**config.plain, "tasks": str(config.tasks_folder), **{k: made[k] for k in ("embedding", "proposer")}}
    trains = {key: value for key, value in plain.items() if key not in ("evaluate", "title", "out")}
    trains["data"] = without_labels(plain["data"])
    if not begin(folder, "run", trains, resume):
        return folder
    check_usable(tasks, config)
    ctx = context(config, folder, device=device, resume=resume)
    began = time.monotonic()
    theta = train(config.metalearner, tasks.to(ctx.device), config.train, ctx)
    state = {
        **{f"params.{n}": v for n, v in theta.params.items()},
        **{f"running.{n}": v for n, v in (theta.running or {}).items()},
    }
    artifacts.write_tensors(folder / "model.safetensors", state)
    artifacts.write_text(folder / "config.yaml", dump(plain))
    artifacts.write_json(folder / "tasks.json", {"hash": artifacts.value_hash(manifest), "manifest": manifest})
    artifacts.write_json(folder / "seconds.json", {"metatrain": time.monotonic() - began})
    content = {
        "umeta": __version__,
        "true_labels": manifest["true_labels"],
        "item_shape": list(tasks.spec.item_shape),
    }
    artifacts.write_manifest(folder, "run", content, ["asked.json", "model.safetensors", "config.yaml", "tasks.json"])
    ctx.note(f"run: {folder}")
    return folder


@dataclass(frozen=True)
class Run:
    """A finished run, loaded: the learner and what it learnt."""

    folder: Path
    config: Config
    learner: MetaLearner
    theta: Theta
    true_labels: bool

    @property
    def test_steps(self) -> int | None:
        """Inner steps at evaluation; None leaves them to the learner."""
        return self.config.evaluate.steps or getattr(self.learner, "test_steps", None)

    def seconds(self) -> dict[str, float]:
        """Seconds each stage took, as far as it is still known."""
        files = [self.config.tasks_folder / "seconds.json", self.folder / "seconds.json"]
        return {k: v for file in files if file.exists() for k, v in json.loads(file.read_text()).items()}


def load_run(
    folder: Path | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    trusted: Collection[str] | None = (),
) -> Run:
    """A run's learner, ready to adapt.

    overrides: replace parts of its config, such as `{"evaluate": {...}}`.
    trusted: plug-ins that its config may name (files and modules whose code is then run); None for any.

    Raises:
        UserError: missing, unfinished or damaged, or it names a plug-in that is not trusted.
    """
    from omegaconf import OmegaConf

    folder = Path(folder)
    manifest = artifacts.read_manifest(folder, "run")
    stored: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    plain = joined(stored, overrides or {})
    registry.refuse_plugins(plain, trusted, str(folder))
    config = build(plain)
    state = {
        name: value.to(to_device(device))
        for name, value in artifacts.read_tensors(folder / "model.safetensors").items()
    }
    config.metalearner.init(TaskSpec(tuple(manifest["item_shape"])), config.train.episode, seed=0)
    theta = Theta(part(state, "params."), part(state, "running.") or None)
    return Run(folder, config, config.metalearner, theta, manifest["true_labels"])
