"""One record per domain: all that stages and commands do differently for images, environments and functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from umeta.config.base import RunConfig
from umeta.config.environments import Config as EnvConfig
from umeta.config.images import Config as ImageConfig
from umeta.config.regression import Config as RegressionConfig
from umeta.data.images import UnlabelledImages
from umeta.draw import environments, images, regression
from umeta.parts import ProposerTraits
from umeta.runtime import artifacts, distributed
from umeta.runtime.loop import RunContext
from umeta.tasks.demonstrated import imitation_spec
from umeta.tasks.reward import policy_spec
from umeta.types import EpisodeSpec, TaskSpec


@dataclass(frozen=True)
class Domain:
    """What sets a domain apart. Its name, and what its source is called, are in its class of config.

    The first three functions see labels, or are there for people alone; they are named as `module:function`, and
    imported when they are called.
    """

    config: type[RunConfig]
    evaluate: str
    """(run, device, results file, trackers): evaluate a run beside its baselines, and write its report"""
    check: str
    """(config, results file): find what would stop the evaluation"""
    estimate: str
    """(config, source): estimate the memory that each stage takes"""
    read: Callable[[Any], Any]
    """(config): read the source, without labels"""
    fingerprint: Callable[[Any, Any], str]
    """(config, source): tell whether two stages speak of the same source"""
    draw: Callable[[Any, EpisodeSpec], np.ndarray]
    """(tasks, episode): draw proposed tasks, [H, W, 3] uint8"""
    spec: Callable[[Any, Mapping[str, Any]], TaskSpec]
    """(config, manifest of a run): what all of the run's tasks have in common"""
    other: str
    """what tasks were proposed on when that was not the source of the config, for a message"""
    ahead: Callable[[Any, Any], TaskSpec | None] = lambda config, source: None
    """(config, source): what all tasks will have in common, where that is known before they are proposed"""
    kept: tuple[str, ...] = ("proposer",)
    """parts of the config that make the proposed tasks what they are; a run keeps those of its tasks"""
    options: Callable[[Any], dict[str, Any]] = lambda config: {}
    """(config): plain options of the source that the stages depend on"""
    facts: Callable[[Any, Any], dict[str, Any]] = lambda config, source: {}
    """(config, source): what the manifest of proposed tasks says of the source"""
    describe: Callable[[Any], str] = lambda source: ""
    """(source): say in a line what it is"""
    label: Callable[[Any, Any], Any] = lambda config, source: source
    """(config, source): what a proposer that sees labels gets in place of the source"""
    film: Callable[[Any, Path], list[str]] = lambda tasks, folder: []
    """(tasks, folder): film what moves in proposed tasks; gives what could not be filmed"""
    one_process: bool = True
    """several processes leave evaluating to the first; they always share meta-training"""


def domain_of(config: RunConfig) -> Domain:
    """Find the record of a config's domain."""
    return DOMAINS[type(config)]


def resolve(name: str) -> Any:
    """Import what `module:function` names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def read_images(config: ImageConfig) -> UnlabelledImages:
    """Read the training images, without labels."""
    with distributed.take_turns():
        return UnlabelledImages.of(config.data.read("train").pixels)


def label_images(config: ImageConfig, images: UnlabelledImages) -> Any:
    """Give the training images their true labels, for an oracle."""
    from umeta.benchmarks.labelled import LabelledImages

    return LabelledImages.load(config.data, "train", images)


def image_options(config: ImageConfig) -> dict[str, Any]:
    """Return the options of the data but for those of labelled data, which the stages do not read."""
    return {"data": {key: value for key, value in config.plain["data"].items() if key not in ("test", "val")}}


def describe_images(images: UnlabelledImages) -> str:
    """How many images there are, and of which shape."""
    return f"images: {len(images)} of {'x'.join(map(str, images.item_shape))}"


def env_options(config: EnvConfig, env: Any = None) -> dict[str, Any]:
    """Return the options of the environment."""
    return {"env": config.plain["env"]}


def env_spec(config: EnvConfig) -> TaskSpec:
    """Return what the tasks on the environment have in common: rewards to earn, or skills to imitate."""
    shown = ProposerTraits.of(config.proposer).demonstrates
    return imitation_spec(config.env) if shown else policy_spec(config.env)


IMAGES = Domain(
    ImageConfig,
    evaluate="umeta.evaluation.images:evaluate_run",
    check="umeta.evaluation.images:check",
    estimate="umeta.quickstart.memory:estimate_on_images",
    read=read_images,
    fingerprint=lambda config, images: images.fingerprint,
    draw=images.draw_tasks,
    spec=lambda config, manifest: TaskSpec(tuple(manifest["item_shape"])),
    ahead=lambda config, images: TaskSpec(images.item_shape),
    other="other images than those of data",
    kept=("embedding", "proposer"),
    options=image_options,
    facts=lambda config, images: {"images": len(images)},
    describe=describe_images,
    label=label_images,
    one_process=False,
)
ENVIRONMENTS = Domain(
    EnvConfig,
    evaluate="umeta.evaluation.environments:evaluate_run",
    check="umeta.evaluation.environments:check",
    estimate="umeta.quickstart.memory:estimate_on_an_environment",
    read=lambda config: config.env,
    fingerprint=lambda config, env: artifacts.hash_value([config.plain["env"], env.observation, env.action]),
    draw=environments.draw_tasks,
    spec=lambda config, manifest: env_spec(config),
    ahead=lambda config, env: env_spec(config),
    other="another environment than env",
    options=env_options,
    facts=env_options,
    film=environments.film_skills,
)
REGRESSION = Domain(
    RegressionConfig,
    evaluate="umeta.evaluation.regression:evaluate_run",
    check="umeta.evaluation.regression:check",
    estimate="umeta.quickstart.memory:estimate_on_functions",
    read=lambda config: None,
    fingerprint=lambda config, source: "no source",
    draw=regression.draw_tasks,
    spec=lambda config, manifest: config.proposer.propose(None, RunContext(config.seed)).spec,  # with its own loss
    other="other functions than those of proposer",
)
DOMAINS: dict[type[RunConfig], Domain] = {domain.config: domain for domain in (IMAGES, ENVIRONMENTS, REGRESSION)}
