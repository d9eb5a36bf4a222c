"""Pictures of functions and of what learners make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umeta.draw import mosaic
from umeta.draw.curves import SHOWN, colours, name_steps
from umeta.parts import TaskTraits
from umeta.types import EpisodeSpec, TaskDistribution

UNSEEN = 70, 110, 190  # the colour of pixels that are not known


@dataclass(frozen=True)
class Fit:
    """One panel of `draw_fits`: a task's true curve [n] at x [n], its support, and predictions [n] by steps taken."""

    title: str
    x: np.ndarray
    true: np.ndarray
    support_x: np.ndarray
    support_y: np.ndarray
    after: Mapping[int, np.ndarray]
    draws: np.ndarray
    """[S, n]: of the last of them, the answers that are mixed in it"""


def draw_fits(path: Path, panels: Sequence[Fit]) -> None:
    """Draw predictions for one task beside its true curve, as PNG (figure 2 of Finn, Abbeel, Levine 2017)."""
    from matplotlib.figure import Figure

    columns = 2 if len(panels) > 1 else 1
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, 3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.plot(panel.x, panel.true, color="#c33", linewidth=2, label="true")
        if len(panel.draws) > 1:
            named = ["draws", *["_"] * (len(panel.draws) - 1)]
            axes.plot(panel.x, panel.draws.T, color="#05a", linewidth=0.7, alpha=0.4, label=named)
        for (steps, y), dash in zip(panel.after.items(), (":", "--", "-"), strict=False):
            taken = "before" if steps == 0 else f"after {name_steps(steps)}"
            label = taken if len(panel.after) > 1 else "answer"
            axes.plot(panel.x, y, dash, color="#05a", linewidth=1.6, label=label)
        axes.plot(panel.support_x, panel.support_y, "^", color="#639", markersize=7, label="support")
        axes.set_title(panel.title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    mosaic.save(mosaic.render(figure), path)


def draw_completions(path: Path, rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """Draw rows of painted images, right of their captions, as PNG."""
    mosaic.save(
        mosaic.add_captions([(caption, [mosaic.tile(one) for one in images]) for caption, images in rows]), path
    )


def paint(x: np.ndarray, y: np.ndarray, image: tuple[int, ...]) -> np.ndarray:
    """Paint pixels y [n, C], from 0 to 1, at rows and columns x [n, 2], from -1 to 1, of an image: [3, H, W] uint8."""
    canvas = np.empty((3, *image[1:]), np.uint8)
    canvas[:] = np.reshape(UNSEEN, (3, 1, 1))
    row, column = np.rint((x + 1) / 2 * (np.array(image[1:]) - 1)).astype(int).T
    canvas[:, row, column] = np.rint(255 * y.T.clip(0, 1))
    return canvas


def draw_tasks(tasks: TaskDistribution, episode: EpisodeSpec) -> np.ndarray:
    """Draw the first tasks, each with the points to adapt to, and the waves or images that some are of.

    Of several numbers in x and in y the first. Returns [H, W, 3] uint8.
    """
    from matplotlib.figure import Figure

    batch: Any = tasks.sample(np.arange(SHOWN), episode=episode, seed=0)
    support = batch.support()
    if image := TaskTraits.of(tasks).image:
        seen = [paint(x, y, image) for x, y in zip(support.x.numpy(), support.y.numpy(), strict=True)]
        return mosaic.mosaic([[mosaic.tile(one) for one in seen]])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for i, colour in enumerate(colours(SHOWN)):
        if between := TaskTraits.of(tasks).x:
            x = torch.linspace(*between, 200)
            axes.plot(x.numpy(), batch.at(x).query().y[i, :, 0].numpy(), color=colour, linewidth=1)
        axes.plot(support.x[i, :, 0].numpy(), support.y[i, :, 0].numpy(), ".", color=colour)
    axes.set(xlabel="x", ylabel="y", title=f"the first {SHOWN} tasks, with their support")
    return mosaic.render(figure)
