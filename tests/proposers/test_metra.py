"""A space to move in, and skills that do, where what they must come to is known."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from proposers.metra import FASTEST, Learning, Metra
from umeta import seeds
from umeta.cli.main import main
from umeta.config.build import load
from umeta.envs.nav2d import Nav2D
from umeta.errors import UserError
from umeta.rl.explore import episodes
from umeta.rl.rollout import Paths
from umeta.rl.skills import act
from umeta.rl.space import SLACK, Space, measure_alignment, reward, tell_success
from umeta.runtime.loop import RunContext
from umeta.stages.tasks import load_tasks

OPEN = Nav2D("Nav2DOpen-v0", horizon=12)
FEW = Metra(skills=4, iterations=2, episodes=6, hidden=8, map_steps=2)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def walks(steps: Tensor) -> Paths:
    """Episodes with these steps [T, E, H, 2] in the plane, which is what is observed."""
    places = torch.cat([torch.zeros_like(steps[:, :, :1]), steps.cumsum(2)], 2)
    shape = steps.shape[:3]
    return Paths(places, torch.zeros_like(steps), torch.zeros(shape), places, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("family", ["directions", "velocities", "places"])
def test_rewards_by_hand(family: str) -> None:
    space = Space(OPEN, family, count=3, dim=2, hidden=5, sees=[0, 3])  # type: ignore[arg-type]
    space.points.copy_(draw(3, 2, seed=1))
    space.mean.copy_(torch.tensor([1.0, -2.0]))
    space.scale.copy_(torch.tensor([0.5, 3.0]))
    paths = walks(draw(2, 3, 4, 2))
    found = space(paths, torch.tensor([2, 0]))
    layers = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in list(space.layers)[::2]]  # type: ignore[operator, union-attr]

    def phi(x: np.ndarray) -> np.ndarray:
        h = (x - [1, -2]) * [0.5, 3]
        for i, (weight, bias) in enumerate(layers):
            h = weight @ h + bias
            h = np.maximum(h, 0) if i < 2 else h
        return h

    for t, w in enumerate(space.points[[2, 0]].numpy()):
        for e in range(3):
            at = [phi(place) for place in paths.positions[t, e].numpy()]
            for h in range(4):
                d = at[h + 1] - at[h]
                expected = {
                    "directions": w @ d,
                    "velocities": -np.linalg.norm(d - w),
                    "places": -np.linalg.norm(at[h + 1] - at[0] - w),
                }[family]
                assert found[t, e, h].item() == pytest.approx(expected, abs=1e-4)


def test_the_space_is_what_the_constraint_lets_it_be() -> None:
    """Where skills already move as they are told, the longest by a length l, phi must be 1 / l of the place."""
    learning = Learning(Metra(hidden=16, map_steps=300, map_lr=3e-3), OPEN, RunContext())
    random = seeds.generator(3, "walks")
    z = (
        FASTEST
        * torch.nn.functional.normalize(draw(1, 400, 2), dim=-1)
        * torch.rand(1, 400, 1, generator=random) ** 0.5
    )
    skill = z[:, :, None].expand(-1, -1, 8, -1)
    paths = walks(0.05 * skill)
    learning.space.standardise(paths)
    for _ in range(5):
        learning.map.learn(paths, skill, random)
    with torch.no_grad():
        d = learning.space.locate(learning.space.seen(paths)).diff(dim=2)
    assert d.norm(dim=-1).quantile(0.99).item() < 1.1
    torch.testing.assert_close(d, skill / FASTEST, atol=0.25, rtol=0)
    assert (d - skill / FASTEST).norm(dim=-1).mean() < 0.1


@pytest.mark.parametrize(("cosine", "share"), [(0.4, 0.0), (0.6, 0.5), (0.9, 1.0)])
def test_alignment_gives_way_to_norm_matching(cosine: float, share: float) -> None:
    d, z = draw(1, 3, 4, 2), draw(1, 3, 4, 2, seed=1)
    mask = torch.ones(1, 3, 4, dtype=torch.bool)
    mask[0, 1, 2:] = False
    moved, told = d[mask].numpy(), z[mask].numpy()
    kinds = [(moved * told).sum(1), 1 / (1 + 10 * ((moved - told) ** 2).sum(1))]
    along, matched = ((kind - kind.mean()) / kind.std(ddof=1) for kind in kinds)
    found = reward(d, z, mask, cosine)[mask].numpy()
    assert found == pytest.approx((1 - share) * along + share * matched, abs=1e-5)


def test_skills_go_their_way_at_their_speed() -> None:
    """Another processor's rounding trains other skills: cosines from 0.98, correlations from 0.8, margins of 0.5."""
    tasks = Metra(skills=8, iterations=120, episodes=32, hidden=32, lr=3e-3).propose(OPEN, RunContext())
    assert isinstance(tasks.rewards, Space)
    paths = episodes(OPEN, act(tasks.skills), 8, 8, seeds.generator(7, "fresh"))  # type: ignore[arg-type]
    with torch.no_grad():
        moved = tasks.rewards.locate(tasks.rewards.seen(paths))
    mean = (moved[:, :, -1] - moved[:, :, 0]).mean(1) / OPEN.horizon
    aim = tasks.rewards.points * FASTEST
    assert torch.cosine_similarity(mean, aim).min() > 0.5
    lengths = torch.stack([mean.norm(dim=1), aim.norm(dim=1)])
    assert torch.corrcoef(lengths)[0, 1] > 0.5
    own, *others = (tasks.rewards(paths, torch.arange(8).roll(k)).mean((1, 2)) for k in range(8))
    assert (own - torch.stack(others).mean(0)).min() > 0.2


@pytest.mark.parametrize("discrete", [False, True])
def test_who_is_told_a_place_is_taught_what_is_left_of_the_way(discrete: bool) -> None:
    """Walks on a line in a space that is the plane; the policy that goes a way acts by it, as a network would learn."""
    learning = Learning(replace(FEW, skills=3, family="places", discrete=discrete, map_steps=1), OPEN, RunContext())
    space, size, random = learning.space, learning.options.size, torch.Generator().manual_seed(0)
    space.locate = lambda seen: torch.nn.functional.pad(seen[..., :2], (0, size - 2))  # type: ignore[method-assign]
    steps = torch.zeros(1, 5, 4, 2)
    steps[0, :, :, 0] = torch.arange(1, 6)[:, None] / 4
    skill, paths = learning.options.draw(5, random)[None, :, None].expand(-1, -1, 4, -1), walks(steps)
    asked: list[Tensor] = []

    def go(x: Tensor, way: Tensor) -> Tensor:
        asked.append(way)
        return torch.zeros(len(x), 4)

    learning.policy = go  # type: ignore[assignment]
    reach = 4.0  # how far three of four had come, or less
    longest = learning.stored.norm(dim=1).max() if discrete else FASTEST
    for first in (True, False):  # which is settled once
        found = learning.stay(paths, skill, random, first=first)
        torch.testing.assert_close(space.points, learning.stored / longest * reach)
    come = torch.nn.functional.pad(paths.positions[:, :, :-1], (0, size - 2))
    left = (skill / longest * reach - come).flatten(0, 2)
    way = left / 3
    far = way.norm(dim=-1) > FASTEST
    assert far.any() != far.all()
    torch.testing.assert_close(asked[0][~far], way[~far])
    torch.testing.assert_close(asked[0][far], FASTEST * torch.nn.functional.normalize(way[far], dim=-1))
    assert found["off"] == pytest.approx(left.norm(dim=-1).mean().item(), rel=1e-5)


def test_skills_stop_at_their_places(capsys: pytest.CaptureFixture[str]) -> None:
    env, options = Nav2D("Nav2DOpen-v0", horizon=24), Metra(family="places", skills=8, iterations=120, lr=3e-3)
    tasks = options.propose(env, RunContext(progress=True))
    paths = episodes(env, act(tasks.skills), 8, 8, seeds.generator(7, "fresh"))  # type: ignore[arg-type]
    with torch.no_grad():
        phi = tasks.rewards.locate(tasks.rewards.seen(paths))  # type: ignore[operator, union-attr]
    far = tasks.rewards.points.norm(dim=1).mean()  # type: ignore[union-attr]
    missed = (phi[:, :, 18:] - phi[:, :, :1] - tasks.rewards.points[:, None, None]).norm(dim=-1)  # type: ignore[union-attr]
    assert missed.mean() < 0.25 * far
    assert "from where they are told to be, which is up to" in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "aligned"), [([[1.0, 0.0], [0.0, 0.0]], 1.0), ([[3.0, 0.0], [0.0, 1.0]], 0.75)])
def test_steps_against_a_wall_do_not_count_in_alignment(steps: list[list[float]], aligned: float) -> None:
    told = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    assert measure_alignment(torch.tensor(steps), told) == pytest.approx(aligned)


def test_kinds_of_skills_are_centred_one_hot_vectors() -> None:
    """As in the authors' code; the tasks ask for as much as a step can do, whatever the family."""
    learning = Learning(replace(FEW, skills=3, discrete=True, family="velocities"), OPEN, RunContext())
    kinds = [[1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]]
    torch.testing.assert_close(learning.stored, torch.tensor(kinds))
    torch.testing.assert_close(learning.space.points.norm(dim=1), torch.ones(3))
    drawn = learning.options.draw(200, torch.Generator().manual_seed(0))
    assert sorted({tuple(one) for one in drawn.round(decimals=4).tolist()}) == sorted(map(tuple, kinds))


def test_kinds_of_skills_go_ways_of_their_own() -> None:
    options = Metra(discrete=True, skills=4, family="directions", iterations=60, episodes=32, hidden=32, lr=3e-3)
    tasks = options.propose(OPEN, RunContext())
    paths = episodes(OPEN, act(tasks.skills), 4, 8, seeds.generator(7, "fresh"))  # type: ignore[arg-type]
    earned = torch.stack([tasks.rewards(paths, torch.full((4,), z)).sum(2) for z in range(4)])
    own = earned.argmax(0) == torch.arange(4)[:, None]
    assert own.float().mean() > 0.8


def test_it_says_when_discovery_failed() -> None:
    assert "cosine of 0.91 on average, by chance 0" in tell_success(0.91)
    assert "are alike" not in tell_success(0.91)
    assert "are alike, and so are their rewards" in tell_success(0.1)
    with pytest.raises(UserError, match=r"proposer\.sees: expected some of 0 to 3, got \[4\]"):
        Metra(sees=[4]).rewards(OPEN)


def test_rewards_and_skills_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = [f"proposer.{key}={getattr(FEW, key)}" for key in ("skills", "iterations", "episodes", "hidden")]
    asked = ["nav2d_diayn", "proposer=metra", *changes, "name=few", "env.horizon=12"]
    assert main(["propose", *asked]) == 0
    loaded = load_tasks(load(asked[0], asked[1:]))[0]
    again = FEW.propose(Nav2D(horizon=12), RunContext())
    assert loaded.skills.keys() == again.skills.keys()  # type: ignore[attr-defined, union-attr]
    assert len(loaded.skills["1.bias"]) == 4  # type: ignore[attr-defined]
    assert loaded.rewards.points.any()  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [10, 1])
def test_the_map_follows_the_gradient_of_its_lagrangian(count: int) -> None:
    """Section 4.2 of the paper, for steps of about the length allowed: `E d'z + lambda min(slack, 1 - |d|^2)`."""
    learning = Learning(replace(FEW, map_steps=1), OPEN, RunContext())
    paths, z = walks(draw(1, count, 8, 2)), 0.5 * draw(1, count, 1, 2, seed=1).expand(-1, -1, 8, -1)
    space = copy.deepcopy(learning.space)
    params, log_dual = list(space.parameters()), learning.map.dual[0].detach().clone().requires_grad_()
    learning.map.optimiser = torch.optim.SGD([*learning.space.parameters(), *learning.map.dual.parameters()], lr=1.0)
    length = learning.map.learn(paths, z, torch.Generator().manual_seed(3))
    part = torch.randperm(8 * count, generator=torch.Generator().manual_seed(3))[: {10: 8, 1: 1}[count]]  # a tenth
    seen = space.seen(paths)
    d = (space.locate(seen[:, :, 1:]) - space.locate(seen[:, :, :-1])).flatten(0, 2)[part]
    square = (d**2).sum(-1)
    assert length == pytest.approx(square.mean().item() ** 0.5)
    room = torch.minimum(1 - square, torch.tensor(SLACK))
    up = ((d * z.flatten(0, 2)[part]).sum(-1) + log_dual.exp().detach() * room).mean()
    for moved, was, g in zip(learning.space.parameters(), params, torch.autograd.grad(up, params), strict=True):
        torch.testing.assert_close(moved.detach(), was.detach() + g, rtol=1e-4, atol=1e-6)
    down = log_dual.detach() - log_dual.exp().detach() * room.mean().detach()  # falls where there is room
    torch.testing.assert_close(learning.map.dual[0].detach(), down, rtol=1e-4, atol=1e-6)


def test_what_was_found_is_said_at_its_end() -> None:
    ctx = RunContext()
    said: list[str] = []
    ctx.note = said.append  # type: ignore[method-assign]
    FEW.propose(OPEN, ctx)
    assert sum("metra: skills go where they are told with a cosine of" in line for line in said) == 1
