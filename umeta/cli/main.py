"""The command line: `umeta propose`, `umeta metatrain`, `umeta evaluate`, or `umeta run` for all three."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn

from umeta.errors import Interrupted, LeftOut, UserError

# Nothing heavy is imported above or before a command needs it: `umeta --help` answers at once.

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the disk, in the quota, in a file's limit

SMALLER = "umeta inspect CONFIG says how much each stage takes, and which options lower it"

COMMANDS = (
    "demo",
    "propose",
    "metatrain",
    "run",
    "ablate",
    "evaluate",
    "export",
    "pick",
    "teach",
    "adapt",
    "predict",
    "list",
    "inspect",
)

EPILOG = """examples:
  umeta demo                                            see it work, in minutes
  umeta run --images photos --minutes 30                your own pictures, without a config
  umeta run --env Hopper-v5                             an environment, without a config
  umeta run omniglot_best                               all stages of a packaged config
  umeta propose omniglot_acai_kmeans_protonet name=acai
  umeta metatrain omniglot_acai_kmeans_protonet tasks=tasks/acai name=acai-proto
  umeta evaluate runs/acai-proto
  umeta pick runs/photos photos -n 20                   which pictures to label first
  umeta teach runs/photos photos                        label pictures in the browser, see the rest sorted
  umeta adapt runs/acai-proto --support examples --out learner
  umeta predict learner photos --out predictions.csv
  umeta list kmeans                                     the options of a part
"""

START = """umeta: learn to learn without labels. Start here:
  umeta demo                               see it work on Omniglot, in minutes; nothing to prepare
  umeta run --images photos --minutes 10   learn from a folder of your own pictures
  umeta list                               the parts and the packaged configs, for umeta run CONFIG
  umeta --help                             all commands"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors say where help is."""

    def error(self, message: str) -> NoReturn:
        """Exit with the usage, what is wrong, and the command that shows how it is used."""
        super().error(f"{message}\nsee {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="umeta",
        description="Learn to learn without labels.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"umeta.cli.{name}").add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    if not (sys.argv[1:] if arguments is None else arguments):
        with suppress(BrokenPipeError):
            print(START)
        return 0
    options, rest = parser().parse_known_args(arguments)
    for word in rest:  # argparse takes no positional words after an option; overrides and images may stand anywhere
        takes = getattr(options, {"run": "config", "predict": "images"}.get(options.command, "overrides"), None)
        if takes is None or word.startswith("-"):
            parser().error(f"unrecognized argument: {word}")
        takes.append(Path(word) if options.command == "predict" else word)
    if not launched():
        return execute(options)
    try:
        code = execute(options)
    except SystemExit as silent:
        code = int(silent.code or 0)
    sys.stderr.flush()
    os._exit(code)  # Gloo's threads may still hold tensors, and to let go of one in a Python that is ending aborts


def execute(options: argparse.Namespace) -> int:
    """Run the command; turn what goes wrong in it into a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files and classes need not be what a terminal can show
            stream.reconfigure(errors="backslashreplace")
    try:
        with terminable(), processes(options), name_left_out():
            result = importlib.import_module(f"umeta.cli.{options.command}").run(options)
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
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or "an array is too large"
        hint = f"; {SMALLER}" if hasattr(options, "resume") else ""
        print(f"umeta: out of memory: {reason}{hint}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def name_left_out() -> Iterator[None]:
    """At the end of the block say once which files were left out in it, however often they were come across."""
    said: dict[str, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("always", LeftOut)
        show = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, LeftOut):
                said[str(message)] = None
            else:
                show(message, category, *where, **more)

        warnings.showwarning = keep
        try:
            yield
        finally:
            print(*said, sep="\n", end="\n" if said else "", file=sys.stderr)


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether NumPy, Python or torch, on a CPU or a GPU, could not get the memory that it asked for."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "allocate memory" in str(error) or "not enough memory" in str(error)


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

    with distributed.join_processes(options.device):
        if distributed.is_first():
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
