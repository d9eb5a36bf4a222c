"""The trust region, on problems whose Fisher information is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from umeta.outer.trpo import TRPO


class Quadratic:
    """A loss of the parameters at hand, whose KL divergence from the start is exactly 0.5 d' F d."""

    def __init__(self, params: dict[str, Tensor], loss: Callable[[Tensor], Tensor], fisher: Tensor) -> None:
        self.params, self.loss, self.fisher = params, loss, fisher
        self.origin = self.flat().detach().clone()
        self.tried: list[Tensor] = []
        self.shares: list[float] = []

    def flat(self) -> Tensor:
        return torch.cat([p.flatten() for p in self.params.values()])

    def loss_and_grad(self, clip: float | None = None) -> tuple[dict[str, float], dict[str, Tensor]]:
        assert clip is None
        loss = self.loss(self.flat())
        grads = torch.autograd.grad(loss, list(self.params.values()))
        return {"loss": loss.item()}, dict(zip(self.params, grads, strict=True))

    def loss_and_kl(self) -> tuple[float, float]:
        self.tried.append(self.flat().detach().clone())
        moved = self.tried[-1] - self.origin
        return self.loss(self.tried[-1]).item(), (0.5 * moved @ self.fisher @ moved).item()

    def fisher_vector(self, vector: dict[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
        self.shares.append(share)
        product = self.fisher @ torch.cat([v.flatten() for v in vector.values()])
        parts = product.split([p.numel() for p in self.params.values()])
        return {n: part.view_as(p) for (n, p), part in zip(self.params.items(), parts, strict=True)}


def params() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (2, 3), "b": (2,)}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for n, s in shapes.items()}


def matrix(size: int = 8) -> Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


SLOPE = torch.randn(8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def linear(x: Tensor) -> Tensor:
    return SLOPE @ x


def begun(loss: Callable[[Tensor], Tensor] = linear, fisher: Tensor | None = None, **options) -> tuple[TRPO, Quadratic]:
    outer = TRPO(**options)
    problem = Quadratic(params(), loss, matrix() if fisher is None else fisher)
    outer.start(problem.params)
    return outer, problem


@pytest.mark.parametrize("damping", [1e-5, 0.3])
def test_the_step_is_the_natural_gradient_scaled_to_max_kl(damping: float) -> None:
    """`d = - sqrt(2 max_kl / g' A^-1 g) A^-1 g` with A = F + damping."""
    outer, problem = begun(damping=damping, max_kl=0.02, share=0.25)
    metrics = outer.step(problem, 0.0)
    natural = torch.linalg.solve(problem.fisher + damping * torch.eye(8), SLOPE)
    expected = problem.origin - (2 * 0.02 / (SLOPE @ natural)).sqrt() * natural
    torch.testing.assert_close(problem.flat().detach(), expected, rtol=1e-6, atol=0)
    moved = expected - problem.origin
    assert metrics["kl"] == pytest.approx((0.5 * moved @ problem.fisher @ moved).item())
    assert metrics["loss"] == pytest.approx((SLOPE @ problem.origin).item())  # that before the step
    assert metrics["gradient"] == pytest.approx(SLOPE.norm().item())
    assert metrics["accepted"] == 1
    assert set(problem.shares) == {0.25}


def test_it_takes_no_more_products_than_asked_for() -> None:
    outer, problem = begun(iterations=3)
    outer.step(problem, 0.0)
    assert len(problem.shares) == 3


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_a_direction_that_is_not_solved_to_its_end_gets_its_own_length(iterations: int) -> None:
    """`d' F d = d' (g - r)` with the residual r = g - F d, so that the KL divergence is `max_kl` at once."""
    outer, problem = begun(iterations=iterations, max_kl=0.01)
    metrics = outer.step(problem, 0.0)
    assert metrics["accepted"] == 1
    assert metrics["kl"] == pytest.approx(0.01, rel=1e-3)


def test_the_step_shrinks_until_the_loss_improves() -> None:
    """A narrow valley: the loss is lower than at the start over the first fifth of the longest step alone."""
    wide, longest = begun()
    wide.step(longest, 0.0)
    step = (longest.flat() - longest.origin).detach()

    def valley(x: Tensor) -> Tensor:
        gone = (x - longest.origin) @ step / step.square().sum()  # 1 after the longest step
        return 5 * gone**2 - SLOPE @ (x - longest.origin) / (SLOPE @ step)

    outer, problem = begun(valley, shrink=0.5)
    metrics = outer.step(problem, 0.0)
    assert metrics["accepted"] == 0.125
    torch.testing.assert_close(problem.flat().detach(), problem.origin + 0.125 * step)
    assert [len(problem.tried), metrics["kl"]] == [4, pytest.approx(longest.loss_and_kl()[1] / 64)]


def test_the_step_shrinks_until_the_policies_are_near_enough() -> None:
    """The Fisher information of a share of the states may be too small: half of it makes the KL twice `max_kl`."""

    class Underestimated(Quadratic):
        def fisher_vector(self, vector: dict[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
            return {name: value / 2 for name, value in super().fisher_vector(vector, share).items()}

    outer = TRPO()
    problem = Underestimated(params(), linear, matrix())
    outer.start(problem.params)
    metrics = outer.step(problem, 0.0)
    assert metrics["accepted"] == pytest.approx(0.8**2)  # 0.8^(2 i) <= 1 / 2 first at i = 2
    assert metrics["kl"] == pytest.approx(2 * 0.01 * 0.8**4, rel=1e-4)


def flat(x: Tensor) -> Tensor:
    """A loss that has a gradient, and nowhere becomes better."""
    return SLOPE @ x - (SLOPE @ x).detach()


def test_without_an_improvement_the_parameters_are_as_they_were() -> None:
    outer, problem = begun(flat, backtracks=4)
    metrics = outer.step(problem, 0.0)
    assert torch.equal(problem.flat(), problem.origin)
    assert (metrics["accepted"], metrics["kl"]) == (0, 0)
    assert len(problem.tried) == 4
    assert all(not torch.equal(x, problem.origin) for x in problem.tried)


@pytest.mark.parametrize(
    ("loss", "fisher"),
    [
        (lambda x: (0 * x).sum(), matrix()),
        (lambda x: (math.nan * x).sum(), matrix()),
        (lambda x: (math.inf * x).sum(), matrix()),
        (linear, -matrix()),
        (linear, -1e-5 * torch.eye(8, dtype=torch.float64)),
        (linear, math.nan * matrix()),
        (linear, math.inf * matrix()),
        (lambda x: SLOPE @ x + math.nan, matrix()),
    ],
    ids=["flat", "nan gradient", "inf gradient", "negative", "zero with its damping", "nan", "inf", "nan loss"],
)
def test_what_cannot_be_solved_moves_nothing(loss: Callable[[Tensor], Tensor], fisher: Tensor) -> None:
    outer, problem = begun(loss, fisher)
    metrics = outer.step(problem, 0.0)
    assert torch.equal(problem.flat(), problem.origin)
    assert (metrics["accepted"], metrics["kl"]) == (0, 0)


def test_it_goes_on_from_the_parameters_alone() -> None:
    outer, problem = begun()
    outer.step(problem, 0.0)
    assert outer.state_dict() == {}
    outer.load_state_dict({})
    assert outer == TRPO()
    assert repr(outer) == repr(TRPO())
