"""`umeta demo`: what it shows, which step failed, and how it goes on."""

import json
from pathlib import Path

import pytest
import yaml

from umeta.cli import demo
from umeta.cli.main import parser
from umeta.config import reading
from umeta.config.reading import merge
from umeta.errors import Interrupted, UserError

TINY = {
    "train": {"steps": 2, "way": 5, "query": 1, "meta_batch": 1},
    "evaluate": {"tasks": 4},
    "metalearner": {"model": {"filters": 8}},
}
CLUSTERS = {"embedding": {"steps": 2, "dimensions": 16, "depth": 1}, "proposer": {"k": 20, "partitions": 1}}
CHANGES = {
    "demo_cactus_protonet": {**TINY, **CLUSTERS},
    "demo_cactus_maml": {**TINY, **CLUSTERS},
    "demo_best": TINY,
    "demo_oracle": TINY,
    "demo_nav2d": {"train": {"steps": 1, "meta_batch": 2, "episodes": 2}, "evaluate": {"goals": 2, "validation": 2}},
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current directory, where the demo's configs are cut to seconds."""
    (tmp_path / "configs" / "demo").mkdir(parents=True)
    for name, change in CHANGES.items():
        text = yaml.safe_dump(merge(reading.read(name), change))
        (tmp_path / "configs" / "demo" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(reading, "packaged_folder", lambda: tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_tiny_demo_goes_through_all_steps_and_says_what_is_next(place, umeta, refused):
    code, out, err = umeta("demo", "--device", "cpu", "--json")
    assert code == 0
    for number in range(1, 7):
        assert f"step {number} of 6, " in err
    assert err.count(" left in all)") == 6
    *lines, last = out.splitlines()
    assert [line.split()[:2] for line in lines[-3:]] == [["umeta", "run"], ["umeta", "adapt"], ["umeta", "predict"]]
    for words in lines[-3:]:
        parser().parse_args(words.split()[1:])
    found = json.loads(last)
    rows = {name for result in found["results"] for name in result["rows"]}
    titles = {reading.read(name)["title"] for name in demo.IMAGES}
    assert titles | {"raw pixels, 1-NN", "acai, 1-NN"} <= rows
    assert found["characters"]["drawings"] == 5 * 19
    assert len(list(Path("demo/characters/examples").glob("*/*.png"))) == 5
    for name in ("report.html", "predictions.png", "predictions.csv", "runs/demo_nav2d/adaptation.png"):
        assert Path("demo", name).exists()
    refused("demo", says=["demo exists", "--resume"])
    code, again, _ = umeta("demo", "--device", "cpu", "--json", "--resume")
    assert code == 0
    assert again.splitlines()[:10] == out.splitlines()[:10]


@pytest.mark.parametrize("failing", range(6))
@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("no room"), 2, "no room; once that is mended, go on with umeta demo --out else --resume"),
        (Interrupted("stopped"), 130, "stopped; go on with umeta demo --out else --resume"),
        (KeyboardInterrupt(), 130, "stopped; go on with umeta demo --out else --resume"),
        (OSError(28, "No space left on device"), 2, "failed; go on with umeta demo --out else --resume"),
    ],
)
def test_a_step_that_fails_is_named(failing, error, code, says, place, umeta, monkeypatch):
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) > failing:
            raise error

    monkeypatch.setattr(demo, "run_stages", fail)
    monkeypatch.setattr(demo, "adapt_to_characters", fail)
    found, _, err = umeta("demo", "--out", "else", "--device", "cpu")
    titles = [reading.read(name)["title"] for name in (*demo.IMAGES, demo.ENVIRONMENT)]
    assert found == code
    assert len(calls) == failing + 1
    name = [*titles, "5 new characters, from one drawing each"][failing]
    assert f"demo, step {failing + 1} of 6, {name}: {says}" in err


def test_the_characters_are_written_as_ink_on_paper(tmp_path):
    import numpy as np
    from PIL import Image

    from umeta.data.omniglot import Omniglot

    examples, others = demo.write_characters(Omniglot(), tmp_path)
    names = sorted(path.name for path in examples.iterdir())
    assert names == sorted(path.name for path in others.iterdir())
    test = Omniglot().read("test")
    for name in names:
        drawings = test.pixels[test.labels == test.names.index("/character".join(name.rsplit(" ", 1)))]
        files = sorted([*(examples / name).iterdir(), *(others / name).iterdir()], key=lambda path: path.name)
        assert len(files) == 20
        for path, pixels in zip(files, drawings, strict=True):
            assert np.array_equal(255 - np.asarray(Image.open(path)), pixels[0])
