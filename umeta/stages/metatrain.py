"""The second stage: meta-train a learner on proposed tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from umeta.config.build import RunConfig
from umeta.config.reading import dump_yaml
from umeta.errors import UserError
from umeta.models.backbone import keep_weights
from umeta.parts import ModelTraits, Tracker
from umeta.runtime import artifacts, distributed
from umeta.stages.complete import check_completes, complete, completes
from umeta.stages.domains import domain_of
from umeta.stages.folder import check_one_round, check_out, hash_files, open_folder
from umeta.stages.runs import load_parent, name_sources
from umeta.stages.tasks import check_usable, load_tasks
from umeta.train import metatrain as train
from umeta.train import pack
from umeta.types import MetaLearner, PolicyLearner, TaskDistribution, Theta
from umeta.version import __version__


def start_from_skills(tasks: TaskDistribution, learner: MetaLearner) -> Theta:
    """Begin with the policies of the proposed skills.

    Raises:
        UserError: the tasks have none, or the learner's network is another.
    """
    skills = getattr(tasks, "skills", None)
    if skills is None:
        raise UserError(
            "start: skills: these tasks have no skills' policies; propose them with diayn or metra, or leave it out"
        )
    own = learner.init(seed=0).params
    if any(name not in own or own[name].shape != value.shape[1:] for name, value in skills.items()):
        width = skills["1.bias"].shape[1]
        raise UserError(
            "start: skills: metalearner.model is not the same model as the skills', {name: mlp, hidden: "
            f"[{width}, {width}]}}; use that, or leave it out"
        )
    assert isinstance(learner, PolicyLearner)
    return learner.start_from(skills)


def metatrain(
    config: RunConfig,
    *,
    device: str = "auto",
    resume: bool = False,
    trackers: Sequence[Tracker] = (),
    minutes: float | None = None,
) -> Path:
    """Meta-train on the proposed tasks and write the learner to `runs/NAME`; the trackers get what it measures.

    minutes: to stop after, in place of the config's.

    Raises:
        UserError: tasks that do not fit the data or the episodes, or the directory exists, or another process is at
            work in it.
    """
    check_one_round(config)
    check_out(config)
    folder = config.run_folder
    tasks, manifest = load_tasks(config)
    parent = load_parent(config, device) if config.parent else None
    # the run's config says what its tasks were made with, whatever this command's config says
    made = artifacts.read_json(config.tasks_folder / "asked.json")
    domain = domain_of(config)
    plain = {**config.plain, "tasks": str(config.tasks_folder), **{key: made[key] for key in domain.kept}}
    trains = {key: value for key, value in plain.items() if key not in ("evaluate", "title", "out")}
    trains |= {"seed": config.seed, **domain.options(config)}
    trains["files"] = hash_files([config.parent, str(config.tasks_folder)])
    with open_folder(config, folder, "run", trains, device, resume, trackers) as ctx:
        if ctx is None:
            return folder
        check_usable(tasks, config)
        watch = ctx.watch()
        learner = config.metalearner.build(tasks.spec, config.train.episode)
        check_completes(learner)
        start = parent.theta if parent else start_from_skills(tasks, learner) if config.start else None
        timed = config.train if minutes is None else replace(config.train, minutes=minutes)
        theta = train(learner, tasks.to(ctx.device), timed, ctx, start)

        def write() -> None:
            whole, learnt = plain, theta
            if completes(learner):
                whole, learnt = complete(plain, learner, theta, domain.read(config), config.seed)
            artifacts.write_tensors(folder / "model.safetensors", pack(learnt))
            artifacts.write_text(folder / "config.yaml", dump_yaml(keep_weights(whole)))
            artifacts.write_json(folder / "tasks.json", {"hash": artifacts.hash_value(manifest), "manifest": manifest})
            seconds = {"metatrain": watch()}
            content = {
                "umeta": __version__,
                "true_labels": manifest["true_labels"] or (parent is not None and parent.true_labels),
                "pretrained": name_sources(
                    ModelTraits.of(getattr(learner, "model", None)).pretrained,
                    manifest.get("pretrained", ""),
                    parent.pretrained if parent else "",
                ),
                "item_shape": list(tasks.spec.item_shape),
                "outputs": tasks.spec.outputs,
            }
            if parent:
                seconds["earlier rounds"] = sum(parent.seconds().values())
                content["start"] = {"run": config.parent, "hash": artifacts.hash_file(parent.folder / "manifest.json")}
            artifacts.write_sealed(folder / "seconds.json", seconds)
            artifacts.write_manifest(
                folder, "run", content, ["asked.json", "model.safetensors", "config.yaml", "tasks.json"]
            )
            ctx.note(f"run: {folder}")

        distributed.run_once(write)
    return folder
