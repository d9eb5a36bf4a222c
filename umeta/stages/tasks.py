"""Load proposed tasks, and check that they can give episodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from umeta.config import registry
from umeta.config.build import RunConfig
from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.runtime.loop import RunContext
from umeta.stages.domains import domain_of
from umeta.stages.folder import describe_changes, hash_files
from umeta.tasks import store
from umeta.tasks.mixture import Mixture
from umeta.tasks.reward import RewardTasks
from umeta.types import TaskDistribution


def check_usable(tasks: TaskDistribution, config: RunConfig) -> None:
    """Raise UserError when the tasks cannot give meta-training's episodes: better now than after hours of work."""
    if isinstance(tasks, Mixture):  # of which a part may be too rare to be among the first tasks
        for weight, part in zip(tasks.weights, tasks.parts, strict=True):
            if weight > 0:
                check_usable(part, config)
    else:
        tasks.sample(np.arange(32), episode=config.train.episode, seed=0)


def load_tasks(config: RunConfig) -> tuple[TaskDistribution, dict[str, Any]]:
    """Load the proposed tasks that the config names, on their source, and their manifest.

    Raises:
        UserError: missing, damaged, or proposed on another source.
    """
    if not config.tasks_folder.exists():
        raise UserError(f"{config.tasks_folder}: no such tasks; make them with umeta propose, or set tasks=tasks/NAME")
    manifest = artifacts.read_manifest(config.tasks_folder, "tasks")
    domain = domain_of(config)
    source = domain.read(config)
    with artifacts.refuse_malformed(config.tasks_folder):
        recorded = manifest["fingerprint"]
    if (found := domain.fingerprint(config, source)) != recorded:
        facts = {key: value for key, value in domain.facts(config, source).items() if key in manifest}
        told = describe_changes({key: manifest[key] for key in facts}, facts)
        told = told or f"fingerprint {found} instead of {recorded}"
        raise UserError(
            f"{config.tasks_folder}: proposed on {domain.other} ({told}); use what it was proposed on, or propose again"
        )
    known, then = registry.find_plugins(config.plain), "name it in this config as well, as in the one that proposed"
    with artifacts.refuse_malformed(config.tasks_folder):
        registry.refuse_plugins(manifest["tasks"], known, str(config.tasks_folder), then)
        if missing := set(store.list_files(manifest["tasks"])) - set(manifest["files"]):
            raise UserError(f"{config.tasks_folder}: its manifest does not list '{min(missing)}'; propose again")
        if (kind := manifest["tasks"]["kind"]) in ("formula", "oracle", "learnt"):  # `oracle`: earlier versions' name
            made = artifacts.read_json(config.tasks_folder / "asked.json")
            registry.refuse_plugins(made, known, str(config.tasks_folder), then)
            proposer = registry.build_part("proposer", made["proposer"])
            if not hash_files(made["proposer"]).items() <= made["files"].items():
                raise UserError(f"{config.tasks_folder}: the code of its proposer has changed since; propose again")
            if kind != "learnt":
                return proposer.propose(source, RunContext(made["seed"])), manifest
            rewards = proposer.rewards(source)
            return RewardTasks.load_learnt(rewards, manifest["tasks"], config.tasks_folder, source), manifest
        return store.load_saved(manifest["tasks"], config.tasks_folder, source), manifest
