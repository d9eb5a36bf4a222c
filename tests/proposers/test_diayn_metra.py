"""Skills that are told apart and skills that go their own way, in one policy."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from proposers.diayn_metra import Both, DiaynMetra, Learning
from umeta import seeds
from umeta.cli.main import main
from umeta.config.build import load
from umeta.envs.nav2d import Nav2D
from umeta.rl.explore import episodes
from umeta.rl.ppo import PPO
from umeta.rl.rollout import Paths
from umeta.rl.skills import act
from umeta.rl.space import reward
from umeta.runtime.loop import RunContext
from umeta.stages.tasks import load_tasks

OPEN = Nav2D("Nav2DOpen-v0", horizon=12)
FEW = DiaynMetra(skills=3, movers=4, iterations=2, episodes=2, hidden=8)


def seen(learning: Learning, seed: int = 0) -> Paths:
    """Two episodes of each skill."""
    return episodes(OPEN, act(learning.policy.policies()), 7, 2, seeds.generator(seed, "seen"))


def test_some_skills_are_told_apart_and_the_others_go_their_way() -> None:
    """The first three, by chance in a third of their states; the others' cosine is 0 by chance, and 0.9 here."""
    tasks = replace(FEW, iterations=60, episodes=8, hidden=32, lr=3e-3).propose(OPEN, RunContext())
    assert isinstance(tasks.rewards, Both)
    assert tasks.skills is not None
    paths = episodes(OPEN, act(tasks.skills), 7, 10, seeds.generator(7, "fresh"))
    apart, going = paths.of(slice(3)), paths.of(slice(3, None))
    likeliest = tasks.rewards.discriminator(apart.after).argmax(-1)
    assert (likeliest == torch.arange(3)[:, None, None]).float().mean() > 0.7
    space = tasks.rewards.going
    with torch.no_grad():
        moved = space.locate(space.seen(going)).diff(dim=2).sum(2).mean(1)
    assert torch.cosine_similarity(moved, space.points).min() > 0.5


def test_directions_divide_a_circle_and_each_reward_is_one_of_both() -> None:
    learning = Learning(FEW, OPEN, RunContext())
    rewards, paths = Both(learning.rewards, learning.space), seen(learning)
    torch.testing.assert_close(rewards.going.points, torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]))
    assert rewards.count == 7
    which = torch.tensor([6, 0, 2, 3, 1, 5, 4])
    found = rewards(paths, which)
    for i, z in enumerate(which.tolist()):
        one = paths.of(slice(i, i + 1))
        if z < 3:
            expected = learning.discriminator(one.after)[..., z].detach() + math.log(3)
        else:
            d = learning.space.locate(learning.space.seen(one)).detach().diff(dim=2)
            expected = d @ learning.space.points[z - 3]
        torch.testing.assert_close(found[i : i + 1], expected)


def test_each_kind_earns_its_own_in_units_of_its_own() -> None:
    """What PPO is given, by hand; the discriminator and the map have been trained by then."""
    learning = Learning(replace(FEW, algorithm=PPO(effort=0.5)), OPEN, RunContext())
    given: list[Tensor] = []
    learning.learner.learn = lambda paths, skill, rewards, random: given.append(rewards)  # type: ignore[method-assign]
    paths = seen(learning)
    skill = torch.arange(7).view(-1, 1, 1).expand_as(paths.mask)
    found = learning.learn(paths, skill, torch.Generator().manual_seed(0))
    logits = learning.discriminator(paths.after[:3]).detach()
    share = torch.tensor([1 / 3, 2 / 3, 1]).view(3, 1, 1)
    by_state = torch.stack([logits[z, ..., z] for z in range(3)]) + math.log(3)
    by_state = by_state - 0.5 * share * paths.actions[:3].square().mean(-1)
    torch.testing.assert_close(given[0][:3], by_state / by_state.square().mean().sqrt())
    d = learning.space.locate(learning.space.seen(paths.of(slice(3, None)))).detach().diff(dim=2)
    way = learning.space.points[:, None, None].expand_as(d)
    by_step = reward(d, way, torch.ones_like(paths.mask[3:]), found["cosine"])
    torch.testing.assert_close(given[0][3:], by_step)


def test_each_iteration_trains_all_of_it() -> None:
    learning = Learning(FEW, OPEN, RunContext())
    before = copy.deepcopy([learning.policy, learning.discriminator, learning.space])
    learning.step(0)
    for old, new in zip(before, [learning.policy, learning.discriminator, learning.space], strict=True):
        for was, now in zip(old.parameters(), new.parameters(), strict=True):
            assert was.ndim < 2 or not torch.equal(was, now)


def test_the_stage_writes_what_it_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(
        "name: tiny\nenv: {name: nav2d, id: Nav2DOpen-v0, horizon: 12}\n"
        "proposer: {name: diayn_metra, skills: 3, movers: 4, iterations: 2, episodes: 2, hidden: 8}\n"
        "metalearner: {name: context, model: {name: mlp, hidden: [8, 8]}, contexts: 7}\nstart: skills\n"
        "train: {outer: adam, steps: 1, meta_batch: 2, episodes: 2}\nevaluate: {benchmark: nav2d}\n"
    )
    assert main(["propose", "tiny.yaml"]) == 0
    loaded, _ = load_tasks(load("tiny.yaml"))
    made = FEW.propose(OPEN, RunContext(seed=load("tiny.yaml").seed))
    paths = seen(Learning(FEW, OPEN, RunContext()))
    which = torch.arange(7)
    assert torch.equal(loaded.rewards(paths, which), made.rewards(paths, which))  # type: ignore[attr-defined]
    assert main(["metatrain", "tiny.yaml"]) == 0


def test_what_was_found_is_said_of_both(capsys: pytest.CaptureFixture) -> None:
    FEW.propose(OPEN, RunContext(progress=True))
    said = capsys.readouterr().err
    assert "diayn: 3 skills are told apart in" in said
    assert "metra: skills go where they are told with a cosine of" in said
