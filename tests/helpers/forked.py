"""A process that has everything imported and forks a child for each command, so that a kill costs no new start.

`Forks` is the tests' side; run as a program, this file is the other one.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KILLED = -signal.SIGKILL
TOUCHES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}  # and files opened to be written


@dataclass
class Done:
    """How a command ended."""

    code: int  # -9 if it was killed
    touches: int  # how often it touched the disk, if it was not
    seconds: float
    out: str
    err: str


@dataclass
class Forks:
    """`forks(folder, "run", "x.yaml")` runs a command in a folder, with a cache of its own in there.

    `touch=5` kills it before the 5th time that it makes, renames, removes or opens to write anything on the disk;
    `after=0.3` kills it so many seconds after its beginning; `prepare` is Python that the child runs first.
    """

    process: Any = field(init=False)

    def __post_init__(self) -> None:
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=one_thread)

    def __call__(self, folder: Path, *arguments: str, **options: Any) -> Done:
        asked = {"folder": str(folder), "arguments": [*arguments, "--device", "cpu"], **options}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        out, err = ((folder.parent / f"{folder.name}.{name}").read_text() for name in ("out", "err"))
        return Done(**answer, out=out, err=err)

    def close(self) -> None:
        self.process.kill()  # it has nothing to tidy up, which would take seconds
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def serve() -> None:
    """Forks a child for each line of standard input and answers how it ended."""
    import faiss
    import matplotlib.backends.backend_agg
    import torch
    from PIL import Image

    import umeta

    for package in ("umeta", "embeddings", "proposers"):
        for module in pkgutil.walk_packages([str(Path(umeta.__file__).parent.parent / package)], f"{package}."):
            if module.name != "umeta.__main__":
                importlib.import_module(module.name)
    umeta.config.build.load("digits_acai_kmeans_protonet")
    Image.init()
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1)])  # which imports what torch compiles with
    del faiss, matplotlib
    for line in sys.stdin:
        asked = json.loads(line)
        folder = Path(asked["folder"])
        log = {name: folder.parent / f"{folder.name}.{name}" for name in ("out", "err", "touches")}
        log["touches"].unlink(missing_ok=True)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(asked, folder, log)
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                break
            if "after" in asked and time.monotonic() - began > asked["after"]:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        touches = int(log["touches"].read_text()) if log["touches"].exists() else 0
        seconds = time.monotonic() - began
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "touches": touches, "seconds": seconds}), flush=True)


def child(asked: dict[str, Any], folder: Path, log: dict[str, Path]) -> None:
    """Runs the command and ends the process."""
    from functools import partial

    from umeta.cli.main import main
    from umeta.runtime.loop import RunContext
    from umeta.stages import folder as stage_folder

    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(log[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ["UMETA_CACHE"] = str(folder / "cache")
    os.chdir(folder)
    stage_folder.RunContext = partial(RunContext, checkpoint_seconds=0.0)  # one after every step
    touched = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touched
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in TOUCHES:
            touched += 1
            if touched == asked.get("touch"):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    code = 70
    try:
        exec(asked.get("prepare", ""), {})
        code = main(asked["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        log["touches"].write_text(str(touched))
        os._exit(code)


if __name__ == "__main__":
    serve()
