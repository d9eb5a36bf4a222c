"""What a stage does differently for images, environments and functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from umeta.config.build import RunConfig
from umeta.config.environments import EnvConfig
from umeta.config.images import Config
from umeta.config.regression import RegressionConfig
from umeta.data.images import UnlabelledImages
from umeta.draw import environments, images, regression
from umeta.parts import Environment
from umeta.runtime import artifacts, distributed
from umeta.tasks.reward import RewardTasks
from umeta.tasks.sinusoid import SinusoidTasks
from umeta.types import TaskDistribution


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
    if isinstance(config, EnvConfig):
        return config.env
    assert isinstance(config, Config)
    return unlabelled(config)


def fingerprint(source: UnlabelledImages | Environment | None, config: RunConfig) -> str:
    """Tells whether two stages speak of the same images or the same environment."""
    if isinstance(source, UnlabelledImages):
        return source.fingerprint
    if source is None:
        return "no source"
    assert isinstance(config, EnvConfig)
    return artifacts.value_hash([config.plain["env"], source.observation, source.action])


def previewed(tasks: TaskDistribution, config: RunConfig) -> np.ndarray:
    """A picture of what was proposed: samples of classes, the rewards of skills and where they lead, or waves."""
    if isinstance(tasks, RewardTasks):
        return environments.draw_tasks(tasks, config.train.episode)
    if isinstance(tasks, SinusoidTasks):
        return regression.draw_tasks(tasks, config.train.episode)
    return images.draw_tasks(tasks, config.train.episode)
