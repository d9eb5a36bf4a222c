"""Meta-Curvature against explicit products of matrices, and against MAML where they are identities."""

from __future__ import annotations

import pytest
import torch
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, taught

from umeta.metalearners.maml import MAML
from umeta.metalearners.metacurvature import MetaCurvature, curve
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem
from umeta.types import PolicyLearner, Theta


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_the_transform_is_a_matrix_along_each_mode() -> None:
    torch.manual_seed(0)
    matrices = {"out": rand(4, 4), "in": rand(3, 3), "filter": rand(6, 6)}
    theta = Theta({f"curvature.w.{mode}": matrix for mode, matrix in matrices.items()})
    conv, linear, bias = rand(2, 4, 3, 2, 3), rand(2, 4, 3), rand(2, 4)
    expected = torch.einsum("ao,bi,cf,toif->tabc", *matrices.values(), conv.flatten(3)).view_as(conv)
    torch.testing.assert_close(curve(theta, "w", conv), expected)
    torch.testing.assert_close(curve(theta, "w", linear), matrices["out"] @ linear @ matrices["in"].T)
    torch.testing.assert_close(curve(theta, "w", bias), bias @ matrices["out"].T)
    # as one large matrix on a task's gradient (section 3.2's Kronecker product)
    whole = torch.kron(torch.kron(matrices["out"], matrices["in"]), matrices["filter"])
    torch.testing.assert_close(curve(theta, "w", conv)[0].flatten(), whole @ conv[0].flatten())


def test_one_inner_step_by_hand() -> None:
    """The gradient that MAML steps along, transformed; the head's rows are any classes, and mix with none."""
    learner, maml = (
        kind(MODELS["pool"], 0.4, 1, normalisation="group").build(SPEC, EPISODE) for kind in (MetaCurvature, MAML)
    )
    theta, support = begun(learner), batch(2)
    with torch.no_grad():
        found, plain = (one.adapt(theta, support).params for one in (learner, maml))
    p = theta.params
    assert set(found) == set(plain)
    for name in ("4.weight", "head.weight"):  # a convolution of 4 on 4 channels
        start = p[name].detach().expand_as(plain[name])
        grad = ((start - plain[name]) / 0.4).flatten(3) if name == "4.weight" else (start - plain[name]) / 0.4
        moved = torch.einsum("bi,toi...->tob...", p[f"curvature.{name}.in"], grad)
        if name == "4.weight":
            moved = torch.einsum("ao,cf,toif->taic", p["curvature.4.weight.out"], p["curvature.4.weight.filter"], moved)
        torch.testing.assert_close(found[name], (start - 0.4 * moved.view_as(start)).detach())
    assert {name for name in p if name.startswith("curvature.head")} == {"curvature.head.weight.in"}
    assert "curvature.0.weight.in" not in p  # one channel


@pytest.mark.parametrize("head", ["shared", "fixed", "prototypes"])
def test_it_begins_as_maml(head: str) -> None:
    learner, maml = (
        kind(MODELS["pool"], 0.4, 2, head=head, normalisation="group").build(SPEC, EPISODE)
        for kind in (MetaCurvature, MAML)
    )
    found = []
    for one in (learner, maml):
        theta = one.init(0)
        exact = Theta({name: value.double().requires_grad_() for name, value in theta.params.items()})
        found.append(BatchProblem(one, exact, SPEC, [batch(2)], batch(2, seed=1), 3).loss_and_grad())
    assert found[0][0] == pytest.approx(found[1][0])
    for name, grad in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], grad)
    assert found[0][1]["curvature.4.weight.filter"].norm() > 0


def test_contract() -> None:
    check_metalearner(MetaCurvature(Conv4(4, down="stride"), steps=2))


def test_it_can_act() -> None:
    assert isinstance(MetaCurvature(MODELS["mlp"]), PolicyLearner)


def test_it_learns_to_learn_in_one_step() -> None:
    trained, after, before = taught(MetaCurvature(Perceptron(), inner_lr=1.0, steps=1), 80)
    assert after > 0.9
    assert before < 0.4
    assert not torch.allclose(trained.params["curvature.head.weight.in"], torch.eye(32), atol=0.1)
