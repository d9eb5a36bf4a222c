"""`umeta predict`: a learner's answers to images, as a CSV."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from umeta.cli.options import Commands, add_learner_options


def add_parser(commands: Commands) -> None:
    text = "a learner's answers to any number of images, as a CSV"
    sub = commands.add_parser("predict", help=text, description=text)
    add_learner_options(sub)
    sub.add_argument("learner", type=Path, help="what adapt wrote")
    where = "image files, folders or archives (zip, tar, parquet) of them, or .npy arrays of the learner's size"
    sub.add_argument("images", type=Path, nargs="+", help=where)
    sub.add_argument("--out", type=Path, default=Path("predictions.csv"), metavar="FILE", help="predictions.csv")
    sub.add_argument("--unknown", action="store_true", help="answer `unknown` where no class is near")
    sub.add_argument("--least-sure-first", action="store_true", help="in order of confidence")
    sub.add_argument("--overwrite", action="store_true", help="in place of files that are there")
    text = "the images lie in a folder per class: say how often each is right, and what is taken for what"
    sub.add_argument("--truth", action="store_true", help=text)
    sub.add_argument("--preview", type=Path, metavar="FILE.png", help="also draw the first answers of each class")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from umeta.data.decode import describe_left_out
    from umeta.deploy.adapted import AdaptedLearner
    from umeta.deploy.predict import predict_images
    from umeta.runtime.allocator import keep_buffers

    keep_buffers()
    trusted = None if options.allow_plugin else ()
    learner = AdaptedLearner.load(options.learner, device=options.device, trusted=trusted)
    result = predict_images(
        learner,
        options.images,
        options.out,
        unknown=options.unknown,
        least_sure_first=options.least_sure_first,
        overwrite=options.overwrite,
        skip_bad=options.skip_bad is not False,
        preview=options.preview,
        truth=options.truth,
    )
    if result["twice"]:
        print(f"given twice, answered once: {', '.join(result['twice'])}", file=sys.stderr)
    if result["left_out"]:
        print(describe_left_out(result["left_out"]), file=sys.stderr)
    print(*(f"{label}: {count}" for label, count in result["labels"].items()), sep="\n")
    print(f"{options.out}: {result['images']} images" + (f"; look at {options.preview}" if options.preview else ""))
    if truth := result.get("truth"):
        shares = ((name, one["right"] / one["images"], one["images"]) for name, one in truth["classes"].items())
        print(*(f"{name}: {share:.1%} of {count} right" for name, share, count in shares), sep="\n")
        print(f"{truth['accuracy']:.1%} right; what is taken for what: {result['confusion']}")
    return {"predictions": str(options.out), **result}
