"""Linear systems whose matrix is known by its products alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, x: Tensor | None = None
) -> Tensor:
    """Solve A x = b by conjugate gradients (Hestenes and Stiefel 1952), a symmetric system for each row of b [T, n].

    A row keeps the x that it has where A has no positive curvature along the next direction (Steihaug 1983), or
    something is not a number.

    product: rows [T, n] times the matrices, one for each row.
    x: where to begin, by default at zero.
    """
    x, residual = (torch.zeros_like(b), b) if x is None else (x, b - product(x))
    direction, error = residual, residual.square().sum(1, keepdim=True)
    enough = torch.finfo(b.dtype).eps ** 2 * b.square().sum(1, keepdim=True)
    going = error > enough
    for _ in range(iterations):
        if going.is_cpu and not going.any():  # a GPU would have to be waited for
            break
        image = product(direction)
        curvature = (direction * image).sum(1, keepdim=True)
        going = going & (error > enough) & (curvature > 0) & image.isfinite().all(1, keepdim=True)
        length = torch.where(going, error / curvature, 0)
        x, residual = x + length * direction, residual - torch.where(going, length * image, 0)
        last, error = error, residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(going, error / last, 0) * direction
    return x
