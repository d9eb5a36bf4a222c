"""What parts may say about themselves, and what is taken for granted where they say nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import pytest

from umeta import parts

TRAITS = parts.Traits.__subclasses__()


class Foreign:
    """A plug-in that inherits from nothing and says nothing."""


@dataclass
class Talkative:
    """An outer step that says something in each way that there is."""

    order: int = 2
    for_policies: ClassVar[bool] = True
    other: int = 7

    @property
    def second_order(self) -> bool:
        return self.order == 2


@pytest.mark.parametrize("traits", TRAITS, ids=lambda traits: traits.__name__)
def test_a_part_that_says_nothing_has_the_defaults(traits):
    assert traits.of(Foreign()) == traits()
    assert traits.of(None) == traits()


def test_attributes_options_and_properties_are_read():
    assert parts.OuterTraits.of(Talkative()) == parts.OuterTraits(for_policies=True, second_order=True)
    assert not parts.OuterTraits.of(Talkative(order=1)).second_order


def test_the_traits_of_built_in_parts():
    from embeddings.acai import ACAI
    from proposers.kmeans import KMeans
    from umeta.outer.adam import Adam
    from umeta.outer.trpo import TRPO

    assert parts.EmbedderTraits.of(ACAI()).shared_fit
    assert parts.ProposerTraits.of(KMeans(k=7, partitions=3)) == parts.ProposerTraits(k=7, partitions=3)
    assert parts.OuterTraits.of(Adam()) == parts.OuterTraits()
    assert parts.OuterTraits.of(TRPO()) == parts.OuterTraits(for_policies=True, second_order=True)


def test_every_trait_has_a_default():
    for traits in TRAITS:
        assert {f.name for f in fields(traits)} == vars(traits()).keys() != set()
