"""Join what a run has learnt with a pre-trained network: a run whose cosines are the sum of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from umeta.config.build import build
from umeta.config.reading import dump_yaml, expand_names
from umeta.errors import UserError
from umeta.metalearners._embedding import embeds_alone
from umeta.models.backbone import keep_weights
from umeta.parts import ModelTraits
from umeta.runtime import artifacts
from umeta.stages.runs import Run, name_sources
from umeta.train import pack
from umeta.types import TaskSpec, Theta
from umeta.version import __version__


def join(
    run: Run, backbone: Mapping[str, Any], weight: float, folder: Path, found: Mapping[str, Tensor] | None = None
) -> Path:
    """Write a run of prototypes by the cosine of the pre-trained network, plus `weight` times that of the run.

    weight: 0 for the pre-trained network alone.
    found: parameters of that network in place of its own, by name.

    Raises:
        UserError: the run's features depend on the task, the network cannot be had, or the folder exists.
    """
    learner = run.learner
    if not embeds_alone(learner):
        raise UserError(
            f"{run.folder}: its {type(learner).__name__} has no features that can be joined with others; meta-train "
            "protonet with normalisation=running or group"
        )
    if folder.exists():
        raise UserError(f"{folder} exists; choose another place")
    own = run.config.plain["metalearner"]
    joint = {"name": "joint", "models": [dict(backbone), own["model"]], "weights": [1.0, weight]}
    kept = {key: own[key] for key in ("normalisation", "precision") if key in own}
    model = joint if weight else dict(backbone)
    options = {"name": "protonet", "distance": "cosine", "model": model, **kept}
    plain = expand_names({**run.config.plain, "metalearner": options, "name": folder.name})
    config = build(plain)
    params = config.metalearner.build(TaskSpec(run.item_shape), config.train.episode).init(seed=0).params
    learnt = {f"nets.1.{name}": run.theta.params[name] for name in learner.built.network.names}
    running = {f"nets.1.{name}": value for name, value in (run.theta.running or {}).items()}
    put = {f"nets.0.{name}" if weight else name: value for name, value in (found or {}).items()}
    theta = Theta({**params, **learnt, **put}, running) if weight else Theta({**params, **put})
    theta.params["scale"] = run.theta.params.get("scale", params["scale"])
    with artifacts.replace_atomically(folder) as temporary:
        temporary.mkdir(parents=True)
        artifacts.write_tensors(
            temporary / "model.safetensors", {name: value.cpu() for name, value in pack(theta).items()}
        )
        artifacts.write_text(temporary / "config.yaml", dump_yaml(keep_weights(plain)))
        artifacts.write_json(temporary / "tasks.json", artifacts.read_json(run.folder / "tasks.json"))
        artifacts.write_sealed(temporary / "seconds.json", run.seconds())
        content = {
            "umeta": __version__,
            "true_labels": run.true_labels,
            "pretrained": name_sources(ModelTraits.of(config.metalearner.model).pretrained, run.pretrained),
            "item_shape": list(run.item_shape),
            "outputs": 0,
        }
        artifacts.write_manifest(temporary, "run", content, ["model.safetensors", "config.yaml", "tasks.json"])
    return folder
