"""What policies do and what rewards want: paths in the plane, maps of rewards, films."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.draw import mosaic
from umeta.draw.curves import SHOWN, colours
from umeta.draw.mosaic import side_by_side
from umeta.errors import UserError
from umeta.parts import Environment, EnvironmentTraits, RewardTraits, Simulation
from umeta.rl import skills
from umeta.rl.explore import episodes
from umeta.rl.rollout import Paths, Told, rollout
from umeta.runtime import artifacts
from umeta.tasks.reward import RewardTasks
from umeta.types import Act, EpisodeSpec

EPISODES = 4  # of each skill in a picture; the first is without noise
CELLS = 48  # of a map, along each side
LABELLED = 64  # rewards that one map can still tell apart, at most
FRAMES = 50  # of a film, at most
SIDE = 360  # pixels of a film of points


def draw_tasks(tasks: RewardTasks, episode: EpisodeSpec) -> np.ndarray:
    """Draw where the skills go, what is rewarded where, and which reward is the highest there: [H, W, 3] uint8.

    episode: not used; how it explores is always the same.
    """
    from matplotlib.figure import Figure

    paths = explore(tasks)
    parts: list[Callable[[Any, RewardTasks, Paths], None]] = []
    if tasks.skills is not None:
        parts.append(draw_paths)
    if tasks.env.observation == 2 and RewardTraits.of(tasks.rewards).of_places:
        parts.append(draw_maps)
        if tasks.rewards.count <= LABELLED:
            parts.append(draw_territories)
    else:
        parts.append(draw_along_an_episode if tasks.skills is None else draw_returns)
    figure = Figure(figsize=(5.2 * len(parts), 5.2), layout="constrained")
    for panel, part in zip(figure.subfigures(1, len(parts), squeeze=False)[0], parts, strict=True):
        part(panel, tasks, paths)
    return mosaic.render(figure)


def explore(tasks: RewardTasks) -> Paths:
    """Roll out every skill [K, EPISODES, ...], or random actions [1, EPISODES, ...] where there are none."""
    if tasks.skills is None:
        still = torch.zeros(1, EPISODES, 2 * tasks.env.action)
        return episodes(tasks.env, lambda x: still, 1, EPISODES, seeds.generator(0, "views"))
    return play(tasks, EPISODES, noiseless=1)


def play(tasks: RewardTasks, count: int, noiseless: int) -> Paths:
    """Roll out `count` episodes of each skill, the first `noiseless` without noise, which is always the same."""
    assert tasks.skills is not None
    return episodes(
        tasks.env, skills.act(tasks.skills), count_skills(tasks), count, seeds.generator(0, "views"), noiseless
    )


def count_skills(tasks: RewardTasks) -> int:
    """Count the skills; none where they were not kept."""
    return len(tasks.skills["head.free"]) if tasks.skills else 0


def draw_lines(axes: Any, positions: Tensor, mask: Tensor, env: Environment) -> None:
    """Draw the positions [T, E, H + 1, 2] of each policy's episodes, the first in bold, each with a dot where it ends.

    In the plane, or over time where all of them are on one line.
    """
    line = bool(positions[..., 1].amax() == positions[..., 1].amin())
    for colour, some, alive in zip(colours(len(positions)), positions, mask, strict=True):
        for i, (places, steps) in enumerate(zip(some.numpy(), alive.sum(-1).tolist(), strict=True)):
            x, y = places[: steps + 1].T
            if line:
                x, y = np.arange(steps + 1), x
            width, alpha = (1.6, 1.0) if i == 0 else (0.5, 0.45)
            axes.plot(x, y, color=colour, linewidth=width, alpha=alpha, zorder=1 + alpha)
            axes.plot(x[-1], y[-1], "o", color=colour, alpha=alpha, markersize=4 * width**0.5, zorder=3)
    across, up = EnvironmentTraits.of(env).axes
    axes.set(xlabel="step" if line else across, ylabel=across if line else up)
    if not line:
        axes.set_aspect("equal")


def draw_paths(panel: Any, tasks: RewardTasks, paths: Paths) -> None:
    """Draw where the skills go."""
    axes = panel.subplots()
    draw_lines(axes, paths.positions, paths.mask, tasks.env)
    axes.set_title(f"paths of {len(paths.positions)} skills (bold: without noise)", fontsize=11)


def map_rewards(tasks: RewardTasks, paths: Paths, count: int) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Compute the first rewards over the region that was reached, where two numbers are observed.

    Gives the rewards [count, CELLS, CELLS], and the region as left, right, bottom and top.
    """
    seen = paths.after[paths.mask]
    (left, bottom), (right, top) = seen.amin(0).tolist(), seen.amax(0).tolist()
    x, y = torch.linspace(left, right, CELLS), torch.linspace(bottom, top, CELLS)
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(1, -1, 1, 2).expand(count, -1, 2, 2)
    resting = torch.zeros(count, CELLS * CELLS, 1, tasks.env.action)
    mask = torch.ones(count, CELLS * CELLS, 1, dtype=torch.bool)
    found = tasks.rewards(Paths(places, resting, resting[..., 0], places, mask), torch.arange(count))
    return found.view(count, CELLS, CELLS).numpy(), (left, right, bottom, top)


def draw_maps(panel: Any, tasks: RewardTasks, paths: Paths) -> None:
    """Draw the first rewards over the plane, one small map each, with the skill's path on it."""
    count = min(SHOWN, tasks.rewards.count)
    rewards, extent = map_rewards(tasks, paths, count)
    columns = math.ceil(count**0.5)
    for i, axes in enumerate(panel.subplots(math.ceil(count / columns), columns, squeeze=False).flat):
        axes.set_axis_off()
        if i < count:
            axes.imshow(rewards[i], origin="lower", extent=extent, interpolation="bilinear")
            axes.set_title(f"{i}", fontsize=9)
            if tasks.skills is not None:
                x, y = paths.positions[i, 0].T.numpy()
                axes.plot(x, y, color="white", linewidth=1.2)
                axes.plot(x[-1], y[-1], "o", color="white", markersize=3.5)
    panel.suptitle(f"{count} of {tasks.rewards.count} rewards, each from low (dark) to high (bright)", fontsize=11)


def draw_territories(panel: Any, tasks: RewardTasks, paths: Paths) -> None:
    """Draw which reward is the highest where, in the colours of the skills, with its number where there is room."""
    rewards, extent = map_rewards(tasks, paths, tasks.rewards.count)
    best = rewards.argmax(0)
    axes = panel.subplots()
    axes.imshow(np.array(colours(tasks.rewards.count))[best], origin="lower", extent=extent)
    x, y = (np.linspace(extent[i], extent[i + 1], CELLS) for i in (0, 2))
    for i in np.unique(best):
        rows, columns = np.nonzero(best == i)
        if len(rows) >= CELLS:
            middle = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
            at = x[columns[middle]], y[rows[middle]]
            axes.annotate(f"{i}", at, color="white", ha="center", va="center", fontsize=9, weight="bold")
    axes.set_title("which reward is the highest", fontsize=11)
    axes.set(xlabel="first number observed", ylabel="second number observed")


def draw_returns(panel: Any, tasks: RewardTasks, paths: Paths) -> None:
    """Draw the return of each skill under each reward: a bright diagonal where every skill is told from the others."""
    rewards = torch.stack(
        [
            paths.total(tasks.rewards(paths, torch.full((len(paths.mask),), i)))  # of one reward, by skill
            for i in range(tasks.rewards.count)
        ],
        1,
    )
    rewards = (rewards - rewards.amin(0)) / (rewards.amax(0) - rewards.amin(0)).clamp(min=1e-9)
    axes = panel.subplots()
    axes.imshow(rewards.numpy())
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    axes.set_title("return of every skill under every reward", fontsize=11)
    axes.set(xlabel="reward, each from low (dark) to high (bright)", ylabel="skill")


def draw_along_an_episode(panel: Any, tasks: RewardTasks, paths: Paths) -> None:
    """Draw the first rewards along one episode."""
    count = min(SHOWN, tasks.rewards.count)
    tensors = {f.name: getattr(paths, f.name) for f in fields(paths)}
    first = {name: value[:1, :1] for name, value in tensors.items() if value is not None}
    one = Paths(**{name: value.expand(count, *value.shape[1:]) for name, value in first.items()})
    axes = panel.subplots()
    for colour, values in zip(colours(count), tasks.rewards(one, torch.arange(count))[:, 0], strict=True):
        axes.plot(values[one.mask[0, 0]].numpy(), color=colour, linewidth=1)
    axes.set_title(f"{count} of {tasks.rewards.count} rewards along an episode of random actions", fontsize=11)
    axes.set(xlabel="step", ylabel="reward")


def draw_behaviour(path: Path, moments: Mapping[str, Paths], env: Environment, goals: Tensor | None = None) -> None:
    """Draw the paths of adapting policies at some moments as PNG, one panel each in the same colours and scale.

    goals: places [T, 2] to mark, where that is what the policies adapt to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(moments), 4.6), layout="constrained")
    grid = figure.subplots(1, len(moments), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, paths) in zip(grid, moments.items(), strict=True):
        draw_lines(axes, paths.positions, paths.mask, env)
        axes.label_outer()
        axes.set_title(name, fontsize=11)
        for colour, place in zip(colours(len(paths.positions)), [] if goals is None else goals.tolist(), strict=False):
            axes.plot(*place, "*", color=colour, markeredgecolor="black", markersize=13, zorder=4)
    mosaic.save(mosaic.render(figure), path)


def film(env: Environment, act: Act, seed: int, steps: int, told: Told = None) -> list[np.ndarray]:
    """Film one copy for an episode of at most `steps` under a policy: pictures [H, W, 3] uint8.

    act: for one task and one episode; told: as `rollout`.

    Raises:
        UserError: the environment cannot be drawn here.
    """
    return [picture for (picture,) in film_copies(env, act, 1, seed, steps, FRAMES, told)]


def film_copies(
    env: Environment, act: Act, copies: int, seed: int, steps: int, frames: int, told: Told = None
) -> list[list[np.ndarray]]:
    """Film every copy, at about `frames` moments; each has a policy of its own, all have the same noise and start."""
    random = seeds.generator(seed, "film")
    noise = torch.randn(steps, env.action, generator=random)
    u = torch.rand(1, env.randoms, generator=random)
    drawn = Drawn(env.simulate(copies), copies, math.ceil(steps / frames))
    rollout(drawn, act, noise.expand(copies, 1, -1, -1), u.expand(copies, 1, -1), told)
    return drawn.shown


class Drawn:
    """Copies of an environment that are drawn as they go, after one in `every` steps; what has ended stands still."""

    def __init__(self, simulation: Simulation, copies: int, every: int) -> None:
        self.simulation, self.every, self.living, self.steps = simulation, every, [True] * copies, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.simulation, name)

    def reset(self, u: Tensor) -> Tensor:
        observation = self.simulation.reset(u)
        self.shown = [[self.simulation.picture(i) for i in range(len(self.living))]]
        return observation

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        observation, ended = self.simulation.step(actions)
        if self.steps % self.every == 0 and any(self.living):
            last = self.shown[-1]
            now = [self.simulation.picture(i) if there else last[i] for i, there in enumerate(self.living)]
            self.shown.append(now)
        self.living = [there and not over for there, over in zip(self.living, ended.tolist(), strict=True)]
        self.steps += 1
        return observation, ended


def write_gif(path: Path, frames: Sequence[np.ndarray], fps: float = 12) -> None:
    """Write pictures as an animation that repeats and rests on its last one for a second."""
    from PIL import Image

    some = np.concatenate(frames[:: max(1, len(frames) // 4)])
    palette = Image.fromarray(some).quantize(256, method=Image.Quantize.MAXCOVERAGE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    each = round(1000 / fps)
    with artifacts.replace_atomically(path) as temporary:
        first, *rest = images
        durations = [each] * len(rest) + [1000]
        first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def write_film(path: Path, env: Environment, act: Act, seed: int, told: Told = None) -> str | None:
    """Write the film of an episode, as `film`; gives what to tell the person where that is not possible."""
    try:
        write_gif(path, film(env, act, seed, env.horizon, told))
    except UserError as error:
        return f"{path.name} left out: {error}"
    return None


def film_skills(tasks: RewardTasks, folder: Path) -> list[str]:
    """Write `skills.gif`, all skills at once, where there are some; gives what to tell the person where that failed.

    Points in the plane move through one picture; other bodies are drawn side by side, the first ones.
    """
    if tasks.skills is None:
        return []
    env = tasks.env
    try:
        if env.observation == 2:
            paths = play(tasks, 1, noiseless=0)
            frames = draw_points(paths.positions[:, 0].numpy())
        else:
            count = min(SHOWN, count_skills(tasks))
            act = skills.act({name: value[:count] for name, value in tasks.skills.items()})
            frames = [side_by_side(shown) for shown in film_copies(env, act, count, 0, env.horizon, FRAMES // 2)]
    except UserError as error:
        return [f"skills.gif left out: {error}"]
    write_gif(folder / "skills.gif", frames)
    return []


def draw_points(positions: np.ndarray) -> list[np.ndarray]:
    """Draw moving points with what they leave behind, ever faster: [K, H + 1, 2] metres as pictures."""
    from PIL import Image, ImageDraw

    low, high = positions.min((0, 1)), positions.max((0, 1))
    scale = 2 * 0.9 * SIDE / max(*(high - low), 1e-9)  # drawn twice as large and then reduced, which smooths
    places = (positions - (low + high) / 2) * [scale, -scale] + SIDE
    shades = [tuple(round(255 * c) for c in colour) for colour in colours(len(positions))]
    pale = [tuple(round(0.35 * c + 0.65 * 255) for c in shade) for shade in shades]
    last = positions.shape[1] - 1
    frames = []
    for t in np.linspace(0, 1, FRAMES) ** 2 * last:  # the start is what tells skills apart
        step = min(int(t), last - 1)
        now = places[:, step] + (t - step) * (places[:, step + 1] - places[:, step])
        picture = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
        draw = ImageDraw.Draw(picture)
        for path, at, shade in zip(places, now, pale, strict=True):
            draw.line([*map(tuple, path[: step + 1]), tuple(at)], fill=shade, width=3)
        for at, shade in zip(now, shades, strict=True):
            draw.circle(tuple(at), 11, fill=shade, outline="white", width=2)
        frames.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    return frames
