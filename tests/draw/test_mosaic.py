"""Captions: no character is drawn as a box."""

from __future__ import annotations

import numpy as np
import pytest

from umeta.draw import mosaic

WORDS = ["größe", "кошка", "日本", "हिन्दी", "🐬 dolphin", "안녕", "a\u0378"]  # the last one is no character


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("word", WORDS)
def test_characters_that_no_font_has_are_named(monkeypatch, word, alone):
    if alone:
        monkeypatch.setattr(mosaic, "others_for", lambda text: [])
    drawn: list[tuple[str, str]] = []
    text = "PIL.ImageDraw.ImageDraw.text"
    monkeypatch.setattr(text, lambda self, place, text, *, font, **_: drawn.append((text, font.path)))
    mosaic.caption(word, width=600)
    ((shown, font),) = drawn
    assert {ord(c) for c in shown} <= mosaic.glyphs(font)
    assert "LastResort" not in font
    for c in word:
        assert c in shown or f"U+{ord(c):04X}" in shown


def test_a_font_of_this_machine_is_taken_where_it_has_what_ours_has_not(monkeypatch):
    ours = mosaic.own_font()
    other = ours.replace("DejaVuSans.ttf", "STIXGeneral.ttf")
    (c, *_) = (chr(n) for n in sorted(mosaic.glyphs(other) - mosaic.glyphs(ours)) if chr(n).isprintable())
    monkeypatch.setattr(mosaic, "others_for", lambda text: [other])
    found = mosaic.caption(c)
    monkeypatch.setattr(mosaic, "others_for", lambda text: [])
    assert (found != mosaic.caption(c)).any()
    np.testing.assert_array_equal(mosaic.caption(f"U+{ord(c):04X}"), mosaic.caption(c))
