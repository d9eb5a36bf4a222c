"""Files between the stages: written whole or not at all, and checked when read.

Every artefact is a directory whose `manifest.json` is written last; it lists the size and hash of every other file, and
its own. A directory without it is unfinished. No file holds code (safetensors, npy, json, yaml).

An artefact may come from a stranger, its hashes made to fit: whatever is in it, reading it gives a value or a
UserError, in memory that its own size bounds.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from umeta.errors import UserError
from umeta.runtime.lock import wait_for_lock
from umeta.runtime.progress import note

SCHEMA = 1
NUMBERS = re.compile(r"\[(\n[-+.\deE,\s]+)\]")  # of no string, which has no line feeds
LARGEST_TEXT = 64 << 20  # bytes: no list, table or manifest of ours is larger
MALFORMED: tuple[type[Exception], ...] = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
MALFORMED += (RuntimeError, AssertionError, MemoryError)  # torch's, and too deep a nesting


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends well, and is removed otherwise.

    Raises:
        OSError: of a full disk, say; it names `path`, whatever the block was writing.
    """
    temporary, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp") for _ in range(2))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir():  # which no system call replaces
            os.rename(path, old)
        try:
            os.replace(temporary, path)
        except BaseException:
            if old.is_dir():
                os.rename(old, path)
            raise
    except OSError as error:  # of Pillow's and NumPy's some have neither a number nor a name
        own = error.filename is None or str(temporary) in str(error.filename)
        where = str(path) if own else error.filename
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), where) from error
    finally:
        for left in (temporary, old):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # where it could not be written it cannot be removed either
                    left.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise UserError when nothing can be written into a folder, which need not be there yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{folder}: nothing can be written there ({error.strerror}); choose another place") from error


def remove_leftovers(folder: Path, pattern: str = "**/.*.tmp") -> None:
    """Remove what `replace_atomically` left in a folder when its process was killed; nobody may be writing there."""
    for left in [*folder.glob(pattern)]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be text


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, a line for each entry and one for a list of numbers."""
    text = json.dumps(value, indent=1)
    write_text(path, NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


@contextlib.contextmanager
def refuse_malformed(place: Path) -> Iterator[None]:
    """Within the block, what is not as this library writes it (a missing key, another type or shape) is a UserError."""
    try:
        yield
    except MALFORMED as error:
        raise UserError(f"{place}: damaged, or not written by umeta ({error!r}); make it again") from error


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """Return the text of a file; raise UserError when it is missing, too large or not UTF-8."""
    try:
        with open(path, "rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise UserError(f"{path}: refused, a text of more than {largest:,} bytes")
        return content.decode()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged, not readable as text ({error}); make it again") from error


def read_json(path: Path) -> Any:
    """Raise UserError when the file is missing or not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, not readable as JSON ({error}); make it again") from error


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with its own hash, for a file that no manifest lists."""
    plain = json.loads(json.dumps(value))  # as it will be read: keys are words, tuples are lists
    write_json(path, {**plain, "hash": hash_value(plain)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what `write_sealed` wrote, without the hash. Raises UserError when the file is missing or damaged."""
    value = read_json(path)
    content = {key: part for key, part in value.items() if key != "hash"} if isinstance(value, dict) else {}
    if not isinstance(value, dict) or value.get("hash") != hash_value(content):
        raise UserError(f"{path}: damaged (it does not match its own hash); make it again")
    return content


def write_array(path: Path, array: np.ndarray) -> None:
    with replace_atomically(path) as temporary, open(temporary, "wb") as file:
        # to a real file NumPy writes through the C library, and on a full disk loses the end without a word
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def write_blocks(path: Path, blocks: Iterable[np.ndarray]) -> None:
    """Write arrays one below the other as one array, of which memory holds one at a time; nothing for no arrays."""
    count = 0
    with replace_atomically(path) as temporary, open(temporary, "wb") as file:
        for block in blocks:
            kind = {"descr": np.lib.format.dtype_to_descr(block.dtype), "fortran_order": False}
            if not count:  # the header leaves room for any number
                np.lib.format.write_array_header_1_0(file, {**kind, "shape": (0, *block.shape[1:])})
            file.write(np.ascontiguousarray(block).data)
            count += len(block)
        if count:
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, {**kind, "shape": (count, *block.shape[1:])})


def read_array(path: Path) -> np.ndarray:
    """Return a read-only memory map of the array. Raises UserError when it is missing or damaged."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.memmap) or found.dtype.kind not in "biuf":
            raise ValueError("not one array of numbers")
    except Exception as error:  # numpy parses the header as Python text and lets through what that raises
        raise UserError(f"{path}: missing or damaged ({error}); make it again") from error
    return found


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with replace_atomically(path) as temporary:  # not by `save_file`, whose files only their owner may read
        temporary.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Raise UserError when the file is missing or damaged."""
    from safetensors import SafetensorError

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); make it again") from error


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def hash_value(value: Any) -> str:
    """Hash of a JSON-like value, whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_manifest(folder: Path, kind: str, content: Mapping[str, Any], files: list[str]) -> None:
    """Declare the artefact finished. `content` must not depend on the clock."""
    listed = {name: {"bytes": (folder / name).stat().st_size, "hash": hash_file(folder / name)} for name in files}
    manifest = {"schema": SCHEMA, "kind": kind, **dict(sorted(content.items())), "files": listed}
    write_json(folder / "manifest.json", {**manifest, "hash": hash_value(manifest)})


def read_manifest(folder: Path, *kinds: str) -> dict[str, Any]:
    """Return the manifest of a finished artefact of one of these kinds, its files verified.

    Raises:
        UserError: the directory is missing, unfinished, of another kind or version, or a file is damaged.
    """
    kind = " or ".join(kinds)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such {kind} directory")
    if not (folder / "manifest.json").exists():
        raise UserError(f"{folder}: unfinished {kind} (no manifest.json), which --resume finishes, or none of umeta's")
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict):
        raise UserError(f"{folder / 'manifest.json'}: damaged, it holds no mapping; make the {kind} again")
    if manifest.get("kind") not in kinds:
        raise UserError(f"{folder}: expected an artefact of kind '{kind}', found '{manifest.get('kind')}'")
    if manifest.get("schema") != SCHEMA:
        raise UserError(f"{folder}: written with schema {manifest.get('schema')}, this version reads {SCHEMA}")
    if manifest.get("hash") != hash_value({key: value for key, value in manifest.items() if key != "hash"}):
        raise UserError(f"{folder / 'manifest.json'}: damaged (it does not match its own hash); make the {kind} again")
    with refuse_malformed(folder / "manifest.json"):
        for name, expected in manifest["files"].items():
            path = folder / name
            if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
                raise UserError(f"{folder / 'manifest.json'}: refused, it names the file {name!r} outside its folder")
            if not os.path.isfile(path):  # of a name too long for a file, `path.is_file()` raises
                raise UserError(f"{path}: missing from the {kind}; make it again")
            if path.stat().st_size != expected["bytes"] or hash_file(path) != expected["hash"]:
                raise UserError(f"{path}: damaged (its content is not what the manifest records); make it again")
    return manifest


def cache_folder() -> Path:
    """Where decoded images and finished embeddings are kept: `$UMETA_CACHE`, else the user's cache directory."""
    root = os.environ.get("UMETA_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "umeta"


def find_cached(name: str, kind: str) -> Path:
    """Where an artefact `name` lies in the cache, or is to be made.

    Where the cache cannot be written, that is a folder of the user's among the temporary ones.
    """
    folder = cache_folder() / name
    if is_intact(folder, kind):
        return folder
    try:
        check_writable(cache_folder())
    except UserError as error:
        return choose_other_cache(str(error)) / name
    return folder


@cache
def choose_other_cache(why: str) -> Path:
    """Give the cache to use where that of `cache_folder` cannot be, and say so once.

    Raises:
        UserError: there is no other one either.
    """
    other = Path(tempfile.gettempdir()) / f"umeta-{getpass.getuser()}"
    try:
        other.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and other.stat().st_uid != os.getuid():  # of somebody who was there first
            raise OSError(errno.EPERM, "another user's", str(other))
        check_writable(other)
    except (OSError, UserError) as error:
        raise UserError(f"the cache, {why}: UMETA_CACHE=DIR") from error
    note(f"the cache, {why} (UMETA_CACHE=DIR); for now it is {other}")
    return other


def make_cached(folder: Path, kind: str, make: Callable[[Path], list[str]]) -> Path:
    """`folder`, made by `make(temporary folder) -> its files` unless it is there already and undamaged.

    Of several processes one makes it, the others wait.
    """
    if is_intact(folder, kind):
        return folder
    with wait_for_lock(folder):
        remove_leftovers(folder.parent, f".{folder.name}.*.tmp")
        if not is_intact(folder, kind):
            with replace_atomically(folder) as temporary:
                temporary.mkdir()
                write_manifest(temporary, kind, {}, make(temporary))
    return folder


def is_intact(folder: Path, *kinds: str) -> bool:
    """Whether `read_manifest` would accept the artefact."""
    try:
        read_manifest(folder, *kinds)
    except UserError:
        return False
    return True
