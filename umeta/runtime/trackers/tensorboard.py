"""TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from umeta.errors import UserError


@dataclass
class TensorBoard:
    """Event files for TensorBoard (Abadi et al. 2016), in `tensorboard/` of the stage's folder.

    Every loop and picture has a directory of its own in there: after a resume the steps that are run again must hide
    those logged before the interruption, and TensorBoard hides all of a directory's later steps at once.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    _folder: Path = field(init=False, repr=False)
    _writers: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError("tracker tensorboard: its package is not installed; pip install tensorboard")

    def start(self, folder: Path) -> None:
        """Begins a stage; nothing is written yet."""
        self._folder = folder / "tensorboard"

    def scalars(self, loop: str, step: int, metrics: Mapping[str, float]) -> None:
        """One point a metric, named `<loop>/<metric>`."""
        writer = self._writer(loop, step)
        for name, value in metrics.items():
            writer.add_scalar(f"{loop}/{name}", value, step)

    def picture(self, name: str, pixels: np.ndarray) -> None:
        """Log a picture [H, W, 3] uint8."""
        self._writer(name, 0).add_image(name, pixels, dataformats="HWC")

    def close(self) -> None:
        """Write out what is still in memory."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, name: str, first: int) -> Any:
        """Return the writer of a directory, begun so that it hides what was logged there from step `first` on."""
        if name not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[name] = SummaryWriter(str(self._folder / name), purge_step=first)
        return self._writers[name]
