"""Plots of curves: training, adaptation, extrapolation."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from umeta.draw import mosaic

MARKERS = "os^vD*"
SHOWN = 12  # rewards, or skills in a film, that are shown one by one, at most


class Curve(TypedDict):
    """Means and half widths of their 95 % intervals against x, to be drawn."""

    x: list[float]
    mean: list[float]
    interval: list[float]
    label: NotRequired[str]
    """what x is"""


def plot_training(path: Path, steps: Sequence[float], values: Mapping[str, Sequence[float]], xlabel: str) -> None:
    """Plot lines over steps as PNG, one panel each, smoothed over a twentieth of their length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(values), 2.6), layout="constrained")
    for axis, (name, ys) in zip(figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True):
        window = max(1, len(ys) // 20)
        smooth = np.convolve(ys, np.ones(window) / window, mode="valid")
        axis.plot(steps, ys, color="#bcd", linewidth=0.8)
        axis.plot(list(steps)[window - 1 :], smooth, color="#05a")
        axis.set(xlabel=xlabel, title=name)
    mosaic.save(mosaic.render(figure), path)


def colours(count: int) -> list[tuple[float, float, float]]:
    """Choose `count` colours; neighbours in number are far apart in hue."""
    return [colorsys.hsv_to_rgb(0.618034 * i % 1, (0.9, 0.6)[i % 2], (0.85, 0.7, 0.55)[i % 3]) for i in range(count)]


def name_steps(count: int) -> str:
    """Name a number of steps, as in `1 step` and `2 steps`."""
    return f"{count} step{'' if count == 1 else 's'}"


def label_of(curves: Mapping[str, Curve]) -> str:
    """Say what the x of curves of adaptation is."""
    return next(iter(curves.values())).get("label", "steps of adaptation")


def plot_adaptation(path: Path, curves: Mapping[str, Curve], ylabel: str) -> None:
    """Plot several curves as PNG, each with `x`, its `mean` and the half width of its 95 % `interval`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (name, curve) in enumerate(curves.items()):
        colour, dash, marker = colours(len(curves))[i], ("-", "--", "-.", ":")[i % 4], MARKERS[i % len(MARKERS)]
        x, mean, half = (np.asarray(v, float) for v in (curve["x"], curve["mean"], curve["interval"]))
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, mean, dash, color=colour, marker=marker, markersize=4, linewidth=1.8, label=name)
    axes.set(xlabel=label_of(curves), ylabel=ylabel)
    axes.locator_params(axis="x", nbins=6)  # labels of five digits would overlap
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    mosaic.save(mosaic.render(figure), path)


def plot_points(path: Path, points: Mapping[str, tuple[float, float]], labels: tuple[str, str]) -> None:
    """Plot a named point for each (x, y) as PNG."""
    from matplotlib.figure import Figure

    columns = 1 + len(points) // 25
    figure = Figure(figsize=(6 + 2 * columns, 5), layout="constrained")
    axes = figure.subplots()
    for (name, (x, y)), colour, marker in zip(points.items(), colours(len(points)), cycle(MARKERS), strict=False):
        axes.plot(x, y, marker, color=colour, markersize=6, linestyle="", label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, ncols=columns)
    mosaic.save(mosaic.render(figure), path)


def plot_extrapolation(path: Path, axes_of: Mapping[str, Mapping[str, Mapping[str, Any]]], ylabel: str) -> None:
    """Plot a panel per kind of change as PNG, a line per learner over how far it goes, with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(axes_of), 4), layout="constrained")
    for axes, (change, rows) in zip(figure.subplots(1, len(axes_of), squeeze=False)[0], axes_of.items(), strict=True):
        for i, (name, cells) in enumerate(rows.items()):
            mean, half = (np.array([cell[key] for cell in cells.values()], float) for key in ("mean", "interval"))
            colour, dash = colours(len(rows))[i], ("-", "--", "-.", ":")[i % 4]
            marker = MARKERS[i % len(MARKERS)]
            axes.errorbar(list(cells), mean, half, color=colour, linestyle=dash, marker=marker, label=name)
        axes.set(xlabel=change, ylabel=ylabel)
        axes.tick_params(axis="x", labelrotation=30)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    mosaic.save(mosaic.render(figure), path)
