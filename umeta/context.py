"""What surrounds long work: its seed and device, its progress with time left, its checkpoints, and Ctrl-C."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from umeta import artifacts, distributed
from umeta.errors import Interrupted, UserError
from umeta.types import Sink

State = dict[str, Tensor]
SKIPPED = 10  # steps in a row that are too many to leave out


@dataclass
class RunContext:
    """Handed to everything that takes long. `RunContext()` is fine for library use: seed 0, CPU, silent, no files."""

    seed: int = 0
    device: torch.device | str = "cpu"
    folder: Path | None = None
    """where checkpoints and metrics go; None keeps none"""
    resume: bool = False
    """go on from the newest checkpoint in `folder`"""
    progress: bool = False
    """print progress and time left to standard error"""
    checkpoint_seconds: float = 60.0
    """least time between two checkpoints, longer where writing them would take more than 1 % of it; 0 writes one after
    every step, whatever it costs"""
    label: str = ""
    """put before the names of loops, where several would have the same"""
    sinks: Sequence[Sink] = ()
    """trackers that get the metrics as well; `started` starts and closes them"""
    earlier: dict[str, float] = field(default_factory=dict)
    """by the names of the loops so far, seconds they had run before a resume"""

    def watch(self) -> Callable[[], float]:
        """A stop-watch, started: seconds so far, and those that loops resumed meanwhile had run before."""
        began, known = time.monotonic(), sum(self.earlier.values())
        return lambda: time.monotonic() - began + sum(self.earlier.values()) - known

    def loop(
        self,
        name: str,
        steps: int,
        step: Callable[[int], dict[str, float]],
        save: Callable[[], State],
        load: Callable[[State], None],
        snapshots: int = 0,
        skip: bool = False,
    ) -> None:
        """Runs `step(0) ... step(steps - 1)`.

        `step` returns metrics; every 10th step's go to `<name>.jsonl` and to the sinks. `save` and `load` move the
        whole state, as tensors, to and from a checkpoint: randomness must come from the step number (`umeta.seeds`).

        `snapshots` states are kept for good, at even steps, under `snapshots/<name>`. With `skip` a step of which a
        metric is not a number is undone, and the next one taken.

        The last two checkpoints are kept, two because the newest may be damaged. There is no best one among them: the
        loss is that of tasks or images drawn anew at each step, not of held-out ones, so that the least would be luck.

        Raises:
            Interrupted: after Ctrl-C, when the current step is done and a checkpoint is written.
            UserError: a metric is not a number, with `skip` that of ten steps in a row, or another process is gone; the
                message names the step and the last good checkpoint.
        """
        name = f"{self.label}{name}"
        first, spent = 0, 0.0
        log = Checkpoints(self.folder, name) if self.folder and distributed.first() else None
        if found := distributed.once(lambda: log.newest() if log and self.resume else None):
            state, first, spent = found
            with artifacts.as_written(Path(self.folder or "", "checkpoints", name, f"step-{first}")):
                load(state)
            if log:
                log.truncate(first)
        elif log:
            log.truncate(0)
            shutil.rmtree(log.root / "snapshots" / name, ignore_errors=True)
        self.earlier[name] = spent
        began = time.monotonic()
        pace = Pace(self.checkpoint_seconds, began)
        bar = Progress(name, steps, first, enabled=self.progress)
        skipped = 0  # in a row
        with postponed_interrupt() as pressed:
            for i in range(first, steps):
                # for a step that is left out, or cut short by another process's death with half of its changes made
                before = copied(save()) if skip or (log and distributed.size() > 1) else {}
                try:
                    metrics = step(i)
                    stop = distributed.agreed(pressed.is_set())
                except distributed.Lost as error:
                    if log:
                        log.write(before, i, spent + time.monotonic() - began)
                    raise UserError(f"{name}: at step {i} of {steps}, {error}") from error
                bad = [key for key, value in metrics.items() if not math.isfinite(value)]
                skipped = skipped + 1 if bad else 0
                if bad and skip and skipped < SKIPPED:
                    load(before)
                    self.note(f"{name}: step {i} left out, its {bad[0]} is {metrics[bad[0]]}")
                    metrics = {"left out": 1.0}
                elif bad:
                    kept = log.newest() if log else None
                    where = f"; the last good checkpoint is at step {kept[1]}" if kept else ""
                    raise UserError(
                        f"{name}: {bad[0]} is {metrics[bad[0]]} at step {i}{where}; try a smaller learning rate"
                    )
                bar.update(i + 1, metrics)
                now = time.monotonic()
                last = i == steps - 1
                if (i % 10 == 0 or last or skipped) and distributed.first():
                    if log:
                        log.append(i, metrics)
                    for sink in self.sinks:
                        sink.scalars(name, i, metrics)
                if log and (i + 1) * snapshots // steps > i * snapshots // steps:
                    Checkpoints(log.root, name, "snapshots", most=snapshots).write(save(), i + 1, spent + now - began)
                if log and (stop or last or pace.due(now)):
                    log.write(save(), i + 1, spent + now - began)
                    pace.wrote(now, time.monotonic())
                if stop:
                    bar.close()
                    hint = f", saved in {self.folder}; go on with the same command and --resume" if self.folder else ""
                    raise Interrupted(f"{name}: stopped after step {i + 1} of {steps}{hint}")
        bar.close()

    def note(self, message: str) -> None:
        """A line for the person watching."""
        if self.progress and distributed.first():
            print(message, file=sys.stderr, flush=True)


@contextmanager
def started(sinks: Sequence[Sink], folder: Path) -> Iterator[None]:
    """Within the block the sinks take what is measured for `folder`."""
    with ExitStack() as stack:
        for sink in sinks if distributed.first() else ():
            sink.start(folder)
            stack.callback(sink.close)
        yield


class Pace:
    """When checkpoints are due: `every` so many seconds, and so seldom that writing them takes 1 % of the time at most.

    What one takes is known from the one before: the first is due after `every` seconds, and until 100 times what it
    took have passed it alone may be more than 1 %.
    """

    def __init__(self, every: float, now: float) -> None:
        self.every, self.began, self.saved = every, now, now
        self.last, self.writing = 0.0, 0.0  # seconds that the last one took, and all of them

    def due(self, now: float) -> bool:
        cheap = 100 * (self.writing + self.last) <= now - self.began  # one more, if it takes as long as the last
        return now - self.saved >= self.every and (cheap or not self.every)

    def wrote(self, began: float, ended: float) -> None:
        """Takes down that one was written between these times."""
        self.saved, self.last = ended, ended - began
        self.writing += self.last


def copied(state: State) -> State:
    """The state as it is now, whatever becomes of its tensors."""
    return {name: value.detach().clone() for name, value in state.items()}


class Checkpoints:
    """`checkpoints/<name>/step-N/{state.safetensors, meta.json}` and `<name>.jsonl`; the last steps are kept."""

    def __init__(self, folder: Path, name: str, kind: str = "checkpoints", most: int = 2) -> None:
        self.root, self.most = folder, most
        self.folder = folder / kind / name
        self.metrics = folder / f"{name}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.folder.glob("step-*") if path.name[5:].isdecimal())

    def write(self, state: State, step: int, seconds: float) -> None:
        with artifacts.replacing(self.folder / f"step-{step}") as temporary:
            temporary.mkdir(parents=True)
            artifacts.write_tensors(temporary / "state.safetensors", state)
            content = artifacts.file_hash(temporary / "state.safetensors")
            meta = {"step": step, "seconds": seconds, "state": content}
            artifacts.write_sealed(temporary / "meta.json", meta)
        self.prune()

    def prune(self) -> None:
        """Drops all but the last ones."""
        for old in self.steps()[: -self.most]:
            shutil.rmtree(self.folder / f"step-{old}")

    def newest(self) -> tuple[State, int, float] | None:
        """State, step and seconds of the newest undamaged checkpoint."""
        return next((found for step in reversed(self.steps()) if (found := self.read(step))), None)

    def read(self, step: int) -> tuple[State, int, float] | None:
        """State, step and seconds of one checkpoint; None if it is damaged."""
        path = self.folder / f"step-{step}"
        try:
            meta = artifacts.read_sealed(path / "meta.json")
            if artifacts.file_hash(path / "state.safetensors") == meta["state"]:
                return artifacts.read_tensors(path / "state.safetensors"), meta["step"], meta["seconds"]
        except (UserError, OSError, KeyError, TypeError):
            pass
        return None

    def append(self, step: int, metrics: dict[str, float]) -> None:
        line = json.dumps({"step": step, **{k: round(v, 6) for k, v in metrics.items()}}) + "\n"
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:  # which names no file when the disk is full
            raise OSError(error.errno, error.strerror, str(self.metrics)) from error

    def truncate(self, step: int) -> None:
        """Drops checkpoints (damaged ones) and metrics of steps that will be run again, and what a kill left over."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.folder / f"step-{later}")
        self.prune()
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            artifacts.write_text(self.metrics, "".join(f"{line}\n" for line in lines if read_step(line) < step))


def read_step(line: str) -> float:
    """The step of a metrics line; infinity for a line cut short by a kill."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Progress:
    """One line on a terminal, redrawn; a line every ten seconds elsewhere."""

    def __init__(self, name: str, total: int, first: int = 0, *, enabled: bool = True) -> None:
        self.name, self.total, self.first, self.enabled = name, total, first, enabled and distributed.first()
        self.live = self.enabled and sys.stderr.isatty()
        self.began = self.shown = time.monotonic()

    def update(self, done: int, metrics: dict[str, float] | None = None) -> None:
        now = time.monotonic()
        if not self.enabled or (now - self.shown < (0.2 if self.live else 10.0) and done < self.total):
            return
        self.shown = now
        left = (now - self.began) / max(done - self.first, 1) * (self.total - done)
        values = "  ".join(f"{key} {value:.4g}" for key, value in (metrics or {}).items())
        text = f"{self.name}  {done}/{self.total}  {duration(left)} left  {values}"
        print(f"\r\033[K{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live:
            print(file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`75` as `1m15s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


@contextmanager
def postponed_interrupt(what: str = "step") -> Iterator[threading.Event]:
    """Within the block the first Ctrl-C (or SIGTERM) only sets the event, so that a step is never cut in half; the
    second stops, where there are no other processes: torchrun sends all of them as many as it likes.

    A first one that came too late for the block to see is raised at its end.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def handle(number: int, frame: object) -> None:
        if pressed.is_set() and distributed.size() == 1:
            raise KeyboardInterrupt
        if not pressed.is_set() and distributed.first():
            print(f"\nstopping after this {what} (press Ctrl-C again to stop at once)", file=sys.stderr, flush=True)
        pressed.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if pressed.is_set():
        raise KeyboardInterrupt
