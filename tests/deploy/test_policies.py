"""Policies as files: they act in gymnasium as they do here, where nothing of the library is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from umeta.cli.main import main
from umeta.config.build import load
from umeta.deploy.policies import adapt_policy, export_policy
from umeta.errors import UserError
from umeta.parts import EnvironmentTraits
from umeta.rl.rollout import rollout
from umeta.rl.skills import act
from umeta.runtime.artifacts import read_tensors
from umeta.stages.runs import load_run
from umeta.stages.tasks import load_tasks
from umeta.types import Adapted

TINY = """
name: tiny
env: {name: ENV, horizon: 20}
proposer: {name: metra, skills: 3, iterations: 1, episodes: 4, hidden: 8}
metalearner: {name: maml, model: {name: mlp, hidden: [8, 8]}, steps: 1}
train: {outer: adam, steps: 1, meta_batch: 2, episodes: 2}
evaluate: {benchmark: own}
"""


def made(place: Path, env: str) -> None:
    (place / "tiny.yaml").write_text(TINY.replace("ENV", env))
    assert main(["propose", "tiny.yaml"]) == 0


@pytest.mark.parametrize("env", ["gym, id: Pendulum-v1", "gym, id: Pendulum-v1, symlog: true", "half_cheetah"])
def test_a_skill_acts_in_gymnasium_as_it_does_here(env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium

    monkeypatch.chdir(tmp_path)
    made(tmp_path, env)
    assert main(["export", "tasks/tiny", "--skill", "1", "--out", "out"]) == 0
    policy = torch.export.load("out/policy.pt2").module()
    tasks = load_tasks(load("tiny.yaml"))[0]
    one = act({name: value[1:2] for name, value in tasks.skills.items()})  # type: ignore[attr-defined]
    simulation = tasks.env.simulate(1)  # type: ignore[attr-defined]
    u = torch.rand(1, 1, tasks.env.randoms, generator=torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    paths = rollout(simulation, one, torch.zeros(1, 1, 20, tasks.env.action), u)  # type: ignore[attr-defined]
    env_ = gymnasium.make(tasks.env.id)  # type: ignore[attr-defined]
    if hasattr(env_.unwrapped, "set_state"):  # reset to the same state
        x = env_.reset(seed=0)[0]
        first = paths.observations[0, 0, 0].double().numpy()
        place = paths.positions[0, 0, 0, 0].item()
        env_.unwrapped.set_state(np.array([place, *first[:8]]), first[8:])
        x = first
    else:
        x = env_.reset(seed=int(u[0, 0, 0].item() * 2**31))[0]
    for t in range(20):
        x = env_.step(policy(torch.tensor(x[None], dtype=torch.float32))[0].numpy())[0]
        shown = EnvironmentTraits.of(tasks.env).restore(paths.observations[0, 0, t + 1])  # type: ignore[attr-defined]
        assert x == pytest.approx(shown.numpy(), abs=1e-2 if t > 5 else 1e-4)


def test_the_card_s_lines_run_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "gym, id: Pendulum-v1")
    assert main(["metatrain", "tiny.yaml"]) == 0
    assert main(["export", "runs/tiny", "--out", "out"]) == 0
    lines = re.search(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)
    assert lines
    code = f"import sys; sys.modules['umeta'] = None\n{lines[1]}\nprint(policy(torch.zeros(1, 3)).tolist())"
    done = subprocess.run([sys.executable, "-c", code], cwd="out", capture_output=True, text=True, check=True)
    run = load_run("runs/tiny")
    answer = run.learner.predict(run.theta, run.learner.unadapted(run.theta, 1), torch.zeros(1, 1, 3))  # type: ignore[attr-defined]
    expected = 2 * 0.7 * answer[0, 0, 0].item()  # a pendulum's torque is from -2 to 2, and a unit 0.7
    assert eval(done.stdout.splitlines()[-1])[0][0] == pytest.approx(expected, abs=1e-5)


def test_what_a_run_adapted_to_a_goal_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "gym, id: Pendulum-v1")
    assert main(["metatrain", "tiny.yaml"]) == 0
    with pytest.raises(UserError, match="umeta evaluate runs/tiny"):
        export_policy("runs/tiny", "out", goal=1)
    few = ["goals=2", "validation=1", "steps=1", "episodes=2", "baselines=[]"]
    assert main(["evaluate", "runs/tiny", *(f"evaluate.{one}" for one in few)]) == 0
    assert main(["export", "runs/tiny", "--goal", "1", "--out", "out"]) == 0
    assert "tiny, goal 1" in Path("out/README.md").read_text()
    policy, run = torch.export.load("out/policy.pt2").module(), load_run("runs/tiny")
    x, params = torch.randn(4, 3), read_tensors(Path("runs/tiny/adapted.safetensors"))
    answer = run.learner.predict(run.theta, Adapted(params), x.expand(2, -1, -1))[..., :1]  # type: ignore[attr-defined]
    torch.testing.assert_close(policy(x), (2 * 0.7 * answer[1]).clamp(-2, 2))
    assert not torch.allclose(answer[0], answer[1], atol=1e-6)
    for wrong in (["runs/tiny", "--skill", "1"], ["tasks/tiny", "--goal", "1"], ["runs/tiny", "--onnx"]):
        assert main(["export", *wrong, "--out", "none"]) == 2
    assert not Path("none").exists()
    with pytest.raises(UserError, match=r"which of its 2 goals\? give --goal a number from 0 to 1"):
        export_policy("runs/tiny", "out", goal=2)


@pytest.mark.parametrize(
    "env", ["gym, id: Pendulum-v1, options: {g: 3.0}", "ant, positions: true", "hopper, positions: true"]
)
def test_the_card_makes_the_environment_as_it_was(env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path, env)
    assert main(["export", "tasks/tiny", "--skill", "1", "--out", "out"]) == 0
    lines = re.search(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)
    assert lines
    monkeypatch.chdir("out")
    found: dict[str, Any] = {}
    exec(lines[1], found)
    expected: Any = load_tasks(load("../tiny.yaml", ["tasks=../tasks/tiny"]))[0]
    assert found["x"].shape == (expected.env.observation,)
    if "g:" in env:
        assert found["env"].unwrapped.g == 3


MINE = """
from umeta.benchmarks.goals import Benchmark

def reward(env, paths, goal):
    return (goal[..., :1] * paths.actions).sum(-1)

mine = Benchmark("Gym", reward, goals=lambda u: 2 + u[:, :1])
"""


@pytest.fixture
def observations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """A run on Pendulum and a file of rewards where we are; 50 observations."""
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "gym, id: Pendulum-v1")
    assert main(["metatrain", "tiny.yaml"]) == 0
    Path("my.py").write_text(MINE)
    return torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


def test_a_policy_adapts_to_a_reward_of_a_persons_own(
    observations: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reward is the action times the goal: with a goal of -3 the mean action must fall, with 3 it must rise."""
    x, acts = observations, []
    run = load_run("runs/tiny")
    theta, learner = run.theta, run.learner
    acts.append(2 * 0.7 * learner.predict(theta, learner.unadapted(theta, 1), x[None])[0, :, :1])  # type: ignore[attr-defined]
    for goal in ("3", "-3"):
        asked = ["adapt", "runs/tiny", "metalearner.inner_lr=1", "--reward", "my.py:mine", "--goal", goal]
        assert main([*asked, "--episodes", "10", "--steps", "2", "--out", f"out{goal}"]) == 0
        returns = [float(line.split()[5]) for line in capsys.readouterr().out.splitlines() if line.startswith("after")]
        assert len(returns) == 3
        assert returns[0] < max(returns)
        assert (
            f"my.py:mine, goal {goal}, {returns.index(max(returns))} steps" in Path(f"out{goal}/README.md").read_text()
        )
        acts.append(torch.export.load(f"out{goal}/policy.pt2").module()(x))
    before, up, down = (one.mean().item() for one in acts)
    assert down + 0.05 < before < up - 0.05
    for wrong, said in (
        (["--reward", "my.py:mine", "--goal", "1", "2"], "a goal of 'my.py:mine' has 1 numbers, got 2"),
        (["--reward", "cheetah_velocity"], "'cheetah_velocity' is of HalfCheetah, the environment is Gym"),
        (["--reward", "own", "--episodes", "1"], "expected 2 or more --episodes"),
        (["--support", "."], "umeta adapt RUN --reward NAME adapts a policy"),
        (["--support", ".", "--steps", "3"], "go with --reward"),
        (["--reward", "own", "--goal", "1", "2"], "'own' is one reward"),
        (["--reward", "own", "--practice", "-1"], "expected 0 or more rounds of --practice, got -1"),
        ([], "--reward NAME for one on an environment"),
    ):
        assert main(["adapt", "runs/tiny", *wrong, "--out", "none"]) == 2
        assert said in capsys.readouterr().err
    assert not Path("none").exists()


def test_adapt_lets_a_policy_practise(observations: torch.Tensor) -> None:
    """The reward is the action times the goal: after a step too small to tell, practice makes the mean action rise."""
    acts = []
    for practice in (0, 4):
        asked = ["adapt", "runs/tiny", "metalearner.inner_lr=1e-9", "--reward", "my.py:mine", "--goal", "3"]
        asked += ["--episodes", "10", "--steps", "1", "--practice", str(practice), "--out", f"out{practice}"]
        assert main(asked) == 0
        acts.append(torch.export.load(f"out{practice}/policy.pt2").module()(observations).mean().item())
    assert acts[1] > acts[0] + 0.3


def test_a_policy_that_is_many_before_it_adapts_is_written_after_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with its environment's own reward, whose returns are told."""
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "gym, id: Pendulum-v1")
    context = ["metalearner={name: context, model: {name: mlp, hidden: [8, 8]}, contexts: 3}", "start=skills"]
    assert main(["metatrain", "tiny.yaml", *context]) == 0
    returns, best = adapt_policy("runs/tiny", "own", "out", episodes=3, steps=1)
    assert best == 1
    assert all(-20 * 16.3 < value < 0 for value in returns)
    weights = torch.export.load("out/policy.pt2").module().state_dict()
    skills = read_tensors(Path("tasks/tiny/skills.safetensors"))
    assert torch.cdist(weights["network.1.bias"][None], skills["1.bias"]).min() < 0.01


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "nav2d")
    with pytest.raises(UserError, match=r"which of its 3 skills\? give --skill a number from 0 to 2"):
        export_policy("tasks/tiny", "out", skill=3)
    with pytest.raises(UserError, match="'Nav2D-v0' is not one of gymnasium's"):
        export_policy("tasks/tiny", "out", skill=1)
