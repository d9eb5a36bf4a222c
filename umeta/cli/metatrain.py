"""`umeta metatrain`: meta-train on proposed tasks."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from umeta.cli.options import Commands, add_config, add_stage_options, build_trackers, load_config


def add_parser(commands: Commands) -> None:
    text = "meta-train on proposed tasks"
    sub = commands.add_parser("metatrain", help=text, description=text)
    add_stage_options(sub)
    add_config(sub)


def run(options: argparse.Namespace) -> dict[str, Any]:
    config = load_config(options.config, options.overrides, options)
    from umeta.config import registry
    from umeta.stages import metatrain

    folder = metatrain.metatrain(config, device=options.device, resume=options.resume, trackers=build_trackers(options))
    flags = ["--allow-plugin"] if registry.find_plugins(config.plain) else []
    print(f"{folder}: {shlex.join(['umeta', 'evaluate', str(folder), *flags])}")
    return {"run": str(folder)}
