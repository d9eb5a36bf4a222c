"""What proposers that do something with the tasks of another have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from umeta.parts import ProposerTraits


@dataclass(frozen=True)
class WithProposer:
    """Options of a proposer around another one, of which it is what that one is."""

    proposer: Any
    """of the tasks, a name or a mapping"""

    @property
    def sees_labels(self) -> bool:
        """Whether its proposer does."""
        return self.proposer.sees_labels

    @property
    def unlabelled(self) -> bool:
        """Whether its proposer's supports hold items without a label."""
        return ProposerTraits.of(self.proposer).unlabelled
