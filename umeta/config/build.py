"""Build a run's typed configuration from plain values, checked before anything long begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umeta.config.environments import EnvConfig
from umeta.config.images import Config
from umeta.config.reading import joined, named, read
from umeta.config.registry import find, typed
from umeta.config.regression import RegressionConfig
from umeta.errors import UserError, suggest
from umeta.types import PolicyLearner, RecurrentLearner

RunConfig = Config | EnvConfig | RegressionConfig
DOMAINS: dict[type, str] = {Config: "image", EnvConfig: "env", RegressionConfig: "regression"}


def rounds(config: RunConfig) -> list[RunConfig]:
    """The configs of a run's rounds, in order; the last has the run's name.

    A later round embeds with the learner of the one before and starts from its weights, unless it says otherwise.

    Raises:
        UserError: a round changes what must stay the same, or is no valid config.
    """
    changeable = ("embedding", "proposer", "metalearner", "train", "start")
    plain = {key: value for key, value in config.plain.items() if key != "rounds"}
    names = [*(f"{config.name}-{i}" for i in range(len(config.rounds))), config.name]
    found: list[RunConfig] = []
    for i, (name, change) in enumerate(zip(names, [{}, *config.rounds], strict=True)):
        for key in change:
            if key not in changeable:
                raise UserError(f"rounds[{i - 1}]: unknown key '{key}', expected one of {', '.join(changeable)}")
        if found:
            before = str(found[-1].run_folder)
            follows = {"embedding": {"name": "learner", "run": before}, "start": before, "tasks": None}
            plain = joined(joined(plain, follows), named(change))
        found.append(build({**plain, "name": name}))
    return found


def kind_of(plain: Mapping[str, Any]) -> type:
    """Which config these values are of: on an environment if they name one, on functions if their proposer says so."""
    proposer = plain.get("proposer")
    name = proposer.get("name") if isinstance(proposer, Mapping) else proposer
    if "env" in plain or not isinstance(name, str):
        return EnvConfig if "env" in plain else Config
    domain = getattr(find("proposer", name), "domain", None)
    return RegressionConfig if domain == "regression" else Config


def build(plain: Mapping[str, Any]) -> RunConfig:
    """The typed config: on an environment if it names one, on functions if its proposer makes some, else on images.

    Raises:
        UserError: an unknown key or name (with the nearest), a missing one, a wrong type or value, or parts that do not
            go together.
    """
    kind = kind_of(plain)
    keys = [f.name for f in dataclasses.fields(kind) if f.name != "plain"]
    for key in plain:
        if key not in keys:
            other = (
                ": its proposer makes tasks of nothing but its options"
                if kind is RegressionConfig
                else ": a config is on images (data, embedding) or on an environment (env)"
            )
            hint = other if key in ("data", "embedding") else suggest(str(key), keys)
            raise UserError(f"config: unknown key '{key}'{hint}")
    name = str(plain["name"]) if isinstance(plain.get("name"), str | int | float) else ""
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise UserError(f"name: {plain.get('name')!r} cannot name a directory")
    config = typed(kind, {**plain, "name": name, "plain": dict(plain)}, "")
    domain = DOMAINS[kind]
    what = {"env": "an environment", "image": "images", "regression": "functions"}
    if config.proposer.domain != domain:
        raise UserError(
            f"proposer: it proposes tasks on {what[config.proposer.domain]}, this config is on {what[domain]}"
        )
    if domain == "env" and not isinstance(config.metalearner, PolicyLearner):
        raise UserError(
            f"metalearner: an environment needs one that acts before it has adapted, and "
            f"{config.plain['metalearner']['name']} does not; take maml, anil, metasgd, metacurvature or rl2"
        )
    if domain != "env" and isinstance(config.metalearner, RecurrentLearner):
        raise UserError("metalearner: it is a policy, for an environment; use another, such as maml")
    if domain == "regression" and not getattr(config.metalearner, "regresses", False):
        raise UserError(
            f"metalearner: {config.plain['metalearner']['name']} tells classes apart and cannot predict numbers; "
            "functions need one that adapts a network with outputs of its own, such as maml, reptile or snail"
        )
    if getattr(config.metalearner, "recompute", False) and getattr(config.train.outer, "second_order", False):
        outer = config.plain["train"]["outer"]["name"]
        raise UserError(
            f"metalearner.recompute: {outer} differentiates the inner loop twice; leave it out, or take ppo"
        )
    if domain != "env" and getattr(config.train.outer, "for_policies", False):
        raise UserError(f"train.outer: {config.plain['train']['outer']['name']} is for environments; use adam")
    if domain != "image" and config.rounds:
        raise UserError(f"rounds: they embed images with the learner before them; leave them out on {what[domain]}")
    return config


def load(reference: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """`build(read(...))`."""
    return build(read(reference, overrides))
