"""`umeta export`: a run or a learner as files that need nothing but torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from umeta.cli.options import Commands, add_allow_plugin, add_common_options


def add_parser(commands: Commands) -> None:
    text = "write a run or an adapted learner as files that need nothing but torch, with a model card"
    sub = commands.add_parser("export", help=text, description=text)
    add_common_options(sub)
    sub.add_argument("run", type=Path, help="runs/NAME, what adapt wrote, or tasks/NAME for a skill")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or an earlier export's")
    sub.add_argument("--skill", type=int, metavar="N", help="which skill of tasks/NAME")
    text = "of a run on an environment: the policy that its evaluation ended with for the Nth goal"
    sub.add_argument("--goal", type=int, metavar="N", help=text)
    sub.add_argument("--onnx", action="store_true", help="also write ONNX (pip install 'umeta[onnx]')")
    add_allow_plugin(sub)


def run(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.config.reading import read_yaml
    from umeta.deploy.export import export_learner, export_run
    from umeta.deploy.policies import export_policy
    from umeta.errors import UserError
    from umeta.runtime import artifacts

    trusted = None if options.allow_plugin else ()
    kind = artifacts.read_manifest(options.run, "run", "learner", "tasks")["kind"]
    if kind == "tasks" or (kind == "run" and "env" in read_yaml(options.run / "config.yaml")):
        if options.onnx:
            raise UserError("export: --onnx is for runs on images; a policy is written for torch alone")
        folder = export_policy(options.run, options.out, skill=options.skill, goal=options.goal, trusted=trusted)
    else:
        write = export_run if kind == "run" else export_learner
        folder = write(options.run, options.out, onnx=options.onnx, trusted=trusted)
    files = sorted(path.name for path in folder.iterdir())
    print(f"{folder}: {', '.join(files)}")
    return {"export": str(folder), "files": files}
