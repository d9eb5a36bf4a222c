"""`--backbone auto`: the pre-trained networks whose weights lie on this disk already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from umeta.errors import UserError
from umeta.runtime import artifacts


def find_networks() -> list[dict[str, Any]]:
    """Return the networks in the caches of the Hugging Face hub and of torchvision, as options of a model.

    Raises:
        UserError: there is none.
    """
    found = [*find_in_hub(), *find_of_torchvision()]
    if not found:
        raise UserError(
            "--backbone auto: no pre-trained network lies on this disk; name one, which is then downloaded, such as "
            "--backbone resnet18, or --backbone NAME --weights FILE"
        )
    return found


def find_in_hub() -> list[dict[str, Any]]:
    """Return what of timm's networks the Hugging Face hub's cache holds, each the folder of a snapshot."""
    try:
        import timm
        from huggingface_hub import constants
    except ImportError:
        return []
    known, found = set(timm.list_models()), []
    for path in sorted(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/config.json")):
        try:
            described = artifacts.read_json(path)
        except UserError:
            continue
        name = str(described.get("architecture")) if isinstance(described, dict) else ""
        if name in known and (path.parent / "model.safetensors").exists():
            found.append({"name": "backbone", "network": str(path.parent)})
    return found


def find_of_torchvision() -> list[dict[str, Any]]:
    """Return what of torchvision's networks torch's cache holds."""
    from torchvision import models

    kept, found = Path(torch.hub.get_dir()) / "checkpoints", []
    for name in models.list_models(module=models):
        if (kept / Path(models.get_model_weights(name).DEFAULT.url).name).exists():
            found.append({"name": "backbone", "network": name, "library": "torchvision"})
    return found
