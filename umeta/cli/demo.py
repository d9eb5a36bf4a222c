"""`umeta demo`: the whole of it in minutes, on Omniglot and in an environment, with nothing to prepare."""

from __future__ import annotations

import argparse
import csv
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umeta.cli.chain import check_chain, report_on, run_stages
from umeta.cli.options import Commands, add_common_options, add_device
from umeta.errors import Interrupted, UserError

if TYPE_CHECKING:
    from umeta.evaluation.result import Result

IMAGES = ("demo_cactus_protonet", "demo_cactus_maml", "demo_best", "demo_oracle")
FIRST, BEST = IMAGES[0], IMAGES[2]  # whose tasks and weights the second takes, and who adapts to new characters
ENVIRONMENT = "demo_nav2d"
SECONDS = {FIRST: 62, IMAGES[1]: 22, BEST: 75, IMAGES[3]: 20, ENVIRONMENT: 14, "characters": 4}  # on two cores
CHARACTERS = 5

NEXT = """
Next, with pictures of your own (a folder of them; `labelled` and `examples` hold a folder for each class):
  umeta run --images photos --test labelled --minutes 10
  umeta adapt runs/photos --support examples --out learner
  umeta predict learner photos --out predictions.csv --preview predictions.png"""


def add_parser(commands: Commands) -> None:
    text = "learn from Omniglot and in 2-D navigation without labels, and adapt to new characters, in minutes"
    sub = commands.add_parser("demo", help=text, description=text)
    add_common_options(sub)
    add_device(sub)
    sub.add_argument("--resume", action="store_true", help="go on where an interrupted demo stopped")
    sub.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="a new folder (default: demo)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.config import build
    from umeta.runtime import distributed
    from umeta.runtime.allocator import keep_buffers

    if distributed.size() > 1:
        raise UserError("demo: it is the work of one process; leave out torchrun")
    out = options.out
    if out.exists() and not (out.is_dir() and (options.resume or not any(out.iterdir()))):
        raise UserError(f"{out} exists: go on with umeta demo --out {out} --resume, or choose another --out DIR")
    keep_buffers()
    shared = [f"tasks={out / 'tasks' / FIRST}", f"start={out / 'runs' / FIRST}"]
    configs = [build.load(name, [f"out={out}", *(shared if name == IMAGES[1] else [])]) for name in IMAGES]
    navigation = build.load(ENVIRONMENT, [f"out={out}"])
    check_chain([*configs, navigation], resume=options.resume)
    steps = Steps(out)
    results: list[Result] = []
    for config in configs:
        with steps.step(config.name, config.title):
            results += filter(None, [run_stages(config, options)])
    with steps.step(ENVIRONMENT, navigation.title):
        moved = [*filter(None, [run_stages(navigation, options)])]
    with steps.step("characters", f"{CHARACTERS} new characters, from one drawing each"):
        right, number, preview = adapt_to_characters(configs[2], options)

    print("Learning from 22,000 drawings without labels, tested on characters never seen (accuracy in per cent):\n")
    found = report_on(results, out)
    print("\nIn 2-D navigation, without a reward to learn from (return before and after adapting to a goal):\n")
    behaviour = report_on(moved, out)
    print(f"\nOf {number} drawings of {CHARACTERS} new characters, {right} were told right from one example of each:")
    print(preview)
    print(NEXT)
    return {
        **found,
        "navigation": behaviour,
        "characters": {"right": right, "drawings": number, "preview": str(preview)},
    }


class Steps:
    """The demo's steps: what each is called, and how long the rest may take."""

    def __init__(self, out: Path) -> None:
        self.out, self.number = out, 0
        self.began, self.done = time.monotonic(), 0.0

    @contextmanager
    def step(self, key: str, title: str) -> Iterator[None]:
        """Announce a step with the time left; an error within it names the step.

        Raises:
            UserError: with the step's name before what went wrong.
            Interrupted: likewise.
        """
        from umeta.runtime.progress import format_duration, note

        self.number += 1
        name = f"step {self.number} of {len(SECONDS)}, {title}"
        pace = (time.monotonic() - self.began) / self.done if self.done else 1.0
        left = pace * (sum(SECONDS.values()) - self.done)
        note(f"\n{name} (about {format_duration(left)} left in all)")
        again = f"go on with {shlex.join(['umeta', 'demo', '--out', str(self.out), '--resume'])}"
        try:
            yield
        except UserError as error:
            raise UserError(f"demo, {name}: {error}; once that is mended, {again}") from error
        except (Interrupted, KeyboardInterrupt) as error:
            raise Interrupted(f"demo, {name}: stopped; {again}") from error
        except Exception:
            note(f"\ndemo, {name}: failed; {again}")
            raise
        self.done += SECONDS[key]


def adapt_to_characters(config: Any, options: argparse.Namespace) -> tuple[int, int, Path]:
    """Adapt a run to five test characters from a drawing each, as `umeta adapt` and `umeta predict` do.

    Returns:
        How many of the other drawings were told right, how many there are, and a picture of the answers.
    """
    from umeta.deploy.adapt import adapt_run
    from umeta.deploy.predict import predict_images

    out = options.out
    examples, others = write_characters(config.data, out / "characters")
    shutil.rmtree(out / "learner", ignore_errors=True)
    learner, _ = adapt_run(config.run_folder, examples, out / "learner", device=options.device)
    preview = out / "predictions.png"
    predict_images(learner, [others], out / "predictions.csv", preview=preview, overwrite=True)
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return sum(Path(row["path"]).parent.name == row["label"] for row in rows), len(rows), preview


def write_characters(data: Any, folder: Path) -> tuple[Path, Path]:
    """Write some test characters as PNG files, ink black on white, a folder for each character.

    Returns:
        The folder with one drawing of each, and the folder with the rest.
    """
    import numpy as np
    from PIL import Image

    items = data.read("test")
    chosen: Sequence[int] = np.random.default_rng(0).choice(len(items.names), CHARACTERS, replace=False).tolist()
    places = folder / "examples", folder / "others"
    for label in chosen:
        name = items.names[label].replace("/character", " ")
        for i, pixels in enumerate(items.pixels[items.labels == label]):
            place = places[min(i, 1)] / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - pixels[0]).save(place / f"{i + 1:02}.png")
    return places
