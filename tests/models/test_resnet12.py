"""ResNet-12: its shapes, its size, its function written out, and both learners on it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umeta.errors import UserError
from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.models.resnet12 import ResNet12
from umeta.testing import check_metalearner

TINY = ResNet12([2, 3, 4, 5])


@pytest.mark.parametrize("shape", [(3, 84, 84), (1, 28, 28), (3, 17, 30)])
def test_an_image_becomes_a_vector_as_long_as_the_last_block_is_wide(shape):
    assert TINY.build(shape)(torch.rand(2, *shape)).shape == (2, 5)


def test_the_published_size():
    """12.4 million parameters (Lee et al. 2019), of images of any size."""
    count = sum(p.numel() for p in ResNet12().build((3, 84, 84)).parameters())
    assert count == 12_424_320


def reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network by hand: max-pooled leaky ReLU of three convolutions plus a 1x1 one, four times, then the mean."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], True)

    for block in range(4):
        out = x
        for i, place in enumerate((0, 3, 6)):
            out = norm(F.conv2d(out, state[f"{block}.path.{place}.weight"], padding=1), f"{block}.path.{place + 1}")
            out = out if i == 2 else torch.where(out > 0, out, 0.1 * out)
        out = out + norm(F.conv2d(x, state[f"{block}.shortcut.0.weight"]), f"{block}.shortcut.1")
        x = F.max_pool2d(torch.where(out > 0, out, 0.1 * out), 2)
    return x.mean((2, 3))


def test_its_function_is_the_published_one():
    torch.manual_seed(0)
    net = TINY.build((3, 32, 32)).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net(x), reference(dict(net.state_dict()), x))


@pytest.mark.parametrize("learner", [MAML(TINY, steps=2), ProtoNet(TINY)], ids=["maml", "protonet"])
def test_both_learners_work_on_it(learner):
    check_metalearner(learner)


def test_bad_options_and_items_are_named():
    with pytest.raises(ValueError, match="expected four numbers"):
        ResNet12([1, 2])
    with pytest.raises(UserError, match="8x20 is too small, resize to 16"):
        ResNet12().build((3, 8, 20))
    with pytest.raises(UserError, match="takes images"):
        ResNet12().build((3,))
