"""ResNet-9: its shapes, its function written out, and both learners on it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umeta.errors import UserError
from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.models.resnet9 import ResNet9
from umeta.testing import check_metalearner

TINY = ResNet9([2, 3, 4, 5])


@pytest.mark.parametrize("shape", [(3, 84, 84), (1, 28, 28), (3, 17, 30)])
def test_an_image_becomes_a_vector_as_long_as_the_last_convolution_is_wide(shape):
    assert TINY.build(shape)(torch.rand(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize("stride", [1, 2])
def test_its_function_is_the_one_described(stride):
    torch.manual_seed(0)
    net = ResNet9([2, 3, 4, 5], stride).build((3, 32, 32)).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    weights = list(net.parameters())

    def follow(x: Tensor, halve: bool = False, stride: int = 1) -> Tensor:
        """The next convolution and normalisation."""
        kernel, scale, shift = (weights.pop(0) for _ in range(3))
        x = F.conv2d(x, kernel, stride=stride, padding=1)
        return F.batch_norm(F.max_pool2d(x, 2) if halve else x, None, None, scale, shift, True)

    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    z = follow(x, True, stride).relu()
    for _ in range(2):
        z = follow(z, True).relu()
        z = (follow(follow(z).relu()) + z).relu()
    torch.testing.assert_close(net(x), follow(z).relu().mean((2, 3)))
    assert not weights


@pytest.mark.parametrize("learner", [MAML(TINY, steps=2), ProtoNet(TINY)], ids=["maml", "protonet"])
def test_both_learners_work_on_it(learner):
    check_metalearner(learner)


def test_bad_options_and_items_are_named():
    with pytest.raises(ValueError, match="expected four numbers"):
        ResNet9([1, 2])
    with pytest.raises(UserError, match="8x20, resize to 16"):
        ResNet9(stride=2).build((3, 8, 20))
    with pytest.raises(UserError, match="takes images"):
        ResNet9().build((3,))
