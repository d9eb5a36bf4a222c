"""The number format a network computes in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16", "auto"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return a context in which convolutions and matrix products of float32 tensors run in that precision.

    bfloat16 keeps float32's range and 8 bits of its fraction: right for embeddings that are trained and for queries,
    wrong for MAML's inner loop, whose meta-gradient is made of differences between nearby weights.
    """
    wanted = precision == "bfloat16" or (precision == "auto" and fast_bfloat16(device))
    return torch.autocast(autocast_kind(device), torch.bfloat16, enabled=wanted)


def autocast_kind(device: torch.device) -> str:
    """Return the device type that autocast knows; tensors without content stand for the CPU's."""
    return "cpu" if device.type == "meta" else device.type


def precise(x: Tensor) -> Tensor:
    """Give numbers in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16, and does not merely convert from it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
