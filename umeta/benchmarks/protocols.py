"""Named evaluation protocols. The class split is the data's (`data.split`); a protocol says how it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from umeta.benchmarks.labelled import LabelledImages
from umeta.config.images import EvaluateConfig
from umeta.data.images import Source
from umeta.errors import UserError, suggest
from umeta.types import EpisodeSpec


@dataclass(frozen=True)
class Protocol:
    """(way, shot) pairs, queries per class and test tasks per pair."""

    episodes: tuple[tuple[int, int], ...]
    query: int
    tasks: int
    rotations: bool = False
    """each test class also turned by 90, 180 and 270 degrees, as three further classes"""


PROTOCOLS = {
    # CACTUs (Hsu, Levine, Finn 2019, section 4): 1,000 tasks, 5 queries
    "cactus": Protocol(((5, 1), (5, 5), (20, 1), (20, 5)), query=5, tasks=1000),
    # Vinyals et al. 2016 as evaluated by Snell et al. 2017: 1,000 tasks, 15 queries (Omniglot has 20 images a class)
    "vinyals": Protocol(((5, 1), (5, 5), (20, 1), (20, 5)), query=15, tasks=1000),
    # PsCo (Jang, Lee, Shin 2023) and Meta-GMVAE (Lee et al. 2021) on Omniglot: four rotations of each test class
    "rotated": Protocol(((5, 1), (5, 5), (20, 1), (20, 5)), query=15, tasks=1000, rotations=True),
    # CACTUs on CelebA: three attributes, each as a pattern says, against the opposite of each
    "celeba": Protocol(((2, 5),), query=5, tasks=1000),
    # the usual one of CIFAR-FS, FC100 and miniImageNet: 600 tasks, 15 queries (Chen et al. 2019, "A Closer Look")
    "photographs": Protocol(((5, 1), (5, 5)), query=15, tasks=600),
    # CACTUs on MNIST: 10 queries
    "mnist": Protocol(((10, 1), (10, 5), (10, 10)), query=10, tasks=1000),
    # few classes and few tasks, for small data
    "small": Protocol(((5, 1), (5, 5)), query=5, tasks=200),
}


def load_test_images(config: EvaluateConfig, source: Source) -> LabelledImages:
    """Load the labelled images of the split, as the protocol wants them.

    Raises:
        UserError: no labels, or images that cannot be turned.
    """
    test = LabelledImages.load(source, config.split)
    return test.rotated() if PROTOCOLS[config.protocol].rotations else test


def resolve_episodes(config: EvaluateConfig) -> tuple[list[EpisodeSpec], int]:
    """Return the episodes to test and the number of tasks of each, the config's own settings first.

    Raises:
        UserError: no protocol has that name, or no episodes are wanted.
    """
    if config.protocol not in PROTOCOLS:
        raise UserError(
            f"evaluate.protocol: no protocol is named '{config.protocol}'{suggest(config.protocol, PROTOCOLS)}"
        )
    if config.episodes == []:
        raise UserError("evaluate.episodes: there are none; set some (way, shot), such as evaluate.episodes=[[5,1]]")
    protocol = PROTOCOLS[config.protocol]
    query = config.query or protocol.query
    episodes = [EpisodeSpec(way, shot, query) for way, shot in config.episodes or protocol.episodes]
    return episodes, config.tasks or protocol.tasks


def choose_settings(test: LabelledImages) -> dict[str, Any]:
    """Choose settings (`evaluate` of a config) for any labelled images: up to 5 ways, 1 shot and where possible 5.

    They take no more images of a class than three quarters of the classes have; the others are left out.

    Raises:
        UserError: fewer than two classes with two images.
    """
    counts = np.sort(np.bincount(test.labels))[::-1]
    counts = counts[counts >= 2]
    if len(counts) < 2:
        raise UserError(
            f"data.test: expected at least two classes of two images or more, found {len(counts)} in {len(test.names)} "
            f"classes ({', '.join(test.names[:3])})"
        )
    way = min(5, len(counts))
    images = int(counts[max(way, len(counts) * 3 // 4) - 1])
    shots = [1, 5] if images > 5 else [1]
    return {
        "protocol": "small",
        "episodes": [[way, shot] for shot in shots],
        "query": min(5, images - shots[-1]),
        "baselines": ["pixels_knn", "hog", "histogram", "untrained", "random"],
    }
