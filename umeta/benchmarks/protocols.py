"""Named evaluation protocols. The class split is the data's (`data.split`); a protocol says how it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from umeta.config import EvaluateConfig
from umeta.errors import UserError, suggest
from umeta.types import EpisodeSpec


@dataclass(frozen=True)
class Protocol:
    """(way, shot) pairs, queries per class and test tasks per pair."""

    episodes: tuple[tuple[int, int], ...]
    query: int
    tasks: int


PROTOCOLS = {
    # CACTUs (Hsu, Levine, Finn 2019, section 4): 1,000 tasks, 5 queries
    "cactus": Protocol(((5, 1), (5, 5), (20, 1), (20, 5)), query=5, tasks=1000),
    # Vinyals et al. 2016 as evaluated by Snell et al. 2017: 1,000 tasks, 15 queries (Omniglot has 20 images a class)
    "vinyals": Protocol(((5, 1), (5, 5), (20, 1), (20, 5)), query=15, tasks=1000),
    # few classes and few tasks, for small data
    "small": Protocol(((5, 1), (5, 5)), query=5, tasks=200),
}


def resolve(config: EvaluateConfig) -> tuple[list[EpisodeSpec], int]:
    """The episodes to test and the number of tasks of each, the config's own settings first.

    Raises:
        UserError: no protocol has that name.
    """
    if config.protocol not in PROTOCOLS:
        raise UserError(
            f"evaluate.protocol: no protocol is named '{config.protocol}'{suggest(config.protocol, PROTOCOLS)}"
        )
    protocol = PROTOCOLS[config.protocol]
    query = config.query or protocol.query
    episodes = [EpisodeSpec(way, shot, query) for way, shot in config.episodes or protocol.episodes]
    return episodes, config.tasks or protocol.tasks
