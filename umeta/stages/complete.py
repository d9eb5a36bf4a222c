"""When meta-training is over: what a model has beside the part that was trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from umeta.errors import UserError
from umeta.metalearners._embedding import embeds_alone
from umeta.parts import ModelTraits
from umeta.types import Theta


def completes(learner: Any) -> bool:
    """Whether the learner's model has more than what is trained, and is not complete."""
    return ModelTraits.of(getattr(learner, "model", None)).complete is not None


def check_completes(learner: Any) -> None:
    """Raise UserError where a model has more than is trained, and the learner cannot go on with all of it."""
    if not completes(learner):
        return
    if ModelTraits.of(learner.model).fitted:
        raise UserError("metalearner.model.fitted: it is set when meta-training is over; leave it out of a config")
    if not embeds_alone(learner) or learner.built.module is not None:
        raise UserError(
            f"metalearner.model: {type(learner.model).__name__} is for learners that compare features alone, such as "
            f"protonet with normalisation=running; give {type(learner).__name__} the network itself"
        )


def complete(plain: dict[str, Any], learner: Any, theta: Theta, images: Any, seed: int) -> tuple[dict[str, Any], Theta]:
    """Complete the learner's model; return the config, and what was learnt with what was fitted."""
    device = theta.device

    def features(x: Tensor) -> Tensor:
        with torch.no_grad():
            return learner.features(theta, x.to(device)).cpu()

    model, own = learner.model.complete(images, features, seed)
    learnt = plain["metalearner"]
    options = {**learnt["model"], "weight": model.weight, "fitted": True}
    params = {**theta.params, **{name: value.to(device) for name, value in own.items()}}
    return {**plain, "metalearner": {**learnt, "model": options}}, Theta(params, theta.running)
