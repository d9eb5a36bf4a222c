"""Images without labels, each a function to regress from a few of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from umeta.data.images import Split, UnlabelledImages
from umeta.parts import Context, Embedder
from umeta.tasks.completion import PixelTasks


@dataclass(frozen=True)
class Completion:
    """Images to complete from a few of their pixels (Garnelo et al. 2018, arXiv 1807.01613, section 4.2).

    Tasks are of the training images, and those to test on of the test images.
    """

    domain: ClassVar[Literal["image", "env", "regression"]] = "regression"
    sees_labels: ClassVar[bool] = False

    data: Any
    """where the images are from, a name or a mapping"""

    def propose(self, source: None, ctx: Context, embedder: Embedder | None = None) -> PixelTasks:
        """Return the tasks; nothing is learnt."""
        return self._read("train")

    def test(self) -> PixelTasks:
        """Return the tasks to test on."""
        return self._read("test")

    def _read(self, split: Split) -> PixelTasks:
        return PixelTasks(UnlabelledImages.of(self.data.read(split).pixels).pixels)
