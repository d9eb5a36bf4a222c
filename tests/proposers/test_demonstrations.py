"""Imitation: what demonstrations hold, the loss that clones them, what is learnt from them, and the test on goals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toys import Corners
from torch.distributions import Normal

from umeta.cli.main import main
from umeta.config.build import load
from umeta.config.environments import TrainConfig
from umeta.envs.nav2d import Nav2D
from umeta.errors import UserError
from umeta.metalearners.learnt_loss import LearntLoss
from umeta.metalearners.maml import MAML
from umeta.models.mlp import MLP
from umeta.outer.adam import Adam
from umeta.rl.discriminator import Discriminator, SkillRewards
from umeta.rl.skills import SkillPolicy
from umeta.runtime.loop import RunContext
from umeta.tasks.demonstrated import Demonstrations, imitate
from umeta.tasks.store import load_saved
from umeta.train import metatrain
from umeta.types import EpisodeSpec, PolicyLearner

ENV, EPISODE = Nav2D(horizon=8), EpisodeSpec(1, 2, 3)


def tasks() -> Demonstrations:
    """Four skills, each of which goes to a corner of its own, with little noise."""
    torch.manual_seed(0)
    skills = SkillPolicy(2, 2, 4, 8).policies()
    skills["head.bias"] = 2 * torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    skills["head.free"] = torch.full((4, 2), -2.0)
    rewards = SkillRewards(Discriminator(2, 4, 8))
    return Demonstrations(ENV, rewards, skills)


def test_a_skill_is_shown_once_and_then_again() -> None:
    whole = tasks()
    batch = whole.sample(np.arange(4), episode=EPISODE, seed=0)
    support, query = batch.support(), batch.query()
    assert support.x.shape == (4, 8, 2)
    assert query.x.shape == (4, 24, 2)
    assert sorted(batch.tasks.which.tolist()) == [0, 1, 2, 3]
    corner = whole.skills["head.bias"][batch.tasks.which]
    for shown in (support, query):
        assert (shown.y.mean(1).sign() == corner.sign()).all()
    assert not torch.equal(support.y, query.y[:, :8])
    assert torch.equal(whole.sample(np.array([2]), episode=EPISODE, seed=0).support().y[0], support.y[2])


def test_the_loss_is_that_of_cloning() -> None:
    query = tasks().sample(np.arange(2), episode=EPISODE, seed=0).query()
    output = torch.randn(2, 24, 4, generator=torch.Generator().manual_seed(0))
    said = Normal(output[..., :2], output[..., 2:].exp().clamp(min=0.05)).log_prob(query.y).sum(-1)
    torch.testing.assert_close(imitate(output, query), -said.mean(1))


@pytest.mark.parametrize("labels", [True, False])
def test_one_demonstration_tells_where_to_go(labels: bool) -> None:
    """MAML clones what was done; without actions a learnt loss has what was seen."""
    whole = tasks()
    learner: PolicyLearner = MAML(MLP([16]), 0.1, 3) if labels else LearntLoss(MLP([16]), 0.1, 3, labels=False)
    learner = learner.build(whole.spec, EPISODE)
    config = TrainConfig(Adam(lr=0.01), steps=120, meta_batch=4, episodes=2)
    theta = metatrain(learner, whole, config, RunContext())
    batch = whole.sample(np.arange(40), episode=EPISODE, seed=5)
    support, query = batch.support(), batch.query()
    with torch.no_grad():
        before = imitate(learner.predict(theta, learner.unadapted(theta, 40), query.x), query).mean()
        after = imitate(learner.predict(theta, learner.adapt(theta, support), query.x), query).mean()
    assert after < before - 1


def test_they_are_saved_with_the_skills(tmp_path: Path) -> None:
    whole = tasks()
    loaded = load_saved(whole.save(tmp_path, "tasks"), tmp_path, ENV)
    drawn = [one.sample(np.arange(4), episode=EPISODE, seed=0).support().y for one in (whole, loaded)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("change", ["metalearner={name: emaml, model: mlp}", "train.outer=promp"])
def test_what_needs_rewards_is_refused(change: str) -> None:
    with pytest.raises(UserError, match="rewards"):
        load("nav2d_imitation", [change])


def test_there_must_be_skills() -> None:
    with pytest.raises(UserError, match="diayn"):
        Demonstrations(ENV, Corners())


def test_a_report_has_the_returns_after_one_demonstration(tmp_path: Path) -> None:
    small = ["env={name: nav2d, horizon: 5}", "proposer.proposer={name: diayn, skills: 3, iterations: 2, hidden: 8}"]
    train = ["train.steps=2", "train.meta_batch=3", "train.episodes=2"]
    test = ["evaluate.goals=3", "evaluate.validation=2", "evaluate.episodes=2", "evaluate.steps=2"]
    assert main(["run", "nav2d_imitation", *small, *train, *test, f"out={tmp_path}", "--device", "cpu"]) == 0
    result = json.loads((tmp_path / "runs" / "nav2d_imitation" / "report.json").read_text())
    assert list(result["rows"]) == ["from scratch", "imitation of skills"]
    assert list(result["rows"]["imitation of skills"]) == ["0 steps", "1 step", "2 steps"]
    assert "imitation of skills: its own steps on one demonstration" in result["facts"]  # there was nothing to choose
