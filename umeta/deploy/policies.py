"""Export of policies: what acts in an environment of gymnasium's, as a file that needs nothing but torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from umeta.benchmarks.goals import Goals, goals
from umeta.config import registry
from umeta.deploy.export import export_graph, refuse_to_overwrite, save, write
from umeta.draw.curves import name_steps
from umeta.errors import UserError
from umeta.evaluation.environments import measure_returns, name_practice, practice_learner
from umeta.evaluation.practice import add_practice
from umeta.evaluation.steps import own_step
from umeta.models.check import build_module
from umeta.models.mlp import MLP
from umeta.parts import EnvironmentTraits, ProposerTraits
from umeta.runtime import artifacts
from umeta.stages.runs import ADAPTED, Run, load_run
from umeta.types import EpisodeSpec, PolicyLearner, RecurrentLearner
from umeta.version import __version__

CARD = """# {name}

A policy for `{id}`: observations float32 [n, {observation}] to {answer}, without noise.

```python
import gymnasium, torch
policy, env = torch.export.load("policy.pt2").module(), gymnasium.make("{id}"{options})
x, _ = env.reset(seed=0)
for _ in range(200):
    x, reward, *_ = env.step(policy(torch.tensor(x[None], dtype=torch.float32))[0].numpy())
```
"""


class Policy(nn.Module):
    """Observations [n, d] to the most likely actions [n, a], as the environment takes them."""

    def __init__(self, env: Any, model: Any, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.env = env
        self.network = build_module(model, (env.observation,))
        head = weights["head.weight"]
        self.head = nn.Linear(head.shape[1], head.shape[0])
        self.network.load_state_dict({name: weights[name] for name in self.network.state_dict()})
        self.head.load_state_dict({"weight": head, "bias": weights["head.bias"]})

    def forward(self, observations: Tensor) -> Tensor:
        shown = EnvironmentTraits.of(self.env).show(observations)
        return self.env.torque(self.head(self.network(shown)))


def export_policy(
    folder: Path | str,
    out: Path | str,
    *,
    skill: int | None = None,
    goal: int | None = None,
    trusted: Collection[str] | None = (),
) -> Path:
    """Write a policy to `out`, in place of an earlier export; return the folder.

    That of a skill, where `folder` is `tasks/NAME`, or the one that a run begins to adapt from, or with `goal` that its
    evaluation ended with for that goal. Files: `policy.pt2` for `torch.export.load`, `model.json`, and `README.md`,
    which says how it acts in gymnasium.

    Raises:
        UserError: the folder is missing or damaged, there is no such skill, the policy is recurrent or the environment
            is not gymnasium's, or `out` holds something else than an earlier export.
    """
    folder, out = Path(folder), Path(out).resolve()
    refuse_to_overwrite(out)
    kind = artifacts.read_manifest(folder, "run", "tasks")["kind"]
    if (kind == "tasks" and goal is not None) or (kind == "run" and skill is not None):
        raise UserError(f"{folder}: --skill N is for tasks/NAME, and --goal N for a run that was evaluated")
    if kind == "tasks":
        env, model, weights = read_skill(folder, skill, trusted)
    else:
        env, model, weights = read_policy(folder, goal, trusted)
    which = [f"{what} {number}" for what, number in (("skill", skill), ("goal", goal)) if number is not None]
    refuse_elsewhere(env, folder)
    write_policy(out, env, model, weights, ", ".join([folder.name, *which]))
    return out


def adapt_policy(
    folder: Path | str,
    reward: str,
    out: Path | str,
    *,
    goal: Sequence[float] | None = None,
    episodes: int = 20,
    steps: int = 3,
    practice: int | None = None,
    options: Mapping[str, Any] | None = None,
    trusted: Collection[str] | None = (),
) -> tuple[list[float], int]:
    """Adapt a run's policy to a reward by its learner's own steps, and write it to `out` as `export_policy` does.

    The mean return of each step's episodes is measured before the next; the policy that earned most is the one written.

    reward: a family of rewards by its name, or `my_rewards.py:name`. goal: the numbers of the one that is wanted, in
    place of the family's first test goal. episodes: per step, and as many after the last. practice: rounds of as many
    episodes without a reward after each step, as `evaluate.practice`, and by default as many as that. options: of the
    run's meta-learner, to be changed.

    Returns:
        The returns after 0 to `steps` steps, and after how many of them the policy was taken.

    Raises:
        UserError: as `export_policy`, or the reward is of another environment, or the goal of other numbers.
    """
    folder, out = Path(folder), Path(out).resolve()
    refuse_to_overwrite(out)
    if practice is not None and practice < 0:
        raise UserError(f"adapt: expected 0 or more rounds of --practice, got {practice}")
    if episodes < 2 or steps < 1:  # the baseline of one half of the episodes is fitted on the other
        raise UserError(f"adapt: expected 2 or more --episodes and 1 or more --steps, got {episodes} and {steps}")
    changed = {"metalearner": dict(options)} if options else None
    run = load_run(folder, changed, device="cpu", trusted=None if trusted is None else {*trusted, reward})
    if run.config.domain != "env":
        raise UserError(f"{folder}: this run is on {run.config.source}, where no reward is earned; give --support")
    if ProposerTraits.of(run.config.proposer).demonstrates:
        raise UserError(f"{folder}: it learns from demonstrations and not from rewards; adapt a run that does")
    if reward == "own" and goal is not None:
        raise UserError("adapt: 'own' is one reward, without goals; leave out --goal")
    env, learner = run.config.env, act_alone(run)
    refuse_elsewhere(env, folder)
    tasks = goals(reward, env, "test", 1, run.config.evaluate.seed)
    family = tasks.rewards
    assert isinstance(family, Goals)
    if goal is not None:
        if len(goal) != (known := family.goals.shape[1]):
            raise UserError(f"--goal: a goal of '{reward}' has {known} numbers, got {len(goal)}")
        family = replace(family, goals=family.goals.new_tensor([goal]))
        tasks = replace(tasks, rewards=family)
    batch = tasks.sample(np.arange(1), episode=EpisodeSpec(1, episodes, episodes), seed=run.config.evaluate.seed)
    begin, step = learner.unadapted(run.theta, 1), own_step(learner, run.theta)
    if rounds := run.config.evaluate.practice if practice is None else practice:
        step = add_practice(step, practice_learner(run), run.theta, batch, rounds)
    found, policies = measure_returns(learner, run.theta, begin, step, batch, steps, "adapt")
    first = int(learner.explores)  # before it has adapted it is many policies, and no one to write
    best = first + int(found[0, first:].argmax())
    weights = {**run.theta.params, **{name: value[0] for name, value in policies[best].params.items()}}
    wanted = " ".join(f"{x:g}" for x in family.goals[0].tolist())
    aim = reward if reward == "own" else f"{reward}, goal {wanted}"
    practised = f", {name_practice(rounds)} each" if rounds else ""
    name = f"{folder.name}, adapted to {aim}, {name_steps(best)} of {episodes} episodes{practised}"
    write_policy(out, env, run.config.metalearner.model, weights, name)
    return found[0].tolist(), best


def act_alone(run: Run) -> PolicyLearner:
    """Return the learner of a run on an environment, whose policy needs nothing but what it observes.

    Raises:
        UserError: it has a memory.
    """
    if isinstance(run.learner, RecurrentLearner):
        raise UserError(f"{run.folder}: its policy has a memory, which the file could not hold; export one of maml's")
    assert isinstance(run.learner, PolicyLearner)
    return run.learner


def refuse_elsewhere(env: Any, where: Path) -> None:
    """Raise UserError where an environment is none of gymnasium's."""
    if not hasattr(env, "torque"):
        raise UserError(f"{where}: its environment '{env.id}' is not one of gymnasium's, where a policy could act")


def write_policy(out: Path, env: Any, model: Any, weights: dict[str, Tensor], name: str) -> None:
    """Write the policy with these weights to `out`, in place of an earlier export."""
    policy = Policy(env, model, weights).eval().requires_grad_(False)
    chooses = getattr(env, "chooses", False)
    told = {"observation": env.observation, "action": 1 if chooses else env.action}
    numbers = "numbers of choices int64 [n]" if chooses else f"actions [n, {env.action}] as the environment takes them"
    options = "".join(f", {key}={value!r}" for key, value in getattr(env, "options", {}).items())
    program = export_graph(policy, (env.observation,))

    def fill(place: Path) -> None:
        save(program, place / "policy", None)
        artifacts.write_text(
            place / "README.md", CARD.format(name=name, id=env.id, options=options, answer=numbers, **told)
        )

    write(out, {"umeta": __version__, "name": name, "env": env.id, **told}, fill)


def read_skill(folder: Path, skill: int | None, trusted: Collection[str] | None) -> tuple[Any, MLP, dict[str, Tensor]]:
    """Read the environment of proposed tasks, the network of their skills, and the weights of one of them."""
    manifest = artifacts.read_manifest(folder, "tasks")
    with artifacts.refuse_malformed(folder):
        if "policies" not in manifest["tasks"]:
            raise UserError(f"{folder}: its proposer learnt no skills; export those of diayn or metra, or a run")
        registry.refuse_plugins(manifest["env"], trusted, str(folder))
        skills = artifacts.read_tensors(folder / manifest["tasks"]["policies"])
        count, width = skills["1.bias"].shape
        if skill is None or not 0 <= skill < count:
            raise UserError(f"{folder}: which of its {count} skills? give --skill a number from 0 to {count - 1}")
        weights = {name: value[skill] for name, value in skills.items()}
        return registry.build_part("env", manifest["env"]), MLP([width, width]), weights


def read_policy(folder: Path, goal: int | None, trusted: Collection[str] | None) -> tuple[Any, Any, dict[str, Tensor]]:
    """Read the environment of a run, its network, and the weights that it begins to adapt from, or ended with."""
    run = load_run(folder, device="cpu", trusted=trusted)
    act_alone(run)
    weights = run.theta.params
    if goal is not None:
        if not (folder / ADAPTED).exists():
            raise UserError(f"{folder}: it has adapted to no goal yet; umeta evaluate {folder} lets it")
        adapted = artifacts.read_tensors(folder / ADAPTED)
        if not 0 <= goal < (count := len(adapted["head.bias"])):
            raise UserError(f"{folder}: which of its {count} goals? give --goal a number from 0 to {count - 1}")
        weights = {**weights, **{name: value[goal] for name, value in adapted.items()}}
    return run.config.env, run.config.metalearner.model, weights
