"""Load task distributions that were saved: arrays for what cannot be made again, a description for the rest.

Each class of tasks saves itself, `save(folder, name)`, and loads itself from the description that this returned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.parts import Environment
from umeta.tasks.ambiguous import Ambiguous
from umeta.tasks.chosen import Chosen
from umeta.tasks.demonstrated import Demonstrations
from umeta.tasks.distracted import Distracted
from umeta.tasks.instances import Augmented, InstanceTasks
from umeta.tasks.mixture import Mixture
from umeta.tasks.partition import PartitionTasks
from umeta.tasks.reward import RewardTasks
from umeta.tasks.rotated import Rotated
from umeta.tasks.sequence import InSequence
from umeta.tasks.shifted import Shifted
from umeta.types import TaskDistribution

ON_IMAGES: dict[str, Any] = {
    "partitions": PartitionTasks,
    "instances": InstanceTasks,
    "rotated": Rotated,
    "augmented": Augmented,
    "mixture": Mixture,
    "shifted": Shifted,
    "distracted": Distracted,
    "ambiguous": Ambiguous,
    "chosen": Chosen,
    "sequence": InSequence,
}
ON_ENVIRONMENTS: dict[str, Any] = {"skills": RewardTasks, "demonstrations": Demonstrations}


def save_tasks(tasks: TaskDistribution, folder: Path) -> dict[str, Any]:
    """Write the arrays of the distribution below `folder` and return its description, plain values.

    Raises:
        UserError: it cannot be saved.
    """
    if not hasattr(tasks, "save"):
        raise UserError(f"proposer: tasks of type {type(tasks).__name__} cannot be saved; return one of umeta.tasks")
    return tasks.save(folder, "partitions")


def list_inner(description: dict[str, Any]) -> list[dict[str, Any]]:
    """List the descriptions of the distributions that a distribution is made of."""
    inner = description.get("of", [])
    return inner if isinstance(inner, list) else [inner]


def list_files(description: dict[str, Any]) -> list[str]:
    """List the arrays that a description refers to."""
    found = [file for part in list_inner(description) for file in list_files(part)]
    return [*found, *(description[key] for key in ("file", "policies") if key in description)]


def load_saved(description: dict[str, Any], folder: Path, source: UnlabelledImages | Environment) -> TaskDistribution:
    """Load the distribution of a description, on the images or the environment it was proposed for.

    Raises:
        UserError: damaged, of a kind that is not known, or not one for such a source.
    """
    kinds, kind = ON_IMAGES if isinstance(source, UnlabelledImages) else ON_ENVIRONMENTS, description["kind"]
    if kind not in kinds:
        other = "unknown" if kind not in {**ON_IMAGES, **ON_ENVIRONMENTS} else "wrong"
        raise UserError(f"{folder}: tasks of the {other} kind '{kind}', expected one of {', '.join(kinds)}")
    parts = [load_saved(part, folder, source) for part in list_inner(description)]
    return kinds[kind].load(description, folder, source, parts)
