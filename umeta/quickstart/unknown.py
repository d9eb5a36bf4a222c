"""`umeta run --env`: a config for an environment of which nothing else is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from umeta.config import reading
from umeta.config.build import build
from umeta.config.environments import Config
from umeta.envs.gym import Gym
from umeta.errors import UserError
from umeta.evaluation.environments import check
from umeta.quickstart.recipe import refuse_to_overwrite
from umeta.rl.discriminator import CONSTANT
from umeta.rl.explore import act_randomly
from umeta.rl.rollout import Paths
from umeta.runtime import artifacts
from umeta.runtime.progress import note
from umeta.stages.folder import check_out
from umeta.types import RecurrentLearner

HORIZON = 100  # steps of an episode at most
LARGE = 20.0  # standard deviation of an observed number, at random actions, that drowns the others
SKILLS = {
    "skills": 10,
    "iterations": 200,
    "hidden": 64,
    "discriminator_steps": 20,
    "algorithm": {"name": "ppo", "effort": 0.3},  # without it skills act at the bounds, where noise does nothing
}
BRIEF = {"name": "diayn", **SKILLS, "episodes": 8}  # for episodes that may end early: METRA's skills soon end them
LIKE: dict[str, Any] = {
    "title": "default recipe",
    "proposer": {"name": "diayn_metra", **SKILLS, "movers": 4, "episodes": 6},
    "metalearner": {"name": "context", "model": {"name": "mlp", "hidden": [64, 64]}},
    "train": {
        "outer": {"name": "promp", "lr": 3e-4, "max_kl": 0.03, "schedule": "cosine"},
        "steps": 10,
        "meta_batch": 5,
        "episodes": 20,
    },
    "start": "skills",
    "evaluate": {"benchmark": "own", "goals": 5, "validation": 2, "steps": 5, "practice": 10, "baselines": ["scratch"]},
}


def write_env_recipe(id: str, changes: list[str], resume: bool = False) -> Path:
    """Write the config file `OUT/NAME.yaml` for an environment that gymnasium knows, and say what was seen and decided.

    With `resume` and the file there already, it is that file as it is.

    changes: `key=value` overrides of what is decided here; `name` is by default the environment's.

    Raises:
        UserError: an environment or overrides that cannot be used, or a run of this name exists.
    """
    wanted = reading.parse_overrides(changes)
    name = str(wanted.get("name", id.rpartition(":")[2].replace("/", "-")))
    out = Path(str(wanted.get("out", ".")))
    path = out / f"{name}.yaml"
    if path.exists() and resume:
        env = reading.read(path).get("env")
        other = env.get("id") if isinstance(env, dict) else None
        if other != id:
            written = f"was written with --env {other}" if other else "is of no environment of gymnasium's"
            raise UserError(f"{path} {written}, this is {id}; resume with it, or choose name=NAME")
        note(f"going on with {path}")
        return path
    refuse_to_overwrite(path, [out / kind / name for kind in ("tasks", "runs")])
    decided: dict[str, Any] = {"name": name, "env": {"name": "gym", "id": id, "lam": 0.95}, **LIKE}
    decided["env"]["horizon"] = choose_horizon(cast(Gym, build_config(decided, wanted).env))
    config = build_config(decided, wanted)
    if isinstance(config.metalearner, RecurrentLearner):
        decided = reading.merge(decided, {"evaluate": {"practice": 0}})
        config = build_config(decided, wanted)
    check_out(config)
    check(config)
    paths = act_randomly(config.env, 0)
    lines = [describe_env(config.env, paths)]
    if not paths.mask.all():
        decided["proposer"] = BRIEF
    if large := bool(paths.after[paths.mask].std(0).max() > LARGE):
        decided["env"] = {**decided["env"], "symlog": True}
    config = build_config(decided, wanted)
    if large and config.env.symlog:
        lines.append("some of these are so large that they drown the others: all are shown on a logarithmic scale")
    if skills := getattr(config.proposer, "count", None):
        size = min(skills, getattr(config.proposer, "hidden", skills))  # a number each, as far as the layer is wide
        decided = reading.merge(decided, {"metalearner": {"contexts": skills, "size": size}})
        config = build_config(decided, wanted)
    plain = reading.dump_yaml({key: value for key, value in config.plain.items() if key != "name"})
    artifacts.write_text(path, "".join(f"# {line}\n" for line in lines) + plain)
    note("\n".join([*lines, f"{path} holds all of this; a changed copy of it runs with umeta run COPY.yaml"]))
    return path


def build_config(decided: dict[Any, Any], wanted: dict[Any, Any]) -> Config:
    """Build the config of what is decided and what the person wants otherwise."""
    config = build(reading.merge(decided, wanted))
    assert isinstance(config, Config)  # as it has an `env`
    return config


def choose_horizon(env: Gym) -> int:
    """Return how long its own episodes are, at most `HORIZON` steps."""
    import gymnasium

    own = gymnasium.spec(env.one.spec.id)  # without the limit that `env` gives its copies
    return min(own.max_episode_steps or HORIZON, HORIZON)


def describe_env(env: Gym, paths: Paths) -> str:
    """Return what episodes of random actions show of it, in a line."""
    moved = int((paths.after[paths.mask].std(0) > CONSTANT).sum())
    lived = paths.mask.sum(-1).float().mean()
    return (
        f"{env.id}: {env.observation} numbers observed, {moved} of which random actions move; {env.action} to "
        f"act with; episodes of random actions last {lived:.0f} of {env.horizon} steps"
    )
