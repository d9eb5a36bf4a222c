"""MT-net against a network with T and W apart, in a plain loop, and against MAML where T is the identity."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught

from umeta.metalearners.maml import MAML
from umeta.metalearners.mtnet import MTNet
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem

LAYERS = ["1.weight", "4.weight"]


@pytest.mark.parametrize("mask", [False, True])
def test_meta_gradient_equals_that_of_layers_of_two_factors(mask: bool) -> None:
    """The inner loop moves rows of W in y = T W x; T is the outer loop's alone."""
    learner = MTNet(MODELS["mlp"], 0.4, 2, normalisation="group", mask=mask).build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    masks = learner._draw_masks(theta, support)
    assert sorted(masks) == (LAYERS if mask else [])
    weights = [name for name in theta.params if not name.startswith(("metric.", "mask."))]
    losses = []
    for t in range(len(support)):
        fast = {name: theta.params[name] for name in weights}
        for name in ("head.weight", "head.bias"):
            fast[name] = fast[name].repeat(3, *[1] * (fast[name].dim() - 1))
        metric = {name: theta.params[f"metric.{name}"] for name in LAYERS}
        fast |= {name: torch.linalg.solve(metric[name], fast[name]) for name in LAYERS}  # W of the weight T W

        def whole(fast, metric=metric):
            return fast | {name: metric[name] @ fast[name] for name in LAYERS}

        for _ in range(2):
            loss = F.cross_entropy(forward("mlp", whole(fast), support.x[t], "group")[0], support.y[t])
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            kept = {name: row[t][:, None] for name, row in masks.items()}
            fast = {n: p - 0.4 * kept.get(n, 1) * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        losses.append(F.cross_entropy(forward("mlp", whole(fast), query.x[t], "group")[0], query.y[t]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(theta.params.values()))
    _, found = BatchProblem(learner, theta, SPEC, [support], query, 2).loss_and_grad()
    torch.testing.assert_close(found, dict(zip(theta.params, expected, strict=True)))
    if mask:
        assert found["mask.1.weight"].norm() > 0


def test_masks_are_drawn_with_the_probability_that_is_learnt() -> None:
    learner = MTNet(MODELS["mlp"]).build(SPEC, EPISODE)
    theta = learner.init(0)
    theta.params["mask.1.weight"] = torch.tensor([-30.0, 30, 0, 0, 1, 1])
    drawn = learner._draw_masks(theta, batch(1, tasks=2000))["1.weight"]
    assert set(drawn.unique().tolist()) == {0, 1}
    expected = theta.params["mask.1.weight"].sigmoid()
    torch.testing.assert_close(drawn.float().mean(0), expected, atol=0.04, rtol=0)


def test_a_new_tnet_is_maml() -> None:
    learner, maml = MTNet(MODELS["mlp"], mask=False).build(SPEC, EPISODE), MAML(MODELS["mlp"]).build(SPEC, EPISODE)
    found = [one.adapt(one.init(0), batch(2).map_tensors(single)).params for one in (learner, maml)]
    torch.testing.assert_close(*found)


def single(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


@pytest.mark.parametrize("mask", [False, True])
def test_contract(mask: bool) -> None:
    check_metalearner(MTNet(Conv4(4, down="stride"), inner_lr=0.1, steps=2, mask=mask))


def test_it_learns_to_learn() -> None:
    _, after, before = taught(MTNet(Perceptron(), inner_lr=0.5, steps=3), 100)
    assert after > 0.8
    assert before < 0.5
