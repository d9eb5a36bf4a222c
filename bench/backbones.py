"""What the benchmarks of a pre-trained network share: their command line, and pictures of the test classes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from umeta.benchmarks.labelled import LabelledImages
from umeta.config import reading, registry
from umeta.models.backbone import Backbone
from umeta.runtime import artifacts

Measure = Callable[[Any, Backbone, argparse.Namespace, str], dict[str, Any]]


def record_each(description: str | None, measure: Measure, **more: int | str) -> None:
    """Measure each data source that the command line names, and keep what was found in a results file as it comes.

    more: further options of the command and their defaults.
    """
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("record", type=Path)
    options.add_argument("data", type=Path, nargs="+")
    options.add_argument("--network", required=True)
    options.add_argument("--weights", required=True)
    for name, default in more.items():
        options.add_argument(f"--{name}", type=type(default), default=default)
    asked = options.parse_args()
    results = artifacts.read_json(asked.record) if asked.record.exists() else {}
    for path in asked.data:
        data = registry.build_part("data", reading.read_yaml(path))
        found = measure(data, Backbone(asked.network, weights=asked.weights), asked, path.stem)
        results[path.stem] = {"network": asked.network, **found}
        artifacts.write_json(asked.record, results)
        print(path.stem, results[path.stem])


def choose_pictures(test: LabelledImages, most: int, classes: int | None = None) -> np.ndarray:
    """Draw at most `most` pictures of each class, or of `classes` random ones; return their numbers, in order."""
    random = np.random.default_rng(0)
    chosen = range(len(test.names))
    if classes is not None and classes < len(test.names):
        chosen = random.choice(len(test.names), classes, replace=False)
    some = [random.permutation(np.flatnonzero(test.labels == c))[:most] for c in chosen]
    return np.sort(np.concatenate(some))
