"""Many pictures: `python -m bench.scale --images 20000`, or `--images 1000000` (25 GB of disk, half an hour).

It makes JPEG files up, in folders and in tars, and takes them the whole way: survey, decoding, order, an embedding,
k-means, a meta-step. For each it prints seconds and the most memory that the process itself took: what it has mapped of
files, which the system takes back when memory is short, is not counted. It writes results/scale.json.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import table
from embeddings.random_network import RandomNetwork
from umeta.data.folder import Folder
from umeta.data.images import UnlabelledImages
from umeta.evaluation.rows import find_origin
from umeta.metalearners.maml import MAML
from umeta.models.conv4 import Conv4
from umeta.outer.adam import Adam
from umeta.quickstart.survey import survey
from umeta.runtime import artifacts
from umeta.runtime.allocator import keep_buffers
from umeta.runtime.loop import RunContext
from umeta.tasks.clustering import kmeans
from umeta.tasks.partition import PartitionTasks
from umeta.train import BatchProblem
from umeta.types import EpisodeSpec, Theta

ROOT = Path(__file__).parent.parent
SIDE = 96  # of a picture, pixels
SIZE = 32  # of an item
EACH = 1000  # pictures in a folder or tar
BASES = 64  # pictures that all are made of


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "many", help="where they are, or are put")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "scale.json")
    asked = parser.parse_args(arguments)
    os.environ["UMETA_CACHE"] = str(asked.folder / "cache")
    keep_buffers(1 << 24)  # larger ones go back, so that what is counted is what is needed
    folder, shards = asked.folder / f"folder-{asked.images}", asked.folder / f"shards-{asked.images}"
    rows: list[dict[str, Any]] = []

    def do(what: str, work: Callable[[], Any]) -> Any:
        with measure(rows, what):
            return work()

    make(folder, shards, asked.images)
    do("survey of the folder", lambda: survey(folder))
    found = do("decoding, folder", lambda: Folder(str(folder), size=SIZE).read("train"))
    do("decoding, tars", lambda: Folder(str(shards), size=SIZE).read("train"))
    do("from the cache", lambda: Folder(str(folder), size=SIZE).read("train"))
    images = do("order and fingerprint", lambda: in_order(found.pixels))
    z = do("embedding, a random network", lambda: embed(images))
    clusters = min(asked.clusters, asked.images // 20)
    labels = do(
        f"k-means of {z.shape[1]} numbers, {clusters} clusters, 10 iterations", lambda: kmeans(z, clusters, 10, 0)
    )
    do("a meta-step of MAML, 5-way 1-shot", lambda: meta_step(PartitionTasks(images.pixels, labels[0])))
    result = {**find_origin(), "images": asked.images, "rows": rows}
    artifacts.write_json(asked.out, result)
    print(f"\n{table.scale(result)}")
    return result


def make(folder: Path, shards: Path, count: int) -> None:
    """Write pictures that are not there yet: two of a few in each, mixed and shifted by its number."""
    from PIL import Image

    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (BASES, 8, 8, 3), dtype=np.uint8)
    bases = [np.asarray(Image.fromarray(b).resize((SIDE, SIDE)), dtype=np.float32) for b in small]
    for number, start in enumerate(range(0, count, EACH)):
        place, shard = folder / f"{number:06}", shards / f"data-{number:06}.tar"
        if shard.exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        shards.mkdir(parents=True, exist_ok=True)
        with artifacts.replace_atomically(shard) as temporary, tarfile.open(temporary, "w") as archive:
            for i in range(start, min(start + EACH, count)):
                mixed = 0.6 * bases[i % BASES] + 0.4 * np.roll(bases[i // BASES % BASES], i // BASES**2, 0)
                written = io.BytesIO()
                Image.fromarray(mixed.astype(np.uint8)).save(written, "JPEG", quality=80)
                (place / f"{i:08}.jpg").write_bytes(written.getvalue())
                info = tarfile.TarInfo(f"{i:08}.jpg")
                info.size = written.tell()
                archive.addfile(info, io.BytesIO(written.getvalue()))


def in_order(pixels: np.ndarray) -> UnlabelledImages:
    images = UnlabelledImages.of(pixels)
    assert images.fingerprint
    return images


def embed(images: UnlabelledImages) -> np.ndarray:
    embedder = RandomNetwork(Conv4(32))
    embedder.fit(images, RunContext())
    return embedder.embed(images).numpy()


def meta_step(tasks: PartitionTasks) -> dict[str, float]:
    episode = EpisodeSpec(5, 1, 5)
    learner = MAML(Conv4(32)).build(tasks.spec, episode)
    theta = Theta({name: value.requires_grad_() for name, value in learner.init(0).params.items()})
    batch = tasks.sample(np.arange(8), episode=episode, seed=0)
    outer = Adam()
    outer.start(theta.params)
    return outer.step(BatchProblem(learner, theta, tasks.spec, [batch.support()], batch.query(), 8), 0.0)


@contextmanager
def measure(rows: list[dict[str, Any]], what: str) -> Iterator[None]:
    """Add a row: seconds, and the most memory of its own that the process had meanwhile."""
    print(f"{what} ...", flush=True)
    peak, over, began = [count_anonymous()], threading.Event(), time.perf_counter()

    def watch() -> None:
        while not over.wait(0.05):
            peak.append(max(peak.pop(), count_anonymous()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    rows.append({"what": what, "seconds": time.perf_counter() - began, "memory": max(peak[0], count_anonymous())})


def count_anonymous() -> int:
    """Bytes of this process in memory that are of no file."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) << 10


if __name__ == "__main__":
    main(sys.argv[1:])
