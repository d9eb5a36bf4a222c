"""What learners descend, by hand."""

from __future__ import annotations

import numpy as np
import torch

from umeta.objectives import squared_error
from umeta.types import Batch


def test_the_squared_error_is_the_mean_over_items_that_are_there_and_their_numbers() -> None:
    draw = torch.Generator().manual_seed(0)
    output, y = torch.randn(3, 5, 4, generator=draw), torch.randn(3, 5, 2, generator=draw)  # and two deviations
    there = torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 4 + [True]])
    found = squared_error(output, Batch(torch.zeros(3, 5, 1), y, there, 1))
    for t in range(3):
        items = there[t].nonzero()[:, 0]
        error = output[t, items, :2].numpy() - y[t, items].numpy()
        np.testing.assert_allclose(found[t], (error**2).mean(), rtol=1e-5)
