"""Trackers: what reaches them, that they are closed, and TensorBoard's files read back."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from umeta.cli.main import main
from umeta.errors import UserError
from umeta.runtime.loop import RunContext, start_trackers
from umeta.runtime.trackers.tensorboard import TensorBoard

PLUGINS = (Path(__file__).parents[2] / "docs/plugins.md").read_text(encoding="utf-8")
TINY = """
data: digits
embedding: {name: acai, steps: 2, depth: 2, dimensions: 16}
proposer: {name: kmeans, k: 5, partitions: 2}
metalearner: {name: protonet, model: {name: conv4, filters: 4}}
train: {outer: adam, steps: 12, way: 3, shot: 1, query: 2, meta_batch: 2}
evaluate: {episodes: [[3, 1]], query: 2, tasks: 4, baselines: []}
"""


@dataclass
class Recorder:
    """Keeps the calls."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def start(self, folder):
        self.calls.append(("start", folder))

    def scalars(self, loop, step, metrics):
        self.calls.append((loop, step, metrics))

    def picture(self, name, pixels):
        self.calls.append((name, pixels.shape, pixels.dtype))

    def close(self):
        self.calls.append(("close",))


def loop(ctx: RunContext, steps: int, name: str = "work") -> None:
    ctx.loop(name, steps, lambda i: {"loss": i / 10}, dict, lambda state: None)


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, round(event.value, 4)) for event in found.Scalars(tag)]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current directory, with a config, and a cache that holds no embedding."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMETA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.mark.parametrize(("steps", "passed"), [(25, range(25)), (1003, [*range(0, 1001, 10), 1002])])
def test_a_loop_passes_on_each_step_or_every_tenth_and_the_last_with_or_without_files(tmp_path, steps, passed):
    for folder in (None, tmp_path):
        tracker = Recorder()
        loop(RunContext(trackers=[tracker], label="0-", folder=folder), steps)
        assert tracker.calls == [("0-work", i, {"loss": i / 10}) for i in passed]


def test_trackers_are_closed_however_a_stage_ends(tmp_path):
    class Refuses(Recorder):
        def start(self, folder):
            raise ConnectionError

    first = Recorder()
    with pytest.raises(ZeroDivisionError), start_trackers([first], tmp_path):
        raise ZeroDivisionError
    with pytest.raises(ConnectionError), start_trackers([first, Refuses()], tmp_path):
        pytest.fail("began without its tracker")
    assert first.calls == [("start", tmp_path), ("close",)] * 2


def test_tensorboard_files_hold_what_was_passed_on(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tracker = TensorBoard()
    with start_trackers([tracker], tmp_path):
        loop(RunContext(trackers=[tracker]), 15)
        loop(RunContext(trackers=[tracker]), 2, "other")
        tracker.picture("classes", pixels)
    assert points(tmp_path / "tensorboard/work", "work/loss") == [(i, i / 10) for i in range(15)]
    assert points(tmp_path / "tensorboard/other", "other/loss") == [(0, 0.0), (1, 0.1)]
    found = EventAccumulator(str(tmp_path / "tensorboard/classes"))
    found.Reload()
    (image,) = found.Images("classes")
    assert (image.width, image.height) == (7, 5)


def test_a_resume_neither_loses_nor_repeats_steps(tmp_path):
    """Killed at step 25: steps since the checkpoint were logged before, and are again, once each to be seen."""
    tracker = TensorBoard()
    ctx = RunContext(folder=tmp_path, trackers=[tracker], checkpoint_seconds=-1)

    def killed(i: int) -> dict[str, float]:
        if i == 25:
            raise KeyboardInterrupt
        return {"loss": 1.0}

    with pytest.raises(KeyboardInterrupt), start_trackers([tracker], tmp_path):
        ctx.loop("work", 40, killed, dict, lambda state: None)
    assert [step for step, _ in points(tmp_path / "tensorboard/work", "work/loss")] == list(range(25))
    with start_trackers([tracker], tmp_path):
        loop(RunContext(folder=tmp_path, trackers=[tracker], resume=True), 40)
    found = points(tmp_path / "tensorboard/work", "work/loss")
    assert [step for step, _ in found] == list(range(40))
    assert found[25:] == [(i, i / 10) for i in range(25, 40)]


def test_every_stage_of_the_command_line_logs(place):
    assert main(["run", "tiny.yaml", "--device", "cpu", "--log", "tensorboard"]) == 0
    logs = {str(path.parent.relative_to(place)) for path in place.rglob("events.out.tfevents.*")}
    proposed = {f"tasks/tiny/tensorboard/{name}" for name in ("acai", "kmeans", "proposed tasks")}
    assert logs == proposed | {f"runs/tiny/tensorboard/{name}" for name in ("metatrain", "evaluate", "test tasks")}
    assert [step for step, _ in points(place / "runs/tiny/tensorboard/metatrain", "metatrain/accuracy")] == list(
        range(12)
    )


def test_the_tracker_in_the_documentation_works(place):
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", PLUGINS, re.DOTALL) if "def scalars" in block]
    code = example.partition("@dataclass")[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (place / "my_tracker.py").write_text(example)
    assert main(["run", "tiny.yaml", "--device", "cpu", "--log", "my_tracker.py"]) == 0
    assert {line.split()[0] for line in (place / "tasks/tiny/tracked.txt").open()} == {"acai", "kmeans"}
    lines = (place / "runs/tiny/tracked.txt").read_text().splitlines()
    told = [line.split()[:2] for line in lines]
    assert told == [*(["metatrain", str(i)] for i in range(12)), ["evaluate", "0"]]
    assert "'tiny, 3-way 1-shot': " in lines[-1]


def test_a_tracker_has_options(place, capsys):
    (place / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Mine:\n    project: str = ''\n"
        "    def start(self, folder): self.names = []\n"
        "    def scalars(self, loop, step, metrics): self.names.append(loop)\n"
        "    def picture(self, name, pixels): self.names.append(name)\n"
        "    def close(self): print(self.project, self.names)\n"
    )
    log = "{name: mine.py:Mine, project: first}"
    assert main(["propose", "tiny.yaml", "--device", "cpu", "--log", log]) == 0
    assert "first ['acai', 'acai', 'kmeans', 'kmeans', 'proposed tasks']" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("log", "says"),
    [("tensorbord", "did you mean 'tensorboard'"), ("nowhere.py:X", "nowhere.py"), ("", "--log: expected a name")],
)
def test_a_mistake_is_named_before_anything_is_written(place, capsys, log, says):
    assert main(["propose", "tiny.yaml", "--log", log]) == 2
    assert says in capsys.readouterr().err
    assert not (place / "tasks").exists()


def test_without_its_package_tensorboard_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        TensorBoard()
