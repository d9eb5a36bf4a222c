"""What is passed on to trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from umeta.report.write import track_result


class Kept:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, dict[str, float]]] = []

    def start(self, folder: Path) -> None: ...

    def scalars(self, loop: str, step: int, metrics: dict[str, float]) -> None:
        self.told.append((loop, step, metrics))

    def picture(self, name: str, pixels: Any) -> None: ...

    def close(self) -> None: ...


def test_trackers_are_told_the_table_and_each_point_of_the_curves() -> None:
    one, other = Kept(), Kept()
    rows = {
        "umeta": {"5-way 1-shot": {"mean": 0.9}, "no test": {"mean": None}},
        "pixels": {"5-way 1-shot": {"mean": 0.5}},
    }
    curve = {"x": [0, 10], "mean": [0.2, 0.8], "interval": [0.1, 0.1]}
    track_result({"rows": rows}, [one, other], "accuracy", {"meta-steps": curve})  # type: ignore[typeddict-item]
    assert (
        one.told
        == other.told
        == [
            ("evaluate", 0, {"umeta, 5-way 1-shot": 0.9, "pixels, 5-way 1-shot": 0.5}),
            ("meta-steps", 0, {"accuracy": 0.2}),
            ("meta-steps", 10, {"accuracy": 0.8}),
        ]
    )
