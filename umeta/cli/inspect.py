"""`umeta inspect`: what a folder holds, or what a config would need."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from umeta.cli.chain import test_later
from umeta.cli.options import OVERRIDES, Commands, add_common_options


def add_parser(commands: Commands) -> None:
    text = "numbers and a picture of proposed tasks, a run or a learner; the memory that a config would need"
    sub = commands.add_parser("inspect", help=text, description=text)
    add_common_options(sub)
    sub.add_argument("path", type=Path, help="tasks/NAME, runs/NAME, what adapt wrote, or a config")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=f"of a config: {OVERRIDES}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.config import reading
    from umeta.runtime import artifacts

    path = options.path
    if path.is_file() or (not path.exists() and str(path) in reading.find_packaged()):
        return inspect_config(options)
    manifest = artifacts.read_manifest(path, "tasks", "run", "learner")
    if manifest["kind"] == "tasks":
        print((path / "summary.md").read_text(encoding="utf-8").partition("![")[0].strip())
        arrays = {name: artifacts.read_array(path / name) for name in manifest["files"] if name.endswith(".npy")}
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        print(f"picture: {path / 'preview.png'}")
        return {"manifest": manifest, "arrays": shapes, "picture": str(path / "preview.png")}
    if manifest["kind"] == "learner":
        from umeta.deploy.adapted import describe

        values = artifacts.read_json(path / "learner.json")
        print(*describe(values), f"picture: {path / 'support.png'}", sep="\n")
        return {"manifest": manifest, "learner": values}
    from umeta.report import write

    found: dict[str, Any] = {"manifest": manifest}
    print((path / "config.yaml").read_text(encoding="utf-8"))
    if (path / "report.json").exists():
        found["report"] = artifacts.read_sealed(path / "report.json")
        print(write.align_columns(write.tabulate([found["report"]])), *write.list_facts(found["report"]), sep="\n")
        names = ("test_tasks.png", "adaptation.png", "behaviour.png", "fits.png", "extrapolation.png", "training.png")
        print("picture:", ", ".join(str(path / name) for name in names if (path / name).exists()))
    elif reading.read_yaml(path / "config.yaml").get("evaluate", {}).get("episodes") == []:
        print(f"not tested: with a folder of images per class in DIR, {test_later(path)}")
    else:
        print(f"not evaluated yet: umeta evaluate {path}")
    return found


def inspect_config(options: argparse.Namespace) -> dict[str, Any]:
    """Estimate the memory that the stages of a config would take, on its data."""
    from umeta.config import build
    from umeta.runtime import allocator
    from umeta.stages import domains

    allocator.keep_buffers()
    config = build.load(str(options.path), options.overrides)
    domain = domains.domain_of(config)
    source = domain.read(config)
    needs = domains.resolve(domain.estimate)(config, source)
    lines = [domain.describe(source), "peak of resident memory on a CPU, estimated:", *map(str, needs)]
    print(*filter(None, lines), f"available: {allocator.available() / 2**20:,.0f} MB", sep="\n")
    return {"memory": {one.stage: one.bytes for one in needs}, "available": allocator.available()}
