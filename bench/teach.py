"""How long a person waits for `umeta teach`: `python -m bench.teach --pictures 50000` (4 GB of disk, some minutes).

It makes pictures up and a learner of a few meta-steps, and starts the command as a person does. A first page is its
text, the list of what is worth a label, and the thumbnails that a window shows. What was looked at is kept, so that an
interrupted measurement goes on. It writes results/teach.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench import table
from umeta.config import build
from umeta.evaluation.rows import find_origin
from umeta.runtime import artifacts
from umeta.stages import metatrain, propose

ROOT = Path(__file__).parent.parent
SHOWN = 40  # thumbnails in a window
KINDS, BASES = 10, 500  # of pictures, and different ones
LABELS = 30
SHAPE, SIZE = (160, 120), 32  # pixels of a picture, and of a side of an item


def make_pictures(folder: Path, count: int) -> None:
    """Write pictures of a few kinds that are not there yet."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    kinds, contents = random.integers(40, 216, (KINDS, 6, 8, 3)), []
    for i in range(BASES):
        low = kinds[i % KINDS] + random.integers(-40, 40, (6, 8, 3))
        written = io.BytesIO()
        Image.fromarray(low.astype(np.uint8)).resize(SHAPE, Image.Resampling.BICUBIC).save(written, "JPEG")
        contents.append(written.getvalue())
    for i in range(len(os.listdir(folder)), count):
        (folder / f"{i:06}.jpg").write_bytes(contents[i % BASES])


def make_run(place: Path, photos: Path) -> Path:
    """Meta-train such a learner as `umeta run --images` does, for a few steps."""
    some = place / "some"
    if not (place / "runs" / "teach").exists():
        some.mkdir(exist_ok=True)
        for path in sorted(photos.iterdir())[:BASES]:
            shutil.copy(path, some)
        network = {"name": "conv4", "filters": [64, 64, 128, 256], "down": "pool_first", "halvings": 3}
        plain = {
            "name": "teach",
            "out": str(place),
            "data": {"name": "folder", "root": str(some), "size": SIZE},
            "proposer": {"name": "instances"},
            "metalearner": {
                "name": "protonet",
                "distance": "cosine",
                "model": {"name": "described", "model": network},
            },
            "train": {"outer": {"name": "adam"}, "steps": 5, "way": 64, "shot": 1, "query": 1, "meta_batch": 1},
        }
        config = build.build(plain)
        propose.propose(config, device="cpu")
        metatrain.metatrain(config, device="cpu")
    return place / "runs" / "teach"


class Page:
    """What the page in the browser asks for."""

    def __init__(self, command: list[str]) -> None:
        self.began = time.monotonic()
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        found = next(m for line in self.server.stdout if (m := re.search(r"(http://\S+)/\?token=(\S+)", line)))
        self.link, self.token, self.linked = found[1], found[2], time.monotonic() - self.began

    def get(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"{self.link}{path}", data, {"X-Token": self.token})
        with urllib.request.urlopen(asked) as answer:
            return bytes(answer.read())

    def ask(self, path: str, body: Any = None) -> Any:
        return json.loads(self.get(path, body))

    def wait(self, true: Callable[[dict[str, Any]], bool]) -> float:
        """Return the seconds since the command until something is true of the state."""
        while not true(self.ask("/api/state")):
            time.sleep(0.02)
        return time.monotonic() - self.began

    def show(self) -> float:
        """Fetch what a window shows, as soon as there is something; return the seconds since the command."""
        self.get("/")
        self.wait(lambda state: state["pictures"] > 0)
        ids = [one["id"] for one in self.ask("/api/pictures?view=worth&count=120")["pictures"]]
        with ThreadPoolExecutor(6) as pool:  # as browsers do
            list(pool.map(lambda i: self.get(f"/api/thumbnail/{i}"), ids[:SHOWN]))
        return time.monotonic() - self.began

    def label(self, i: int) -> float:
        """Give a picture a label; return the seconds to the new list of what is worth one."""
        began = time.monotonic()
        self.ask("/api/label", {"pictures": [i], "label": f"kind {i % KINDS}"})
        self.ask("/api/pictures?view=worth&count=120")
        return time.monotonic() - began

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.send_signal(signal.SIGINT)
        self.server.wait(60)


def measure(run: Path, photos: Path, place: Path) -> dict[str, float]:
    """Return seconds: to the first page with nothing known and with all known, and from a label to all sorted."""
    command = [sys.executable, "-m", "umeta", "teach", str(run), str(photos), "--out", str(place), "--device", "cpu"]
    known, found = os.environ["UMETA_CACHE"], {}
    for _ in range(2):  # once for the files that Python and the system read
        shutil.rmtree(place, ignore_errors=True)
        os.environ["UMETA_CACHE"] = f"{known}-none"
        shutil.rmtree(f"{known}-none", ignore_errors=True)
        with Page(command) as page:
            found |= {"the link, nothing known": page.linked, "first page, nothing known": page.show()}
    os.environ["UMETA_CACHE"] = known
    with Page(command) as page:
        page.wait(lambda state: state["looked"] == state["files"])
    with Page(command) as page:
        found |= {"the link, all known": page.linked, "first page, all known": page.show()}
        found["all known again"] = page.wait(lambda state: state["looked"] == state["files"])
        waits = [page.label(i) for i in range(LABELS)][2:]  # of one class there is nothing to sort by
    return found | {
        "label to new sorting, median": float(np.median(waits)),
        "label to new sorting, longest": max(waits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.teach", description=__doc__)
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "many" / "teach", help="where they are put")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "teach.json")
    asked = parser.parse_args()
    os.environ["UMETA_CACHE"] = str(asked.folder / "cache")
    photos = asked.folder / f"photos-{asked.pictures}"
    make_pictures(photos, asked.pictures)
    seconds = measure(make_run(asked.folder, photos), photos, asked.folder / "teach")
    result = {**find_origin(), "pictures": asked.pictures, "seconds": seconds}
    artifacts.write_json(asked.out, result)
    print(table.teach(result))


if __name__ == "__main__":
    main()
