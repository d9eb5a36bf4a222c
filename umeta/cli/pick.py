"""`umeta pick`: which of many pictures to label first."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from umeta.cli.options import Commands, add_pictures_options


def add_parser(commands: Commands) -> None:
    text = "choose the pictures to label first, or next: the most typical of each of the largest groups"
    sub = commands.add_parser("pick", help=text, description=text)
    add_pictures_options(sub, "runs/NAME, or a learner that adapt wrote, to go on from its examples")
    sub.add_argument("-n", type=int, default=20, dest="count", metavar="N", help="how many (default: 20)")
    where = "a new folder for the list, a contact sheet and copies to sort (default: pick)"
    sub.add_argument("--out", type=Path, default=Path("pick"), metavar="DIR", help=where)


def run(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.deploy.pick import pick

    found = pick(
        options.run,
        options.photos,
        options.out,
        options.count,
        device=options.device,
        allow_plugin=options.allow_plugin,
    )
    print(*found, sep="\n")
    how = "--add" if (options.run / "learner.json").exists() else "--support"
    print(
        f"{options.out}: look at {options.out / 'pick.png'}; write labels into {options.out / 'pick.csv'}, or move the "
        f"files of {options.out / 'pictures'} into a folder per class, then: umeta adapt {options.run} {how} PLACE"
    )
    return {"pick": str(options.out), "pictures": found}
