"""The command line: `umeta propose`, `umeta metatrain`, `umeta evaluate`, or `umeta run` for all three."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from umeta.errors import Interrupted, UserError

# Nothing heavy is imported above or before a command needs it: `umeta --help` answers at once.

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the disk, in the quota, in a file's limit

EPILOG = """examples:
  umeta run --images photos --minutes 30                your own pictures, without a config
  umeta run digits_acai_kmeans_protonet                 all stages, on data that ships with scikit-learn
  umeta propose omniglot_acai_kmeans_protonet name=acai
  umeta metatrain omniglot_acai_kmeans_protonet tasks=tasks/acai name=acai-proto
  umeta evaluate runs/acai-proto
  umeta adapt runs/acai-proto --support examples --out learner
  umeta predict learner photos --out predictions.csv
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
    use = argparse.ArgumentParser(add_help=False, parents=[common])
    use.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    use.add_argument("--skip-bad", action="store_true", help="leave out files that are not images")
    use.add_argument("--allow-plugin", action="store_true", help="run code that the run's own config names")
    log = argparse.ArgumentParser(add_help=False)
    text = "also send metrics and pictures to `tensorboard`, or to a tracker of yours: my_tracker.py:MyTracker"
    log.add_argument("--log", action="append", default=[], metavar="TRACKER", help=text)
    overrides = "key=value changes the config, such as train.steps=100 or proposer.k=50"
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, text in (("propose", "propose tasks on unlabelled data"), ("metatrain", "meta-train on proposed tasks")):
        sub = commands.add_parser(name, help=text, description=text, parents=[work, log])
        sub.add_argument("config", help="a file, or the name of a packaged config (see umeta list)")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)
    text = "propose, meta-train and evaluate, for one config or several in one table, or for a folder of images"
    sub = commands.add_parser("run", help=text, description=text, parents=[work, log])
    sub.add_argument("config", nargs="*", help=f"files or names of packaged configs, and overrides: {overrides}")
    where = "instead of a config: a folder or zip of images without labels, for which one is written"
    sub.add_argument("--images", type=Path, metavar="PLACE", help=where)
    where = "with --images: a folder or zip with a folder of images per class, to evaluate on"
    sub.add_argument("--test", type=Path, metavar="PLACE", help=where)
    text = "with --images: how long it may take (default: 30)"
    sub.add_argument("--minutes", type=float, metavar="N", help=text)
    text = "run each config with N seeds, and add the mean over them and its interval"
    sub.add_argument("--seeds", type=int, default=1, metavar="N", help=text)
    sub.add_argument("--record", type=Path, metavar="FILE", help="append the result to this results file")
    text = "run a config with one part changed at a time, in one table"
    sub = commands.add_parser("ablate", help=text, description=text, parents=[work, log])
    sub.add_argument("config", help="a file, or the name of a packaged config (see umeta list)")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=f"of every row: {overrides}")
    text = "rows: a YAML mapping of titles to lists of key=value (default: those packaged for the config)"
    sub.add_argument("--rows", type=Path, metavar="FILE", help=text)
    sub.add_argument("--record", type=Path, metavar="FILE", help="append the results to this results file")
    text = "evaluate a run on labelled test data, beside baselines"
    sub = commands.add_parser("evaluate", help=text, description=text, parents=[work, log])
    sub.add_argument("run", type=Path, help="runs/NAME")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="evaluate.KEY=value or data.KEY=value")
    sub.add_argument("--allow-plugin", action="store_true", help="run code that the run's own config names")
    sub.add_argument("--record", type=Path, metavar="FILE", help="append the result to this results file")
    text = "write a run or an adapted learner as files that need nothing but torch, with a model card"
    sub = commands.add_parser("export", help=text, description=text, parents=[common])
    sub.add_argument("run", type=Path, help="runs/NAME or what adapt wrote")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or an earlier export's")
    sub.add_argument("--onnx", action="store_true", help="also write ONNX (pip install 'umeta[onnx]')")
    sub.add_argument("--allow-plugin", action="store_true", help="run code that the run's own config names")
    text = "adapt a run to classes of yours, from a few labelled images of each"
    sub = commands.add_parser("adapt", help=text, description=text, parents=[use])
    sub.add_argument("run", type=Path, help="runs/NAME")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="metalearner.KEY=value")
    where = "a folder (or zip) with a folder of images per class, or a CSV with the columns path and label"
    sub.add_argument("--support", type=Path, required=True, metavar="PLACE", help=where)
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the learner")
    text = "a learner's answers to any number of images, as a CSV"
    sub = commands.add_parser("predict", help=text, description=text, parents=[use])
    sub.add_argument("learner", type=Path, help="what adapt wrote")
    where = "image files, folders or zips of them, or .npy arrays of the learner's size"
    sub.add_argument("images", type=Path, nargs="+", help=where)
    sub.add_argument("--out", type=Path, default=Path("predictions.csv"), metavar="FILE", help="predictions.csv")
    sub.add_argument("--unknown", action="store_true", help="answer `unknown` where no class is near")
    sub.add_argument("--preview", type=Path, metavar="FILE.png", help="also draw the first answers of each class")
    text = "list the parts and configs, or show one in full"
    sub = commands.add_parser("list", help=text, description=text, parents=[common])
    sub.add_argument("name", nargs="?", help="a part or a config")
    text = "numbers and a picture of proposed tasks, a run or a learner; the memory that a config would need"
    sub = commands.add_parser("inspect", help=text, description=text, parents=[common])
    sub.add_argument("path", type=Path, help="tasks/NAME, runs/NAME, what adapt wrote, or a config")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=f"of a config: {overrides}")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    options, rest = parser().parse_known_args(arguments)
    for word in rest:  # argparse takes no positional words after an option; overrides and images may stand anywhere
        takes = getattr(options, {"run": "config", "predict": "images"}.get(options.command, "overrides"), None)
        if takes is None or word.startswith("-"):
            parser().error(f"unrecognized argument: {word}")
        takes.append(Path(word) if options.command == "predict" else word)
    if not launched():
        return done(options)
    try:
        code = done(options)
    except SystemExit as silent:
        code = int(silent.code or 0)
    sys.stderr.flush()
    os._exit(code)  # Gloo's threads may still hold tensors, and to let go of one in a Python that is ending aborts


def done(options: argparse.Namespace) -> int:
    """Runs the command; what goes wrong in it becomes a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files and classes need not be what a terminal can show
            stream.reconfigure(errors="backslashreplace")
    try:
        with terminable(), processes(options):
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
        hint = "what is finished is kept, go on with --resume" if hasattr(options, "resume") else "nothing was written"
        print(f"umeta: stopped; {hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `umeta list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        hint = "; make room, then go on with the same command and --resume" if hasattr(options, "resume") else ""
        hint = hint if error.errno in FULL else ""
        print(f"umeta: {error.strerror or error}: {error.filename or ''}".rstrip(": ") + hint, file=sys.stderr)
        return 2
    return 0


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM does what Ctrl-C does."""

    def handle(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def launched() -> bool:
    """Whether torchrun has started this process as one of several."""
    return {"RANK", "MASTER_ADDR"} <= os.environ.keys() and os.environ.get("WORLD_SIZE", "1") != "1"


@contextmanager
def processes(options: argparse.Namespace) -> Iterator[None]:
    """Within the block the processes that torchrun started are one run, of which the first speaks."""
    if not launched():
        yield
        return
    if not hasattr(options, "resume"):
        raise UserError(f"{options.command}: it is the work of one process; leave out torchrun")
    from umeta.runtime import distributed

    with distributed.joined(options.device):
        if distributed.first():
            yield
            return
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            try:
                yield
            except (Interrupted, KeyboardInterrupt):  # as the first process was
                sys.exit(130)
            except distributed.Lost:
                raise
            except UserError:
                with suppress(KeyboardInterrupt):
                    time.sleep(60)  # most often the first process says the same, and torchrun then ends the others
                    raise
                sys.exit(2)


def prepared(reference: str, changes: Sequence[str], options: argparse.Namespace) -> Any:
    """The config of a command, with the options that stand for overrides."""
    from umeta.config import build
    from umeta.runtime.allocator import keep_buffers

    keep_buffers()
    return build.load(reference, [*as_overrides(options, "seed"), *changes])


def as_overrides(options: argparse.Namespace, seed: str) -> list[str]:
    """The overrides that `--seed` and `--skip-bad` stand for."""
    seeds = [f"{seed}={options.seed}"] if options.seed is not None else []
    return [*seeds, *(["data.skip_bad=true"] if options.skip_bad else [])]


def trackers(options: argparse.Namespace) -> list[Any]:
    """Build what `--log` asks for: `tensorboard`, `my_tracker.py:MyTracker`, or `{name: ..., option: value}`."""
    from umeta.config import reading, registry

    asked = [reading.parse_overrides([f"tracker={text}"])["tracker"] for text in options.log]
    return [registry.build_part("tracker", one, "--log") for one in asked]


def propose(options: argparse.Namespace) -> dict[str, Any]:
    config = prepared(options.config, options.overrides, options)
    from umeta.stages import propose

    folder = propose.propose(config, device=options.device, resume=options.resume, sinks=trackers(options))
    flags = ["--skip-bad"] if options.skip_bad else []
    flags += [] if options.seed is None else ["--seed", str(options.seed)]
    print((folder / "summary.md").read_text(encoding="utf-8").partition("![")[0].strip())
    again = shlex.join([options.config, *options.overrides, f"tasks={folder}", *flags])
    print(f"\n{folder}: look at {folder / 'preview.png'}, then: umeta metatrain {again}")
    return {"tasks": str(folder)}


def metatrain(options: argparse.Namespace) -> dict[str, Any]:
    config = prepared(options.config, options.overrides, options)
    from umeta.config import registry
    from umeta.stages import metatrain

    folder = metatrain.metatrain(config, device=options.device, resume=options.resume, sinks=trackers(options))
    flags = ["--allow-plugin"] if registry.find_plugins(config.plain) else []
    print(f"{folder}: {shlex.join(['umeta', 'evaluate', str(folder), *flags])}")
    return {"run": str(folder)}


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    for change in options.overrides:
        if not change.startswith(("evaluate.", "data.")):
            raise UserError(f"'{change}': evaluate takes evaluate.KEY=value and data.KEY=value; the rest is the run's")
    from umeta.config import reading, registry
    from umeta.evaluation.run import evaluate_run
    from umeta.report.write import aligned, facts, table
    from umeta.runtime.allocator import keep_buffers

    keep_buffers()
    plain = reading.parse_overrides([*options.overrides, *as_overrides(options, "evaluate.seed")])
    trusted = None if options.allow_plugin else registry.find_plugins(plain)
    result = evaluate_run(
        options.run, plain, device=options.device, record=options.record, trusted=trusted, sinks=trackers(options)
    )
    print(aligned(table([result])), *facts(result), f"{options.run / 'report.html'}", sep="\n")
    return result


def run(options: argparse.Namespace) -> dict[str, Any]:
    names = [word for word in options.config if "=" not in word]
    changes = [word for word in options.config if "=" in word]
    if options.images is not None:
        return run_images(names, changes, options)
    if not names:
        raise UserError("run: name at least one config (see umeta list), or a folder of images with --images")
    if options.test is not None or options.minutes is not None:
        raise UserError("run: --test and --minutes go with --images; for a config set data.test=DIR and train.steps=N")
    if len(names) > 1 and any(word.startswith(("name=", "tasks=")) for word in changes):
        raise UserError(
            "run: name= and tasks= are for a single config; several keep their own names, out=DIR moves them"
        )
    configs = [prepared(name, changes, options) for name in names]  # all are checked before the first begins
    if len({config.name for config in configs}) < len(configs):
        raise UserError(f"run: two of {', '.join(names)} are named the same; each needs a name of its own")
    if options.seeds < 1:
        raise UserError(f"run: --seeds {options.seeds}: expected 1 or more")
    if options.seeds > 1:
        configs = [
            prepared(name, [*changes, *with_seed(config, config.seed + i)], options)
            for name, config in zip(names, configs, strict=True)
            for i in range(options.seeds)
        ]
    return chain(configs, options, options.seeds)


def with_seed(config: Any, seed: int) -> list[str]:
    """The overrides that make of a config one with another seed."""
    title = json.dumps(f"{config.title or config.name}, seed {seed}", ensure_ascii=False)
    return [f"seed={seed}", f"name={config.name}-seed{seed}", f"title={title}"]


def run_images(names: Sequence[str], changes: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """`run` without a config: one is written for the images, and then run."""
    if names:
        raise UserError(f"run: --images stands for a config; leave out '{names[0]}', or set data.root in the config")
    if options.seeds != 1:
        raise UserError("run: --seeds goes with a config; --images writes one, which can be run again with it")
    if options.record is not None and options.test is None:
        raise UserError("run: --record keeps results, and without --test there are none")
    from umeta.quickstart import recipe
    from umeta.runtime.allocator import keep_buffers
    from umeta.runtime.distributed import once

    keep_buffers()
    minutes = recipe.MINUTES if options.minutes is None else options.minutes
    path = once(
        lambda: recipe.written(
            options.images,
            options.test,
            [*changes, *as_overrides(options, "seed")],
            minutes=minutes,
            device=options.device,
            resume=options.resume,
        )
    )
    config = prepared(str(path), changes, options)
    result = chain([config], options)
    folder = str(config.run_folder)
    again = shlex.join(["umeta", "adapt", folder, "--support"])
    print(f"{folder}: with a folder of images per class in DIR, {again} DIR --out learner")
    return {"config": str(path), "run": folder, **result}


def ablate(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.config import reading

    changes = reading.read_ablation(options.config, options.rows)
    names = [f"{Path(options.config).stem}-ablation{i}" for i in range(len(changes))]
    return chain(
        [
            prepared(options.config, [f"name={name}", f"title='{title}'", *options.overrides, *change], options)
            for name, (title, change) in zip(names, changes.items(), strict=True)
        ],
        options,
    )


def chain(configs: Sequence[Any], options: argparse.Namespace, seeds: int = 1) -> dict[str, Any]:
    """All stages of each config, and one report of them all; so many configs in a row differ in their seed alone."""
    from umeta.config import registry
    from umeta.config.build import build_rounds
    from umeta.config.reading import Whole
    from umeta.evaluation.rows import append
    from umeta.evaluation.run import checked, evaluate_run
    from umeta.report import write
    from umeta.runtime.distributed import first, once
    from umeta.stages import metatrain, propose
    from umeta.train import check_share

    begun: set[Path] = set()
    for config in configs:
        for turn in build_rounds(config):
            check_share(turn.train)
            if turn.parent and not Path(turn.parent).exists() and Path(turn.parent) not in begun:
                raise UserError(f"start: {turn.parent}: no such run")
            begun.add(turn.run_folder)
        checked(config, options.record)
    log, results = trackers(options), []
    for config in configs:
        write.note(f"== {config.title or config.name}")
        for turn in build_rounds(config):
            if turn.tasks is None:
                propose.propose(turn, device=options.device, resume=options.resume, sinks=log)
            folder = metatrain.metatrain(turn, device=options.device, resume=options.resume, sinks=log)
        if getattr(config.evaluate, "episodes", None) == []:
            continue
        # a finished run that is resumed is evaluated as this command's config says, not as its own did
        data = {key: Whole(config.plain[key]) for key in ("data", "env") if key in config.plain}
        changed = {"evaluate": Whole(asdict(config.evaluate)), "title": config.title, **data}
        known = registry.find_plugins(config.plain)
        result = evaluate_run(folder, changed, device=options.device, record=options.record, trusted=known, sinks=log)
        results.append({**result, "folder": str(folder), "tasks": str(turn.tasks_folder)})
    if not results:
        return {"report": None, "results": []}
    means = [write.over_seeds(results[i : i + seeds]) for i in range(0, len(results), seeds) if seeds > 1]
    if options.record is not None and first():
        for mean in means:
            append(options.record, mean)
    print(write.aligned(write.table([*results, *means])))
    print(*dict.fromkeys(fact for result in results for fact in write.facts(result)), sep="\n")
    page = Path(results[0]["folder"]) / "report.md"
    if len(results) > 1:
        page = once(lambda: write.together(results, Path(configs[0].out), means))
    print(page.with_suffix(".html"))
    return {"report": str(page), "results": results}


def export(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.deploy.export import export_learner, export_run
    from umeta.runtime import artifacts

    kind = artifacts.read_manifest(options.run, "run", "learner")["kind"]
    write = export_run if kind == "run" else export_learner
    folder = write(options.run, options.out, onnx=options.onnx, trusted=None if options.allow_plugin else ())
    files = sorted(path.name for path in folder.iterdir())
    print(f"{folder}: {', '.join(files)}")
    return {"export": str(folder), "files": files}


def adapt(options: argparse.Namespace) -> dict[str, Any]:
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
        skip_bad=options.skip_bad,
        trusted=None if options.allow_plugin else (),
    )
    for note in notes:
        print(note, file=sys.stderr)
    print(*describe(learner.values()), sep="\n")
    again = shlex.join(["umeta", "predict", str(options.out), "IMAGES", "--out", "predictions.csv"])
    print(f"\n{options.out}: look at {options.out / 'support.png'}, then: {again}")
    calibration = asdict(learner.calibration) if learner.calibration else None
    return {"learner": str(options.out), "classes": learner.classes.tolist(), "calibration": calibration}


def predict(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.deploy.adapted import AdaptedLearner
    from umeta.deploy.predict import predict_images
    from umeta.runtime.allocator import keep_buffers

    keep_buffers()
    trusted = None if options.allow_plugin else ()
    learner = AdaptedLearner.load(options.learner, device=options.device, trusted=trusted)
    result = predict_images(
        learner,
        options.images,
        options.out,
        unknown=options.unknown,
        skip_bad=options.skip_bad,
        preview=options.preview,
    )
    for name in result["left_out"]:
        print(f"left out, not a readable image: {name}", file=sys.stderr)
    print(*(f"{label}: {count}" for label, count in result["labels"].items()), sep="\n")
    print(f"{options.out}: {result['images']} images" + (f"; look at {options.preview}" if options.preview else ""))
    return {"predictions": str(options.out), **result}


def listing(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.config import reading, registry

    parts = {kind: registry.built_in(kind) for kind in registry.KINDS}
    if options.name is None:
        shown: dict[str, Any] = {}
        for kind, found in parts.items():
            print(f"{kind}:")
            for name in found:
                line = registry.describe(kind, name)[0].partition("\n\n")[0].replace("\n", " ")
                shown.setdefault(kind, {})[name] = line
                print(f"  {name:<16} {line}")
        print("configs:")
        for name in reading.find_packaged():
            print(f"  {name}")
        return {**shown, "configs": sorted(reading.find_packaged())}
    for kind, found in parts.items():
        if options.name in found:
            text, fields = registry.describe(kind, options.name)
            print(f"{kind} {options.name}: {text}\n")
            for field in fields:
                print(f"  {field.name}: {field.type} = {field.default}\n      {field.help}")
            return {"kind": kind, "name": options.name, "help": text, "options": [vars(field) for field in fields]}
    if options.name in reading.find_packaged():
        text = reading.find_packaged()[options.name].read_text(encoding="utf-8")
        print(text.strip())
        return {"config": reading.read(options.name)}
    from umeta.errors import suggest

    known = {*reading.find_packaged(), *(name for found in parts.values() for name in found)}
    raise UserError(f"list: nothing is named '{options.name}'{suggest(options.name, known)}")


def inspect(options: argparse.Namespace) -> dict[str, Any]:
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
        print(write.aligned(write.table([found["report"]])), *write.facts(found["report"]), sep="\n")
        names = ("test_tasks.png", "adaptation.png", "behaviour.png", "fits.png", "extrapolation.png", "training.png")
        print("picture:", ", ".join(str(path / name) for name in names if (path / name).exists()))
    else:
        print(f"not evaluated yet: umeta evaluate {path}")
    return found


def inspect_config(options: argparse.Namespace) -> dict[str, Any]:
    """Estimates of the memory that the stages of a config would take, on its data."""
    from umeta.benchmarks.protocols import resolve
    from umeta.config import build
    from umeta.config.environments import EnvConfig
    from umeta.config.images import Config
    from umeta.evaluation.images import need_of
    from umeta.parts import ProposerTraits
    from umeta.quickstart import memory
    from umeta.runtime import allocator
    from umeta.runtime.loop import RunContext
    from umeta.stages import domains
    from umeta.tasks.reward import acting
    from umeta.types import TaskSpec

    allocator.keep_buffers()
    found = build.load(str(options.path), options.overrides)
    needs = []
    if isinstance(found, Config):
        images = domains.unlabelled(found)
        spec = TaskSpec(images.item_shape)
        partitions = ProposerTraits.of(found.proposer).partitions * len(images) * 4
        needs = [memory.of_propose(found, images), memory.of_metatrain(found, spec, partitions)]
        if found.evaluate.episodes != []:
            needs.append(need_of(found, images.item_shape, *resolve(found.evaluate)))
        print(f"images: {len(images)} of {'x'.join(map(str, images.item_shape))}")
    elif isinstance(found, EnvConfig):
        needs = [memory.of_metatrain(found, acting(found.env))]
    else:
        waves = found.proposer.propose(None, RunContext(found.seed))  # a formula
        needs = [memory.of_metatrain(found, waves.spec)]
    print("peak of resident memory on a CPU, estimated:", *needs, sep="\n")
    print(f"available: {allocator.available() / memory.MB:,.0f} MB")
    return {"memory": {one.stage: one.bytes for one in needs}, "available": allocator.available()}


COMMANDS = {
    "propose": propose,
    "metatrain": metatrain,
    "evaluate": evaluate,
    "run": run,
    "ablate": ablate,
    "export": export,
    "adapt": adapt,
    "predict": predict,
    "list": listing,
    "inspect": inspect,
}
