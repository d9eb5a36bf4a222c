"""`umeta propose`: propose tasks on unlabelled data."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from umeta.cli.options import Commands, add_config, add_stage_options, as_overrides, build_trackers, load_config


def add_parser(commands: Commands) -> None:
    text = "propose tasks on unlabelled data"
    sub = commands.add_parser("propose", help=text, description=text)
    add_stage_options(sub)
    add_config(sub)


def run(options: argparse.Namespace) -> dict[str, Any]:
    config = load_config(options.config, options.overrides, options)
    from umeta.stages import propose

    folder = propose.propose(config, device=options.device, resume=options.resume, trackers=build_trackers(options))
    print((folder / "summary.md").read_text(encoding="utf-8").partition("![")[0].strip())
    again = shlex.join([options.config, *options.overrides, f"tasks={folder}", *as_overrides(options, "seed")])
    print(f"\n{folder}: look at {folder / 'preview.png'}, then: umeta metatrain {again}")
    return {"tasks": str(folder)}
