"""The meta-LSTM against its equations, weight by weight, and against MAML where nothing is learnt yet."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught
from torch import Tensor

from umeta.metalearners.maml import MAML
from umeta.metalearners.metalstm import MetaLSTM, describe
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem


def test_meta_gradient_equals_a_plain_loop() -> None:
    learner = MetaLSTM(MODELS["mlp"], 0.4, 3, normalisation="group").build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    w, b = theta.params["gates.weight"], theta.params["gates.bias"]
    losses = []
    for t in range(len(support)):
        c = {name: p for name, p in theta.params.items() if not name.startswith("gates.")}
        for name in ("head.weight", "head.bias"):
            c[name] = c[name].repeat(3, *[1] * (c[name].dim() - 1))
        i, f = ({name: torch.full_like(p, value) for name, p in c.items()} for value in (0.4, 1))
        for _ in range(3):
            loss = F.cross_entropy(forward("mlp", c, support.x[t], "group")[0], support.y[t])
            grads = torch.autograd.grad(loss, list(c.values()), retain_graph=True)
            for name, g in zip(c, grads, strict=True):
                about = torch.tensor([loss.detach().log() / 10, 1.0], dtype=torch.float64).expand(*g.shape, 2)
                seen = torch.cat([pair(g), about, c[name][..., None]], -1)
                i[name] = (torch.cat([seen, i[name][..., None]], -1) @ w[0] + b[0]).sigmoid()
                f[name] = (torch.cat([seen, f[name][..., None]], -1) @ w[1] + b[1]).sigmoid()
                c[name] = f[name] * c[name] + i[name] * -g
        losses.append(F.cross_entropy(forward("mlp", c, query.x[t], "group")[0], query.y[t]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(theta.params.values()))
    _, found = BatchProblem(learner, theta, SPEC, [support], query, 2).loss_and_grad()
    torch.testing.assert_close(found, dict(zip(theta.params, expected, strict=True)))


def pair(g: Tensor) -> Tensor:
    """Andrychowicz et al. 2016, appendix A, with p = 10, number by number."""

    def one(x: float) -> list[float]:
        large = abs(x) >= math.exp(-10)
        return [math.log(abs(x)) / 10, math.copysign(1, x)] if large else [-1, math.exp(10) * x]

    return torch.tensor([one(x) for x in g.flatten().tolist()], dtype=torch.float64).view(*g.shape, 2)


def test_small_gradients_are_given_as_they_are() -> None:
    values = torch.tensor([0, 1e-6, -1e-6, 1e-3, -2.0], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(describe(values), -1), pair(values))


def test_a_new_one_is_maml() -> None:
    learner, maml = (kind(MODELS["mlp"], 0.4, 2).build(SPEC, EPISODE) for kind in (MetaLSTM, MAML))
    theta = learner.init(0)
    theta.params["gates.weight"].zero_()
    theta.params["gates.bias"][1] = 30
    support = batch(2).map_tensors(lambda value: value.float() if value.is_floating_point() else value)
    torch.testing.assert_close(*(one.adapt(theta, support).params for one in (learner, maml)))


def test_contract() -> None:
    check_metalearner(MetaLSTM(Conv4(4, down="stride"), inner_lr=0.1, steps=2))


def test_it_learns_to_learn() -> None:
    trained, after, before = taught(MetaLSTM(Perceptron(), inner_lr=0.5, steps=3), 100)
    assert after > 0.8
    assert before < 0.5
    assert trained.params["gates.bias"][0] != torch.tensor(0.5).logit()
