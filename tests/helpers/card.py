"""A graphics card without one: tensors on `cuda:0` that have shapes and no content, on a machine that has no GPU.

What is on the CPU is computed as ever. What is on the card is torch's fake tensors, which raise where two devices meet;
copies between the two, and values that the CPU waits for, are counted, with the line of this project that asked.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # which fake tensors import, and which looks at functions before they are patched
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
ROOT = Path(__file__).parents[2]
SHAPED_BY_CONTENT = {aten.nonzero.default, aten._unique2.default, aten.masked_select.default, aten.bincount.default}


class OnCard(FakeTensorMode):
    """Fake tensors; those that parts of torch make beside them on `meta`, for the reason in `card`, are on the card."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().dispatch(func, types, args, moved(kwargs))


def moved(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return arguments with the card for `meta`."""
    device = (kwargs or {}).get("device")
    there = device is not None and torch.device(device).type in ("cuda", "meta")
    return {**(kwargs or {}), **({"device": DEVICE} if there else {})}


class Card(TorchDispatchMode):
    """Within it, `device="cuda:0"` works; `to` and `back` count what went there and came back, by file and line."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = OnCard(allow_non_fake_inputs=True)
        self.to: Counter[str] = Counter()
        self.back: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = moved(kwargs)
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        here = [value for value in tensors if isinstance(value, FakeTensor)]
        wanted = kwargs.get("device")
        on_card = wanted == DEVICE
        if not here and not on_card:
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            self.back[asked_by()] += 1
            return torch.ones((), dtype=here[0].dtype).item()
        if func in SHAPED_BY_CONTENT:
            raise AssertionError(f"{asked_by()}: {func} waits for the card, as its answer's shape depends on content")
        if here and func is aten._to_copy.default and wanted is not None and not on_card:
            self.back[asked_by()] += 1
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and not isinstance(args[0], FakeTensor):
            self.back[asked_by()] += 1
            return args[0].fill_(1)
        apart = [value for value in tensors if not isinstance(value, FakeTensor) and value.dim() > 0]
        if apart and here and func not in (aten.copy_.default, aten.index.Tensor):
            raise AssertionError(f"{asked_by()}: {func} has tensors on the card and on the CPU")
        if apart:
            self.to[asked_by()] += 1
        with self.fake:
            return func(*args, **kwargs)


def asked_by() -> str:
    """The innermost line of this project, tests aside, that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts and path.name != Path(__file__).name:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@contextmanager
def card() -> Iterator[Card]:
    """Within the block there is such a card.

    torch's backward pass asks the driver about each tensor's device. So it is told that fake tensors are without a
    device of their own, as those of `meta` are; Python code sees the card.
    """
    if torch.__version__ < "2.14":
        pytest.skip("fake tensors of torch 2.11 ask for a driver")
    make: Callable[..., Any] = Tensor._make_subclass

    def make_passing(*args: Any, dispatch_device: bool = False, **kwargs: Any) -> Any:
        return make(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "_make_subclass", staticmethod(make_passing))
        patch.setattr(FakeTensorMode, "avoid_device_init", True)
        patch.setattr(torch._C, "_ensureCUDADeviceGuardSet", lambda: None)
        # modules that move would refuse fake tensors, as torch keeps weak references to them
        patch.setattr(torch.utils, "weakref", SimpleNamespace(getweakrefs=lambda value: []))
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        for kind in ("cuda", "cpu", "meta"):
            patch.setattr(FakeTensor, f"is_{kind}", property(lambda value, kind=kind: value.device.type == kind))
        patch.setattr(Tensor, "pin_memory", lambda value: value)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        for name in (name for name in vars(torch.optim.Optimizer) if name.endswith("graph_capture_health_check")):
            patch.setattr(torch.optim.Optimizer, name, lambda optimiser: None)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (80 << 30, 80 << 30))
        with Card() as there:
            yield there
