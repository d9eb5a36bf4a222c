"""Pictures of functions: every task has a panel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from umeta.draw.regression import Fit, draw_fits


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_task_has_a_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_title", lambda self, title, **_: titles.append(title))
    x = np.linspace(-5, 5, 20)
    panels = [Fit(f"task {i}", x, np.sin(x), x[:3], np.sin(x[:3]), {0: x, 1: -x}, x[None]) for i in range(count)]
    draw_fits(tmp_path / "fits.png", panels)
    assert titles == [f"task {i}" for i in range(count)]
    assert Image.open(tmp_path / "fits.png").format == "PNG"
