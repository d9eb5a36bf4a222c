"""What is passed on to trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from umeta.report.write import list_facts, read_log, track_result


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


@pytest.mark.parametrize(("steps", "said"), [(None, "normalisation `batch`; "), (5, "normalisation `batch`, 5 inner")])
def test_inner_steps_are_told_of_a_learner_that_takes_any(steps: int | None, said: str) -> None:
    protocol = {"name": "small", "split": "test", "classes": 5, "queries": 5, "tasks": 10, "seed": 0, "steps": steps}
    protocol |= {"normalisation": "batch", "inference": "transductive", "proposed_with": "no labels"}
    result = {"title": "tiny", "rows": {"tiny": {"5-way": {"tasks": 10}}}, "protocol": protocol, "minutes": {}}
    facts = list_facts(result | {"seed": 0, "hardware": "a machine"})  # type: ignore[arg-type]
    (fact,) = (line for line in facts if line.startswith("tiny: transductive"))
    assert said in fact
    assert ("inner steps" in fact) == bool(steps)


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n{"step": 3, "lo')
    assert read_log(tmp_path / "loop.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    assert read_log(tmp_path / "none.jsonl") == []
