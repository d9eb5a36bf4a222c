"""Protocols are the published ones, and settings for a person's own images follow from how many there are."""

import numpy as np
import pytest

from umeta.benchmarks.labelled import LabelledImages
from umeta.benchmarks.protocols import PROTOCOLS, choose_settings
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError


def labelled(*counts: int) -> LabelledImages:
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.arange(len(labels), dtype=np.uint8).repeat(4).reshape(-1, 1, 2, 2)
    return LabelledImages(UnlabelledImages.of(pixels), labels, tuple(map(str, range(len(counts)))))


@pytest.mark.parametrize(
    ("counts", "episodes", "query"),
    [
        ([20] * 8, [[5, 1], [5, 5]], 5),
        ([8] * 5, [[5, 1], [5, 5]], 3),
        ([6, 6], [[2, 1], [2, 5]], 1),
        ([5, 5, 5], [[3, 1]], 4),
        ([2, 2], [[2, 1]], 1),  # two images are the least that can be asked and shown
        ([2, 2, 1, 1], [[2, 1]], 1),
        ([9] * 6 + [2, 2], [[5, 1], [5, 5]], 4),  # three quarters of the classes have nine
        ([9] * 5 + [2] * 3, [[5, 1]], 1),
    ],
)
def test_settings_suit_the_labelled_images(counts, episodes, query):
    settings = choose_settings(labelled(*counts))
    assert (settings["episodes"], settings["query"]) == (episodes, query)
    assert settings["protocol"] == "small"


def test_two_classes_of_two_images_are_needed():
    with pytest.raises(UserError, match="at least two classes of two images or more, found 1 in 3 classes"):
        choose_settings(labelled(4, 1, 1))


def test_protocols_are_as_published():
    """Hsu et al. 2019, Snell et al. 2017, Jang et al. 2023 and Chen et al. 2019."""
    four = ((5, 1), (5, 5), (20, 1), (20, 5))
    found = {name: (p.episodes, p.query, p.tasks, p.rotations) for name, p in PROTOCOLS.items()}
    assert found == {
        "cactus": (four, 5, 1000, False),
        "vinyals": (four, 15, 1000, False),
        "rotated": (four, 15, 1000, True),
        "celeba": (((2, 5),), 5, 1000, False),
        "photographs": (four[:2], 15, 600, False),
        "mnist": (((10, 1), (10, 5), (10, 10)), 10, 1000, False),
        "small": (four[:2], 5, 200, False),
    }
