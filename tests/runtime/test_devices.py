"""Which device an option names, on machines with and without a GPU."""

from __future__ import annotations

import pytest
import torch

from umeta.errors import UserError
from umeta.runtime import devices


def pretend(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("spec", "count", "device"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch, spec: str, count: int, device: str) -> None:
    pretend(monkeypatch, count)
    assert devices.to_device(spec) == torch.device(device)


@pytest.mark.parametrize(("spec", "count"), [("cuda", 0), ("cuda:1", 1), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, spec: str, count: int) -> None:
    pretend(monkeypatch, count)
    with pytest.raises(UserError, match=f"device '{spec}': this machine has {count} usable GPUs"):
        devices.to_device(spec)


@pytest.mark.parametrize("spec", ["gpu", "mps", "cuda:x", ""])
def test_what_is_no_device_is_named(spec: str) -> None:
    with pytest.raises(UserError, match=f"device '{spec}': expected auto, cpu, cuda or cuda:N"):
        devices.to_device(spec)
