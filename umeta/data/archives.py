"""The files of a folder, or of a zip, tar or parquet file, none of which is unpacked."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

from umeta.data.parquet import list_rows
from umeta.errors import UserError

LARGEST_FILE = 256 << 20  # bytes: no photograph is larger, a decompression bomb is


@dataclass(frozen=True)
class File:
    """A file in a folder or an archive: its place below the root, and how to read it."""

    name: str
    stamp: tuple[int, ...]  # size and times of change, or size and checksum
    read: Callable[[], bytes]


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from `root` on, links followed, and the names of its files, in order; hidden ones left out.

    A folder that links lead to again, as in a circle, is not read twice.
    """
    known = set()
    for place, inner, names in os.walk(root, followlinks=True):
        info = os.stat(place)
        if (info.st_dev, info.st_ino) in known:
            inner.clear()
            continue
        known.add((info.st_dev, info.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def list_files(root: Path) -> list[File]:
    """Every file below a folder or in a zip, tar or parquet, hidden ones left out, by name; nothing is unpacked.

    A tar or parquet that lies in the folder is one of its folders, as where data sets come in shards.

    Raises:
        UserError: nothing there, not a folder or archive, or an archive with a member outside its target folder.
    """
    if root.is_dir():
        found = []
        for folder, names in walk_folders(root):
            inside, outside = folder.relative_to(root).as_posix(), str(folder)
            for name in names:  # of which there may be very many: texts are several times as fast as paths
                path = os.path.join(outside, name)
                place = name if inside == "." else f"{inside}/{name}"
                try:
                    info = os.stat(path)
                except OSError:  # a link that leads nowhere
                    continue
                if not stat.S_ISREG(info.st_mode):
                    continue
                if (ending := os.path.splitext(name)[1].lower()) in SHARDS:
                    found += [replace(file, name=f"{place}/{file.name}") for file in SHARDS[ending](Path(path))]
                else:
                    stamp = (info.st_size, info.st_mtime_ns, info.st_ctime_ns)
                    found.append(File(place, stamp, partial(read_contents, path)))
    elif root.is_file():
        found = SHARDS.get(root.suffix.lower(), list_zip)(root)
    else:
        place = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"{root}: no such folder or archive of images{place}")
    if not found:
        raise UserError(f"{root}: holds no files; expected images")
    return sorted(found, key=lambda file: file.name)


def read_contents(path: Path | str) -> bytes:
    """Read a file; raise OSError for one that is none (a pipe, a device), ValueError for one far too large."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file") if not path.exists() else OSError(f"{path}: not a file")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"a file of {size:,} bytes")
    return path.read_bytes()


def list_zip(path: Path) -> list[File]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: expected a folder or a zip of images ({error})") from error
    found = []
    for info in archive.infolist():
        place = PurePosixPath(info.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or PureWindowsPath(info.filename).drive:
            raise UserError(f"{path}: refused, its member '{info.filename}' would leave the target folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{path}: refused, its member '{info.filename}' is a symbolic link")
        if info.file_size > LARGEST_FILE:
            raise UserError(f"{path}: refused, its member '{info.filename}' unpacks to {info.file_size} bytes")
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in place.parts)
        if place.name and not info.filename.endswith("/") and not hidden:  # a member's name may be empty
            found.append(File(str(place), (info.file_size, info.CRC), partial(archive.read, info)))
    return found


def list_tar(path: Path) -> list[File]:
    """Every file in a tar that is not compressed, as webdataset's shards are: each is read at its place in it."""
    found, changed = [], path.stat().st_mtime_ns
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                place = PurePosixPath(info.name)
                if place.is_absolute() or ".." in place.parts:
                    raise UserError(f"{path}: refused, its member '{info.name}' would leave the target folder")
                hidden = any(part.startswith(".") for part in place.parts)
                if info.isreg() and not hidden and info.size <= LARGEST_FILE:
                    stamp = (info.size, info.offset_data, changed)
                    found.append(File(str(place), stamp, partial(read_part, path, info.offset_data, info.size)))
                vars(archive)["members"] = []  # which it would keep, all of them
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: expected a tar of images that is not compressed ({error})") from error
    return found


def read_part(path: Path, start: int, size: int) -> bytes:
    """Read some bytes of a file."""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def list_parquet(path: Path) -> list[File]:
    """Every picture in a parquet file, in a folder for each class where it has labels."""
    return [File(*row) for row in list_rows(path)]


SHARDS = {".tar": list_tar, ".parquet": list_parquet}  # what lists the files of an archive that may be one of many


def is_archive(path: Path) -> bool:
    """Whether a file is a zip, tar or parquet file, by its name."""
    return path.suffix.lower() in (".zip", *SHARDS)
