"""MAML whose inner loop starts at the support's prototypes."""

import pytest
import torch

from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.types import Batch, EpisodeSpec, TaskSpec, Theta

MODEL = Conv4(filters=4)
SPEC = TaskSpec((1, 16, 16))
EPISODE = EpisodeSpec(3, 2, 2)


def task(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor([[0, 0, 1, 1, 2, 2], [2, 1, 0, 0, 1, 2]])
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 5] = False
    return Batch(torch.rand(2, 6, 1, 16, 16, generator=generator), y, mask, 3)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_without_inner_steps_it_is_a_prototypical_network(distance):
    maml = MAML(MODEL, head="prototypes", normalisation="group", distance=distance)
    proto = ProtoNet(MODEL, normalisation="group", distance=distance).build(SPEC, EPISODE)
    maml = maml.build(SPEC, EPISODE)
    theta = maml.init(3)
    assert theta.params.keys() == proto.init(3).params.keys()  # so either starts from the other
    support, query = task(0), task(1)
    adapted = maml.adapt(theta, support, steps=0)
    torch.testing.assert_close(
        maml.predict(theta, adapted, query.x), proto.predict(theta, proto.adapt(theta, support), query.x)
    )


@pytest.mark.parametrize("training", ["no", "second order", "first order"])
def test_one_inner_step_by_hand(training):
    """The step descends on the support loss from the prototype layer, for the layer and the network alike; the same in
    meta-training, where the layer's own dependence on the weights must not be descended."""
    maml = MAML(
        MODEL, head="prototypes", normalisation="group", inner_lr=0.1, first_order=training == "first order"
    ).build(SPEC, EPISODE)
    theta = maml.init(0)
    for value in theta.params.values():
        value.requires_grad_(training != "no")
    support, query = task(0).chunk(0, 1), task(1).chunk(0, 1)
    shared = maml.built.network.shared
    params = {name: value.detach().clone().requires_grad_() for name, value in theta.params.items()}
    z = shared(params, support.x[0])[0]
    means = torch.stack([z[support.y[0] == label].mean(0) for label in range(3)]).detach()
    weight, bias = (2 * means).requires_grad_(), (-(means**2).sum(1)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(z @ weight.T + bias, support.y[0])
    leaves = [*params.values(), weight, bias]
    stepped = [p - 0.1 * g for p, g in zip(leaves, torch.autograd.grad(loss, leaves), strict=True)]
    moved = dict(zip(params, stepped, strict=False))
    expected = shared(moved, query.x[0])[0] @ stepped[-2].T + stepped[-1]
    found = maml.predict(theta, maml.adapt(theta, support, steps=1), query.x)[0].detach()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("distance", "lr"), [("euclidean", 0.05), ("cosine", 1.0)])
def test_the_meta_gradient_goes_through_the_prototypes(distance, lr):
    """Central differences of the query loss, in float64."""
    options = {"head": "prototypes", "normalisation": "group", "inner_lr": lr, "steps": 2, "distance": distance}
    maml = MAML(Conv4(filters=2), **options).build(SPEC, EPISODE)
    theta = maml.init(1)
    params = {name: value.double().requires_grad_() for name, value in theta.params.items()}
    support, query = (Batch(b.x.double(), b.y, b.mask, b.way) for b in (task(0).chunk(0, 1), task(1).chunk(0, 1)))

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        t = Theta(values)
        logits = maml.predict(t, maml.adapt(t, support), query.x)[0]
        return torch.nn.functional.cross_entropy(logits, query.y[0])

    (gradient,) = torch.autograd.grad(loss(params), params["0.weight"])
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        step = 1e-6
        ends = []
        for sign in (1, -1):
            moved = {**params, "0.weight": (params["0.weight"] + sign * step * direction).detach().requires_grad_()}
            ends.append(loss(moved).item())
        torch.testing.assert_close(
            (gradient * direction).sum().item(), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-9
        )
