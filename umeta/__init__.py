"""umeta: learn to learn without labels.

The library's public names; each is imported when it is first used, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from umeta.version import __version__

if TYPE_CHECKING:
    from umeta.classifier import FewShotClassifier
    from umeta.config import TrainConfig
    from umeta.context import RunContext
    from umeta.data.images import UnlabelledImages
    from umeta.errors import UserError
    from umeta.evaluation import evaluate
    from umeta.export import export_learner, export_run, load_export
    from umeta.features import Features
    from umeta.memory import keep_buffers
    from umeta.metalearners.maml import MAML
    from umeta.metalearners.protonet import ProtoNet
    from umeta.models.conv4 import Conv4
    from umeta.outer.adam import Adam
    from umeta.stages import load_run
    from umeta.tasks.partition import PartitionTasks
    from umeta.train import metatrain
    from umeta.types import Batch, EpisodeSpec, TaskSpec, Theta

_HOME = {
    "Adam": "umeta.outer.adam",
    "Batch": "umeta.types",
    "Conv4": "umeta.models.conv4",
    "EpisodeSpec": "umeta.types",
    "Features": "umeta.features",
    "FewShotClassifier": "umeta.classifier",
    "MAML": "umeta.metalearners.maml",
    "PartitionTasks": "umeta.tasks.partition",
    "ProtoNet": "umeta.metalearners.protonet",
    "RunContext": "umeta.context",
    "TaskSpec": "umeta.types",
    "Theta": "umeta.types",
    "TrainConfig": "umeta.config",
    "UnlabelledImages": "umeta.data.images",
    "UserError": "umeta.errors",
    "evaluate": "umeta.evaluation",
    "export_learner": "umeta.export",
    "export_run": "umeta.export",
    "keep_buffers": "umeta.memory",
    "load_export": "umeta.export",
    "load_run": "umeta.stages",
    "metatrain": "umeta.train",
}
__all__ = [
    "MAML",
    "Adam",
    "Batch",
    "Conv4",
    "EpisodeSpec",
    "Features",
    "FewShotClassifier",
    "PartitionTasks",
    "ProtoNet",
    "RunContext",
    "TaskSpec",
    "Theta",
    "TrainConfig",
    "UnlabelledImages",
    "UserError",
    "__version__",
    "evaluate",
    "export_learner",
    "export_run",
    "keep_buffers",
    "load_export",
    "load_run",
    "metatrain",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'umeta' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
