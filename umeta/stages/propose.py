"""The first stage: propose tasks without a label or a reward."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from umeta.config.build import RunConfig
from umeta.data.images import UnlabelledImages
from umeta.draw import mosaic
from umeta.errors import UserError
from umeta.parts import Embedder, EmbedderTraits, Tracker, Trained
from umeta.runtime import artifacts, distributed
from umeta.runtime.loop import RunContext
from umeta.runtime.progress import format_duration
from umeta.stages.domains import domain_of
from umeta.stages.folder import DATA, check_one_round, check_out, hash_files, open_folder, read_embedding
from umeta.stages.runs import hand_over
from umeta.stages.tasks import check_usable
from umeta.tasks import store
from umeta.types import TaskDistribution
from umeta.version import __version__


@dataclass
class Embedded:
    """An embedder together with the vectors it has already computed for the training images."""

    embedder: Embedder
    fingerprint: str
    vectors: Tensor  # [n, d]

    @property
    def trained(self) -> Trained | None:
        """The run that it embeds with, where it is one."""
        return EmbedderTraits.of(self.embedder).trained

    def embed(self, images: UnlabelledImages) -> Tensor:
        return self.vectors if images.fingerprint == self.fingerprint else self.embedder.embed(images)


def embed(
    embedder: Embedder, options: dict[str, Any], images: UnlabelledImages, ctx: RunContext
) -> tuple[Embedded, float]:
    """Fit the embedding to the images, or take it from the cache; also return the seconds of its training.

    The cache key is the embedding's options with the content of the files they name, the data's fingerprint and the
    seed.
    """
    key = artifacts.hash_value([options, hash_files(options), images.fingerprint, ctx.seed, __version__])
    folder = distributed.run_once(lambda: artifacts.find_cached(f"embeddings/{key}", "embedding"))
    hand_over(embedder, ctx.device)
    if distributed.run_once(lambda: artifacts.is_intact(folder, "embedding")):
        ctx.note(f"embedding: from the cache ({folder})")
    else:
        watch = ctx.watch()
        if distributed.size() == 1 or getattr(embedder, "shared_fit", False):
            embedder.fit(images, ctx)
        else:
            embedder.load_state_dict(distributed.run_once(lambda: fit(embedder, images, ctx)))
        computed = embedder.embed(images).cpu()

        def make(temporary: Path) -> list[str]:
            artifacts.write_tensors(temporary / "embedder.safetensors", embedder.state_dict())
            artifacts.write_array(temporary / "embeddings.npy", computed.numpy())
            artifacts.write_json(temporary / "seconds.json", watch())
            return ["embedder.safetensors", "embeddings.npy", "seconds.json"]

        distributed.run_once(lambda: artifacts.make_cached(folder, "embedding", make))
    state, vectors, seconds = distributed.run_once(lambda: read_embedding(folder))
    embedder.load_state_dict(state)
    return Embedded(embedder, images.fingerprint, vectors), seconds


def fit(embedder: Embedder, images: UnlabelledImages, ctx: RunContext) -> dict[str, Tensor]:
    """Fit the embedding to the images; return its state."""
    embedder.fit(images, ctx)
    return dict(embedder.state_dict())


def propose(config: RunConfig, *, device: str = "auto", resume: bool = False, trackers: Sequence[Tracker] = ()) -> Path:
    """Propose tasks on the source of the config, without its labels or rewards, and write them to `tasks/NAME`.

    The trackers get what it measures.

    Raises:
        UserError: bad data or options, or the directory exists, or another process is at work in it.
    """
    check_one_round(config)
    check_out(config)
    domain = domain_of(config)
    folder = config.tasks_folder
    asked: dict[str, Any] = {key: config.plain.get(key) for key in ("embedding", "proposer")}
    asked |= {"seed": config.seed, "files": hash_files([asked["embedding"], asked["proposer"]])}
    oracle = config.proposer.sees_labels
    source = domain.read(config)
    if spec := domain.ahead(config, source):
        config.metalearner.build(spec, config.train.episode)  # a network that cannot be used is found before long work
    seen = domain.label(config, source) if oracle else source
    fingerprint = domain.fingerprint(config, source)
    # the source may change before a resume
    asked |= {**domain.options(config), **domain.facts(config, source), DATA: fingerprint}
    with open_folder(config, folder, "tasks", asked, device, resume, trackers) as ctx:
        if ctx is None:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            return folder
        embedded = None
        seconds = {}
        if line := domain.describe(source):
            ctx.note(f"{line}{', with true labels' if oracle else ''}")
        if (embedder := getattr(config, "embedding", None)) is not None and not oracle:
            embedded, seconds["embedding"] = embed(embedder, config.plain["embedding"], source, ctx)
        watch = ctx.watch()
        tasks = config.proposer.propose(seen, ctx, embedded)
        seconds["propose"] = watch()
        check_usable(tasks, config)

        def write() -> None:
            description = store.save_tasks(tasks, folder)
            if description["kind"] == "formula" and ctx.earlier:
                raise UserError(
                    "proposer: its rewards are learnt and cannot be stored; make them an nn.Module, and let the "
                    "proposer have a method rewards(source) that gives one to load its state into"
                )
            files = ["asked.json", "summary.md", "preview.png", *store.list_files(description)]
            if embedded is not None:
                artifacts.write_tensors(folder / "embedder.safetensors", embedded.embedder.state_dict())
                artifacts.write_array(folder / "embeddings.npy", embedded.vectors.numpy())
                files += ["embedder.safetensors", "embeddings.npy"]
            artifacts.write_text(folder / "summary.md", summary(tasks, config))
            preview = domain.draw(tasks, config.train.episode)
            mosaic.save(preview, folder / "preview.png")
            for tracker in trackers:
                tracker.picture("proposed tasks", preview)
            for line in domain.film(tasks, folder):
                ctx.note(line)
            artifacts.write_sealed(folder / "seconds.json", seconds)
            content = {
                **domain.facts(config, source),
                "umeta": __version__,
                "fingerprint": fingerprint,
                "true_labels": oracle,
                "pretrained": EmbedderTraits.of(embedded.embedder).pretrained if embedded else "",
                "tasks": description,
            }
            artifacts.write_manifest(folder, "tasks", content, files)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            ctx.note(f"tasks: {folder} ({format_duration(sum(seconds.values()))})")

        distributed.run_once(write)
    return folder


def summary(tasks: TaskDistribution, config: RunConfig) -> str:
    """Summarise what was proposed in numbers, as Markdown."""
    lines = "\n".join(f"- {line}" for line in tasks.describe(config.train.episode))
    return f"# Proposed tasks: {config.name}\n\n{lines}\n\n![what was proposed](preview.png)\n"
