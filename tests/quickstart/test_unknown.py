"""`umeta run --env`: what is decided for an environment that nothing names, and that it is what runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from proposers.diayn import Diayn
from proposers.diayn_metra import DiaynMetra
from umeta.config import build
from umeta.evaluation.environments import Trial
from umeta.quickstart.unknown import write_env_recipe
from umeta.runtime import artifacts

MINE = """
import gymnasium, numpy as np
from gymnasium import spaces


class Walk(gymnasium.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.normal()
        return np.array([self.place, self.place / 2, 1], np.float32), {}

    def step(self, action):
        self.place += float(action[0])
        return np.array([self.place, self.place / 2, 1], np.float32), self.place, False, False, {}


class Far(Walk):
    def step(self, action):
        seen, *rest = super().step(action)
        return 1000 * seen, *rest


class Brief(Walk):
    def step(self, action):
        return *super().step(action)[:2], bool(action[0] > 0.9), False, {}


class Sized(Walk):
    def __init__(self, size):
        super().__init__()


gymnasium.register("Sized-v0", Sized, max_episode_steps=6)
gymnasium.register("Brief-v0", Brief, max_episode_steps=6)
gymnasium.register("Walk-v0", Walk, max_episode_steps=6)
gymnasium.register("Far-v0", Far, max_episode_steps=6)
"""
TINY = [
    "proposer.skills=4",
    "proposer.iterations=2",
    "train.steps=1",
    "evaluate.steps=1",
    "evaluate.practice=2",
    "evaluate.validation=1",
    "evaluate.goals=2",
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)


def test_an_environment_of_ones_own_runs_through_and_is_compared_with_scratch(umeta, refused):
    code, out, err = umeta("run", "--env", "mine:Walk-v0", *TINY)
    assert code == 0, err
    assert "mine:Walk-v0: 3 numbers observed, 2 of which random actions move" in err
    config = build.load("Walk-v0.yaml")
    assert (config.env.id, config.env.horizon) == ("mine:Walk-v0", 6)
    report = artifacts.read_json("runs/Walk-v0/report.json")
    rows = [
        f"{row}{practice}" for row in ("from scratch", "default recipe") for practice in ("", ", 2 rounds of practice")
    ]
    assert list(report["rows"]) == rows
    assert [report["adaptation"][row]["x"][1] for row in rows] == [120, 4 * 120] * 2
    assert sum("more than from scratch" in fact for fact in report["facts"]) == 2
    command = "export runs/Walk-v0 --goal 0 --allow-plugin --out policy"
    assert f"umeta {command} writes" in out
    assert umeta(*command.split())[0] == 0
    assert umeta("run", "--env", "mine:Walk-v0", *TINY, "--resume")[0] == 0
    refused("run", "--env", "Pendulum-v1", "name=Walk-v0", "--resume", says=["Walk-v0.yaml", "--env mine:Walk-v0"])
    memory = ["metalearner={name: rl2, model: {name: mlp, hidden: [8]}}", "start=null", "name=memory"]
    refused("run", "--env", "mine:Walk-v0", *memory, *TINY, says=["evaluate.practice", "without a memory"])
    assert build.load(write_env_recipe("mine:Walk-v0", memory)).evaluate.practice == 0


def test_what_is_handed_back_has_practised(umeta, monkeypatch):
    practised, measure = [], Trial.measure_practice

    def watch(self, *given):
        found = measure(self, *given)
        practised.append(found[1][-1].params)
        return found

    monkeypatch.setattr(Trial, "measure_practice", watch)
    assert umeta("run", "--env", "mine:Walk-v0", *TINY)[0] == 0
    written = artifacts.read_tensors(Path("runs/Walk-v0/adapted.safetensors"))
    torch.testing.assert_close(written, practised[-1], rtol=0, atol=0)
    said = [fact for fact in artifacts.read_json("runs/Walk-v0/report.json")["facts"] if "umeta export" in fact]
    assert said == [
        "default recipe, 2 rounds of practice: umeta export --goal N writes these policies, and films show them"
    ]


def test_rows_without_practice_are_kept_when_there_is_more_of_it(umeta, monkeypatch):
    assert umeta("run", "--env", "mine:Walk-v0", *TINY)[0] == 0
    before = artifacts.read_json("runs/Walk-v0/report.json")["returns"]

    def again(self):
        raise AssertionError("computed once more")

    monkeypatch.setattr(Trial, "own", again)
    monkeypatch.setattr(Trial, "scratch", again)
    file = Path("runs/Walk-v0/adapted.safetensors")
    twice = file.read_bytes()
    assert umeta("evaluate", "runs/Walk-v0", "--allow-plugin", "evaluate.practice=1")[0] == 0
    assert file.read_bytes() != twice
    after = artifacts.read_json("runs/Walk-v0/report.json")["returns"]
    for row in ("from scratch", "default recipe"):
        assert after[row] == before[row]
        assert f"{row}, 1 round of practice" in after
    assert umeta("evaluate", "runs/Walk-v0", "--allow-plugin")[0] == 0  # twice again, as the config says
    assert file.read_bytes() == twice


def test_skills_that_move_are_learnt_where_episodes_do_not_end_early():
    for env, changes, expected in (("Walk", ["proposer.movers=3"], 13), ("Brief", [], 10)):
        config = build.load(write_env_recipe(f"mine:{env}-v0", changes))
        assert type(config.proposer) is (DiaynMetra if env == "Walk" else Diayn)
        assert config.metalearner.contexts == config.metalearner.size == expected


def test_other_skills_than_the_usual_are_told_to_the_policy():
    for change, contexts, size in (
        (["proposer.skills=70", "proposer.movers=2"], 72, 64),
        (["proposer={name: metra, skills: 20, hidden: 8}"], 20, 8),
    ):
        config = build.load(write_env_recipe("mine:Walk-v0", [*change, f"name=skills{contexts}"]))
        assert (config.metalearner.contexts, config.metalearner.size) == (contexts, size)


def test_an_environment_that_must_be_given_options_is_made_with_them():
    config = build.load(write_env_recipe("mine:Sized-v0", ["env.options={size: 3}"]))
    assert config.env.options == {"size": 3}


def test_a_file_of_another_kind_is_not_gone_on_with(refused):
    Path("Walk-v0.yaml").write_text("proposer: sinusoid\nmetalearner: {name: maml, model: mlp}\ntrain: {outer: adam}\n")
    refused("run", "--env", "mine:Walk-v0", *TINY, "--resume", says=["Walk-v0.yaml is of", "name=NAME"])


def test_large_numbers_are_shown_on_a_logarithmic_scale_unless_that_is_not_wanted():
    for env, changes, expected in (("Walk", [], False), ("Far", [], True), ("Far", ["env.symlog=false"], False)):
        path = write_env_recipe(f"mine:{env}-v0", [f"name={env}{len(changes)}", *changes])
        assert build.load(path).env.symlog is expected
        assert ("logarithmic scale" in path.read_text()) is expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--env", "Nowhere-v0"], ["gymnasium cannot make 'Nowhere-v0'"]),
        (["--env", "FrozenLake-v1"], ["the observations", "Discrete(16)"]),
        (["--env", "mine:Walk-v0", "nav2d_diayn"], ["--env", "nav2d_diayn"]),
        (["--env", "mine:Walk-v0", "--images", "."], ["--env", "--images"]),
        (["--env", "mine:Walk-v0", "proposer.skill=3"], ["'skill'", "did you mean 'skills'"]),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_learnt(refused, words, says):
    refused("run", *words, says=says)
