"""The device that a command or option names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    pass


def to_device(spec: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` as a torch device.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    from umeta.errors import UserError

    if spec == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(spec)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{spec}': expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device '{spec}': this machine has {torch.cuda.device_count()} usable GPUs; use --device cpu")
    return device
