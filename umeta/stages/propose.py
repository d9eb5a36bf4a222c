"""The first stage: propose tasks without a label or a reward."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from umeta.config.build import RunConfig
from umeta.config.environments import EnvConfig
from umeta.config.images import Config
from umeta.data.images import UnlabelledImages
from umeta.draw import environments, mosaic
from umeta.errors import UserError
from umeta.parts import Embedder, Sink
from umeta.runtime import artifacts, distributed
from umeta.runtime.loop import RunContext
from umeta.runtime.progress import duration
from umeta.stages.domains import fingerprint, labelled, previewed, source_of, unlabelled
from umeta.stages.folder import alone, check_out, context, kept, named_files, without_labels
from umeta.stages.runs import hand_over
from umeta.stages.tasks import check_usable
from umeta.tasks import store
from umeta.tasks.reward import RewardTasks
from umeta.types import TaskDistribution
from umeta.version import __version__


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
    hand_over(embedder, ctx.device)
    if distributed.once(lambda: artifacts.intact(folder, "embedding")):
        ctx.note(f"embedding: from the cache ({folder})")
    else:
        watch = ctx.watch()
        if distributed.size() == 1 or getattr(embedder, "shared_fit", False):
            embedder.fit(images, ctx)
        else:
            embedder.load_state_dict(distributed.once(lambda: fitted(embedder, images, ctx)))
        computed = embedder.embed(images).cpu()

        def make(temporary: Path) -> list[str]:
            artifacts.write_tensors(temporary / "embedder.safetensors", embedder.state_dict())
            artifacts.write_array(temporary / "embeddings.npy", computed.numpy())
            artifacts.write_json(temporary / "seconds.json", watch())
            return ["embedder.safetensors", "embeddings.npy", "seconds.json"]

        distributed.once(lambda: artifacts.cached(folder, "embedding", make))
    state, vectors, seconds = distributed.once(lambda: kept(folder))
    embedder.load_state_dict(state)
    return Embedded(embedder, images.fingerprint, vectors), seconds


def fitted(embedder: Embedder, images: UnlabelledImages, ctx: RunContext) -> dict[str, Tensor]:
    """All that the embedding has learnt on the images."""
    embedder.fit(images, ctx)
    return dict(embedder.state_dict())


def propose(config: RunConfig, *, device: str = "auto", resume: bool = False, sinks: Sequence[Sink] = ()) -> Path:
    """Proposes tasks on unlabelled images or an environment and writes them to `tasks/NAME`.

    The sinks get what it measures.

    Raises:
        UserError: bad data or options, or the directory exists, or another process is at work in it.
    """
    alone(config)
    check_out(config)
    if isinstance(config, EnvConfig) and distributed.size() > 1:  # skills are learnt by one process
        return distributed.once(lambda: propose(config, device=device, resume=resume, sinks=sinks))
    folder = config.tasks_folder
    asked: dict[str, Any] = {key: config.plain.get(key) for key in ("embedding", "proposer")}
    asked |= {"seed": config.seed, "files": named_files([asked["embedding"], asked["proposer"]])}
    oracle = config.proposer.sees_labels
    if isinstance(config, Config):
        asked["data"] = without_labels(config.plain["data"])
        source: Any = labelled(config) if oracle else unlabelled(config)
    else:
        source = source_of(config)
    if isinstance(config, EnvConfig):
        asked["env"] = config.plain["env"]
    given = source.images if oracle and isinstance(config, Config) else source  # what has no labels
    asked["data fingerprint"] = fingerprint(given, config)  # which may change before a resume
    with context(config, folder, "tasks", asked, device, resume, sinks) as ctx:
        if ctx is None:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            return folder
        embedded = None
        seconds = {}
        if not isinstance(config, Config):
            content: dict[str, Any] = {"env": config.plain["env"]} if isinstance(config, EnvConfig) else {}
        else:
            content = {"images": len(given)}
            shape = "x".join(map(str, given.item_shape))
            ctx.note(f"images: {len(given)} of {shape}{', with true labels' if oracle else ''}")
            if config.embedding is not None and not oracle:
                embedded, seconds["embedding"] = embed(config, given, ctx)
        watch = ctx.watch()
        tasks = config.proposer.propose(source, ctx, embedded)
        seconds["propose"] = watch()
        check_usable(tasks, config)
        if not distributed.first():
            return folder

        description = store.save_tasks(tasks, folder)
        if description["kind"] == "formula" and ctx.earlier:
            raise UserError(
                "proposer: its rewards are learnt and cannot be stored; make them an nn.Module, and let the proposer "
                "have a method rewards(source) that gives one to load its state into"
            )
        files = ["asked.json", "summary.md", "preview.png", *store.list_files(description)]
        if embedded is not None:
            artifacts.write_tensors(folder / "embedder.safetensors", embedded.embedder.state_dict())
            artifacts.write_array(folder / "embeddings.npy", embedded.vectors.numpy())
            files += ["embedder.safetensors", "embeddings.npy"]
        artifacts.write_text(folder / "summary.md", summary(tasks, config))
        preview = previewed(tasks, config)
        mosaic.save(preview, folder / "preview.png")
        for sink in sinks:
            sink.picture("proposed tasks", preview)
        if isinstance(tasks, RewardTasks):
            for line in environments.film_skills(tasks, folder):
                ctx.note(line)
        artifacts.write_sealed(folder / "seconds.json", seconds)
        content |= {
            "umeta": __version__,
            "fingerprint": asked["data fingerprint"],
            "true_labels": oracle,
            "tasks": description,
        }
        artifacts.write_manifest(folder, "tasks", content, files)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        ctx.note(f"tasks: {folder} ({duration(sum(seconds.values()))})")
    return folder


def summary(tasks: TaskDistribution, config: RunConfig) -> str:
    """What was proposed, in numbers."""
    lines = "\n".join(f"- {line}" for line in tasks.describe(config.train.episode))
    return f"# Proposed tasks: {config.name}\n\n{lines}\n\n![what was proposed](preview.png)\n"
