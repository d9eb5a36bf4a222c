"""`umeta adapt`: a run to classes of yours."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from umeta.cli.options import Commands, add_learner_options
from umeta.errors import UserError


def add_parser(commands: Commands) -> None:
    text = "adapt a run to classes of yours, from a few labelled images of each"
    sub = commands.add_parser("adapt", help=text, description=text)
    add_learner_options(sub)
    sub.add_argument("run", type=Path, help="runs/NAME")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="metalearner.KEY=value")
    where = "a folder (or zip) with a folder of images per class, or a CSV with the columns path and label"
    sub.add_argument("--support", type=Path, required=True, metavar="PLACE", help=where)
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the learner")


def run(options: argparse.Namespace) -> dict[str, Any]:
    for change in options.overrides:
        if not change.startswith("metalearner."):
            raise UserError(f"'{change}': adapt takes metalearner.KEY=value; the rest is the run's")
    from umeta.config import reading
    from umeta.deploy.adapt import adapt_run
    from umeta.deploy.adapted import describe
    from umeta.runtime.allocator import keep_buffers

    keep_buffers()
    changed = reading.parse_overrides(options.overrides).get("metalearner")
    learner, notes = adapt_run(
        options.run,
        options.support,
        options.out,
        options=changed,
        device=options.device,
        skip_bad=options.skip_bad is not False,
        trusted=None if options.allow_plugin else (),
    )
    for note in notes:
        print(note, file=sys.stderr)
    print(*describe(learner.values()), sep="\n")
    again = shlex.join(["umeta", "predict", str(options.out), "IMAGES", "--out", "predictions.csv"])
    print(f"\n{options.out}: look at {options.out / 'support.png'}, then: {again}")
    calibration = asdict(learner.calibration) if learner.calibration else None
    return {"learner": str(options.out), "classes": learner.classes.tolist(), "calibration": calibration}
