"""The device that a command or option names, and what goes to it and comes back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from umeta.errors import UserError


def to_device(spec: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` as a torch device.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
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


def send(value: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device; to a GPU without waiting for what it is at, through memory that is pinned."""
    if torch.device(device).type != "cuda" or value.is_cuda:
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def keep(items: Tensor, device: torch.device | str) -> Tensor:
    """Give items on a device to stay there; where half of a GPU's free memory would not hold them, as they are."""
    if torch.device(device).type == "cuda" and 2 * items.nbytes > torch.cuda.mem_get_info(device)[0]:
        return items
    return items.to(device)


def read(named: Mapping[str, Tensor]) -> dict[str, float]:
    """Give the values of single numbers, which a GPU is waited for once."""
    values = torch.stack([value.detach().double() for value in named.values()])
    numbers = [1.0] * len(named) if values.is_meta else values.cpu().tolist()  # no content where memory is estimated
    return dict(zip(named, numbers, strict=True))
