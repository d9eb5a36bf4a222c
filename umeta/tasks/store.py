"""Task distributions as files: arrays for what cannot be made again from the images, a description for the rest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from umeta.config import registry
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.parts import Environment
from umeta.rl.discriminator import Discriminator, SkillRewards
from umeta.runtime import artifacts
from umeta.tasks.instances import Augmented, InstanceTasks
from umeta.tasks.mixture import Mixture
from umeta.tasks.partition import PartitionTasks
from umeta.tasks.reward import RewardTasks
from umeta.tasks.rotated import Rotated
from umeta.tasks.sinusoid import SinusoidTasks
from umeta.types import TaskDistribution


def save(tasks: TaskDistribution, folder: Path, name: str = "partitions") -> dict[str, Any]:
    """Writes the arrays of the distribution below `folder` and returns its description, plain values."""
    if isinstance(tasks, PartitionTasks):
        artifacts.write_array(folder / f"{name}.npy", tasks.partitions)
        return {"kind": "partitions", "file": f"{name}.npy"}
    if isinstance(tasks, InstanceTasks):
        return {"kind": "instances"}
    if isinstance(tasks, Rotated):
        return {"kind": "rotated", "of": save(tasks.tasks, folder, name)}
    if isinstance(tasks, Augmented):
        options: Any = tasks.augment
        augment = {"name": registry.name_of("augment", options), **asdict(options)}
        return {"kind": "augmented", "augment": augment, "of": save(tasks.tasks, folder, name)}
    if isinstance(tasks, Mixture):
        parts = [save(part, folder, f"{name}{i}") for i, part in enumerate(tasks.parts)]
        return {"kind": "mixture", "weights": list(tasks.weights), "of": parts}
    if isinstance(tasks, RewardTasks) and isinstance(tasks.rewards, SkillRewards):
        discriminator = tasks.rewards.discriminator
        artifacts.write_tensors(folder / "discriminator.safetensors", discriminator.state_dict())
        description = {"kind": "skills", "file": "discriminator.safetensors", "shape": discriminator.shape}
        if tasks.skills is not None:
            artifacts.write_tensors(folder / "skills.safetensors", tasks.skills)
            description["policies"] = "skills.safetensors"
        return description
    if isinstance(tasks, RewardTasks) and isinstance(tasks.rewards, nn.Module):
        artifacts.write_tensors(folder / "rewards.safetensors", tasks.rewards.state_dict())
        return {"kind": "learnt", "file": "rewards.safetensors"}
    if isinstance(tasks, RewardTasks | SinusoidTasks):
        return {"kind": "oracle"}
    raise UserError(f"proposer: tasks of type {type(tasks).__name__} cannot be saved; return one of umeta.tasks")


def files(description: dict[str, Any]) -> list[str]:
    """The arrays a description refers to."""
    inner = description.get("of", [])
    found = [file for part in (inner if isinstance(inner, list) else [inner]) for file in files(part)]
    return [*found, *(description[key] for key in ("file", "policies") if key in description)]


def load(description: dict[str, Any], folder: Path, source: UnlabelledImages | Environment | None) -> TaskDistribution:
    """The distribution of a description, on the images or the environment it was proposed for."""
    kind = description["kind"]
    if kind == "skills" and source is not None and not isinstance(source, UnlabelledImages):
        discriminator = Discriminator(**description["shape"])
        discriminator.load_state_dict(artifacts.read_tensors(folder / description["file"]))
        policies = description.get("policies")
        return RewardTasks(source, SkillRewards(discriminator), policies and artifacts.read_tensors(folder / policies))
    if isinstance(source, UnlabelledImages):
        return of_images(description, folder, source)
    raise UserError(f"{folder}: tasks of the kind '{kind}' are not on an environment")


def of_images(description: dict[str, Any], folder: Path, images: UnlabelledImages) -> TaskDistribution:
    """`load` for images."""
    kind = description["kind"]
    if kind == "partitions":
        return PartitionTasks(images.pixels, artifacts.read_array(folder / description["file"]))
    if kind == "instances":
        return InstanceTasks(images.pixels)
    if kind == "rotated":
        return Rotated(of_images(description["of"], folder, images))
    if kind == "augmented":
        augment = registry.build_part("augment", description["augment"])
        return Augmented(of_images(description["of"], folder, images), augment)
    if kind == "mixture":
        parts = tuple(of_images(part, folder, images) for part in description["of"])
        return Mixture(tuple(description["weights"]), parts)
    raise UserError(f"{folder}: tasks of the unknown kind '{kind}'; written by another version")
