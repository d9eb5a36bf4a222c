"""Every image is a class of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from umeta.augment.suited import suited
from umeta.data.images import UnlabelledImages
from umeta.parts import Augment, Context, Embedder
from umeta.tasks.instances import Augmented, InstanceTasks
from umeta.tasks.rotated import Rotated


@dataclass(frozen=True)
class Instances:
    """Each image its own class, through augmentation (UMTRA, Khodadadeh et al. 2019; ProtoCLR, Medina et al. 2020)."""

    domain: ClassVar[Literal["image", "env"]] = "image"
    sees_labels: ClassVar[bool] = False

    augment: Augment | None = None
    """what makes a view, `drawing` or `photo`; by default drawing for grey images and photo for colour"""
    rotations: bool = False
    """turn each class by 0, 90, 180 or 270 degrees (for drawings, whose meaning turns with them)"""

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> Augmented:
        """Needs no embedding, and takes no time."""
        tasks = InstanceTasks(source.pixels)
        return Augmented(Rotated(tasks) if self.rotations else tasks, self.augment or suited(source.item_shape))
