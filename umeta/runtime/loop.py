"""The loop around long work: seed, device, metrics, checkpoints and resuming."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from umeta import seeds
from umeta.errors import Interrupted, UserError
from umeta.parts import Tracker
from umeta.runtime import artifacts, distributed
from umeta.runtime.checkpoints import Checkpoints, State, copy_state
from umeta.runtime.progress import Progress, note, postpone_interrupt

LONG = 1000  # steps, beyond which every 10th is logged
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
    trackers: Sequence[Tracker] = ()
    """trackers that get the metrics as well; `start_trackers` starts and closes them"""
    earlier: dict[str, float] = field(default_factory=dict)
    """by the names of the loops so far, seconds they had run before a resume"""

    def part(self, i: int) -> RunContext:
        """Return the context of the i-th of several parts, which names its loops and draws its seed apart."""
        return replace(self, label=f"{self.label}{i}-", seed=seeds.integer(self.seed, i))

    def watch(self) -> Callable[[], float]:
        """Start a stop-watch: seconds so far, and those that loops resumed meanwhile had run before."""
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
        seconds: float | None = None,
    ) -> None:
        """Run `step(0) ... step(steps - 1)`.

        `step` returns metrics; each step's, of a long loop every 10th's, go to `<name>.jsonl` and to the trackers.
        `save` and `load` move the whole state, as tensors, to and from a checkpoint: randomness must come from the step
        number (`umeta.seeds`).

        `snapshots` states are kept for good, at even steps, under `snapshots/<name>`. With `skip` a step of which a
        metric is not a number is undone, and the next one taken. No step begins that, at the pace of the one before,
        would end after `seconds` of work, those before a resume included.

        The last two checkpoints are kept, two because the newest may be damaged. There is no best one among them: the
        loss is that of tasks or images drawn anew at each step, not of held-out ones, so that the least would be luck.

        Raises:
            Interrupted: after Ctrl-C, when the current step is done and a checkpoint is written.
            UserError: a metric is not a number, with `skip` that of ten steps in a row, or another process is gone; the
                message names the step and the last good checkpoint.
        """
        name = f"{self.label}{name}"
        first, spent = 0, 0.0
        log = Checkpoints(self.folder, name) if self.folder and distributed.is_first() else None
        if found := distributed.run_once(lambda: log.newest() if log and self.resume else None):
            state, first, spent = found
            with artifacts.refuse_malformed(Path(self.folder or "", "checkpoints", name, f"step-{first}")):
                load(state)
            if log:
                log.truncate(first)
        elif log:
            log.truncate(0)
            shutil.rmtree(log.root / "snapshots" / name, ignore_errors=True)
        self.earlier[name] = spent
        began = time.monotonic()
        pace = Pace(self.checkpoint_seconds, began)
        bar = Progress(name, steps, first, enabled=self.progress, until=began + (seconds or math.inf) - spent)
        paced = began
        skipped = 0  # in a row
        with postpone_interrupt() as pressed:
            for i in range(first, steps):
                # for a step that is left out, or cut short by another process's death with half of its changes made
                before = copy_state(save()) if skip or (log and distributed.size() > 1) else {}
                try:
                    metrics = step(i)
                    stop = distributed.any_process(pressed.is_set())
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
                over = seconds is not None and distributed.any_process(spent + now - began + now - paced > seconds)
                last, paced = i == steps - 1 or over, now
                if (i % 10 == 0 or steps <= LONG or last or skipped) and distributed.is_first():
                    if log:
                        log.append(i, metrics)
                    for tracker in self.trackers:
                        tracker.scalars(name, i, metrics)
                if log and (i + 1) * snapshots // steps > i * snapshots // steps:
                    Checkpoints(log.root, name, "snapshots", most=snapshots).write(save(), i + 1, spent + now - began)
                if log and (stop or last or pace.due(now)):
                    log.write(save(), i + 1, spent + now - began)
                    pace.wrote(now, time.monotonic())
                if stop:
                    bar.close()
                    hint = f", saved in {self.folder}; go on with the same command and --resume" if self.folder else ""
                    raise Interrupted(f"{name}: stopped after step {i + 1} of {steps}{hint}")
                if over:
                    self.note(f"{name}: the time is over after {i + 1:,} of {steps:,} steps")
                    break
        bar.close()

    def note(self, message: str) -> None:
        """Print a line for the person watching."""
        if self.progress:
            note(message)


@contextmanager
def start_trackers(trackers: Sequence[Tracker], folder: Path) -> Iterator[None]:
    """Within the block the trackers take what is measured for `folder`."""
    with ExitStack() as stack:
        for tracker in trackers if distributed.is_first() else ():
            tracker.start(folder)
            stack.callback(tracker.close)
        yield


class Pace:
    """When checkpoints are due: `every` few seconds, less often if writing them would take over 1 % of the time.

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
        """Note that a checkpoint was written between these times."""
        self.saved, self.last = ended, ended - began
        self.writing += self.last
