"""Export of policies: what acts in an environment of gymnasium's, as a file that needs nothing but torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from umeta.config import registry
from umeta.deploy.export import export_graph, refuse_to_overwrite, save, write
from umeta.errors import UserError
from umeta.models.check import build_module
from umeta.models.mlp import MLP
from umeta.runtime import artifacts
from umeta.stages.runs import ADAPTED, load_run
from umeta.types import RecurrentLearner
from umeta.version import __version__

CARD = """# {name}

A policy for `{id}`: observations float32 [n, {observation}] to actions [n, {action}] as the environment takes them,
without noise.

```python
import gymnasium, torch
policy, env = torch.export.load("policy.pt2").module(), gymnasium.make("{id}")
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
        self.network.load_state_dict({n: v for n, v in weights.items() if not n.startswith(("head.", "told."))})
        self.head.load_state_dict({"weight": head, "bias": weights["head.bias"]})

    def forward(self, observations: Tensor) -> Tensor:
        return self.env.torque(self.head(self.network(observations)))


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
    if artifacts.read_manifest(folder, "run", "tasks")["kind"] == "tasks":
        env, model, weights = read_skill(folder, skill, trusted)
    else:
        env, model, weights = read_policy(folder, goal, trusted)
    if not hasattr(env, "torque"):
        raise UserError(f"{folder}: its environment '{env.id}' is not one of gymnasium's, where a policy could act")
    policy = Policy(env, model, weights).eval().requires_grad_(False)
    told = {"observation": env.observation, "action": env.action}
    which = [f"{what} {number}" for what, number in (("skill", skill), ("goal", goal)) if number is not None]
    name = ", ".join([folder.name, *which])
    program = export_graph(policy, (env.observation,))

    def fill(place: Path) -> None:
        save(program, place / "policy", None)
        artifacts.write_text(place / "README.md", CARD.format(name=name, id=env.id, **told))

    write(out, {"umeta": __version__, "name": name, "env": env.id, **told}, fill)
    return out


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
    if isinstance(run.learner, RecurrentLearner):
        raise UserError(f"{folder}: its policy has a memory, which the file could not hold; export one of maml's")
    weights = run.theta.params
    if goal is not None:
        if not (folder / ADAPTED).exists():
            raise UserError(f"{folder}: it has adapted to no goal yet; umeta evaluate {folder} lets it")
        adapted = artifacts.read_tensors(folder / ADAPTED)
        if not 0 <= goal < (count := len(adapted["head.bias"])):
            raise UserError(f"{folder}: which of its {count} goals? give --goal a number from 0 to {count - 1}")
        weights = {**weights, **{name: value[goal] for name, value in adapted.items()}}
    return run.config.env, run.config.metalearner.model, weights
