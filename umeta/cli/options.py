"""The options that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

OVERRIDES = "key=value changes the config, such as train.steps=100 or proposer.k=50"


def add_common_options(sub: argparse.ArgumentParser) -> None:
    """Add the option of every command."""
    sub.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")


def add_stage_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of the commands that propose, meta-train or evaluate."""
    add_common_options(sub)
    add_device(sub)
    sub.add_argument("--seed", type=int, help="the same as seed=N; of the test tasks for evaluate")
    sub.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    add_skip_bad(sub)
    text = "also send metrics and pictures to `tensorboard`, or to a tracker of yours: my_tracker.py:MyTracker"
    sub.add_argument("--log", action="append", default=[], metavar="TRACKER", help=text)


def add_learner_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of the commands that use a finished run on new images."""
    add_common_options(sub)
    add_device(sub)
    add_skip_bad(sub)
    add_allow_plugin(sub)


def add_pictures_options(sub: argparse.ArgumentParser, run: str = "runs/NAME") -> None:
    """Add what the commands take that go through many pictures with a run; `run` is the help of that."""
    add_common_options(sub)
    add_device(sub)
    add_allow_plugin(sub)
    sub.add_argument("run", type=Path, help=run)
    sub.add_argument("photos", type=Path, help="a folder or zip of pictures")


def add_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def add_skip_bad(sub: argparse.ArgumentParser) -> None:
    text = "stop at the first image that cannot be read; else they are left out, and named at the end"
    sub.add_argument("--strict", dest="skip_bad", action="store_false", default=None, help=text)
    sub.add_argument("--skip-bad", action="store_true", default=None, help=argparse.SUPPRESS)  # of earlier versions


def add_allow_plugin(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--allow-plugin", action="store_true", help="run code that the run's own config names")


def add_config(sub: argparse.ArgumentParser, overrides: str = OVERRIDES) -> None:
    """Add a config and its overrides."""
    sub.add_argument("config", help="a file, or the name of a packaged config (see umeta list)")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)


def add_record(sub: argparse.ArgumentParser, what: str = "result") -> None:
    sub.add_argument("--record", type=Path, metavar="FILE", help=f"append the {what} to this results file")


def load_config(reference: str, changes: Sequence[str], options: argparse.Namespace) -> Any:
    """Load the config of a command, with the options that stand for overrides."""
    from umeta.config import build
    from umeta.runtime.allocator import keep_buffers

    keep_buffers()
    return build.load(reference, [*as_overrides(options, "seed"), *changes])


def as_overrides(options: argparse.Namespace, seed: str) -> list[str]:
    """List the overrides that `--seed` and `--strict` stand for."""
    seeds = [f"{seed}={options.seed}"] if options.seed is not None else []
    return [*seeds, *([] if options.skip_bad is None else [f"data.skip_bad={str(options.skip_bad).lower()}"])]


def build_trackers(options: argparse.Namespace) -> list[Any]:
    """Build what `--log` asks for: `tensorboard`, `my_tracker.py:MyTracker`, or `{name: ..., option: value}`."""
    from umeta.config import reading, registry

    asked = [reading.parse_overrides([f"tracker={text}"])["tracker"] for text in options.log]
    return [registry.build_part("tracker", one, "--log") for one in asked]
