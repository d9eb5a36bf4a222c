"""`umeta evaluate`: a run on labelled test data, beside baselines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from umeta.cli.options import Commands, add_allow_plugin, add_record, add_stage_options, as_overrides, build_trackers
from umeta.errors import UserError


def add_parser(commands: Commands) -> None:
    text = "evaluate a run on labelled test data, beside baselines"
    sub = commands.add_parser("evaluate", help=text, description=text)
    add_stage_options(sub)
    sub.add_argument("run", type=Path, help="runs/NAME")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="evaluate.KEY=value or data.KEY=value")
    add_allow_plugin(sub)
    add_record(sub)


def run(options: argparse.Namespace) -> dict[str, Any]:
    for change in options.overrides:
        if not change.startswith(("evaluate.", "data.")):
            raise UserError(f"'{change}': evaluate takes evaluate.KEY=value and data.KEY=value; the rest is the run's")
    from umeta.config import reading, registry
    from umeta.evaluation.run import evaluate_run
    from umeta.report.write import align_columns, list_facts, tabulate
    from umeta.runtime.allocator import keep_buffers

    keep_buffers()
    plain = reading.parse_overrides([*options.overrides, *as_overrides(options, "evaluate.seed")])
    trusted = None if options.allow_plugin else registry.find_plugins(plain)
    result = evaluate_run(
        options.run,
        plain,
        device=options.device,
        record=options.record,
        trusted=trusted,
        trackers=build_trackers(options),
    )
    print(align_columns(tabulate([result])), *list_facts(result), f"{options.run / 'report.html'}", sep="\n")
    return {**result}
