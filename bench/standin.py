"""Stands in for `annotated_types` where it is missing, whose marks of options' ranges pydantic alone reads.

A bare CUDA image has PyTorch and numpy, and neither of these. `bench.gpu` imports it first, and pytest by `-p`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Marks(ModuleType):
    """A module in which every mark is a function that gives back what it is given."""

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda value: value


if importlib.util.find_spec("annotated_types") is None:
    sys.modules["annotated_types"] = Marks("annotated_types")
