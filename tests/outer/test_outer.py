"""The outer step is torch's AdamW on the gradient it is handed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from umeta.outer.adam import Adam


class Gradients:
    """A problem whose gradients are given."""

    def __init__(self, *grads: Tensor) -> None:
        self.grads = grads

    def loss_and_grad(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        return {"loss": 1.0}, dict(zip("ab", self.grads, strict=True))


def params() -> dict[str, Tensor]:
    return {"a": torch.tensor([1.0, -2.0], requires_grad=True), "b": torch.tensor([[0.5]], requires_grad=True)}


def problems(count: int) -> list[Gradients]:
    generator = torch.Generator().manual_seed(0)
    return [
        Gradients(torch.randn(2, generator=generator), torch.randn(1, 1, generator=generator)) for _ in range(count)
    ]


def run(outer: Adam, count: int) -> dict[str, Tensor]:
    found = params()
    outer.start(found)
    for i, problem in enumerate(problems(count)):
        outer.step(problem, i / count)
    return found


def test_adam_by_hand() -> None:
    """Kingma and Ba 2015, algorithm 1, and decoupled decay first."""
    found = run(Adam(lr=0.1, weight_decay=0.2), 4)
    for i, name in enumerate("ab"):
        value = params()[name].detach()
        m = v = torch.zeros_like(value)
        for t, problem in enumerate(problems(4), start=1):
            g = problem.grads[i]
            value = value * (1 - 0.1 * 0.2)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            value = value - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        torch.testing.assert_close(found[name].detach(), value)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_adam_is_torchs(schedule: str) -> None:
    found = run(Adam(lr=0.1, schedule=schedule), 5)
    expected = params()
    optimiser = torch.optim.AdamW(expected.values(), lr=0.1, weight_decay=0.0)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=5)
    for problem in problems(5):
        for p, g in zip(expected.values(), problem.grads, strict=True):
            p.grad = g
        optimiser.step()
        if schedule == "cosine":
            fall.step()
    for name, p in found.items():
        torch.testing.assert_close(p, expected[name])


def test_the_cosine_schedule() -> None:
    outer = Adam(lr=2.0, schedule="cosine")
    outer.start(params())
    for progress, expected in ((0.0, 2.0), (0.25, 1 + math.sqrt(0.5)), (0.5, 1.0), (1.0, 0.0)):
        outer.step(problems(1)[0], progress)
        assert outer._optimiser.param_groups[0]["lr"] == pytest.approx(expected)


def test_clipping_bounds_the_norm_over_all_parameters_together() -> None:
    big = Gradients(torch.tensor([3.0, 0.0]), torch.tensor([[4.0]]))
    for clip, expected in ((1.0, [0.6, 0.8]), (10.0, [3.0, 4.0]), (None, [3.0, 4.0])):
        outer, found = Adam(clip=clip), params()
        outer.start(found)
        metrics = outer.step(Gradients(*(g.clone() for g in big.grads)), 0.0)
        assert [found["a"].grad[0].item(), found["b"].grad.item()] == pytest.approx(expected, rel=1e-5)
        assert metrics == {"loss": 1.0, "gradient": 5.0}  # the norm before clipping


def test_a_gradient_that_is_not_a_number_shows_in_the_metrics() -> None:
    outer = Adam()
    outer.start(params())
    metrics = outer.step(Gradients(torch.tensor([1.0, math.inf]), torch.zeros(1, 1)), 0.0)
    assert not math.isfinite(metrics["gradient"])


def test_its_state_goes_on_where_it_was() -> None:
    whole = run(Adam(lr=0.1), 6)
    first, found = Adam(lr=0.1), params()
    first.start(found)
    assert first.state_dict() == {}
    for problem in problems(6)[:3]:
        first.step(problem, 0.0)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    assert set(state) == {f"{name}.{k}" for name in "ab" for k in ("step", "exp_avg", "exp_avg_sq")}
    second, kept = Adam(lr=0.1), {name: p.detach().clone().requires_grad_() for name, p in found.items()}
    second.start(kept)
    second.load_state_dict(state)
    for problem in problems(6)[3:]:
        second.step(problem, 0.0)
    for name, p in whole.items():
        assert torch.equal(p, kept[name])
    first.step(problems(1)[0], 0.0)  # what was loaded is a copy
    assert torch.equal(second.state_dict()["a.step"], torch.tensor(6.0))
