"""ANIL: MAML whose inner loop moves the head alone."""

from __future__ import annotations

from dataclasses import dataclass

from umeta.metalearners._gradient import UnrolledLearner


@dataclass
class ANIL(UnrolledLearner):
    """Almost no inner loop (ANIL, Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157, section 4).

    MAML with the inner loop `head <- head - inner_lr * grad_head L_support(body, head)` and the body as it is: features
    are reused and not learnt anew for each task. The outer loop learns both.
    """

    def adapts_weight(self, name: str) -> bool:
        """Whether the inner loop moves the weight of this name."""
        return name.startswith("head.")
