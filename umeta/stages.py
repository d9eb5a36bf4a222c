"""The two stages that never see a label, as files: `propose` writes `tasks/NAME`, `metatrain` writes `runs/NAME`.

Nothing here imports `umeta.benchmarks`, except for an oracle that the config names; that is stamped on its artefact.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import artifacts, distributed, footprint, pictures, registry, views
from umeta.config import Config, EnvConfig, RegressionConfig, RunConfig, build, dump, joined, read_yaml
from umeta.context import Checkpoints, RunContext, duration, started
from umeta.data.folder import Folder
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.lock import LOCK, owned
from umeta.tasks import store
from umeta.tasks.mixture import Mixture
from umeta.tasks.reward import RewardTasks, acting
from umeta.tasks.sinusoid import SinusoidTasks
from umeta.train import check_fits, packed, unpacked
from umeta.train import metatrain as train
from umeta.types import Embedder, Environment, MetaLearner, Sink, TaskDistribution, TaskSpec, Theta, to_device
from umeta.version import __version__


@contextmanager
def context(
    config: RunConfig,
    folder: Path,
    kind: str,
    asked: Mapping[str, Any],
    device: str,
    resume: bool,
    sinks: Sequence[Sink],
) -> Iterator[RunContext | None]:
    """What a stage of this config runs in, alone in its folder; None when it is finished (see `begin`)."""
    with distributed.held(owned(folder)):
        if not distributed.once(lambda: begin(folder, kind, asked, resume)):
            yield None
            return
        ctx = RunContext(config.seed, to_device(device), folder, resume, progress=True, sinks=sinks)
        with started(sinks, folder):
            yield ctx


def begin(folder: Path, kind: str, plain: Mapping[str, Any], resume: bool) -> bool:
    """Makes an owned folder ready to be written; False when it is finished and `resume` asks for nothing more.

    Raises:
        UserError: the directory exists and `resume` is not set, or it was begun with another configuration.
    """
    artifacts.sweep(folder)
    if any(path.name not in ("asked.json", LOCK) for path in folder.iterdir()):
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
    artifacts.write_json(folder / "asked.json", dict(plain))
    return True


def differences(a: Any, b: Any, where: str = "") -> str:
    """The first keys in which two plain configurations differ, as text."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [differences(a.get(k), b.get(k), f"{where}.{k}".strip(".")) for k in sorted({*a, *b})]
        return ", ".join([text for text in found if text][:3])
    return "" if a == b else f"{where}: {a} before, {b} now"


def unlabelled(config: Config) -> UnlabelledImages:
    """The training images, without labels."""
    with distributed.in_turn():
        return UnlabelledImages.of(config.data.read("train").pixels)


def labelled(config: Config) -> Any:
    """The training images with their true labels, for an oracle."""
    from umeta.benchmarks.labelled import LabelledImages

    return LabelledImages.load(config.data, "train")


def source_of(config: RunConfig) -> UnlabelledImages | Environment | None:
    """What tasks are proposed on: images without labels, an environment without reward, or nothing."""
    if isinstance(config, RegressionConfig):
        return None
    return config.env if isinstance(config, EnvConfig) else unlabelled(config)


def fingerprint(source: UnlabelledImages | Environment | None, config: RunConfig) -> str:
    """Tells whether two stages speak of the same images or the same environment."""
    if isinstance(source, UnlabelledImages):
        return source.fingerprint
    if source is None:
        return "no source"
    assert isinstance(config, EnvConfig)
    return artifacts.value_hash([config.plain["env"], source.observation, source.action])


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


def kept(folder: Path) -> tuple[dict[str, Tensor], Tensor, float]:
    """Of an embedding in the cache what it has learnt, the vectors, and the seconds that it took."""
    state = artifacts.read_tensors(folder / "embedder.safetensors")
    vectors = torch.from_numpy(np.array(artifacts.read_array(folder / "embeddings.npy")))
    return state, vectors, artifacts.read_json(folder / "seconds.json")


def named_files(value: Any) -> dict[str, str]:
    """Hashes of the files that plain options name: a plug-in `mine.py:Mine` or `module:Mine`, or vectors in `path`."""
    if isinstance(value, str):
        path = registry.code_of(value) or Path(value)
        if (path / "manifest.json").is_file():  # an artefact, whose manifest holds the hashes of the rest
            path = path / "manifest.json"
        return {value: artifacts.file_hash(path)} if path.is_file() else {}
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return {name: digest for part in parts for name, digest in named_files(part).items()}


def check_out(config: RunConfig) -> None:
    """Raises UserError when what the stages write would come to lie among the images that they read."""
    if not isinstance(config, Config) or not isinstance(config.data, Folder):
        return
    out, root = Path(config.out), Path(config.data.root)
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"out: '{out}' lies within the images of '{root}'; set out=DIR to a place outside of them")


def without_labels(data: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a data source but for those of labelled data, which these stages do not read."""
    return {key: value for key, value in data.items() if key not in ("test", "val")}


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

        description = store.save(tasks, folder)
        if description["kind"] == "oracle" and ctx.earlier:
            raise UserError(
                "proposer: its rewards are learnt and cannot be stored; make them an nn.Module, and let the proposer "
                "have a method rewards(source) that gives one to load its state into"
            )
        files = ["asked.json", "summary.md", "preview.png", *store.files(description)]
        if embedded is not None:
            artifacts.write_tensors(folder / "embedder.safetensors", embedded.embedder.state_dict())
            artifacts.write_array(folder / "embeddings.npy", embedded.vectors.numpy())
            files += ["embedder.safetensors", "embeddings.npy"]
        artifacts.write_text(folder / "summary.md", summary(tasks, config))
        preview = previewed(tasks, config)
        pictures.save(preview, folder / "preview.png")
        for sink in sinks:
            sink.picture("proposed tasks", preview)
        if isinstance(tasks, RewardTasks):
            for line in views.skills_filmed(tasks, folder):
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


def previewed(tasks: TaskDistribution, config: RunConfig) -> np.ndarray:
    """A picture of what was proposed: samples of classes, the rewards of skills and where they lead, or waves."""
    if isinstance(tasks, RewardTasks):
        return views.proposed(tasks)
    if isinstance(tasks, SinusoidTasks):
        return views.waves(tasks, config.train.episode)
    return pictures.proposed(tasks, config.train.episode)


def alone(config: RunConfig) -> None:
    """Raises UserError for a config of several rounds, which `umeta run` takes apart."""
    if config.rounds:
        raise UserError(
            f"{config.name}: it alternates propose and metatrain in {len(config.rounds) + 1} rounds, which umeta run "
            "does; for its first round alone add rounds=[]"
        )


def check_usable(tasks: TaskDistribution, config: RunConfig) -> None:
    """Raises UserError when the tasks cannot give meta-training's episodes: better now than after hours of work."""
    if isinstance(tasks, Mixture):  # of which a part may be too rare to be among the first tasks
        for weight, part in zip(tasks.weights, tasks.parts, strict=True):
            if weight > 0:
                check_usable(part, config)
    else:
        tasks.sample(np.arange(32), episode=config.train.episode, seed=0)


def summary(tasks: TaskDistribution, config: RunConfig) -> str:
    """What was proposed, in numbers."""
    lines = "\n".join(f"- {line}" for line in tasks.describe(config.train.episode))
    return f"# Proposed tasks: {config.name}\n\n{lines}\n\n![what was proposed](preview.png)\n"


def load_tasks(config: RunConfig) -> tuple[TaskDistribution, dict[str, Any]]:
    """The proposed tasks that the config names, on their images or environment, and their manifest.

    Raises:
        UserError: missing, damaged, or proposed on others.
    """
    if not config.tasks_folder.exists():
        raise UserError(f"{config.tasks_folder}: no such tasks; make them with umeta propose, or set tasks=tasks/NAME")
    manifest = artifacts.read_manifest(config.tasks_folder, "tasks")
    source: Any = source_of(config)
    with artifacts.as_written(config.tasks_folder):
        recorded = manifest["fingerprint"]
    if (found := fingerprint(source, config)) != recorded:
        which = "other images than those of data" if isinstance(config, Config) else "another environment than env"
        told = f"fingerprint {found} instead of {recorded}"
        if "env" in manifest and isinstance(config, EnvConfig):
            told = differences(manifest["env"], config.plain["env"], "env") or told
        raise UserError(
            f"{config.tasks_folder}: proposed on {which} ({told}); use what it was proposed on, or propose again"
        )
    known, then = registry.plugins(config.plain), "name it in this config as well, as in the one that proposed"
    with artifacts.as_written(config.tasks_folder):
        registry.refuse_plugins(manifest["tasks"], known, str(config.tasks_folder), then)
        if missing := set(store.files(manifest["tasks"])) - set(manifest["files"]):
            raise UserError(f"{config.tasks_folder}: its manifest does not list '{min(missing)}'; propose again")
        if (kind := manifest["tasks"]["kind"]) in ("oracle", "learnt"):  # a formula, or what the proposer's code loads
            made = artifacts.read_json(config.tasks_folder / "asked.json")
            registry.refuse_plugins(made, known, str(config.tasks_folder), then)
            proposer = registry.component("proposer", made["proposer"])
            if not named_files(made["proposer"]).items() <= made["files"].items():
                raise UserError(f"{config.tasks_folder}: the code of its proposer has changed since; propose again")
            if kind == "oracle":
                return proposer.propose(source, RunContext(made["seed"])), manifest
            rewards = proposer.rewards(source)
            rewards.load_state_dict(artifacts.read_tensors(config.tasks_folder / manifest["tasks"]["file"]))
            return RewardTasks(source, rewards), manifest
        return store.load(manifest["tasks"], config.tasks_folder, source), manifest


def middle(tasks: TaskDistribution, config: RunConfig) -> Theta:
    """The mean of the proposed skills' policies.

    Raises:
        UserError: the tasks have none, or the learner's network is another.
    """
    skills = getattr(tasks, "skills", None)
    if skills is None:
        raise UserError("start: skills: these tasks have no skills' policies; propose them with diayn, or leave it out")
    own = config.metalearner.init(tasks.spec, config.train.episode, seed=0).params
    if any(name not in own or own[name].shape != value.shape[1:] for name, value in skills.items()):
        width = skills["1.bias"].shape[1]
        raise UserError(
            "start: skills: metalearner.model is not the same model as the skills', {name: mlp, hidden: "
            f"[{width}, {width}]}}; use that, or leave it out"
        )
    return Theta({name: value.mean(0) for name, value in skills.items()})


def metatrain(config: RunConfig, *, device: str = "auto", resume: bool = False, sinks: Sequence[Sink] = ()) -> Path:
    """Meta-trains on the proposed tasks and writes the learner to `runs/NAME`; the sinks get what it measures.

    Raises:
        UserError: tasks that do not fit the data or the episodes, or the directory exists, or another process is at
            work in it.
    """
    alone(config)
    folder = config.run_folder
    tasks, manifest = load_tasks(config)
    parent = parent_of(config, device) if config.parent else None
    # the run's config says what its tasks were made with, whatever this command's config says
    made = artifacts.read_json(config.tasks_folder / "asked.json")
    kept = ("embedding", "proposer") if isinstance(config, Config) else ("proposer",)
    plain = {**config.plain, "tasks": str(config.tasks_folder), **{key: made[key] for key in kept}}
    trains = {key: value for key, value in plain.items() if key not in ("evaluate", "title", "out")}
    trains["seed"] = config.seed
    if isinstance(config, Config):
        trains["data"] = without_labels(plain["data"])
    trains["files"] = named_files([config.parent, str(config.tasks_folder)])
    with context(config, folder, "run", trains, device, resume, sinks) as ctx:
        if ctx is None:
            return folder
        if ctx.device == torch.device("cpu"):
            distributed.once(lambda: footprint.of_metatrain(config, tasks.spec, whole=False).check())
        check_usable(tasks, config)
        watch = ctx.watch()
        start = parent.theta if parent else middle(tasks, config) if config.start else None
        theta = train(config.metalearner, tasks.to(ctx.device), config.train, ctx, start)
        if not distributed.first():
            return folder
        artifacts.write_tensors(folder / "model.safetensors", packed(theta))
        artifacts.write_text(folder / "config.yaml", dump(plain))
        artifacts.write_json(folder / "tasks.json", {"hash": artifacts.value_hash(manifest), "manifest": manifest})
        seconds = {"metatrain": watch()}
        content = {
            "umeta": __version__,
            "true_labels": manifest["true_labels"] or (parent is not None and parent.true_labels),
            "item_shape": list(tasks.spec.item_shape),
            "outputs": tasks.spec.outputs,
        }
        if parent:
            seconds["earlier rounds"] = sum(parent.seconds().values())
            content["start"] = {"run": config.parent, "hash": artifacts.file_hash(parent.folder / "manifest.json")}
        artifacts.write_sealed(folder / "seconds.json", seconds)
        artifacts.write_manifest(
            folder, "run", content, ["asked.json", "model.safetensors", "config.yaml", "tasks.json"]
        )
        ctx.note(f"run: {folder}")
    return folder


@dataclass(frozen=True)
class Run:
    """A finished run, loaded: the learner and what it learnt."""

    folder: Path
    config: Any  # a RunConfig
    learner: MetaLearner
    theta: Theta
    true_labels: bool
    item_shape: tuple[int, ...]

    @property
    def test_steps(self) -> int | None:
        """Inner steps at evaluation; None leaves them to the learner."""
        return self.config.evaluate.steps or getattr(self.learner, "test_steps", None)

    def check_of_images(self) -> None:
        """Raises UserError for a run on an environment or on functions, which has learnt nothing of images."""
        if isinstance(self.config, RegressionConfig):
            raise UserError(f"{self.folder}: it learnt to regress functions, this needs a run on images")
        if isinstance(self.config, EnvConfig):
            env = registry.name_of("env", self.config.env)
            raise UserError(
                f"{self.folder}: it learnt to act in the environment {env}, this needs a run on images; umeta evaluate "
                "tests such a run"
            )

    def seconds(self) -> dict[str, float]:
        """Seconds each stage took, as far as it is still known."""
        found: dict[str, float] = {}
        for folder in (self.config.tasks_folder, self.folder):
            with suppress(UserError):
                found |= artifacts.read_sealed(folder / "seconds.json")
        return found

    def minutes(self, **seconds: float) -> dict[str, float]:
        """The same in minutes, for people, and of further stages that took these seconds."""
        return {stage: round(value / 60, 2) for stage, value in {**self.seconds(), **seconds}.items()}


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
    folder = Path(folder)
    manifest = artifacts.read_manifest(folder, "run")
    with artifacts.as_written(folder):
        plain = joined(read_yaml(folder / "config.yaml"), overrides or {})
        tasks = Path(plain.get("tasks", ""))
        beside = folder.parent.parent / "tasks" / tasks.name
        if tasks.name and not tasks.exists() and beside.exists():  # moved together, or seen from another directory
            plain["tasks"] = str(beside)
        registry.refuse_plugins(plain, trusted, str(folder))
        config = build(plain)
        theta = unpacked(artifacts.read_tensors(folder / "model.safetensors"), to_device(device))
        shape = tuple(manifest["item_shape"])
        spec = acting(config.env) if isinstance(config, EnvConfig) else TaskSpec(shape)
        if isinstance(config, RegressionConfig):
            spec = TaskSpec(shape, "regression", manifest["outputs"])
        check_fits(theta.params, config.metalearner, spec, config.train.episode, folder)
        config.metalearner.init(spec, config.train.episode, seed=0)
        return Run(folder, config, config.metalearner, theta, manifest["true_labels"], shape)


def parent_of(config: RunConfig, device: str) -> Run:
    """The run that this config starts from; it may name plug-ins that this config names, or that were found before."""
    assert config.parent is not None
    return load_run(config.parent, device=device, trusted=registry.loaded() | registry.plugins(config.plain))


def snapshots(run: Run, device: str = "auto") -> Iterator[tuple[float, Run]]:
    """Seconds of work and the learner at each snapshot of the run and of the rounds before it, in order."""
    before = 0.0
    if run.config.parent and Path(run.config.parent).exists():
        parent = parent_of(run.config, device)
        yield from snapshots(parent, device)
        before = sum(parent.seconds().values())
    before += sum(value for name, value in run.seconds().items() if name in ("embedding", "propose"))
    kept = Checkpoints(run.folder, "metatrain", "snapshots")
    for step in kept.steps():
        if found := kept.read(step):
            yield before + found[2], replace(run, theta=unpacked(found[0], to_device(device)))
