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

Measure = Callable[[Any, Backbone, argparse.Namespace], dict[str, Any]]


def record_each(description: str | None, measure: Measure, **numbers: int) -> None:
    """Measure each data source that the command line names, and keep what was found in a results file as it comes.

    numbers: further options of the command and their defaults.
    """
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("record", type=Path)
    options.add_argument("data", type=Path, nargs="+")
    options.add_argument("--network", required=True)
    options.add_argument("--weights", required=True)
    for name, default in numbers.items():
        options.add_argument(f"--{name}", type=int, default=default)
    asked = options.parse_args()
    results = artifacts.read_json(asked.record) if asked.record.exists() else {}
    for path in asked.data:
        data = registry.build_part("data", reading.read_yaml(path))
        results[path.stem] = measure(data, Backbone(asked.network, weights=asked.weights), asked)
        artifacts.write_json(asked.record, results)
        print(path.stem, results[path.stem])


def choose_pictures(test: LabelledImages, most: int) -> np.ndarray:
    """Choose random pictures of each class, at most `most`: their numbers, in order."""
    random = np.random.default_rng(0)
    some = [random.permutation(np.flatnonzero(test.labels == c))[:most] for c in range(len(test.names))]
    return np.sort(np.concatenate(some))
