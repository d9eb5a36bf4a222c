"""In what numbers a product is computed, by option and by machine."""

from __future__ import annotations

import pytest
import torch

from umeta.models.precision import Precision, autocast, fast_bfloat16


def pretend(monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("precision", "avx512", "amx", "computed"),
    [
        ("float32", True, True, torch.float32),
        ("bfloat16", False, False, torch.bfloat16),
        ("auto", False, False, torch.float32),
        ("auto", True, False, torch.bfloat16),
        ("auto", False, True, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_a_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, avx512: bool, amx: bool, computed: torch.dtype
) -> None:
    pretend(monkeypatch, avx512, amx)
    x = torch.ones(2, 2)
    with autocast(x.device, precision):
        assert (x @ x).dtype == computed
    assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((8, 6), True), ((9, 0), True)])
def test_graphics_cards_from_ampere_on_compute_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    pretend(monkeypatch, not fast, not fast)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fast_bfloat16(torch.device("cuda")) == fast
