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
    """A meta-learner that says something in each way that there is."""

    steps: int = 3
    normalisation: str = "batch"
    regresses: ClassVar[bool] = True
    other: int = 7

    @property
    def transductive(self) -> bool:
        return self.normalisation == "batch"


@pytest.mark.parametrize("traits", TRAITS, ids=lambda traits: traits.__name__)
def test_a_part_that_says_nothing_has_the_defaults(traits):
    assert traits.of(Foreign()) == traits()
    assert traits.of(None) == traits()


def test_attributes_options_and_properties_are_read():
    assert parts.LearnerTraits.of(Talkative(steps=4)) == parts.LearnerTraits(
        steps=4, normalisation="batch", regresses=True, transductive=True
    )
    assert not parts.LearnerTraits.of(Talkative(normalisation="support")).transductive


def test_the_traits_of_built_in_parts():
    from embeddings.acai import ACAI
    from proposers.kmeans import KMeans
    from umeta.metalearners.protonet import ProtoNet
    from umeta.models.conv4 import Conv4
    from umeta.outer.adam import Adam
    from umeta.outer.trpo import TRPO

    assert parts.EmbedderTraits.of(ACAI()).shared_fit
    assert parts.ProposerTraits.of(KMeans(k=7, partitions=3)) == parts.ProposerTraits(k=7, partitions=3)
    learner = parts.LearnerTraits.of(ProtoNet(Conv4(), test_steps=2))
    assert (learner.test_steps, learner.steps, learner.regresses, learner.distance) == (2, None, False, "euclidean")
    assert parts.OuterTraits.of(Adam()) == parts.OuterTraits()
    assert parts.OuterTraits.of(TRPO()) == parts.OuterTraits(for_policies=True, second_order=True)


def test_every_trait_has_a_default():
    for traits in TRAITS:
        assert {f.name for f in fields(traits)} == vars(traits()).keys() != set()
