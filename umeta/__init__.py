"""umeta: learn to learn without labels.

The library's public names; each is imported when it is first used, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from umeta.version import __version__

if TYPE_CHECKING:
    from umeta.config.images import TrainConfig
    from umeta.data.images import UnlabelledImages
    from umeta.deploy.estimators import Features, FewShotClassifier
    from umeta.deploy.export import export_learner, export_run, load_export
    from umeta.errors import UserError
    from umeta.evaluation.images import evaluate
    from umeta.metalearners.maml import MAML
    from umeta.metalearners.protonet import ProtoNet
    from umeta.models.conv4 import Conv4
    from umeta.outer.adam import Adam
    from umeta.runtime.allocator import keep_buffers
    from umeta.runtime.loop import RunContext
    from umeta.stages.runs import load_run
    from umeta.tasks.partition import PartitionTasks
    from umeta.train import metatrain
    from umeta.types import Batch, EpisodeSpec, TaskSpec, Theta

_HOME = {
    "Adam": "umeta.outer.adam",
    "Batch": "umeta.types",
    "Conv4": "umeta.models.conv4",
    "EpisodeSpec": "umeta.types",
    "Features": "umeta.deploy.estimators",
    "FewShotClassifier": "umeta.deploy.estimators",
    "MAML": "umeta.metalearners.maml",
    "PartitionTasks": "umeta.tasks.partition",
    "ProtoNet": "umeta.metalearners.protonet",
    "RunContext": "umeta.runtime.loop",
    "TaskSpec": "umeta.types",
    "Theta": "umeta.types",
    "TrainConfig": "umeta.config.images",
    "UnlabelledImages": "umeta.data.images",
    "UserError": "umeta.errors",
    "evaluate": "umeta.evaluation.images",
    "export_learner": "umeta.deploy.export",
    "export_run": "umeta.deploy.export",
    "keep_buffers": "umeta.runtime.allocator",
    "load_export": "umeta.deploy.export",
    "load_run": "umeta.stages.runs",
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
