"""New images become items of a learner, a few at a time."""

import numpy as np
import pytest
from PIL import Image

from umeta.data.digits import Digits
from umeta.data.folder import Folder
from umeta.data.inputs import Format
from umeta.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)


def test_batches_are_the_items_in_order_and_no_larger_than_asked_for():
    batches = list(Format((3, 8, 8)).batches(PIXELS, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert np.array_equal(np.concatenate(batches), PIXELS)
    assert [len(batch) for batch in Format((3, 8, 8)).batches([Image.new("RGB", (9, 9))] * 3, 2)] == [2, 1]


def test_arrays_of_as_many_channels_must_have_the_size_too():
    assert np.array_equal(Format((3, 8, 8)).items(PIXELS), PIXELS)
    with pytest.raises(UserError, match=r"takes arrays of 3x8x8 .*, got 3x8x7"):
        Format((3, 8, 8)).items(PIXELS[..., :7])
    with pytest.raises(UserError, match=r"takes arrays of 3x8x8 .*, got 1x8x8"):
        Format((3, 8, 8)).items(PIXELS[:, :1])
    with pytest.raises(UserError, match="only square ones"):
        Format((3, 8, 7)).items([Image.new("RGB", (9, 9))])


def test_the_format_is_that_of_the_data_source():
    source = Folder("x", invert=True, pad=True)
    assert Format.of(source, (1, 8, 8)) == Format((1, 8, 8), invert=True, pad=True)
    assert Format.of(Digits(), (1, 8, 8)) == Format((1, 8, 8))
