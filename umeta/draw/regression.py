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
from umeta.draw.curves import SHOWN, colours
from umeta.parts import TaskTraits
from umeta.types import EpisodeSpec, TaskDistribution


@dataclass(frozen=True)
class Fit:
    """One panel of `draw_fits`: a task's true curve [n] at x [n], its support, and predictions [n] by steps taken."""

    title: str
    x: np.ndarray
    true: np.ndarray
    support_x: np.ndarray
    support_y: np.ndarray
    after: Mapping[int, np.ndarray]


def draw_fits(path: Path, panels: Sequence[Fit]) -> None:
    """Draw predictions for one task beside its true curve, as PNG (figure 2 of Finn, Abbeel, Levine 2017)."""
    from matplotlib.figure import Figure

    columns = 2 if len(panels) > 1 else 1
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, 3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.plot(panel.x, panel.true, color="#c33", linewidth=2, label="true")
        for (steps, y), dash in zip(panel.after.items(), (":", "--", "-"), strict=False):
            label = "before" if steps == 0 else f"after {steps} step{'' if steps == 1 else 's'}"
            axes.plot(panel.x, y, dash, color="#05a", linewidth=1.6, label=label)
        axes.plot(panel.support_x, panel.support_y, "^", color="#639", markersize=7, label="support")
        axes.set_title(panel.title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    mosaic.save(mosaic.render(figure), path)


def draw_tasks(tasks: TaskDistribution, episode: EpisodeSpec) -> np.ndarray:
    """Draw the first tasks, each with the points to adapt to, and the waves that some are of: [H, W, 3] uint8.

    Of several numbers in x and in y the first.
    """
    from matplotlib.figure import Figure

    batch: Any = tasks.sample(np.arange(SHOWN), episode=episode, seed=0)
    support = batch.support()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for i, colour in enumerate(colours(SHOWN)):
        if between := TaskTraits.of(tasks).x:
            x = torch.linspace(*between, 200)
            axes.plot(x.numpy(), batch.at(x).query().y[i, :, 0].numpy(), color=colour, linewidth=1)
        axes.plot(support.x[i, :, 0].numpy(), support.y[i, :, 0].numpy(), ".", color=colour)
    axes.set(xlabel="x", ylabel="y", title=f"the first {SHOWN} tasks, with their support")
    return mosaic.render(figure)
