"""The command line: `umeta propose`, `umeta metatrain`, `umeta evaluate`, or `umeta run` for all three."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from umeta.errors import Interrupted, UserError

# Nothing heavy is imported above or before a command needs it: `umeta --help` answers at once.

EPILOG = """examples:
  umeta run digits_acai_kmeans_protonet                 all stages, on data that ships with scikit-learn
  umeta propose omniglot_acai_kmeans_protonet data.root=DIR name=acai
  umeta metatrain omniglot_acai_kmeans_protonet data.root=DIR tasks=tasks/acai name=acai-proto
  umeta evaluate runs/acai-proto
  umeta list kmeans                                     the options of a part
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="umeta",
        description="Learn to learn without labels.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")
    work = argparse.ArgumentParser(add_help=False, parents=[common])
    work.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    work.add_argument("--seed", type=int, help="the same as seed=N; of the test tasks for evaluate")
    work.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    work.add_argument("--skip-bad", action="store_true", help="leave out files that are not images")
    overrides = "key=value changes the config, such as train.steps=100 or proposer.k=50"
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, text in (("propose", "propose tasks on unlabelled data"), ("metatrain", "meta-train on proposed tasks")):
        sub = commands.add_parser(name, help=text, description=text, parents=[work])
        sub.add_argument("config", help="a file, or the name of a packaged config (see umeta list)")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)
    text = "propose, meta-train and evaluate, for one config or several in one table"
    sub = commands.add_parser("run", help=text, description=text, parents=[work])
    sub.add_argument("config", nargs="+", help=f"files or names of packaged configs, and overrides: {overrides}")
    sub.add_argument("--record", type=Path, metavar="FILE", help="append the result to this results file")
    text = "evaluate a run on labelled test data, beside baselines"
    sub = commands.add_parser("evaluate", help=text, description=text, parents=[work])
    sub.add_argument("run", type=Path, help="runs/NAME")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="evaluate.KEY=value or data.KEY=value")
    sub.add_argument("--allow-plugin", action="store_true", help="run code that the run's own config names")
    sub.add_argument("--record", type=Path, metavar="FILE", help="append the result to this results file")
    text = "list the parts and configs, or show one in full"
    sub = commands.add_parser("list", help=text, description=text, parents=[common])
    sub.add_argument("name", nargs="?", help="a part or a config")
    text = "numbers and a picture of proposed tasks or of a run"
    sub = commands.add_parser("inspect", help=text, description=text, parents=[common])
    sub.add_argument("path", type=Path, help="tasks/NAME or runs/NAME")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    options, rest = parser().parse_known_args(arguments)
    for word in rest:  # argparse takes no positional words after an option; overrides may stand anywhere
        takes = getattr(options, "overrides", options.config if options.command == "run" else None)
        if takes is None or word.startswith("-"):
            parser().error(f"unrecognized argument: {word}")
        takes.append(word)
    try:
        result = COMMANDS[options.command](options)
        if options.json:
            print(json.dumps(result))
        sys.stdout.flush()
    except UserError as error:
        print(f"umeta: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"umeta: {error}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("umeta: stopped; what is finished is kept, go on with --resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `umeta list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"umeta: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 2
    return 0


def prepared(reference: str, changes: Sequence[str], options: argparse.Namespace) -> Any:
    """The config of a command, with the options that stand for overrides."""
    from umeta import config
    from umeta.memory import keep_buffers

    keep_buffers()
    return config.load(reference, [*changes, *as_overrides(options, "seed")])


def as_overrides(options: argparse.Namespace, seed: str) -> list[str]:
    """The overrides that `--seed` and `--skip-bad` stand for."""
    seeds = [f"{seed}={options.seed}"] if options.seed is not None else []
    return [*seeds, *(["data.skip_bad=true"] if options.skip_bad else [])]


def propose(options: argparse.Namespace) -> dict[str, Any]:
    config = prepared(options.config, options.overrides, options)
    from umeta import stages

    folder = stages.propose(config, device=options.device, resume=options.resume)
    print((folder / "summary.md").read_text(encoding="utf-8").partition("![")[0].strip())
    flags = ["--skip-bad"] if options.skip_bad else []
    again = shlex.join([options.config, *options.overrides, f"tasks={folder}", *flags])
    print(f"\n{folder}: look at {folder / 'preview.png'}, then: umeta metatrain {again}")
    return {"tasks": str(folder)}


def metatrain(options: argparse.Namespace) -> dict[str, Any]:
    config = prepared(options.config, options.overrides, options)
    from umeta import stages

    folder = stages.metatrain(config, device=options.device, resume=options.resume)
    print(f"{folder}: umeta evaluate {folder}")
    return {"run": str(folder)}


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    for change in options.overrides:
        if not change.startswith(("evaluate.", "data.")):
            raise UserError(f"'{change}': evaluate takes evaluate.KEY=value and data.KEY=value; the rest is the run's")
    from umeta import config, registry
    from umeta.evaluation import evaluate_run
    from umeta.memory import keep_buffers
    from umeta.report import aligned, facts, table

    keep_buffers()
    plain = config.parse([*options.overrides, *as_overrides(options, "evaluate.seed")])
    trusted = None if options.allow_plugin else registry.plugins(plain)
    result = evaluate_run(options.run, plain, device=options.device, record=options.record, trusted=trusted)
    print(aligned(table([result])), *facts(result), f"{options.run / 'report.md'}", sep="\n")
    return result


def run(options: argparse.Namespace) -> dict[str, Any]:
    names = [word for word in options.config if "=" not in word]
    changes = [word for word in options.config if "=" in word]
    if not names:
        raise UserError("run: name at least one config (see umeta list)")
    if len(names) > 1 and any(word.startswith(("name=", "tasks=")) for word in changes):
        raise UserError(
            "run: name= and tasks= are for a single config; several keep their own names, out=DIR moves them"
        )
    configs = [prepared(name, changes, options) for name in names]  # all are checked before the first begins
    if len({config.name for config in configs}) < len(configs):
        raise UserError(f"run: two of {', '.join(names)} are named the same; each needs a name of its own")
    from umeta import registry, report, stages
    from umeta.evaluation import check, evaluate_run

    for config in configs:
        check(config, options.record)
    results = []
    for config in configs:
        report.note(f"== {config.title or config.name}")
        if config.tasks is None:
            stages.propose(config, device=options.device, resume=options.resume)
        folder = stages.metatrain(config, device=options.device, resume=options.resume)
        # a finished run that is resumed is evaluated as this command's config says, not as its own did
        changed = {"evaluate": asdict(config.evaluate), "title": config.title, "data": config.plain["data"]}
        known = registry.plugins(config.plain)
        result = evaluate_run(folder, changed, device=options.device, record=options.record, trusted=known)
        results.append({**result, "folder": str(folder), "tasks": str(config.tasks_folder)})
    print(report.aligned(report.table(results)))
    print(*dict.fromkeys(fact for result in results for fact in report.facts(result)), sep="\n")
    page = (
        report.together(results, Path(configs[0].out)) if len(results) > 1 else Path(results[0]["folder"]) / "report.md"
    )
    print(page)
    return {"report": str(page), "results": results}


def listing(options: argparse.Namespace) -> dict[str, Any]:
    from umeta import config, registry

    parts = {kind: registry.built_in(kind) for kind in registry.KINDS}
    if options.name is None:
        shown: dict[str, Any] = {}
        for kind, found in parts.items():
            print(f"{kind}:")
            for name, node in found.items():
                line = registry.describe(node)[0].partition("\n\n")[0].replace("\n", " ")
                shown.setdefault(kind, {})[name] = line
                print(f"  {name:<16} {line}")
        print("configs:")
        for name in config.packaged():
            print(f"  {name}")
        return {**shown, "configs": sorted(config.packaged())}
    for kind, found in parts.items():
        if options.name in found:
            text, fields = registry.describe(found[options.name])
            print(f"{kind} {options.name}: {text}\n")
            for field in fields:
                print(f"  {field.name}: {field.type} = {field.default}\n      {field.help}")
            return {"kind": kind, "name": options.name, "help": text, "options": [vars(field) for field in fields]}
    if options.name in config.packaged():
        text = config.packaged()[options.name].read_text(encoding="utf-8")
        print(text.strip())
        return {"config": config.read(options.name)}
    from umeta.errors import suggest

    known = {*config.packaged(), *(name for found in parts.values() for name in found)}
    raise UserError(f"list: nothing is named '{options.name}'{suggest(options.name, known)}")


def inspect(options: argparse.Namespace) -> dict[str, Any]:
    from umeta import artifacts

    path = options.path
    manifest = artifacts.read_manifest(path, "tasks", "run")
    if manifest["kind"] == "tasks":
        print((path / "summary.md").read_text(encoding="utf-8").partition("![")[0].strip())
        arrays = {name: artifacts.read_array(path / name) for name in manifest["files"] if name.endswith(".npy")}
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        print(f"picture: {path / 'preview.png'}")
        return {"manifest": manifest, "arrays": shapes, "picture": str(path / "preview.png")}
    from umeta import report

    found: dict[str, Any] = {"manifest": manifest}
    print((path / "config.yaml").read_text(encoding="utf-8"))
    if (path / "report.json").exists():
        found["report"] = artifacts.read_json(path / "report.json")
        print(report.aligned(report.table([found["report"]])), *report.facts(found["report"]), sep="\n")
        print(f"picture: {path / 'test_tasks.png'}, {path / 'training.png'}")
    else:
        print(f"not evaluated yet: umeta evaluate {path}")
    return found


COMMANDS = {
    "propose": propose,
    "metatrain": metatrain,
    "evaluate": evaluate,
    "run": run,
    "list": listing,
    "inspect": inspect,
}
