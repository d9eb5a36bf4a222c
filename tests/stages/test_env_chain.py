"""Environments through the command line: every stage on a tiny job, every mistake in one line, and no reward leaks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

from umeta import Features, FewShotClassifier
from umeta.benchmarks import goals
from umeta.cli.main import main
from umeta.config.build import load
from umeta.draw import mosaic
from umeta.errors import UserError
from umeta.evaluation.environments import Trial
from umeta.outer.adam import Adam
from umeta.outer.promp import ProMP
from umeta.outer.trpo import TRPO
from umeta.rl.apart import Learning
from umeta.runtime import artifacts
from umeta.stages import runs, tasks

SKILLS = {
    "title": "skills",
    "env": {"name": "nav2d", "horizon": 8},
    "proposer": {"name": "diayn", "skills": 3, "iterations": 3, "episodes": 2, "hidden": 8},
    "metalearner": {"name": "maml", "model": {"name": "mlp", "hidden": [8]}, "inner_lr": 0.5, "steps": 1},
    "train": {"outer": {"name": "adam", "lr": 0.01}, "steps": 3, "meta_batch": 2, "episodes": 3},
    "evaluate": {"benchmark": "nav2d", "goals": 3, "validation": 2, "episodes": 2, "steps": 2},
}
RANDOM = {**SKILLS, "title": "random", "proposer": {"name": "random_discriminator", "skills": 3, "hidden": 8}}
ORACLE = {
    **SKILLS,
    "title": "oracle",
    "proposer": {"name": "umeta.benchmarks.goals:GoalOracle", "benchmark": "nav2d", "goals": 5},
    "evaluate": {**SKILLS["evaluate"], "baselines": []},
}
PROTONET = "{name: protonet, model: {name: mlp}}"
IMAGES = "digits_acai_kmeans_protonet"


def write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(config))


def artefacts(root: Path) -> dict[str, bytes]:
    """Every file of tasks and runs that the two stages without rewards write, but those of wall-clock times."""
    clock = {"seconds.json", "meta.json"}
    tested = {"report.html", "report.json", "report.md", "evaluation.json", "adaptation.png", "behaviour.png"}
    tested |= {"adapted.safetensors", "before.gif", "after.gif", "training.png"}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for part in ("tasks", "runs")
        for path in sorted((root / part).rglob("*"))
        if path.is_file() and path.name not in clock | tested
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A directory with three configs that were run in one go; nothing may change it."""
    place = tmp_path_factory.mktemp("finished")
    for name, plain in (("skills", SKILLS), ("random", RANDOM), ("oracle", ORACLE)):
        write(place / f"{name}.yaml", plain)
    with (
        contextlib.chdir(place),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        assert main(["run", "skills.yaml", "random.yaml", "oracle.yaml", "--json"]) == 0
    (place / "out.txt").write_text(out.getvalue())
    (place / "err.txt").write_text(err.getvalue())
    return place


@pytest.fixture
def place(finished, tmp_path, monkeypatch) -> Path:
    """A copy of it, and the current directory."""
    shutil.copytree(finished, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture(scope="module")
def spoilt(finished, tmp_path_factory) -> Path:
    """A copy of it for all the mistakes, which may leave no more than what was asked for."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("spoilt") / "place"))


@pytest.fixture
def unpainted(monkeypatch) -> None:
    """Figures are blank, which is quick."""
    monkeypatch.setattr(mosaic, "render", lambda figure: np.zeros((4, 4, 3), np.uint8))


# every command


def test_three_configs_share_one_table_and_a_report(finished):
    out = (finished / "out.txt").read_text()
    lines = out.splitlines()
    assert lines[0].split() == ["0", "steps", "1", "step", "2", "steps"]
    rows = ["from scratch", "best skill, fine-tuned", "skills", "random", "oracle"]
    assert [line.split("  ")[0] for line in lines[1:6]] == rows
    result = json.loads(lines[-1])
    assert [row["name"] for row in result["results"]] == ["skills", "random", "oracle"]
    assert [row["protocol"]["proposed_with"] for row in result["results"]] == ["no reward"] * 2 + ["true rewards"]
    scratch = [row["rows"].get("from scratch") for row in result["results"]]
    assert scratch[0] == scratch[1] is not None  # the same goals, episodes and weights, whatever was proposed
    assert scratch[2] is None
    page = (finished / "report.md").read_text()
    assert (finished / "report.html").exists()
    assert "oracle: proposed with true rewards of other goals" in page
    for name in ("skills", "random", "oracle"):
        for picture in ("adaptation.png", "behaviour.png"):
            assert f"](runs/{name}/{picture})" in page
        assert f"](tasks/{name}/preview.png)" in page
    assert "best skill, fine-tuned: choosing the skill took 6 steps' worth of episodes" in page  # 3 skills x 4 / 2
    assert (finished / "err.txt").read_text().count("finetune left out: the proposer learnt no skills") == 1


def test_what_each_stage_writes(finished):
    tasks = {"asked.json", "manifest.json", "preview.png", "seconds.json", "summary.md"}
    own = {
        "skills": {"diayn.jsonl", "discriminator.safetensors", "skills.safetensors", "skills.gif"},
        "random": {"discriminator.safetensors"},
        "oracle": set(),
    }
    run = {"asked.json", "checkpoints", "config.yaml", "manifest.json", "metatrain.jsonl", "model.safetensors"}
    run |= {"seconds.json", "tasks.json"}
    report = {"adaptation.png", "behaviour.png", "before.gif", "after.gif", "training.png", "evaluation.json"}
    report |= {"adapted.safetensors", "report.md", "report.html", "report.json"}
    for name, more in own.items():
        assert {path.name for path in (finished / "tasks" / name).iterdir()} == tasks | more
        assert {path.name for path in (finished / "runs" / name).iterdir()} == run | report
        manifests = [artifacts.read_json(finished / part / name / "manifest.json") for part in ("tasks", "runs")]
        assert [found["true_labels"] for found in manifests] == [name == "oracle"] * 2
        numbers = (finished / "tasks" / name / "summary.md").read_text()
        assert ("skills are ever the most likely one" in numbers) == (name != "oracle")


def test_the_stages_one_by_one_give_the_same_learner_and_numbers(place, umeta):
    before = artefacts(place)
    rows = artifacts.read_json(place / "runs/skills/report.json")["rows"]
    for command, folder in (("propose", "tasks/oracle"), ("metatrain", "runs/oracle")):
        shutil.rmtree(folder)
        assert umeta(command, "oracle.yaml")[0] == 0
    after = artefacts(place)  # of the others: see below, without rewards
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []
    code, out, _ = umeta("evaluate", "runs/skills", "--record", "results.json", "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["rows"] == rows
    assert umeta("evaluate", "runs/skills", "--record", "results.json")[0] == 0
    (row,) = artifacts.read_json(place / "results.json")
    assert (row["name"], row["protocol"]["name"], row["rows"]) == ("skills", "nav2d", rows)


def test_meta_training_starts_at_the_middle_of_the_skills(place, umeta):
    """A step of almost no size leaves it there; the learner's network has the two layers that the skills' have."""
    still = ["metalearner.model.hidden=[8,8]", "train.outer.lr=1e-9", "train.steps=1", "start=skills"]
    assert umeta("metatrain", "skills.yaml", "name=warm", "tasks=tasks/skills", *still)[0] == 0
    run = runs.load_run("runs/warm")
    skills = tasks.load_tasks(run.config)[0].skills
    assert run.theta.params.keys() == skills.keys()
    for name, value in run.theta.params.items():
        torch.testing.assert_close(value, sum(skills[name]) / 3, atol=1e-6, rtol=0)
    assert (run.theta.params["1.bias"] - skills["1.bias"]).abs().max() > 1e-3  # they do differ
    assert umeta("evaluate", "runs/warm", "evaluate.baselines=[]")[0] == 0


def test_list_and_inspect(place, umeta):
    assert "DIAYN" in umeta("list", "diayn")[1]
    assert "  diayn" in umeta("list")[1]
    code, out, _ = umeta("inspect", "tasks/skills")
    assert code == 0
    assert "- tasks: 3 rewards, episodes of 8 steps" in out
    code, out, _ = umeta("inspect", "runs/skills")
    assert code == 0
    assert "best skill, fine-tuned" in out
    shown = out.splitlines()[-1].removeprefix("picture: ").split(", ")
    assert {Path(name).name for name in shown} == {"adaptation.png", "behaviour.png", "training.png"}
    assert all(Path(name).exists() for name in shown)


def test_resuming_what_is_finished_changes_nothing(place, umeta, unpainted):
    watched = [*place.glob("tasks/*/*"), *place.glob("runs/*/*.safetensors"), *place.glob("runs/*/*.jsonl")]
    watched += place.glob("runs/*/evaluation.json")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in watched if path.is_file()}
    assert len(before) > 20
    for _ in range(2):
        assert umeta("run", "skills.yaml", "random.yaml", "oracle.yaml", "--resume")[0] == 0
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before


@pytest.mark.parametrize("outer", [None, Adam, ProMP, TRPO])
def test_ctrl_c_keeps_the_work_and_resume_ends_in_the_same_bytes(outer, place, umeta, unpainted, refused, monkeypatch):
    """Of DIAYN, and of meta-training with each outer step."""
    if outer is None:
        command, folder = ["propose", "skills.yaml", "name=new"], place / "tasks/new"
    else:
        name = f"train.outer={outer.__name__.lower()}"
        command, folder = ["metatrain", "skills.yaml", "tasks=tasks/skills", "name=new", name], place / "runs/new"
    owner = outer or Learning
    assert umeta(*command)[0] == 0
    whole = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.stem != "seconds"}
    shutil.rmtree(folder)
    step, taken = owner.step, []

    def pressing(self, *arguments):
        taken.append(1)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(owner, "step", pressing)
    code, _, err = umeta(*command)
    assert (code, len(taken)) == (130, 2)
    assert "stopped after step 2 of 3" in err
    assert "--resume" in err
    refused(*command, says=["new exists, unfinished", "--resume"])
    assert umeta(*command, "--resume")[0] == 0
    assert len(taken) == 3
    assert {name: (folder / name).read_bytes() for name in whole} == whole


def test_ctrl_c_in_an_evaluation_keeps_finished_rows(place, umeta, unpainted, monkeypatch):
    command = ["evaluate", "runs/skills", "evaluate.seed=1", "evaluate.baselines=[scratch]"]
    scratch, begun = Trial.scratch, []

    def pressing(self):
        begun.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return scratch(self)

    monkeypatch.setattr(Trial, "scratch", pressing)
    code, _, err = umeta(*command)
    assert code == 130
    assert "finished rows are kept" in err
    assert umeta(*command)[0] == 0
    assert len(begun) == 1
    stopped = artifacts.read_json(place / "runs/skills/report.json")["rows"]
    (place / "runs/skills/evaluation.json").unlink()
    monkeypatch.setattr(Trial, "scratch", scratch)
    assert umeta(*command)[0] == 0
    assert artifacts.read_json(place / "runs/skills/report.json")["rows"] == stopped


FORMULA = """
from dataclasses import dataclass
from umeta.benchmarks.goals import GoalOracle

@dataclass(frozen=True)
class Mine(GoalOracle):
    def propose(self, source, ctx, embedder=None):
        LEARN
        return super().propose(source, ctx)
"""
MINE = "proposer={name: mine.py, benchmark: nav2d, goals: 5}"


def test_rewards_of_a_plug_in_are_those_that_were_proposed_or_none(place, umeta, unpainted, refused):
    (place / "mine.py").write_text(FORMULA.replace("LEARN", "pass"))
    assert umeta("propose", "skills.yaml", MINE, "name=new")[0] == 0
    refused("metatrain", "skills.yaml", "tasks=tasks/new", "name=new", says=["mine.py", "name it in this config"])
    assert umeta("metatrain", "skills.yaml", MINE, "name=new")[0] == 0
    (place / "mine.py").write_text(FORMULA.replace("LEARN", "self = GoalOracle('nav2d', 3)"))
    refused("metatrain", "skills.yaml", MINE, "tasks=tasks/new", "name=b", says=["tasks/new", "has changed since"])
    (place / "mine.py").write_text(FORMULA.replace("LEARN", "ctx.loop('mine', 2, lambda i: {}, dict, lambda s: None)"))
    refused("propose", "skills.yaml", MINE, "name=c", says=["its rewards are learnt", "nn.Module"])


LEARNT = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from umeta.tasks.reward import RewardTasks

class Linear(torch.nn.Module):
    count = 3

    def __init__(self, size):
        super().__init__()
        self.register_buffer("w", torch.zeros(3, size))

    def forward(self, paths, which):
        return (paths.after * self.w[which][:, None, None]).sum(-1)

    def describe(self, states):
        return ["linear"]

@dataclass(frozen=True)
class Mine:
    domain: ClassVar[str] = "env"
    sees_labels: ClassVar[bool] = False

    def rewards(self, source):
        return Linear(source.observation)

    def propose(self, source, ctx, embedder=None):
        assert ctx.folder is not None, "learnt again"
        rewards = self.rewards(source)
        def step(i):
            rewards.w.normal_()
            return {"size": rewards.w.norm().item()}
        ctx.loop("mine", 2, step, rewards.state_dict, rewards.load_state_dict)
        return RewardTasks(source, rewards)
"""


def test_rewards_that_a_plug_in_learns_are_stored(place, umeta, unpainted):
    (place / "mine.py").write_text(LEARNT)
    assert umeta("run", "skills.yaml", "proposer=mine.py", "name=new", "evaluate.baselines=[]")[0] == 0
    config = load("skills.yaml", ["proposer=mine.py", "name=new"])
    kept = artifacts.read_tensors(place / "tasks/new/rewards.safetensors")
    assert torch.equal(tasks.load_tasks(config)[0].rewards.w, kept["w"])
    assert kept["w"].any()


def test_finetuning_without_skills_is_left_out_with_a_note(place, umeta, unpainted):
    asked = ["evaluate.baselines=[finetune]", "evaluate.steps=1"]
    code, out, err = umeta("evaluate", "runs/random", *asked)
    assert code == 0
    assert "baseline finetune left out: the proposer learnt no skills" in err
    assert "fine-tuned" not in out
    shutil.copytree("tasks/random", "tasks/other")
    shutil.rmtree("tasks/skills")
    code, out, err = umeta("evaluate", "runs/skills", *asked)
    assert code == 0
    assert "baseline finetune left out: tasks/skills: no such tasks" in err
    assert umeta("propose", "skills.yaml", "--seed", "1")[0] == 0
    code, out, err = umeta("evaluate", "runs/skills", *asked)
    assert code == 0
    assert "tasks/skills is not what runs/skills was trained on" in err


# mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["propose", "skills.yaml", "name=new", f"metalearner={PROTONET}"], ["metalearner", "take maml"]),
        (["propose", "skills.yaml", "name=new", "proposer=kmeans"], ["proposer", "on images", "on an environment"]),
        (["propose", IMAGES, "proposer=diayn"], ["proposer", "on an environment", "on images"]),
        (["propose", IMAGES, "proposer=random_discriminator"], ["proposer", "on an environment", "on images"]),
        (["propose", "skills.yaml", "name=new", "data=digits"], ["'data'", "on images", "on an environment"]),
        (["propose", IMAGES, "env=nav2d"], ["'data'", "on images", "on an environment"]),
        (["propose", "skills.yaml", "name=new", "embedding=pixels"], ["'embedding'", "on images"]),
        (["propose", "skills.yaml", "name=new", "env=nav2"], ["'nav2'", "did you mean 'nav2d'"]),
        (["propose", "skills.yaml", "name=new", "env.id=Nav3D-v0"], ["env.id", "Nav2D-v0", "Nav3D-v0"]),
        (["propose", "skills.yaml", "name=new", "env.horizon=0"], ["env.horizon"]),
        (["propose", "skills.yaml", "name=new", "env={name: gym, id: Nope-v9}"], ["env", "Nope"]),
        (["propose", "skills.yaml", "name=new", "env={name: gym, id: FrozenLake-v1}"], ["Discrete(16)", "wrap"]),
        (["propose", "skills.yaml", "name=new", "proposer.skill=4"], ["'skill'", "did you mean 'skills'"]),
        (["propose", "skills.yaml", "name=new", "proposer.skills=1"], ["proposer.skills", "greater than 1"]),
        (["propose", "skills.yaml", "name=new", "proposer.sees=[2]"], ["proposer.sees", "0 to 1", "[2]"]),
        (["propose", "skills.yaml", "name=new", "train.way=3"], ["'way'"]),
        (["propose", "skills.yaml", "name=new", "train.episodes=1"], ["train.episodes", "greater than 1"]),
        (["propose", "skills.yaml", "name=new", "rounds=[{}]"], ["rounds", "environment"]),
        (["propose", "oracle.yaml", "name=new", "proposer.benchmark=nav2"], ["'nav2'", "did you mean 'nav2d'"]),
        (["run", "skills.yaml", "name=new", "evaluate.benchmark=nav2"], ["'nav2'", "did you mean 'nav2d'"]),
        (["run", "skills.yaml", "name=new", "evaluate.benchmark=ant_position"], ["is of Ant", "Nav2D"]),
        (["run", "skills.yaml", "name=new", "evaluate.baselines=[scrach]"], ["'scrach'", "did you mean 'scratch'"]),
        (["run", "skills.yaml", "name=new", "evaluate.episodes=1"], ["evaluate.episodes", "greater than 1"]),
        (["run", "skills.yaml", "name=new", "--record", "list.json"], ["list.json", "list of results"]),
        (["run", IMAGES, "train.outer=trpo"], ["train.outer", "trpo is for environments", "adam"]),
        (["run", IMAGES, "train.outer=ppo"], ["train.outer", "promp is for environments", "adam"]),
        (["propose", "skills.yaml"], ["tasks/skills exists", "name=NAME"]),
        (["propose", "skills.yaml", "--resume", "proposer.skills=4"], ["proposer.skills: 3 before, 4 now"]),
        (["propose", "skills.yaml", "--resume", "env.horizon=9"], ["env.horizon: 8 before, 9 now"]),
        (["metatrain", "skills.yaml", "name=absent"], ["tasks/absent", "no such tasks"]),
        (["metatrain", "skills.yaml", "name=new", "tasks=runs/skills"], ["runs/skills", "'tasks'", "'run'"]),
        (
            ["metatrain", "skills.yaml", "name=new", "tasks=tasks/skills", "env.id=Nav2DOpen-v0"],
            [
                "tasks/skills",
                "proposed on another environment than env (env.id: None before, Nav2DOpen-v0 now)",
                "again",
            ],
        ),
        (
            ["metatrain", "skills.yaml", "name=new", "tasks=tasks/skills", "env={name: gym, id: Pendulum-v1}"],
            ["tasks/skills", "proposed on another environment"],
        ),
        (["metatrain", IMAGES, "tasks=tasks/skills", "name=new"], ["tasks/skills", "proposed on other images"]),
        (["metatrain", "skills.yaml", "name=new", "tasks=TASKS"], ["proposed on another environment"]),
        (["metatrain", "skills.yaml", "name=new", "tasks=tasks/skills", "start=RUN"], ["start", "the same model"]),
        (["metatrain", "skills.yaml", "name=new", "tasks=tasks/skills", "start=skills"], ["start", "the same model"]),
        (["metatrain", "skills.yaml", "name=new", "tasks=tasks/random", "start=skills"], ["start", "diayn"]),
        (["evaluate", "runs/skills", "evaluate.goal=3"], ["'goal'", "did you mean 'goals'"]),
        (["evaluate", "runs/skills", "evaluate.benchmark=own"], ["is of Gym", "Nav2D"]),
        (["evaluate", "runs/skills", "data.root=x"], ["'data'", "on an environment"]),
        (["evaluate", "runs/skills", "env.horizon=9"], ["env.horizon=9", "evaluate.KEY"]),
        (["evaluate", "tasks/skills"], ["tasks/skills", "'run'", "'tasks'"]),
        (["adapt", "runs/skills", "--support", ".", "--out", "new"], ["runs/skills", "on an environment", "on images"]),
        (["export", "runs/skills", "--out", "new"], ["runs/skills", "not one of gymnasium's"]),
        (["predict", "runs/skills", "."], ["runs/skills", "not on images", "umeta evaluate"]),
    ],
)
def test_a_mistake_is_named_and_costs_nothing(spoilt, refused, made_run, monkeypatch, arguments, says):
    monkeypatch.chdir(spoilt)
    (spoilt / "list.json").write_text("{}")
    if any("RUN" in word or "TASKS" in word for word in arguments):
        run = made_run("protonet")
        arguments = [word.replace("RUN", str(run)) for word in arguments]
        arguments = [word.replace("TASKS", str(run.parent.parent / "tasks")) for word in arguments]
    before = [(path, path.stat().st_mtime_ns) for path in spoilt.rglob("*.*") if path.name != "asked.json"]
    refused(*arguments, says=says)
    after = [(path, path.stat().st_mtime_ns) for path in spoilt.rglob("*.*") if path.name != "asked.json"]
    assert sorted(after) == sorted(before)
    assert not (spoilt / "new").exists()


def test_a_run_on_an_environment_makes_no_classifier(place):
    for made in (FewShotClassifier("runs/skills"), Features("runs/skills")):
        with pytest.raises(UserError, match="runs/skills: this run is on an environment"):
            made.fit(np.zeros((2, 8, 8), np.uint8), ["a", "b"])


# no reward leaks


class Unseen(Exception):
    """What must not have been looked at."""


def forbidden(*arguments: Any, **options: Any) -> Any:
    raise Unseen


@pytest.mark.parametrize("name", ["skills", "random"])
def test_without_true_rewards_no_byte_changes(name, place, umeta, monkeypatch):
    before = {path: content for path, content in artefacts(place).items() if f"/{name}/" in path}
    broken = {n: replace(b, reward=forbidden, goals=forbidden) for n, b in goals.BENCHMARKS.items()}
    monkeypatch.setattr(goals, "BENCHMARKS", broken)
    monkeypatch.setattr(goals, "goals", forbidden)
    monkeypatch.setattr(goals.Goals, "__call__", forbidden)
    shutil.rmtree("tasks")
    shutil.rmtree("runs")
    for command in ("propose", "metatrain"):
        assert umeta(command, f"{name}.yaml")[0] == 0
    after = artefacts(place)
    assert before.keys() == after.keys()
    assert [path for path in before if before[path] != after[path]] == []


def test_other_true_rewards_do_change_the_oracle(place, umeta, monkeypatch):
    """The comparison above can fail: an oracle's learner is another one."""
    before = artefacts(place)
    there = goals.BENCHMARKS["nav2d"]
    away = replace(there, reward=lambda env, paths, goal: -there.reward(env, paths, goal))
    monkeypatch.setitem(goals.BENCHMARKS, "nav2d", away)
    shutil.rmtree("runs/oracle")
    assert umeta("metatrain", "oracle.yaml")[0] == 0
    assert artefacts(place)["runs/oracle/model.safetensors"] != before["runs/oracle/model.safetensors"]


class Walk(gymnasium.Env):
    """A walk on a line; what it pays is whatever the class says."""

    paid: ClassVar[float] = 1.0
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(), 0
        return self.seen(), {}

    def seen(self) -> np.ndarray:
        return np.array([self.place, self.time / 10], np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place, self.time = self.place + float(action[0]), self.time + 1
        return self.seen(), self.paid * self.place, self.place > 2, False, {"paid": self.paid}


def test_what_an_environment_pays_by_itself_changes_no_byte(tmp_path, umeta, unpainted, monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "Walk-v0", gymnasium.envs.registration.EnvSpec("Walk-v0", Walk))
    written, rows = [], []
    for paid in (1.0, -7.0):
        root = tmp_path / str(paid)
        root.mkdir()
        monkeypatch.chdir(root)
        monkeypatch.setattr(Walk, "paid", paid)
        env = {"name": "gym", "id": "Walk-v0", "horizon": 6}
        write(root / "walk.yaml", {**SKILLS, "env": env, "evaluate": {**ORACLE["evaluate"], "benchmark": "own"}})
        code, _, err = umeta("propose", "walk.yaml")
        assert code == 0
        assert "of 50 episodes of random actions end before step 6" in err
        assert umeta("metatrain", "walk.yaml")[0] == 0
        written.append(artefacts(root))
        assert umeta("evaluate", "runs/walk")[0] == 0
        rows.append(artifacts.read_json(root / "runs/walk/report.json")["rows"]["skills"]["0 steps"]["mean"])
    assert written[0].keys() == written[1].keys()
    assert [name for name in written[0] if written[0][name] != written[1][name]] == []
    assert rows[1] == pytest.approx(-7 * rows[0])  # while the test on it does see what it pays


def test_propose_and_metatrain_never_import_the_benchmarks(tmp_path):
    write(tmp_path / "skills.yaml", SKILLS)
    program = (
        "import sys; from umeta.cli.main import main\n"
        "assert main(['propose', 'skills.yaml']) == 0 and main(['metatrain', 'skills.yaml']) == 0\n"
        "assert not [name for name in sys.modules if name.startswith('umeta.benchmarks')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
