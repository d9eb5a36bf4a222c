"""ProMP is Adam on the clipped objective, several times over."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from umeta.objectives import kl, policy
from umeta.outer.adam import Adam
from umeta.outer.promp import ProMP
from umeta.types import Batch

OBSERVED, ACTION, STEPS = 3, 2, 50


def params() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(ACTION, OBSERVED, generator=generator, dtype=torch.float64).requires_grad_(),
        "log_std": torch.full((ACTION,), -0.3, dtype=torch.float64).requires_grad_(),
    }


def episodes(seed: int) -> Batch:
    """What a policy near the linear one of `params` did, in two tasks."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, STEPS, OBSERVED, generator=generator, dtype=torch.float64)
    y = x @ params()["weight"].detach().T + torch.randn(2, STEPS, ACTION, generator=generator, dtype=torch.float64)
    w, logp = (torch.randn(2, STEPS, generator=generator, dtype=torch.float64) for _ in range(2))
    return Batch(x, y, torch.rand(2, STEPS, generator=generator) < 0.8, 1, w, logp - 3)


class Linear:
    """A linear policy that needs no adaptation."""

    def __init__(self, params: dict[str, Tensor], batch: Batch) -> None:
        self.params, self.batch = params, batch
        self.grads: list[dict[str, Tensor]] = []
        self.before: Tensor | None = None

    def output(self) -> Tensor:
        mean = self.batch.x @ self.params["weight"].T
        return torch.cat([mean, self.params["log_std"].expand_as(mean)], -1)

    def loss_and_grad(self, clip: float | None = None) -> tuple[dict[str, float], dict[str, Tensor]]:
        output = self.output()
        self.before = output.detach() if self.before is None else self.before
        loss = policy(output, self.batch, clip).mean()
        grads = torch.autograd.grad(loss, list(self.params.values()))
        self.grads.append(dict(zip(self.params, grads, strict=True)))
        return {"loss": loss.item()}, self.grads[-1]

    def loss_and_kl(self) -> tuple[float, float]:
        output = self.output().detach()
        self.before = output if self.before is None else self.before
        return policy(output, self.batch).mean().item(), kl(self.before, output, self.batch).mean().item()

    def fisher_vector(self, vector: dict[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
        raise NotImplementedError


def by_hand(params: dict[str, Tensor], batch: Batch, clip: float) -> tuple[dict[str, Tensor], float]:
    """The gradient of PPO's equation 7, item by item: w * ratio * grad log p where the clip does not hold it.

    And the share of items where it does.
    """
    grads = {name: torch.zeros_like(p) for name, p in params.items()}
    std = params["log_std"].detach().exp()
    held, count = 0, 0
    for t in range(len(batch)):
        for i in batch.mask[t].nonzero()[:, 0]:
            apart = batch.y[t, i] - params["weight"].detach() @ batch.x[t, i]
            logp = torch.distributions.Normal(0.0, std).log_prob(apart).sum()
            ratio, w = (logp - batch.logp[t, i]).exp(), batch.w[t, i]
            count += 1
            if (w > 0 and ratio > 1 + clip) or (w < 0 and ratio < 1 - clip):
                held += 1
                continue
            share = -w * ratio / batch.mask[t].sum() / len(batch)
            grads["weight"] += share * torch.outer(apart / std**2, batch.x[t, i])
            grads["log_std"] += share * (apart**2 / std**2 - 1)
    return grads, held / count


@pytest.mark.parametrize("clip", [0.1, 0.3, 0.9])
def test_the_clipped_gradient_by_hand(clip: float) -> None:
    problem = Linear(params(), episodes(0))
    outer = ProMP(clip=clip, epochs=1)
    outer.start(problem.params)
    expected, held = by_hand(params(), problem.batch, clip)
    outer.step(problem, 0.0)
    assert 0.1 < held < 0.9
    for name, grad in expected.items():
        torch.testing.assert_close(problem.grads[0][name], grad)


def test_each_epoch_is_a_step_of_adam_at_the_parameters_of_then() -> None:
    problem = Linear(params(), episodes(0))
    outer = ProMP(lr=0.05, clip=0.2, epochs=4)
    outer.start(problem.params)
    metrics = outer.step(problem, 0.5)
    at = params()
    optimiser = torch.optim.Adam(at.values(), lr=0.05)
    for grads in problem.grads:
        expected, _ = by_hand(at, problem.batch, 0.2)
        for name, p in at.items():
            torch.testing.assert_close(grads[name], expected[name])
            p.grad = expected[name]
        optimiser.step()
    assert len(problem.grads) == 4
    for name, p in at.items():
        torch.testing.assert_close(problem.params[name], p)
    first = torch.cat([g.flatten() for g in problem.grads[0].values()]).norm().item()
    assert metrics == {
        "loss": pytest.approx(policy(Linear(params(), episodes(0)).output(), episodes(0), 0.2).mean().item()),
        "gradient": pytest.approx(first),
    }


@pytest.mark.parametrize("most", [1e-3, 0.01, 10.0])
def test_a_move_that_goes_too_far_is_shortened(most: float) -> None:
    problems = []
    for limit in (None, most):
        outer, problem = ProMP(lr=0.05, epochs=4, max_kl=limit), Linear(params(), episodes(0))
        outer.start(problem.params)
        metrics = outer.step(problem, 0.0)
        problems.append((problem, metrics))
    (free, _), (held, metrics) = problems
    whole, apart = free.loss_and_kl()[1], held.loss_and_kl()[1]
    assert whole > 0.02
    assert metrics["kl"] == pytest.approx(apart)
    assert min(most, whole) / 2 < apart <= most
    shares = []
    for name, start in params().items():
        far, near = (one.params[name] - start for one in (free, held))
        shares.append((near.sum() / far.sum()).item())
        torch.testing.assert_close(near, shares[0] * far)
    assert 0 < shares[0] <= 1
    assert (shares[0] == 1) == (whole <= most)


class Bent(Linear):
    """A `Linear` whose divergence grows much faster than the square of the step."""

    def loss_and_kl(self) -> tuple[float, float]:
        loss, kl = super().loss_and_kl()
        return loss, math.expm1(40 * kl)


def test_a_move_whose_divergence_is_not_quadratic_is_shortened_until_it_fits() -> None:
    outer, problem = ProMP(lr=0.05, epochs=4, max_kl=0.5), Bent(params(), episodes(0))
    outer.start(problem.params)
    outer.step(problem, 0.0)
    assert 0.1 < problem.loss_and_kl()[1] <= 0.5


def test_what_is_not_a_number_is_said_and_not_hidden() -> None:
    outer, problem = ProMP(epochs=1, max_kl=0.5), Linear(params(), episodes(0))
    outer.start(problem.params)
    problem.loss_and_kl()
    with torch.no_grad():
        problem.params["weight"].fill_(math.nan)
    assert math.isnan(outer.step(problem, 0.0)["kl"])


def test_one_batch_with_a_long_gradient_moves_no_further_than_others() -> None:
    ways = []
    for factor in (1, 1000):
        outer, problem = ProMP(lr=0.05, epochs=1, max_gradient=0.01), Scaled(params(), episodes(0), factor)
        outer.start(problem.params)
        metrics = outer.step(problem, 0.0)
        state = outer.state_dict()
        ways.append({name: value.clone() for name, value in state.items() if name.endswith("exp_avg")})
        assert metrics["gradient"] > 0.01  # what it was before
    for name, value in ways[0].items():
        torch.testing.assert_close(ways[1][name], value)


class Scaled(Linear):
    """A `Linear` whose gradients are multiplied by a factor."""

    def __init__(self, at: dict[str, Tensor], batch: Batch, factor: float) -> None:
        super().__init__(at, batch)
        self.factor = factor

    def loss_and_grad(self, clip: float | None = None) -> tuple[dict[str, float], dict[str, Tensor]]:
        metrics, grads = super().loss_and_grad(clip)
        return metrics, {name: self.factor * grad for name, grad in grads.items()}


def test_a_single_epoch_without_an_active_clip_is_adam() -> None:
    batch = episodes(0)
    batch = Batch(batch.x, batch.y, batch.mask, 1, batch.w, policy_logp(batch))
    found = []
    for outer in (ProMP(lr=0.01, epochs=1), Adam(lr=0.01)):
        problem = Linear(params(), batch)
        outer.start(problem.params)
        outer.step(problem, 0.0)
        found.append(problem.params)
    for name, p in found[0].items():
        assert torch.equal(p, found[1][name])


def policy_logp(batch: Batch) -> Tensor:
    mean, std = batch.x @ params()["weight"].detach().T, params()["log_std"].detach().exp()
    return torch.distributions.Normal(mean, std).log_prob(batch.y).sum(-1)


def test_its_state_goes_on_where_it_was() -> None:
    def run(outer: ProMP, at: dict[str, Tensor], seeds: range) -> None:
        for seed in seeds:
            outer.step(Linear(at, episodes(seed)), 0.0)

    whole, at = ProMP(epochs=2), params()
    whole.start(at)
    run(whole, at, range(2))
    kept = {name: p.detach().clone().requires_grad_() for name, p in at.items()}
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    assert set(state) == {f"{name}.{k}" for name in at for k in ("step", "exp_avg", "exp_avg_sq")}
    resumed = ProMP(epochs=2)
    resumed.start(kept)
    resumed.load_state_dict(state)
    run(whole, at, range(2, 4))
    run(resumed, kept, range(2, 4))
    for name, p in at.items():
        assert torch.equal(p, kept[name])
    assert resumed == ProMP(epochs=2)
    assert repr(resumed) == repr(ProMP(epochs=2))
