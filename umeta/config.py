"""A run's configuration: a YAML file with `key=value` overrides, typed and checked before anything long begins."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from umeta import artifacts
from umeta.errors import UserError, suggest
from umeta.registry import KINDS, find, typed
from umeta.types import EpisodeSpec, Outer, PolicyLearner, RecurrentLearner

LARGEST = 1 << 16  # bytes of a config
DEPTH, NODES = 50, 10_000  # nesting and values of a config, its aliases written out
INTERPOLATIONS = 16  # each may stand for all of the others, so that their number bounds how far they grow
OTHER_INTERPOLATION = re.compile(r"\$\{\s*(?!oc\.env:)[^}]*?[:$]")

Count = Annotated[int, Gt(0)]
Seed = Annotated[int, Ge(0), Lt(2**63)]


@dataclass(frozen=True)
class TrainConfig:
    """The outer loop: how many meta-steps, on episodes of which size."""

    outer: Outer
    """who takes the outer step"""
    steps: Count = 10_000
    """meta-steps"""
    way: Annotated[int, Gt(1)] = 20
    """classes per task"""
    shot: Count = 1
    """support items per class"""
    query: Count = 5
    """query items per class"""
    meta_batch: Count = 8
    """tasks per meta-step"""
    task_chunk: Count = 8
    """tasks per backward pass: bounds memory, changes no result beyond rounding"""
    snapshots: Annotated[int, Ge(0)] = 0
    """states kept at even steps, from which `evaluate` draws accuracy against minutes"""
    not_a_number: Literal["stop", "skip"] = "stop"
    """what becomes of a meta-step whose loss or gradient is none: `skip` leaves the weights as they were before it, and
    stops when ten in a row are none"""

    @property
    def episode(self) -> EpisodeSpec:
        return EpisodeSpec(self.way, self.shot, self.query)


@dataclass(frozen=True)
class EnvTrainConfig:
    """The outer loop on an environment: how many meta-steps, on how many episodes."""

    outer: Outer
    """who takes the outer step"""
    steps: Count = 100
    """meta-steps"""
    meta_batch: Count = 20
    """tasks per meta-step"""
    episodes: Annotated[int, Gt(1)] = 20
    """per task and round; the baseline of one half of them is fitted on the other"""
    rounds: Count = 1
    """how often the learner adapts, to fresh episodes each time, before the episodes that it is scored on"""
    task_chunk: Count = 20
    """tasks per backward pass: bounds memory, changes no result beyond rounding"""
    snapshots: Annotated[int, Ge(0)] = 0
    """states kept at even steps"""
    not_a_number: Literal["stop", "skip"] = "stop"
    """what becomes of a meta-step whose loss or gradient is none: `skip` leaves the weights as they were before it, and
    stops when ten in a row are none"""

    @property
    def episode(self) -> EpisodeSpec:
        return EpisodeSpec(1, self.episodes, self.episodes)


@dataclass(frozen=True)
class RegressionTrainConfig:
    """The outer loop on functions to regress: how many meta-steps, on how many points."""

    outer: Outer
    """who takes the outer step"""
    steps: Count = 10_000
    """meta-steps"""
    shot: Count = 10
    """points of a task to adapt to"""
    query: Count = 10
    """points of a task to be scored on"""
    meta_batch: Count = 25
    """tasks per meta-step"""
    task_chunk: Count = 25
    """tasks per backward pass: bounds memory, changes no result beyond rounding"""
    snapshots: Annotated[int, Ge(0)] = 0
    """states kept at even steps"""
    not_a_number: Literal["stop", "skip"] = "stop"
    """what becomes of a meta-step whose loss or gradient is none: `skip` leaves the weights as they were before it, and
    stops when ten in a row are none"""

    @property
    def episode(self) -> EpisodeSpec:
        return EpisodeSpec(1, self.shot, self.query)


@dataclass(frozen=True)
class RegressionEvaluateConfig:
    """The test on functions: mean squared error against gradient steps, on tasks that nothing has seen before."""

    shots: list[Count] = field(default_factory=lambda: [5, 10])
    """points of a task to adapt to, a column for each"""
    query: Count = 100
    """points of a task that the error is the mean over"""
    tasks: Annotated[int, Gt(1)] = 600
    """tasks to test on"""
    steps: Count = 10
    """gradient steps: the error is measured after each, and before the first; learners without steps pass them over"""
    seed: Seed = 0
    """of the test tasks: fixed, so that every learner sees the same ones"""
    baselines: list[str] = field(default_factory=lambda: ["pretrained", "oracle"])
    """rows beside the result; [] for none"""
    ranges: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """options of the proposer and ranges for each, such as {amplitude: [[0.1, 5], [5, 10]]}: also the error on tasks of
    these, with the most points of `shots`"""


@dataclass(frozen=True)
class EnvEvaluateConfig:
    """The test on true rewards: return against policy-gradient steps, on goals that nothing has seen before."""

    benchmark: str
    """which true rewards (umeta/benchmarks/goals.py)"""
    goals: Annotated[int, Gt(1)] = 20
    """tasks to test on"""
    validation: Count = 10
    """other tasks, on which the step sizes of the baselines are chosen"""
    episodes: Annotated[int, Gt(1)] = 20
    """per goal and step"""
    steps: Count = 10
    """policy-gradient steps"""
    seed: Seed = 0
    """of the goals and episodes: fixed, so that every learner sees the same ones"""
    baselines: list[str] = field(default_factory=lambda: ["scratch", "finetune"])
    """curves beside the result; [] for none"""


@dataclass(frozen=True)
class EvaluateConfig:
    """The labelled test: which episodes, how many, and which baselines stand beside the learner."""

    protocol: str = "cactus"
    """named settings of the episodes, queries and tasks below (umeta/benchmarks/protocols.py)"""
    episodes: list[tuple[Annotated[int, Gt(1)], Count]] | None = None
    """(way, shot) pairs; by default the protocol's; [] for no evaluation"""
    query: Count | None = None
    """queries per class; by default the protocol's"""
    tasks: Annotated[int, Gt(1)] | None = None
    """test tasks per episode; by default the protocol's"""
    seed: Seed = 0
    """of the test tasks: fixed, so that every learner sees the same ones"""
    split: Literal["val", "test"] = "test"
    """tune on val; look at test once"""
    baselines: list[str] = field(default_factory=lambda: ["pixels_knn", "knn", "linear", "scratch"])
    """rows beside the result; [] for none"""
    steps: Count | None = None
    """inner steps, for a learner that takes any; by default its own `test_steps`"""
    step_curve: list[Annotated[int, Ge(0)]] = field(default_factory=list)
    """also accuracy after each of these numbers of inner steps, such as [0, 1, 5, 10, 50], on the first 200 tasks"""
    shear: list[float] = field(default_factory=list)
    """also accuracy in the first of the episodes on test images that are all sheared so much, such as [0, 0.5, 1]"""
    scale: list[Annotated[float, Gt(0)]] = field(default_factory=list)
    """likewise on images that are all scaled by each of these, such as [1, 0.7, 0.5]"""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """further rows: the same learner with some of its options changed, such as {ProtoTune: {test_steps: 20}}"""
    scratch_tasks: Count = 100
    """tasks for training from scratch, which is slow"""
    scratch_lr: Annotated[float, Gt(0)] | None = None
    """step size of training from scratch; by default the best of a few on tasks of the val split, where there is one"""
    scratch_steps: Count = 200
    """gradient steps of training from scratch"""


SKILLS = "skills"  # what `start` calls the middle of them


@dataclass(frozen=True, kw_only=True)
class AnyConfig:
    """Everything a run needs. The parts are built, so a wrong option is found at once."""

    name: str
    proposer: Any
    metalearner: Any
    seed: Seed = 0
    tasks: str | None = None
    """the proposed tasks to meta-train on, `tasks/NAME`; by default those of this run's own name"""
    start: str | None = None
    """a run whose weights meta-training starts from, `runs/NAME`; in an environment also `skills`, the mean of the
    proposer's skills' policies"""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """further rounds of `umeta run`: changes to this config's embedding, proposer, metalearner and train"""
    out: str = "."
    """where `tasks/` and `runs/` are written"""
    title: str = ""
    """the learner's row in tables; by default the name"""
    plain: dict[str, Any] = field(default_factory=dict)  # what was read, as plain values; for manifests and re-loading

    @property
    def parent(self) -> str | None:
        """The run that meta-training starts from."""
        return None if self.start == SKILLS else self.start

    @property
    def tasks_folder(self) -> Path:
        return Path(self.tasks) if self.tasks else Path(self.out) / "tasks" / self.name

    @property
    def run_folder(self) -> Path:
        return Path(self.out) / "runs" / self.name


@dataclass(frozen=True, kw_only=True)
class Config(AnyConfig):
    """A run on images."""

    data: Any
    train: TrainConfig
    embedding: Any = None
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


@dataclass(frozen=True, kw_only=True)
class EnvConfig(AnyConfig):
    """A run on an environment."""

    env: Any
    train: EnvTrainConfig
    evaluate: EnvEvaluateConfig


@dataclass(frozen=True, kw_only=True)
class RegressionConfig(AnyConfig):
    """A run on functions to regress, which the proposer makes of nothing but its options."""

    train: RegressionTrainConfig
    evaluate: RegressionEvaluateConfig = field(default_factory=RegressionEvaluateConfig)


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


def packaged() -> dict[str, Path]:
    """The configs that come with the library, by name."""
    here = Path(__file__).parent
    folder = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def ablation(reference: str | Path, rows: Path | None = None) -> dict[str, list[str]]:
    """The rows of an ablation: title -> overrides of the config, from a YAML file or the one packaged for the config.

    Raises:
        UserError: no such file, or not a mapping of titles to lists of `key=value`.
    """
    known = packaged()
    path = rows or next(iter(known.values())).parent / "ablations" / f"{Path(reference).stem}.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such file of ablations; write one and name it with --rows")
    found = read_yaml(path)
    if not isinstance(found, dict) or not all(isinstance(change, list) for change in found.values()):
        raise UserError(f"{path}: expected a mapping of titles to lists of key=value")
    return {str(title): [str(one) for one in change] for title, change in found.items()}


def read(reference: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A config file (a path, or the name of a packaged one) with `a.b=value` overrides, as plain values.

    Raises:
        UserError: no such config, not YAML, not a mapping, a key twice, or a bad override.
    """
    from omegaconf import OmegaConf

    path = Path(reference)
    if not path.is_file():
        known = packaged()
        if str(reference) not in known:
            raise UserError(f"config '{reference}': no such file or packaged config{suggest(str(reference), known)}")
        path = known[str(reference)]
    changes = parse(overrides)
    loaded = read_yaml(path)
    where = f"config '{path}'{' with ' if overrides else ''}{' '.join(overrides)}"
    if not isinstance(loaded, dict):
        raise UserError(f"{where}: expected a mapping of keys to values, found a list")
    try:
        plain = joined({"name": path.stem, **named(loaded)}, changes)
        check_interpolations(plain)
        resolved: Any = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
    except Exception as error:  # the grammar of interpolations raises nearly anything
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
    return named(resolved)


def read_yaml(path: Path) -> Any:
    """A YAML file as plain values, interpolations as they stand; nothing in it is run, whatever its tags say.

    Raises:
        UserError: missing, not YAML, a key twice, or far larger, deeper or more repetitive than any configuration.
    """
    from omegaconf import OmegaConf

    try:
        text = artifacts.read_text(path, LARGEST)
        check_size(text)
        return to_plain(OmegaConf.to_container(OmegaConf.load(io.StringIO(text))))
    except Exception as error:  # a YAML constructor raises nearly anything for text that is not what its tag says
        raise UserError(f"config '{path}': {' '.join(str(error).split())}") from error


def check_size(text: str) -> None:
    """Raises ValueError for YAML that nests deeper than `DEPTH`, where the parser itself would run out of stack, or
    that aliases blow up to more than `NODES` values; other errors of YAML are left to the parser."""
    import yaml

    sizes: dict[str, int] = {}  # of what an anchor stands for, in values
    opened: list[tuple[str | None, int]] = []  # anchors of the collections around, and the values before them
    total = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes |= {anchor: total - before} if anchor else {}
            continue
        if isinstance(event, yaml.AliasEvent):
            total += sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.NodeEvent):
            total += 1
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, total - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
        if len(opened) > DEPTH or total > NODES:
            raise ValueError(f"nested deeper than {DEPTH} levels, or more than {NODES:,} values with its aliases")


def to_plain(value: Any) -> Any:
    """Without the types that YAML tags of OmegaConf make, such as paths: as texts."""
    if isinstance(value, dict):
        return {to_plain(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [to_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def check_interpolations(plain: Mapping[Any, Any]) -> None:
    """Raises ValueError for more `${...}` than any configuration needs, or others than of keys and `oc.env`, such as
    `oc.create`, which would read YAML that `check_size` has not seen."""
    text = json.dumps(plain)
    if (count := text.count("${")) > INTERPOLATIONS:
        raise ValueError(f"{count} interpolations ${{...}}, at most {INTERPOLATIONS} are followed")
    if found := OTHER_INTERPOLATION.search(text):
        raise ValueError(f"'{found[0]}...': only ${{key}} and ${{oc.env:NAME}} are followed")


def named(plain: Any) -> Any:
    """With every part that is given by its name alone, such as `outer: adam`, as a mapping that options can join."""
    if not isinstance(plain, dict):
        return plain
    return {key: {"name": v} if key in KINDS and isinstance(v, str) else named(v) for key, v in plain.items()}


class Whole(dict[Any, Any]):
    """Options that take the place of all that were there."""


def joined(base: Mapping[Any, Any], change: Mapping[Any, Any]) -> dict[Any, Any]:
    """`base` with `change` merged into it, in which `{}` empties what was there.

    A part that changes its name drops the options it had under the old one.
    """
    out = dict(base)
    for key, value in change.items():
        before = out.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            renamed = key in KINDS and value.get("name", before.get("name")) != before.get("name")
            value = dict(value) if renamed or not value or isinstance(value, Whole) else joined(before, value)
        out[key] = value
    return out


def parse(overrides: Sequence[str]) -> dict[Any, Any]:
    """`a.b=value` overrides, in order, as one nested mapping; values are YAML.

    Raises:
        UserError: no `=`, an empty key, or a value that is not YAML.
    """
    from omegaconf import OmegaConf

    parsed: dict[Any, Any] = {}
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"override '{override}': expected key=value, such as train.steps=100")
        try:
            check_size(override.partition("=")[2])
            one = to_plain(OmegaConf.to_container(OmegaConf.from_dotlist([override])))
        except Exception as error:  # as in `read`
            raise UserError(f"override '{override}': {' '.join(str(error).split())}") from error
        parsed = joined(parsed, named(one))
    return parsed


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


def dump(plain: Mapping[str, Any]) -> str:
    """Plain values as YAML."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(plain)))
