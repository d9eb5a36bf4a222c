"""Plots of points and curves: each thing in them can be told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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


def test_extrapolation_has_a_panel_for_each_change_and_a_line_for_each_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    render = curves.mosaic.render
    monkeypatch.setattr(curves.mosaic, "render", lambda figure: [drawn.append(figure), render(figure)][1])
    rows = {
        name: {"0": {"mean": 90.0 - i, "interval": 1.0}, "45": {"mean": 70.0 - i, "interval": 2.0}}
        for i, name in enumerate("abcdefgh")
    }
    curves.plot_extrapolation(tmp_path / "x.png", {"turned": rows, "shear": {"a": rows["a"]}}, "accuracy, %")
    turned, shear = drawn[0].axes
    assert [axes.get_xlabel() for axes in (turned, shear)] == ["turned", "shear"]
    assert [text.get_text() for text in turned.get_legend().get_texts()] == list(rows)
    assert [line[0].get_ydata().tolist() for line in turned.containers] == [[90.0 - i, 70.0 - i] for i in range(8)]
    assert len(shear.containers) == 1
