"""Build a run's typed configuration from plain values, checked before anything long begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umeta.config import environments, images, registry, regression
from umeta.config.base import RunConfig
from umeta.config.reading import expand_names, merge, read
from umeta.errors import UserError, suggest
from umeta.parts import OuterTraits, ProposerTraits
from umeta.types import MetaLearner, OwnMetaGradient, PolicyLearner

DOMAINS: dict[str, type[RunConfig]] = {
    config.domain: config for config in (images.Config, environments.Config, regression.Config)
}


def load(reference: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """`build(read(...))`."""
    return build(read(reference, overrides))


def build(plain: Mapping[str, Any]) -> RunConfig:
    """Build the typed config of a run from plain values.

    Raises:
        UserError: an unknown key or name (with the nearest), a missing one, a wrong type or value, or parts that do not
            go together.
    """
    kind = DOMAINS[find_domain(plain)]
    keys = [f.name for f in dataclasses.fields(kind) if f.name != "plain"]
    for key in plain:
        if key not in keys:
            other = (
                ": its proposer makes tasks of nothing but its options"
                if not kind.key
                else ": a config is on images (data, embedding) or on an environment (env)"
            )
            hint = other if key in ("data", "embedding") else suggest(str(key), keys)
            raise UserError(f"config: unknown key '{key}'{hint}")
    name = str(plain["name"]) if isinstance(plain.get("name"), str | int | float) else ""
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise UserError(f"name: {plain.get('name')!r} cannot name a directory")
    config: RunConfig = registry.build_typed(kind, {**plain, "name": name, "plain": dict(plain)}, "")
    check_parts(config)
    return config


def find_domain(plain: Mapping[str, Any]) -> str:
    """Tell the domain of these values: by the source they describe, by a proposer that needs none, else images."""
    for domain, config in DOMAINS.items():
        if domain != "image" and config.key and config.key in plain:
            return domain
    proposer = plain.get("proposer")
    name = proposer.get("name") if isinstance(proposer, Mapping) else proposer
    domain = getattr(registry.find("proposer", name), "domain", "") if isinstance(name, str) else ""
    return domain if domain in DOMAINS and not DOMAINS[domain].key else "image"


def check_parts(config: RunConfig) -> None:
    """Check that the parts of a config go together.

    Raises:
        UserError: they do not; the message names the part, and one that would do.
    """
    learner, outer = config.metalearner, config.train.outer
    if not isinstance(learner, MetaLearner):
        raise UserError(
            f"metalearner: {registry.name_of('metalearner', learner)} does not inherit from umeta.types.MetaLearner, "
            "which says what a learner must offer"
        )
    for attribute in ("domain", "sees_labels"):
        if not hasattr(config.proposer, attribute):
            raise UserError(f"proposer: it lacks the class attribute '{attribute}' (see umeta.parts.Proposer)")
    if (domain := config.proposer.domain) not in DOMAINS:
        raise UserError(f"proposer: its domain is {domain!r}, expected one of {', '.join(DOMAINS)}")
    if domain != config.domain:
        proposes_on = DOMAINS[domain].source
        raise UserError(f"proposer: it proposes tasks on {proposes_on}, this config is on {config.source}")
    called = registry.name_of("metalearner", learner)
    acts_alone = isinstance(learner, PolicyLearner) and learner.policies_only
    step, for_policies = registry.name_of("outer", outer), OuterTraits.of(outer).for_policies
    traits = ProposerTraits.of(config.proposer)
    if config.domain == "env" and not isinstance(learner, PolicyLearner):
        raise UserError(
            f"metalearner: an environment needs one that acts before it has adapted, and {called} does not; take maml, "
            "context, anil, metasgd or rl2"
        )
    if config.domain != "env" and acts_alone:
        raise UserError(f"metalearner: {called} is for policies, on an environment; use another, such as maml")
    if config.domain == "regression" and not learner.regresses:
        raise UserError(
            f"metalearner: {called} tells classes apart and cannot predict numbers; functions need one that adapts a "
            "network with outputs of its own, such as maml, reptile or snail"
        )
    if traits.unlabelled and not learner.unlabelled:
        raise UserError(
            f"metalearner: {called} needs the label of each item of a support, and "
            f"{registry.name_of('proposer', config.proposer)} hides some; take semiproto, or another proposer"
        )
    if learner.recompute and OuterTraits.of(outer).second_order:
        raise UserError(
            f"metalearner.recompute: {step} differentiates the inner loop twice; leave it out, or take promp"
        )
    if config.domain != "env" and for_policies:
        raise UserError(f"train.outer: {step} is for environments; use adam")
    if traits.demonstrates and acts_alone:
        raise UserError(f"metalearner: {called} learns from rewards, which demonstrations do not have; take maml")
    if traits.demonstrates and for_policies:
        raise UserError(f"train.outer: {step} needs rewards; use adam")
    if config.domain == "env" and isinstance(learner, OwnMetaGradient):
        if for_policies:
            raise UserError(f"train.outer: the meta-gradient of {called} is its own; use adam")
        if config.train.rounds > 1:
            raise UserError(f"train.rounds: {called} adapts to one round of episodes; set it to 1")
    if config.domain != "image" and config.rounds:
        raise UserError(f"rounds: they embed images with the learner before them; leave them out on {config.source}")


def build_rounds(config: RunConfig) -> list[RunConfig]:
    """Build the configs of a run's rounds, in order; the last has the run's name.

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
            plain = merge(merge(plain, follows), expand_names(change))
        found.append(build({**plain, "name": name}))
    return found
