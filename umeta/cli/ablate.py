"""`umeta ablate`: a config with one part changed at a time, in one table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from umeta.cli.chain import run_chain
from umeta.cli.options import OVERRIDES, Commands, add_config, add_record, add_stage_options, load_config


def add_parser(commands: Commands) -> None:
    text = "run a config with one part changed at a time, in one table"
    sub = commands.add_parser("ablate", help=text, description=text)
    add_stage_options(sub)
    add_config(sub, f"of every row: {OVERRIDES}")
    text = "rows: a YAML mapping of titles to lists of key=value (default: those packaged for the config)"
    sub.add_argument("--rows", type=Path, metavar="FILE", help=text)
    add_record(sub, "results")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.config import reading

    changes = reading.read_ablation(options.config, options.rows)
    names = [f"{Path(options.config).stem}-ablation{i}" for i in range(len(changes))]
    return run_chain(
        [
            load_config(options.config, [f"name={name}", f"title='{title}'", *options.overrides, *change], options)
            for name, (title, change) in zip(names, changes.items(), strict=True)
        ],
        options,
    )
