"""Systems are solved as a dense solver does, in as many steps as they have unknowns."""

import pytest
import torch
from torch import Tensor

from umeta.outer.conjugate_gradients import conjugate_gradients


@pytest.mark.parametrize("iterations", [6, 40])  # going on changes nothing
@pytest.mark.parametrize("begun", [False, True])
def test_it_solves_a_system_for_each_row(begun: bool, iterations: int) -> None:
    torch.manual_seed(0)
    half = torch.randn(3, 5, 5, dtype=torch.float64)
    matrices = half @ half.mT * torch.tensor([1.0, 100.0, 0.0])[:, None, None] + torch.eye(5)
    b = torch.randn(3, 5, dtype=torch.float64)

    def product(rows: Tensor) -> Tensor:
        return (matrices @ rows[..., None])[..., 0]

    x = conjugate_gradients(product, b, iterations, b if begun else None)
    torch.testing.assert_close(x, torch.linalg.solve(matrices, b))


def test_one_step_is_the_best_along_the_gradient() -> None:
    a, b = torch.tensor([2.0, 5.0, 9.0], dtype=torch.float64), torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    x = conjugate_gradients(lambda rows: rows * a, b, 1)
    torch.testing.assert_close(x, b * (b @ b.T) / (b * a @ b.T))


def test_it_begins_where_it_is_told_to() -> None:
    """With nothing to gain there, it takes no step."""
    ones = torch.ones(1, 4)
    assert torch.equal(conjugate_gradients(lambda rows: 3 - rows, ones, 5, ones), ones)
    assert torch.equal(conjugate_gradients(lambda rows: 2 * rows, ones, 0), torch.zeros(1, 4))


def test_negative_curvature_met_on_the_way_keeps_what_was_found_before() -> None:
    eigenvalues = torch.tensor([4.0, 3.0, 2.0, -1.0], dtype=torch.float64)
    b = torch.tensor([[1.0, 1.0, 1.0, 1.5]], dtype=torch.float64)
    x = conjugate_gradients(lambda rows: eigenvalues * rows, b, 10)
    assert x.isfinite().all()
    assert (b * x).sum() > 0  # it leads down the gradient
    assert (x * eigenvalues * x).sum() > 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_row_that_is_no_number_keeps_its_place_and_spares_the_others(wrong: float) -> None:
    spoilt = torch.tensor([[1.0, 1.0], [wrong, 1.0]])
    x = conjugate_gradients(lambda rows: 2 * rows * spoilt, torch.ones(2, 2), 4)
    torch.testing.assert_close(x, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
