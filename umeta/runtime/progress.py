"""Progress with time left, and Ctrl-C that never cuts a step in half."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from umeta.runtime import distributed


class Progress:
    """One line on a terminal, redrawn; a line every ten seconds elsewhere."""

    def __init__(self, name: str, total: int, first: int = 0, *, enabled: bool = True, until: float = math.inf) -> None:
        self.name, self.total, self.first, self.enabled = name, total, first, enabled and distributed.is_first()
        self.live = self.enabled and sys.stderr.isatty()
        self.began = self.shown = time.monotonic()
        self.until = until  # this clock's time at which it ends in any case

    def update(self, done: int, metrics: dict[str, float] | None = None) -> None:
        now = time.monotonic()
        if not self.enabled or (now - self.shown < (0.2 if self.live else 10.0) and done < self.total):
            return
        self.shown = now
        left = (now - self.began) / max(done - self.first, 1) * (self.total - done)
        left = max(0.0, min(left, self.until - now))
        values = "  ".join(f"{key} {value:.4g}" for key, value in (metrics or {}).items())
        text = f"{self.name}  {done}/{self.total}  {format_duration(left)} left  {values}"
        print(f"\r\033[K{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live:
            print(file=sys.stderr, flush=True)


def note(message: str) -> None:
    """Print a line on standard error."""
    if distributed.is_first():
        print(message, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """`75` as `1m15s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


@contextmanager
def postpone_interrupt(what: str = "step") -> Iterator[threading.Event]:
    """Let the first Ctrl-C (or SIGTERM) within the block only set the event, so that a step is never cut in half.

    The second stops, where there are no other processes: torchrun sends all of them as many as it likes.

    A first one that came too late for the block to see is raised at its end.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def handle(number: int, frame: object) -> None:
        if pressed.is_set() and distributed.size() == 1:
            raise KeyboardInterrupt
        if not pressed.is_set() and distributed.is_first():
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
