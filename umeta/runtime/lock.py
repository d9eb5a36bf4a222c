"""One process at a time in a folder."""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from umeta.errors import UserError

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # said by file systems that know no locks


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Within the block no other process gets past here for the folder, which is made if it is not there.

    The kernel holds the lock (`flock`), so that a process that dies, however it does, leaves none; the file `.lock`
    says who the owner is. Where the system or the file system has no such locks, the folder is not guarded.

    Raises:
        UserError: another process is at work there, which is named; or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open_locked(path)
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}), encoding="utf-8")
    except BlockingIOError as error:
        raise UserError(f"{folder}: {describe_owner(path)} is at work there; wait for it to end, or stop it") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error})") from error
    try:
        yield
    finally:
        release_lock(path, handle)


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Within the block no other process gets past here for the file, which the next in turn waits for."""
    lock_path = path.with_name(f".{path.name}{LOCK}")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = open_locked(lock_path, wait=True)
    try:
        yield
    finally:
        release_lock(lock_path, handle)


def open_locked(path: Path, wait: bool = False) -> int:
    """Return a handle of the file, which is made if it is not there, with the lock on it.

    Raises:
        BlockingIOError: another process has the lock, and `wait` is not set.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock_handle(handle, wait)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the owner before removed the file that was just opened


def release_lock(path: Path, handle: int) -> None:
    """Remove the file, then let the lock go: the other way round it might be the next owner's file."""
    with suppress(OSError):  # Windows removes no open file
        path.unlink()
    os.close(handle)


def lock_handle(handle: int, wait: bool) -> None:
    """Take the lock on an open file, where there are locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def describe_owner(path: Path) -> str:
    """Who wrote the lock file, in words."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return f"process {said['pid']} on {said['host']}, since {said['since']},"
    except (OSError, ValueError, KeyError, TypeError):  # it is just beginning, or just ending
        return "another process"
