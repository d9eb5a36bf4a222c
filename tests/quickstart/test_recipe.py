"""`umeta run --images`: what is decided from a folder of images, and that it is what runs."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from umeta.cli import chain
from umeta.cli.main import main
from umeta.config import build
from umeta.errors import UserError
from umeta.quickstart import recipe
from umeta.quickstart.recipe import share_steps
from umeta.quickstart.survey import strokes, survey
from umeta.quickstart.views import STRONG

TINY = ["train.steps=3", "train.way=4", "metalearner.model.model.filters=[4,4,4,4]"]
Paint = Callable[[np.random.Generator, tuple[int, int]], Image.Image]


def colour(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Coarse blots of any colour: shades between them, as in a photograph."""
    blots = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC)


def grey(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    return colour(generator, size).convert("L")


def ink(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Black strokes on white."""
    picture = Image.new("L", size, "white")
    points = [(int(x), int(y)) for x, y in generator.integers(0, min(size), (5, 2))]
    ImageDraw.Draw(picture).line(points, fill="black", width=max(1, min(size) // 20))
    return picture


def chalk(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    return ink(generator, size).point(lambda value: 255 - value)


def folder(root: Path, paint: Paint, count: int, size: tuple[int, int] = (32, 32), ending: str = "png") -> Path:
    """A folder of so many different pictures."""
    generator = np.random.default_rng(len(str(root)))
    root.mkdir(parents=True)
    for i in range(count):
        paint(generator, size).save(root / f"{i:03}.{ending}")
    return root


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A meta-step takes `clock[0]` seconds, and finding that out takes none."""
    seconds = [0.5]
    monkeypatch.setattr(recipe, "seconds_a_step", lambda *_: seconds[0])
    return seconds


def written(images: Path, *changes: str, minutes: float = 30, test: Path | None = None) -> dict[str, Any]:
    return build.load(recipe.write_recipe(images, test, list(changes), minutes=minutes, device="cpu")).plain


# what is decided


@pytest.mark.parametrize(
    ("paint", "size", "ending", "data", "augment"),
    [
        (colour, (100, 120), "jpg", {"size": 84, "channels": 3, "invert": False}, "photo"),
        (colour, (60, 80), "png", {"size": 56, "channels": 3, "invert": False}, "photo"),
        (colour, (32, 32), "png", {"size": 32, "channels": 3, "invert": False}, "photo"),
        (colour, (40, 44), "png", {"size": 40, "channels": 3, "invert": False}, "photo"),
        (colour, (76, 76), "png", {"size": 84, "channels": 3, "invert": False}, "photo"),
        (colour, (75, 75), "png", {"size": 72, "channels": 3, "invert": False}, "photo"),
        (colour, (28, 29), "png", {"size": 28, "channels": 3, "invert": False}, "photo"),
        (colour, (64, 64), "png", {"size": 64, "channels": 3, "invert": False}, "photo"),
        (colour, (17, 22), "png", {"size": 16, "channels": 3, "invert": False}, "photo"),
        (colour, (20, 66), "png", {"size": 64, "channels": 3, "invert": False, "pad": True}, "photo"),
        (colour, (300, 200), "jpg", {"size": 84, "channels": 3, "invert": False, "pad": True}, "photo"),
        (ink, (105, 160), "png", {"size": 28, "channels": 1, "invert": True, "pad": True}, "drawing"),
        (grey, (90, 90), "jpg", {"size": 84, "channels": 1, "invert": False}, "photo"),
        (ink, (105, 105), "png", {"size": 28, "channels": 1, "invert": True}, "drawing"),
        (ink, (600, 600), "jpg", {"size": 28, "channels": 1, "invert": True}, "drawing"),
        (chalk, (64, 64), "png", {"size": 28, "channels": 1, "invert": False}, "drawing"),
    ],
)
def test_size_channels_and_augmentation_are_those_of_the_pictures(here, clock, paint, size, ending, data, augment):
    plain = written(folder(here / "pictures", paint, 12, size, ending))
    assert plain["data"] == {"name": "folder", "root": str(here / "pictures"), **data}
    small, photo = data["size"] <= 32, augment == "photo"
    view = {"name": augment, "side": data["size"] * 3 // 4} if small and photo else {"name": augment}
    assert plain["proposer"] == {"name": "instances", "augment": view, "rotations": not photo}
    filters = [64 if small else 32, 64, 128, 256]
    network = {"name": "conv4", "filters": filters, "down": "pool_first", "halvings": 3 if small else 4}
    if small and photo:
        network = {"name": "resnet9", "filters": [32, 64, 128, 256]}
    assert plain["metalearner"]["model"] == ({"name": "described", "model": network} if photo else network)
    assert plain["metalearner"]["scale"] == (16 if small and photo else 10)
    assert plain["train"]["way"] == 6
    assert plain["evaluate"] == {"episodes": []}


@pytest.mark.parametrize(
    ("low", "high", "drawing"),
    [(0.0, 0.4, True), (0.0, 0.2, True), (0.35, 0.45, False), (0.0, 0.01, True)],
)
def test_a_drawing_is_mostly_ground_and_ink(low, high, drawing):
    """Shares of 0 and 255, the rest is 80. Where those two have more than half, nothing is ground."""
    n = 10_000
    values = np.repeat([0.0, 80.0, 255.0], [round(n * low), n - round(n * low) - round(n * high), round(n * high)])
    assert strokes(values.reshape(100, 100)) == (drawing, False)


def test_few_colours_make_colour_and_a_turned_photograph_is_seen_upright(here):
    place = folder(here / "pictures", grey, 8, (40, 80), "jpg")
    assert not survey(place).colour
    colour(np.random.default_rng(0), (40, 80)).save(place / "one.jpg")
    assert survey(place).colour
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in place.iterdir():
        Image.open(path).save(path, exif=exif)
    seen = survey(place)
    assert (seen.width, seen.height, seen.side, seen.long) == (80, 40, 40, 1.0)


def test_enough_images_are_clustered_in_a_second_round(here, clock):
    plain = written(folder(here / "pictures", colour, 400), minutes=10)
    (later,) = plain["rounds"]
    augment = plain["proposer"]["augment"]
    assert augment == {**STRONG, "side": 24}  # these colours are noise
    assert later["proposer"] == {"name": "progressive", "k": [40], "augment": augment, "rotations": False}
    assert later["train"]["way"] == 20  # no more than half of the clusters of k-means
    assert (plain["train"]["way"], later["train"]["outer"]) == (200, {"lr": 1e-3})
    total = plain["train"]["steps"] + later["train"]["steps"]
    assert 1140 <= total <= 1200  # 10 minutes of half a second, less what looking took
    assert abs(plain["train"]["steps"] / total - 0.6) < 0.01


def test_photographs_are_clustered_only_where_describing_them_leaves_time(here, clock, monkeypatch):
    place = folder(here / "pictures", colour, 400)
    monkeypatch.setattr(recipe, "DESCRIBE", 1.0)
    plain = written(place, minutes=10)
    assert not plain.get("rounds")
    assert 1140 <= plain["train"]["steps"] <= 1200
    assert written(place, "name=later", minutes=40)["rounds"]


@pytest.mark.parametrize(
    ("fits", "rounds", "most", "steps"),
    [
        (10**9, True, 0, (3000, 2000)),
        (1000, True, 0, (600, 400)),
        (3, True, 0, (180, 120)),
        (-5, False, 0, (300, 0)),
        (700, False, 0, (700, 0)),
        (10**9, False, 0, (3000, 0)),
        (10**9, False, 4000, (4000, 0)),
        (3500, False, 4000, (3500, 0)),
        (10**9, False, 2000, (3000, 0)),
        (10**9, True, 10000, (6000, 4000)),
    ],
)
def test_meta_steps_are_those_that_fit_within_what_is_worth_while(fits, rounds, most, steps):
    assert share_steps(fits, rounds, most) == steps


@pytest.mark.parametrize(("paint", "steps"), [(colour, 400 * 340 // 170), (ink, 3000 + 2000)])
def test_many_photographs_use_all_their_minutes(here, clock, monkeypatch, paint, steps):
    """As many steps as show each of them 400 times, were it not fewer than drawings get."""
    clock[0] = 1e-6
    monkeypatch.setattr(recipe, "STEPS", (3, 2) if paint is colour else recipe.STEPS)
    plain = written(folder(here / "pictures", paint, 340))
    assert sum(turn["train"]["steps"] for turn in (plain, *plain["rounds"])) == steps


def test_what_is_given_is_not_decided(here, clock, capsys):
    images = folder(here / "pictures", colour, 320)
    plain = written(images, "train.steps=30", "train.way=10", "data.size=48", "proposer.augment=drawing", "name=mine")
    assert (plain["train"]["steps"], plain["train"]["way"], plain["data"]["size"]) == (30, 10, 48)
    assert plain["metalearner"]["model"]["model"]["halvings"] == 4
    (later,) = plain["rounds"]
    assert (later["train"]["steps"], later["train"]["way"]) == (20, 10)
    assert later["proposer"]["augment"] == {"name": "drawing"}
    assert "--minutes" not in capsys.readouterr().err
    assert written(images, "rounds=[]", "out=elsewhere")["rounds"] == []
    assert Path("elsewhere/pictures.yaml").exists()


# what is said


def test_the_time_is_told_before_it_begins(here, clock, capsys):
    images = folder(here / "pictures", colour, 40, (30, 40))
    written(images)
    said = capsys.readouterr().err
    assert "40 images, colour, usually 30x40 -> 28x28" in said
    assert "instance tasks: 3,000 meta-steps" in said
    assert "about 25 minutes on this machine; --minutes changes it" in said
    assert [line for line in Path("pictures.yaml").read_text().splitlines() if "about 25 minutes" in line]


def test_a_meta_step_is_timed_by_taking_some(here):
    images = folder(here / "pictures", colour, 8)
    plain = written(images, TINY[-1], "train.way=4", minutes=1)
    assert 300 <= plain["train"]["steps"] <= 3000


def seconds_by_work(factor: float) -> Callable[..., float]:
    """A machine that takes as long as there are numbers to compute, about."""

    def seconds(planned: Any, *_: Any) -> float:
        plain = planned.plain
        filters = plain["metalearner"]["model"]["model"]["filters"]
        return factor * plain["data"]["size"] ** 2 * plain["train"]["way"] * sum(filters)

    return seconds


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1e-10, (84, 160, 32)),
        (1e-9, (84, 160, 32)),
        (1e-8, (56, 64, 32)),
        (5e-8, (28, 64, 32)),
        (2e-7, (28, 32, 16)),
    ],
)
def test_a_slow_machine_gets_what_it_can_do_in_the_minutes(here, capsys, monkeypatch, factor, expected):
    monkeypatch.setattr(recipe, "seconds_a_step", seconds_by_work(factor))
    monkeypatch.setattr(recipe.time, "monotonic", lambda: 0.0)
    plain = written(folder(here / "pictures", colour, 320, (90, 90), "jpg"), minutes=10)
    found = plain["data"]["size"], plain["train"]["way"], plain["metalearner"]["model"]["model"]["filters"][0]
    assert found == expected
    each = seconds_by_work(factor)(build.build(plain))
    (later,) = plain["rounds"]
    steps = [plain["train"]["steps"], later["train"]["steps"]]
    assert sum(steps) >= 300
    assert sum(steps) * each <= 600
    minutes = [plain["train"]["minutes"], later["train"]["minutes"]]
    assert sum(minutes) == pytest.approx(9, abs=0.01)
    assert minutes[0] / sum(minutes) == pytest.approx(0.6, abs=0.01)
    assert ("smaller pictures" in capsys.readouterr().err) == (expected[0] < 84)


@pytest.mark.parametrize("busy", [0.0, 40.0, 400.0])
def test_a_later_round_gets_what_is_left_of_the_minutes(busy, monkeypatch):
    """Of 600 seconds; proposing takes `busy` of them each time, and a meta-training all it may, or half."""
    now, given = [0.0], []

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    def propose(turn, **_):
        now[0] += busy

    def metatrain(turn, *, minutes, **_):
        given.append(60 * minutes)
        now[0] += 60 * minutes * (0.5 if len(given) == 1 else 1)
        return Path("runs/x")

    monkeypatch.setattr(chain, "time", Clock)
    monkeypatch.setattr("umeta.stages.propose.propose", propose)
    monkeypatch.setattr("umeta.stages.metatrain.metatrain", metatrain)
    monkeypatch.setattr("umeta.evaluation.run.evaluate_run", lambda *a, **k: {})
    plain = {
        "name": "x",
        "data": {"name": "digits"},
        "proposer": {"name": "instances", "augment": "drawing"},
        "metalearner": {"name": "protonet", "model": {"name": "conv4", "filters": 4}},
        "train": {"outer": "adam", "steps": 300},
        "rounds": [{"proposer": {"name": "progressive"}, "train": {"steps": 200}}],
    }
    chain.run_stages(build.build(plain), Namespace(device="cpu", resume=False), deadline=600.0)
    first = max(1.0, 600 - busy) * 0.6
    assert given == pytest.approx([first, max(1.0, 600 - 2 * busy - first / 2)])


def test_too_few_minutes_are_refused_with_the_least_that_are_worth_it(here, monkeypatch):
    monkeypatch.setattr(recipe, "seconds_a_step", lambda *_: 6.0)
    monkeypatch.setattr(recipe.time, "monotonic", lambda: 0.0)
    images = folder(here / "pictures", colour, 8)
    with pytest.raises(UserError, match=r"--minutes 5: too few .* about 30\. Give --minutes 30, or train\.steps=N"):
        written(images, minutes=5)
    assert not list(here.glob("*.yaml"))
    assert written(images, minutes=30)["train"]["steps"] == 300
    assert written(images, "train.steps=7", "name=other", minutes=5)["train"]["steps"] == 7


@pytest.mark.parametrize(
    ("paint", "size", "count", "copies", "says"),
    [
        (colour, (32, 32), 12, 0, "few images"),
        (colour, (20, 20), 12, 0, "very small pictures, usually 20 pixels"),
        (colour, (32, 32), 12, 4, "4 of the images (25%) are copies of others"),
        (colour, (32, 64), 12, 0, "100% of the pictures are about 1.5 times"),
    ],
)
def test_advice_names_what_limits_the_result(here, clock, capsys, paint, size, count, copies, says):
    place = folder(here / "pictures", paint, count, size)
    for i in range(copies):
        (place / f"copy{i}.png").write_bytes((place / "000.png").read_bytes())
    written(place)
    assert says in capsys.readouterr().err


def test_good_images_get_no_advice(here, clock, capsys):
    written(folder(here / "pictures", colour, 220, (40, 40)))
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in said] == ["reading", "220", "pictures", "instance", "about", "pictures.yaml"]


# what runs


@pytest.fixture
def umeta(capsys) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        return code, *capsys.readouterr()

    return call


def test_from_pictures_to_a_learner_and_again_from_the_file(here, umeta):
    folder(here / "photos", colour, 60)
    for name in ("new a", "new b"):
        folder(here / "examples" / name, colour, 3)
    code, out, err = umeta("run", "--images", "photos", "--minutes", "0.1", *TINY, "--json")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert (result["config"], result["run"], result["results"]) == ("photos.yaml", "runs/photos", [])
    assert "umeta adapt runs/photos --support DIR --out learner" in out
    assert "runs/photos/report.html" in out
    page = Path("runs/photos/report.html").read_text()
    assert "Not tested" in page
    assert page.count("<img") + page.count("<svg") >= 2  # what was proposed, how training went
    again = "umeta evaluate runs/photos data.test=DIR 'evaluate.episodes=[[5,1]]'"
    assert again in umeta("inspect", "runs/photos")[1]
    assert again in Path("runs/photos/report.md").read_text()
    file = build.load("photos.yaml").plain
    made = build.load("runs/photos/config.yaml").plain
    fitted = made["metalearner"]["model"]
    assert fitted.pop("fitted")
    assert fitted.pop("weight") >= 0
    assert {key: made[key] for key in file} == file

    assert umeta("adapt", "runs/photos", "--support", "examples", "--out", "learner")[0] == 0
    assert umeta("predict", "learner", "examples")[0] == 0
    assert umeta("run", "photos.yaml", "name=again")[0] == 0
    model = Path("runs/photos/model.safetensors").read_bytes()
    assert Path("runs/again/model.safetensors").read_bytes() == model
    code, _, err = umeta("evaluate", "runs/photos", "data.test=examples")
    assert (code, "evaluate.episodes=[[5,1]]" in err) == (2, True)
    (here / "labelled").mkdir()
    for name in "abcde":
        folder(here / "labelled" / name, colour, 4)
    little = ["evaluate.query=1", "evaluate.tasks=4", "evaluate.baselines=[]"]
    assert umeta(*shlex.split(again.replace("DIR", "labelled"))[1:], *little)[0] == 0
    assert umeta("evaluate", "runs/photos", "data.test=examples", "evaluate.episodes=[[2,1]]", *little)[0] == 0


def test_more_pictures_are_told_in_numbers_and_there_is_a_way_to_go_on(here, umeta):
    images = folder(here / "photos", colour, 8)
    command = ["run", "--images", "photos", *TINY]
    assert umeta(*command)[0] == 0
    for i in range(3):
        colour(np.random.default_rng(100 + i), (32, 32)).save(images / f"new{i}.png")
    code, _, err = umeta(*command, "--resume")
    assert code == 2
    assert "images: 8 before, 11 now" in err
    assert "choose another name=NAME, and start=runs/photos" in err
    assert umeta(*command, "name=more", "start=runs/photos")[0] == 0
    assert build.load("runs/more/config.yaml").plain["start"] == "runs/photos"


def test_a_run_is_calibrated_from_any_directory(here, umeta, monkeypatch):
    folder(here / "photos", colour, 40)
    for name in ("a", "b"):
        folder(here / "examples" / name, colour, 3)
    assert umeta("run", "--images", "photos", *TINY)[0] == 0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    code, _, err = umeta("adapt", "../runs/photos", "--support", "../examples", "--out", "learner")
    assert (code, "not calibrated" in err) == (0, False)


def test_two_rounds_and_a_test_on_labelled_pictures(here, umeta):
    folder(here / "photos", colour, 300)
    for name in ("a", "b", "c"):
        folder(here / "labelled" / name, colour, 7)
    given = ["--images", "photos", "--test", "labelled", "evaluate.tasks=4", *TINY]
    code, out, err = umeta("run", *given, "--json")
    assert code == 0, err
    (row,) = json.loads(out.splitlines()[-1])["results"]
    assert list(row["rows"]["photos"]) == ["3-way 1-shot", "3-way 5-shot"]
    simple = {"raw pixels, 1-NN", "HOG, linear", "colour histogram, linear", "descriptors alone"}
    simple |= {"random weights, prototypes"}
    assert simple == row["rows"].keys() - {"chance", "photos"}
    assert row["protocol"]["queries"] == 2
    assert Path("runs/photos-0/model.safetensors").exists()


def test_resume_goes_on_with_the_file_and_times_nothing(here, umeta, monkeypatch):
    folder(here / "photos", colour, 12)
    folder(here / "other", colour, 12)
    command = ["run", "--images", "photos", *TINY]
    with monkeypatch.context() as patch:
        patch.setattr("umeta.stages.metatrain.metatrain", stop)
        assert umeta(*command)[0] == 130
    before = Path("photos.yaml").read_bytes()
    monkeypatch.setattr(recipe, "seconds_a_step", None)
    code, _, err = umeta(*command)
    assert (code, "photos.yaml exists" in err, "--resume" in err) == (2, True, True)
    code, _, err = umeta("run", "--images", "other", "name=photos", "--resume")
    assert (code, "--images photos, this is other" in err) == (2, True)
    assert umeta(*command, "--resume")[0] == 0
    assert Path("photos.yaml").read_bytes() == before
    assert Path("runs/photos/model.safetensors").exists()


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


# mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--images", "nowhere"], ["nowhere", "no such folder"]),
        (["--images", "empty"], ["empty", "holds no files"]),
        (["--images", "one"], ["one", "there is one image"]),
        (["--images", "alike"], ["alike", "all 3 images are the same"]),
        (["--images", "text"], ["text", "'0.txt'", "readable image"]),
        (["--images", "mixed", "--strict"], ["mixed", "'bad.png'", "--strict"]),
        (["--images", "good", "tiny.yaml"], ["--images", "tiny.yaml"]),
        (["--images", "good", "--minutes", "0"], ["--minutes 0: expected more than 0"]),
        (["--images", "good", "--minutes", "nan"], ["--minutes nan: expected more than 0"]),
        (["--images", "good", "--minutes", "inf"], ["--minutes inf: expected more than 0"]),
        (["--images", ".", "name=here"], ["out: '.' lies within the images of '.'", "out=DIR"]),
        (["--images", "good", "--test", "nowhere"], ["nowhere", "no such folder"]),
        (["--images", "good", "--test", "good"], ["lies in no class folder"]),
        (["--images", "good", "--test", "single"], ["data.test", "two classes"]),
        (["--images", "good", "--record", "results.json"], ["--record", "--test"]),
        (["--images", "good", "train.step=3"], ["'step'", "did you mean 'steps'"]),
        (["--images", "good", "evaluate.episodes=[[5,1]]"], ["data.test"]),
        (["--images", "good", "out=one/000.png/x"], ["one/000.png/x: nothing can be written there"]),
        (["--images", "good", "out=/proc/x"], ["/proc/x: nothing can be written there"]),
        (["--images", "good", "name=a/b"], ["name", "'a/b'"]),
        (["--images", "good", "name=done"], ["runs/done exists", "name=NAME"]),
        (["--test", "single", "tiny.yaml"], ["--test", "--images"]),
        (["--minutes", "3", "tiny.yaml"], ["--minutes", "--images"]),
        ([], ["config", "--images"]),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(here, clock, umeta, arguments, says):
    folder(here / "good", colour, 4)
    folder(here / "one", colour, 1)
    folder(here / "single" / "a", colour, 3)
    folder(here / "mixed", colour, 3)
    (here / "mixed" / "bad.png").write_bytes(b"no image")
    for name in ("empty", "alike", "text", "runs/done"):
        (here / name).mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (32, 32), "red").save(here / "alike" / f"{i}.png")
        (here / "text" / f"{i}.txt").write_text("no image")
    code, _, err = umeta("run", *arguments)
    message = err.strip().splitlines()[-1]
    assert code == 2
    assert message.startswith("umeta: ")
    assert [text for text in says if text not in message] == [], message
    assert not list(here.glob("*.yaml"))


def test_bad_images_are_left_out_and_named_once_at_the_end(here, umeta):
    place = folder(here / "mixed", colour, 30)
    for i in range(22):
        (place / f"z{i:02}.jpg").write_bytes(b"no image")
    code, _, err = umeta("run", "--images", "mixed", *TINY)
    assert code == 0
    assert "30 images" in err
    last = err.splitlines()[-1]
    assert last.startswith("mixed: 22 left out, not readable as an image: z00.jpg (of no known format), z01.jpg")
    assert last.endswith("z19.jpg (of no known format) and 2 more")
    assert err.count("left out") == 1
