"""Fuzzing of everything that reads files of strangers: `python tests/helpers/fuzz.py [--target NAME] [--quiet 2000]`.

A target's seeds, valid files, are changed at random (bytes, numbers, words of the format, parts of others). Inputs that
reach lines or branches of the readers in a new order are kept and changed further. A target ends after `--quiet`
inputs in a row that reached nothing new; then it prints how many inputs there were, which share of the lines of its
readers they reached, and how many branches. Any answer but a value or a UserError is a finding, as are more than
`SECONDS` or `MEGABYTES` for an input; the input is kept and named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from umeta.config import build, reading, registry
from umeta.config.images import Config
from umeta.data import archives, arrays, celeba, decode, folder, images, mini_imagenet
from umeta.deploy import adapt
from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.stages import runs
from umeta.stages.tasks import load_tasks
from umeta.tasks import store
from umeta.tasks.partition import PartitionTasks
from umeta.train import check_fits, pack
from umeta.types import EpisodeSpec

SECONDS, MEGABYTES = 10, 200
TOKENS = {
    "yaml": [
        b"${",
        b"}",
        b"&a",
        b"*a",
        b"<<: ",
        b"!!python/object:os.system ",
        b"[" * 60,
        b"{",
        b": ",
        b"\n- ",
        b"name",
    ],
    "json": [
        b"null",
        b"[]",
        b"{}",
        b"-1",
        b"1e999",
        b"NaN",
        b'"../x"',
        b"[" * 3000,
        b'"oracle"',
        b'"mixture"',
        b"true",
    ],
    "csv": [b",", b'"', b"\n", b"\r", b"\0", b"../", b"/dev/zero", b"label", b"\xef\xbb\xbf"],
    "binary": [
        b"\0" * 8,
        b"\xff" * 8,
        b"PK\x01\x02",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"IHDR",
        b"../",
        b"1e9",
        b"(9999,)",
    ],
}
NUMBERS = [0, 1, -1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1]


@dataclass(frozen=True)
class Target:
    """Something that reads a file: how, its valid files, and whose lines count."""

    read: Callable[[bytes, Path], Any]  # of an input and a folder for it
    seeds: list[bytes]
    words: list[bytes]
    readers: list[Any]  # modules or functions


# the targets


def coded(side: int = 9, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)).save(buffer, format)
    return buffer.getvalue()


def saved(write: Callable[..., None], *args: Any, **kwargs: Any) -> bytes:
    buffer = io.BytesIO()
    write(buffer, *args, **kwargs)
    return buffer.getvalue()


def written(place: Path, name: str, data: bytes) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)
    return place / name


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
PLAIN: dict[str, Any] = {
    "name": "fuzzed",
    "data": {"name": "arrays", "path": "images.npy"},
    "proposer": {"name": "kmeans", "k": 2, "partitions": 1},
    "metalearner": {"name": "protonet", "model": {"name": "conv4", "filters": 2, "halvings": 2}},
    "train": {"outer": {"name": "adam"}, "way": 2, "shot": 1, "query": 1},
}


def in_tasks(place: Path) -> Config:
    """The config of a run on tasks in this folder."""
    path = written(place, "images.npy", saved(np.save, PIXELS))
    found = build.build({**PLAIN, "data": {"name": "arrays", "path": str(path)}, "tasks": str(place / "tasks")})
    assert isinstance(found, Config)
    return found


def read_tasks(data: bytes, place: Path) -> Any:
    """A manifest of tasks whose hash a stranger has made to fit."""
    path = written(place / "tasks", "manifest.json", data)
    written(place / "tasks", "partitions.npy", PARTITIONS)
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        manifest = json.loads(data)
        manifest["hash"] = artifacts.hash_value({key: value for key, value in manifest.items() if key != "hash"})
        path.write_text(json.dumps(manifest))
    return load_tasks(in_tasks(place))


def read_run(part: str) -> Callable[[bytes, Path], Any]:
    """A run with this file exchanged, and a manifest that fits."""

    def read(data: bytes, place: Path) -> Any:
        run = place / "run"
        for name, content in RUN.items():
            written(run, name, content)
        written(run, part, data)
        artifacts.write_manifest(run, "run", {"true_labels": False, "item_shape": [1, 8, 8]}, list(RUN))
        return runs.load_run(run, device="cpu")

    return read


def read_zip(data: bytes, place: Path) -> Any:
    path = written(place, "x.zip", data)
    return decode.decode(archives.list_files(path), decode.Rule(8, 3), root=path)


def read_csv(data: bytes, place: Path) -> Any:
    written(place, "a.png", coded())
    found = adapt.read_csv(written(place, "support.csv", data))
    return adapt.decode_examples(found, adapt.Format((3, 8, 8)), place, skip_bad=False)


def read_array(data: bytes, place: Path) -> Any:
    path = written(place, "x.npy", data)
    with contextlib.suppress(UserError):
        artifacts.read_array(path)
    return images.UnlabelledImages.of(arrays.Arrays(str(path)).read("train").pixels)


def read_list(data: bytes, place: Path) -> Any:
    path = written(place, "train.txt", data)
    with contextlib.suppress(UserError):
        celeba.read_attributes(path)
    return folder.read_class_list(path)


FACES = f"2\n{' '.join(f'a{i}' for i in range(40))}\nx.jpg {'1 ' * 40}\ny.jpg {'-1 ' * 40}\n".encode()
PARTITIONS = saved(np.save, np.arange(12, dtype=np.int32)[None] % 2)
LABELS = np.array(["a", "b"] * 6)
CONFIG = reading.dump_yaml(PLAIN).encode()
LEARNER = registry.build_part("metalearner", PLAIN["metalearner"])
SPEC = PartitionTasks(PIXELS[:, None], LABELS == "a").spec
WEIGHTS = save(pack(LEARNER.build(SPEC, EpisodeSpec(2, 1, 1)).init(seed=0)))
RUN = {"config.yaml": CONFIG, "model.safetensors": WEIGHTS}


def zipped(method: int, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def manifest_of(tasks: dict[str, Any]) -> bytes:
    """A valid manifest of tasks."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        written(place, "partitions.npy", PARTITIONS)
        fingerprint = images.UnlabelledImages.of(PIXELS).fingerprint
        content = {"umeta": "0", "fingerprint": fingerprint, "true_labels": False, "tasks": tasks, "images": 12}
        artifacts.write_manifest(place, "tasks", content, ["partitions.npy"])
        return (place / "manifest.json").read_bytes()


def targets() -> dict[str, Target]:
    parts = {"kind": "partitions", "file": "partitions.npy"}
    augmented = {"kind": "augmented", "augment": {"name": "drawing"}, "of": {"kind": "rotated", "of": parts}}
    mixture = {"kind": "mixture", "weights": [1, 2.5], "of": [parts, {"kind": "instances"}]}
    return {
        "config": Target(
            lambda data, place: build.load(written(place, "x.yaml", data)),
            [CONFIG, *(reading.find_packaged()[name].read_bytes() for name in ("omniglot_best", "nav2d_diayn"))],
            TOKENS["yaml"],
            [reading, registry.build_typed, registry.build_part],
        ),
        "manifest": Target(
            read_tasks,
            [manifest_of(tasks) for tasks in (parts, augmented, mixture)],
            TOKENS["json"],
            [artifacts.read_manifest, artifacts.read_json, load_tasks, store.load_saved, store.list_files],
        ),
        "run config": Target(
            read_run("config.yaml"), [CONFIG], TOKENS["yaml"], [runs.load_run, reading.read_yaml, reading.load_yaml]
        ),
        "safetensors": Target(
            read_run("model.safetensors"),
            [WEIGHTS],
            [*TOKENS["json"], b"F64", b"BF16", b"U8", b"[99999999999]", b"params."],
            [artifacts.read_tensors, runs.load_run, check_fits],
        ),
        "npy": Target(
            read_array,
            [
                saved(np.save, PIXELS),
                saved(np.save, PIXELS[:2, :2, :2] / 255.0),
                saved(np.savez, images=PIXELS, labels=LABELS),
                saved(np.savez_compressed, images=PIXELS),
            ],
            [*TOKENS["binary"], b"|O", b"'shape': (9999999999,)", b"<f8", b"True"],
            [arrays, artifacts.read_array, images.to_pixels],
        ),
        "zip": Target(
            read_zip,
            [
                zipped(zipfile.ZIP_STORED, **{"a/x.png": coded(), "b.jpg": coded(12, "JPEG")}),
                zipped(zipfile.ZIP_DEFLATED, **{"x.gif": coded(8, "GIF"), ".hidden": b"x"}),
                *(zipped(zipfile.ZIP_STORED, x=coded(10, format)) for format in ("BMP", "TIFF", "WEBP", "PPM")),
            ],
            TOKENS["binary"],
            [archives.list_zip, archives.list_files, decode.open_image, decode.square_pixels, decode.decode],
        ),
        "csv": Target(
            read_csv,
            [b"path,label\na.png,x\n", b'label,path\r\n"x y",a.png\r\n'],
            TOKENS["csv"],
            [adapt.read_csv, adapt.decode_examples],
        ),
        "image list": Target(
            lambda data, place: mini_imagenet.rows(written(place, "train.csv", data)),
            [b"filename,label\nx.jpg,n01\ny.jpg,n02\n"],
            TOKENS["csv"],
            [mini_imagenet.rows],
        ),
        "class list": Target(read_list, [b"cat\ndog\n\neel\n", FACES], TOKENS["csv"], [folder.read_class_list, celeba]),
    }


# the loop


def changed(random: random.Random, data: bytes, pool: list[bytes], words: list[bytes]) -> bytes:
    """An input like another one."""
    out = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 4, 8])):
        at, length = random.randrange(len(out) + 1), random.choice([1, 2, 4, 8, 32, 256])
        match random.randrange(8):
            case 0 if out:
                out[min(at, len(out) - 1)] ^= 1 << random.randrange(8)
            case 1:
                del out[at : at + length]
            case 2:
                out[at:at] = out[at : at + length] * random.choice([1, 2, 20])
            case 3:
                out[at : at + random.choice([0, length])] = random.choice(words)
            case 4:
                number, size = random.choice(NUMBERS), random.choice([1, 2, 4, 8])
                out[at : at + size] = (number % 256**size).to_bytes(size, random.choice(["little", "big"]))
            case 5:
                number = str(random.choice(NUMBERS)).encode()
                digits = [i for i, byte in enumerate(out) if chr(byte).isdigit()]
                at = random.choice(digits) if digits else at
                out[at : at + 1] = number
            case 6:
                other = random.choice(pool)
                begin = random.randrange(len(other) + 1)
                out[at : at + random.choice([0, length])] = other[begin : begin + length]
            case 7:
                out[at : at + length] = random.randbytes(length)
    return bytes(out[: 1 << 17])


def codes(reader: Any) -> Iterator[CodeType]:
    """The code of a function, or of all functions of a module, with what is defined inside."""
    if isinstance(reader, ModuleType):
        functions = [f for f in vars(reader).values() if getattr(f, "__module__", "") == reader.__name__]
        functions = [f for f in functions if hasattr(f, "__code__")]
        functions += [m for c in vars(reader).values() if isinstance(c, type) for m in vars(c).values()]
        for function in functions:
            if hasattr(function, "__code__") and function.__code__.co_filename == reader.__file__:
                yield from codes(function)
        return
    code = reader if isinstance(reader, CodeType) else getattr(reader, "__wrapped__", reader).__code__
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


class Coverage:
    """Lines of the readers that were run, and steps from line to line: the branches that were taken."""

    def __init__(self, readers: list[Any]) -> None:
        self.codes = {code for reader in readers for code in codes(reader)}
        self.lines = {(code, line) for code in self.codes for *_, line in code.co_lines() if line}
        self.lines -= {(code, code.co_firstlineno) for code in self.codes}
        self.steps: set[tuple[CodeType, int, int]] = set()

    def __enter__(self) -> None:
        self.before = len(self.steps)
        sys.settrace(self.called)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def called(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code not in self.codes:
            return None
        last = 0

        def within(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal last
            if event == "line":
                self.steps.add((frame.f_code, last, frame.f_lineno))
                last = frame.f_lineno
            return within

        return within

    @property
    def grew(self) -> bool:
        return len(self.steps) > self.before

    def __str__(self) -> str:
        reached = len({(code, line) for code, _, line in self.steps} & self.lines)
        share = f"{reached} of {len(self.lines)} lines ({reached / len(self.lines):.0%})"
        return f"{share}, {len(self.steps)} branches"


class TooLong(BaseException):
    """An input took more than `SECONDS`."""


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attempt(read: Callable[[bytes, Path], Any], data: bytes, place: Path) -> str:
    """What is wrong with how an input was read; nothing is."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    memory = peak()
    try:
        read(data, place)
    except UserError:
        pass
    except TooLong:
        return f"more than {SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return f"{peak() - memory:.0f} MB" if peak() - memory > MEGABYTES else ""


def fuzz(target: Target, place: Path, *, quiet: int, most: int | None = None, seed: int = 0) -> tuple[list[str], str]:
    """What went wrong, and what was reached: until `quiet` inputs in a row reached nothing new, or after `most`."""
    draw, coverage = random.Random(seed), Coverage(target.readers)
    pool, waiting, since, count, began = list(target.seeds), list(target.seeds), 0, 0, time.monotonic()
    found: dict[str, str] = {}
    while since < quiet and (most is None or count < most):
        data = waiting.pop() if waiting else changed(draw, draw.choice(pool), pool, target.words)
        with coverage:
            wrong = attempt(target.read, data, place / "input")
        if wrong and wrong[:40] not in found:
            kept = written(place / "found", f"{len(found)}", data)
            found[wrong[:40]] = f"{wrong[:300]}: {kept}"
        since = 0 if coverage.grew else since + 1
        if coverage.grew and count >= len(target.seeds):
            pool.append(data)
        count += 1
    took = f"{count} inputs in {time.monotonic() - began:.0f} s"
    return list(found.values()), f"{took}, {coverage}, {len(pool)} kept"


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Fuzz what reads files of strangers.")
    arguments.add_argument("--target", choices=list(targets()), help="only this one")
    arguments.add_argument("--quiet", type=int, default=2000, help="inputs without anything new after which to stop")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ["UMETA_CACHE"] = str(root / "cache")
    failed = False
    for name, target in targets().items():
        if options.target in (None, name):
            wrong, reached = fuzz(target, root / name.replace(" ", "-"), quiet=options.quiet, seed=options.seed)
            print(f"{name}: {reached}", *wrong, sep="\n    ", flush=True)
            failed |= bool(wrong)
    sys.exit(failed)
