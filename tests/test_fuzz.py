"""The fuzz targets, a few inputs each; `python tests/helpers/fuzz.py` goes on until nothing new is reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import fuzz


@pytest.mark.parametrize("name", fuzz.targets())
def test_every_input_gives_a_value_or_a_user_error(tmp_path, name):
    wrong, _ = fuzz.fuzz(fuzz.targets()[name], tmp_path, quiet=12, most=12)
    assert wrong == []


@pytest.mark.parametrize("name", fuzz.targets())
def test_the_seeds_are_valid(tmp_path, name):
    target = fuzz.targets()[name]
    for i, seed in enumerate(target.seeds):
        if name != "class list" or i == 0:
            target.read(seed, tmp_path)


def test_findings_are_reported_with_their_input(tmp_path):
    def read(data: bytes, place: Path) -> None:
        if len(data) > 5:
            raise KeyError(len(data))

    wrong, reached = fuzz.fuzz(fuzz.Target(read, [b"abc"], [b"x"], [read]), tmp_path, quiet=20)
    assert wrong
    assert wrong[0].startswith("KeyError")
    assert len((tmp_path / "found" / "0").read_bytes()) > 5
    assert "2 of 2 lines (100%)" in reached


def test_an_input_that_takes_too_long_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1)

    def read(data: bytes, place: Path) -> None:
        while True:
            pass

    assert fuzz.attempt(read, b"", tmp_path) == "more than 1 s"
