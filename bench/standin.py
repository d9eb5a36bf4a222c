"""Stands in for `annotated_types` where it is missing, whose marks of options' ranges pydantic alone reads.

A bare CUDA image has PyTorch and numpy, and neither of these. `bench.gpu` imports it first, and pytest by `-p`.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

if importlib.util.find_spec("annotated_types") is None:
    module: Any = types.ModuleType("annotated_types")
    module.__getattr__ = lambda name: lambda value: value
    sys.modules["annotated_types"] = module
