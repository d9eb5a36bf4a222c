"""Plots of points and curves: each thing in them can be told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image

from umeta.draw import curves


@pytest.mark.parametrize("count", [1, 5, 9, 30])
def test_each_point_has_a_look_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    drawn: list[tuple[Any, ...]] = []
    plot = Axes.plot

    def keep(self: Axes, x: float, y: float, marker: str, **options: Any) -> Any:
        drawn.append((options["label"], x, y, marker, options["color"]))
        return plot(self, x, y, marker, **options)

    monkeypatch.setattr(Axes, "plot", keep)
    points = {f"learner {i}": (float(i), 90.0 - i) for i in range(count)}
    curves.plot_points(tmp_path / "points.png", points, ("error", "accuracy"))
    assert {name: (x, y) for name, x, y, *_ in drawn} == points
    assert len({look for *_, look in drawn}) == count
    assert Image.open(tmp_path / "points.png").format == "PNG"
