"""`umeta adapt` and `umeta predict` as a person meets them: labelled files in, a learner, a table out."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from umeta import FewShotClassifier
from umeta.data.digits import Digits
from umeta.deploy import predict
from umeta.runtime import artifacts

TEST = Digits().read("test")
NAMES = ["five", "six", "seven"]
ODD = ['a,"b', "line\nbreak", "größe/日本"]  # names that a table must quote; the last one is a folder in a folder


def digit(label: int, i: int) -> np.ndarray:
    """The i-th image [28, 28] of a class of TEST."""
    return TEST.pixels[np.flatnonzero(TEST.labels == label)[i], 0]


def draw(path: Path, label: int, i: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(digit(label, i)).save(path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Three classes with two, one and three examples, and five images to answer; the current directory."""
    monkeypatch.chdir(tmp_path)
    for label, count in enumerate((2, 1, 3)):
        for i in range(count):
            draw(tmp_path / "support" / NAMES[label] / f"{i}.png", label, i)
    for i in range(5):
        draw(tmp_path / "images" / ("deep" if i > 2 else "") / f"{i}.png", i % 3, 20 + i)
    return tmp_path


@pytest.fixture(scope="module")
def learner(made_run, tmp_path_factory) -> Path:
    """A calibrated learner of the three classes; nothing may change it."""
    place = tmp_path_factory.mktemp("learner")
    X = np.stack([digit(label, i) for label in range(3) for i in range(2)])
    model = FewShotClassifier(made_run("protonet"), calibrated=True).fit(X, np.repeat(NAMES, 2))
    model.save(place / "learner")
    return place / "learner"


def table(path: Path | str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_from_a_folder_of_examples_to_a_table(place, made_run, umeta):
    code, out, err = umeta("adapt", made_run("protonet"), "--support", "support", "--out", "learner")
    assert (code, err.count("not calibrated")) == (0, 0)
    assert "examples of 3 classes: five 2, seven 3, six 1" in out
    assert "calibrated on" in out
    assert "umeta predict learner IMAGES --out predictions.csv" in out
    code, out, _ = umeta("predict", "learner", "images", "--out", "answers.csv", "--json")
    assert code == 0
    rows = table("answers.csv")
    assert list(rows[0]) == ["path", "label", "confidence", "p_five", "p_seven", "p_six"]
    assert [row["path"] for row in rows] == [f"images/{i}.png" for i in range(3)] + [
        f"images/deep/{i}.png" for i in (3, 4)
    ]
    X = [place / "support" / n / f"{i}.png" for n, c in zip(NAMES, (2, 1, 3), strict=True) for i in range(c)]
    model = FewShotClassifier(made_run("protonet"), calibrated=True).fit(X, np.repeat(NAMES, (2, 1, 3)))
    paths = [row["path"] for row in rows]
    assert [row["label"] for row in rows] == model.predict(paths).tolist()
    found = np.array([[float(row[f"p_{name}"]) for name in model.classes_] for row in rows])
    np.testing.assert_allclose(found, model.predict_proba(paths), rtol=1e-5, atol=1e-6)
    result = json.loads(out.splitlines()[-1])
    assert result["images"] == 5
    assert sum(result["labels"].values()) == 5


def test_a_csv_names_images_beside_it_and_any_label(place, made_run, umeta):
    with open(place / "support" / "list.csv", "w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "note", "path"])
        for label, name in enumerate(ODD):
            rows.writerow([name, "x", f"{NAMES[label]}/0.png"])
    absolute = place / "elsewhere.csv"
    absolute.write_text(f"path,label\n{place / 'support' / 'five' / '0.png'},a\nsupport/six/0.png,b\n")
    assert umeta("adapt", made_run("protonet"), "--support", "support/list.csv", "--out", "odd")[0] == 0
    assert umeta("adapt", made_run("protonet"), "--support", absolute, "--out", "two")[0] == 0
    images = [f"support/{name}/0.png" for name in NAMES]  # the examples themselves
    assert umeta("predict", "odd", *images, "--preview", "p.png")[0] == 0
    answers = table("predictions.csv")
    assert set(answers[0]) == {"path", "label", "confidence", *(f"p_{name}" for name in ODD)}
    assert [row["label"] for row in answers] == ODD
    assert Image.open("p.png").size[1] == 3 * 56
    assert artifacts.read_json(place / "two" / "learner.json")["classes"] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"six/0.png": None, "seven/0.png": None, "seven/1.png": None, "seven/2.png": None}, "one class only, 'five'"),
        ({"six/1.png": (0, 0)}, "1 of the images are the same in several classes, such as five and six"),
        ({"five/9.png": (0, 0), "five/8.png": (0, 1)}, "2 of the images are copies of others of their class"),
        ({f"five/{i}.png": (0, i) for i in range(11)}, "very uneven: 'five' has 11 images, 'six' has 1"),
        ({"unknown/0.png": (3, 0)}, "a class is named 'unknown'"),
        ({"known/0.png": "trained", "known/1.png": "trained"}, "2 of 8 images are among those of meta-training"),
        ({"five/1.png": "red", "six/8.png": "red"}, "2 of the images have colours, and this learner sees grey ones"),
    ],
)
def test_doubtful_examples_are_told(place, made_run, umeta, change, says):
    for name, digit_of in change.items():
        path = place / "support" / name
        if digit_of is None:
            path.unlink()
        elif digit_of == "red":
            noise = np.random.default_rng(len(name)).integers(0, 200, (28, 28), np.uint8)
            Image.merge("RGB", [Image.fromarray(noise + 55), *[Image.fromarray(noise)] * 2]).save(path)
        elif digit_of == "trained":
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(Digits().read("train").pixels[int(path.stem), 0]).save(path)
        else:
            draw(path, *digit_of)
    for folder in (place / "support").iterdir():
        if not any(folder.iterdir()):
            folder.rmdir()
    code, _, err = umeta("adapt", made_run("protonet"), "--support", "support", "--out", "learner")
    assert code == 0
    assert says in err if says else not err


def test_a_csv_of_a_spreadsheet_on_windows_and_names_that_look_like_formulas(place, made_run, umeta):
    text = "Path;Label\r\nsupport\\five\\0.png;=1+1\r\nsupport\\six\\0.png;-2\r\n"
    (place / "list.csv").write_text(text, encoding="utf-16")
    assert umeta("adapt", made_run("protonet"), "--support", "list.csv", "--out", "learner")[0] == 0
    assert artifacts.read_json(place / "learner" / "learner.json")["classes"] == ["-2", "=1+1"]
    draw(place / "=2.png", 0, 0)
    assert umeta("predict", "learner", "=2.png", "support/six/0.png")[0] == 0
    rows = table("predictions.csv")
    assert list(rows[0]) == ["path", "label", "confidence", "p_-2", "p_=1+1"]
    assert [(row["path"], row["label"]) for row in rows] == [("'=2.png", "'=1+1"), ("support/six/0.png", "-2")]
    assert umeta("adapt", made_run("protonet"), "--support", "predictions.csv", "--out", "again")[0] == 0
    assert artifacts.read_json(place / "again" / "learner.json")["classes"] == ["-2", "=1+1"]


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_other_archives_name_their_classes_and_are_sorted(place, made_run, umeta, ending):
    files = sorted(path for path in (place / "support").rglob("*.png"))
    classes = [path.parent.name for path in files]
    if ending == "tar":
        with tarfile.open("shard.tar", "w") as archive:
            archive.add(place / "support", ".")
    else:
        column = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
        pyarrow.parquet.write_table(pyarrow.table({"image": column, "label": classes}), "shard.parquet")
    shard = f"shard.{ending}"
    assert umeta("adapt", made_run("protonet"), "--support", shard, "--out", "sharded")[0] == 0
    assert umeta("adapt", made_run("protonet"), "--support", "support", "--out", "learner")[0] == 0
    ours, theirs = (np.load(place / name / "support.npy") for name in ("sharded", "learner"))
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))
    code, out, _ = umeta("predict", "sharded", shard, "--truth", "--out", "found.csv")
    assert code == 0
    assert "6 images" in out
    assert "of 3 right" in out
    Path("shards").mkdir()
    Path(shard).rename(Path("shards") / shard)
    assert umeta("predict", "sharded", "shards", "--out", "again.csv")[0] == 0
    found, again = table("found.csv"), table("again.csv")
    assert [f"shards/{row['path']}" for row in found] == [row["path"] for row in again]
    assert [row["label"] for row in found] == [row["label"] for row in again]


def test_folders_in_folders_and_zips_name_their_classes_too(place, made_run, umeta):
    draw(place / "other" / "größe" / "日本" / "0.png", 0, 0)
    draw(place / "other" / "größe" / "klein, eng" / "0.png", 1, 0)
    assert umeta("adapt", made_run("protonet"), "--support", "other", "--out", "learner")[0] == 0
    assert artifacts.read_json(place / "learner" / "learner.json")["classes"] == ["größe/klein, eng", "größe/日本"]
    with zipfile.ZipFile("other.zip", "w") as file:
        for path in sorted(Path("other").rglob("*.png")):
            file.write(path, path.relative_to("other"))
    assert umeta("adapt", made_run("protonet"), "--support", "other.zip", "--out", "zipped")[0] == 0
    assert (place / "zipped" / "support.npy").read_bytes() == (place / "learner" / "support.npy").read_bytes()
    assert umeta("predict", "zipped", "other.zip", "other")[0] == 0
    rows = table("predictions.csv")
    assert [row["path"] for row in rows[:2]] == [f"other.zip/größe/{name}/0.png" for name in ("klein, eng", "日本")]
    assert [row["label"] for row in rows] == ["größe/klein, eng", "größe/日本"] * 2


def test_arrays_are_answered_row_by_row_like_files(place, learner, umeta):
    items = np.stack([digit(i % 3, 20 + i) for i in range(5)])
    np.save("items.npy", items)
    np.save("floats.npy", items / 255)
    assert umeta("predict", learner, "items.npy", "images/0.png", "floats.npy")[0] == 0
    rows = table("predictions.csv")
    assert [row["path"] for row in rows[:6]] == [*(f"items.npy[{i}]" for i in range(5)), "images/0.png"]
    assert [row["label"] for row in rows[:5]] == [row["label"] for row in rows[6:]]
    values = np.array([[float(row[f"p_{name}"]) for name in NAMES] for row in rows])
    np.testing.assert_allclose(values[[0, *range(5)]], values[5:], rtol=1e-4)


def test_batches_of_any_length_give_the_same_table(place, learner, umeta, monkeypatch):
    np.save("items.npy", TEST.pixels[:23])
    assert umeta("predict", learner, "images", "items.npy", "--out", "whole.csv")[0] == 0
    monkeypatch.setattr(predict, "BATCH", 2)
    assert umeta("predict", learner, "--out", "parts.csv", "images", "items.npy")[0] == 0
    whole, parts = table("whole.csv"), table("parts.csv")
    assert [row["path"] for row in whole] == [row["path"] for row in parts]
    assert [row["label"] for row in whole] == [row["label"] for row in parts]
    np.testing.assert_allclose(*([float(row["p_six"]) for row in rows] for rows in (whole, parts)), rtol=1e-4)


def test_a_table_that_is_there_is_kept_unless_asked_for(place, learner, umeta, refused):
    assert umeta("predict", learner, "images", "--preview", "p.png")[0] == 0
    for names in (["--out", "predictions.csv"], ["--out", "x.csv", "--preview", "p.png"]):
        before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
        refused("predict", learner, "images/0.png", *names, says=[f"{names[-1]} exists", "--overwrite"])
        assert {path: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
        assert umeta("predict", learner, "images/0.png", *names, "--overwrite")[0] == 0
    assert len(table("predictions.csv")) == 1


def test_the_least_sure_come_first_when_asked_for(place, learner, umeta, made_run):
    items = np.stack([digit(label, i) for i in range(10, 30) for label in range(3)])
    np.save("items\nand ü.npy", items)
    model = FewShotClassifier(made_run("protonet")).fit(items[:3], ODD)
    model.save("odd")
    for folder in (learner, "odd"):
        assert umeta("predict", folder, "items\nand ü.npy", "images", "--overwrite")[0] == 0
        rows = table("predictions.csv")
        for row in rows:
            assert float(row["confidence"]) == max(float(value) for key, value in row.items() if key[:2] == "p_")
        again = ["--overwrite", "--least-sure-first"]
        assert umeta("predict", folder, "items\nand ü.npy", "images", *again)[0] == 0
        assert table("predictions.csv") == sorted(rows, key=lambda row: float(row["confidence"]))


@pytest.mark.parametrize(
    ("given", "count", "twice"),
    [
        (["images", "images"], 5, ["images"]),
        (["images", "./images/0.png"], 5, ["images/0.png"]),
        (["images/deep", "images"], 5, ["images/deep"]),
        (["images/0.png", "images/deep", "images/../images/0.png"], 3, ["images/../images/0.png"]),
        (["images/deep", "images/0.png"], 3, []),
        (["link", "images"], 5, ["images"]),
    ],
)
def test_a_picture_given_twice_is_answered_once(place, learner, umeta, given, count, twice):
    (place / "link").symlink_to("images")
    code, out, err = umeta("predict", learner, *given, "--json")
    assert (code, len(table("predictions.csv"))) == (0, count)
    assert json.loads(out.splitlines()[-1])["twice"] == twice
    assert ("given twice, answered once: " + ", ".join(twice) in err) == bool(twice)


def test_very_large_pictures_are_answered(place, learner, umeta, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    grey = Image.fromarray(digit(0, 20))
    for ending in ("png", "jpg"):
        grey.resize((140, 140)).save(place / f"large.{ending}")
    grey.resize((142, 142)).save(place / "bomb.png")
    code, _, err = umeta("predict", learner, "images/0.png", "large.png", "large.jpg", "bomb.png")
    rows = table("predictions.csv")
    assert (code, "left out" in err, len(rows)) == (0, True, 3)
    assert len({row["label"] for row in rows}) == 1


def test_unknown_is_answered_where_nothing_is_near(place, learner, umeta, refused, made_run):
    np.save("white.npy", np.full((2, 28, 28), 255, np.uint8))
    code, out, _ = umeta("predict", learner, "white.npy", "--unknown", "--preview", "p.png")
    assert code == 0
    assert "unknown: 2" in out
    assert [row["label"] for row in table("predictions.csv")] == ["unknown"] * 2
    assert Image.open("p.png").size[1] == 56
    assert umeta("predict", learner, "white.npy", "--overwrite")[0] == 0
    assert "unknown" not in {row["label"] for row in table("predictions.csv")}
    X, y = np.stack([digit(label, i) for label in (0, 1) for i in (0, 1)]), ["unknown", "unknown", "six", "six"]
    FewShotClassifier(made_run("protonet"), calibrated=True).fit(X, y).save("clash")
    refused("predict", "clash", "white.npy", "--unknown", "--overwrite", says=["a class of the learner has that name"])
    FewShotClassifier(made_run("protonet")).fit(X, y).save("plain")
    refused("predict", "plain", "white.npy", "--unknown", "--overwrite", says=["not calibrated", "adapt again"])


def test_a_learner_is_calibrated_wherever_it_is_made_and_whatever_became_of_the_pictures(place, made_run, umeta):
    """Of the run nothing is needed but its own folder."""
    run = place / "elsewhere"
    shutil.copytree(made_run("protonet"), run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("tasks:", "tasks: nowhere #"))
    manifest = artifacts.read_json(run / "manifest.json")
    content = {key: manifest[key] for key in ("umeta", "true_labels", "item_shape")}
    artifacts.write_manifest(run, "run", content, list(manifest["files"]))
    assert umeta("adapt", run, "--support", "support", "--out", "moved")[0] == 0
    assert umeta("adapt", made_run("protonet"), "--support", "support", "--out", "learner")[0] == 0
    found = [artifacts.read_json(place / name / "learner.json")["calibration"] for name in ("moved", "learner")]
    assert found[0] == found[1]
    assert found[0]["examples"] == 5  # of two, one and three examples


def test_of_one_example_a_class_the_learner_is_not_calibrated_and_says_why(place, made_run, umeta):
    for extra in ("five/1.png", "seven/1.png", "seven/2.png"):
        (place / "support" / extra).unlink()
    code, out, err = umeta("adapt", made_run("protonet"), "--support", "support", "--out", "learner", "--json")
    assert code == 0
    assert "not calibrated, probabilities are a plain softmax" in err
    assert "one example of a class cannot tell" in err
    assert "not calibrated" in out
    assert json.loads(out.splitlines()[-1])["calibration"] is None
    code, out, _ = umeta("inspect", "learner")
    assert code == 0
    assert "not calibrated" in out


def test_a_calibration_of_an_earlier_version_counts_for_nothing(learner, place, umeta):
    shutil.copytree(learner, "earlier")
    values = artifacts.read_json(Path("earlier/learner.json"))
    old = {"temperature": 2.0, "threshold": -1.0, "kept": 0.9, "refused": 0.5, "way": 3, "shot": 2, "tasks": 100}
    artifacts.write_json(Path("earlier/learner.json"), {**values, "calibration": old})
    files = list(artifacts.read_json(Path("earlier/manifest.json"))["files"])
    artifacts.write_manifest(Path("earlier"), "learner", {"umeta": "0.1.0"}, files)
    code, out, _ = umeta("inspect", "earlier")
    assert (code, "not calibrated" in out) == (0, True)
    assert umeta("predict", "earlier", "images")[0] == 0


def test_inspect_shows_a_learner(learner, umeta):
    code, out, _ = umeta("inspect", learner, "--json")
    assert code == 0
    assert "examples of 3 classes: five 2, seven 2, six 2" in out
    assert "support.png" in out
    assert json.loads(out.splitlines()[-1])["learner"]["shape"] == [1, 28, 28]
    assert Image.open(learner / "support.png").size == (160 + 2 * 56, 3 * 56)


def test_no_file_of_a_learner_can_run_code(learner):
    assert {path.suffix for path in learner.iterdir()} == {".json", ".safetensors", ".npy", ".png"}


def test_options_of_the_learner_can_be_changed(place, made_run, umeta, refused):
    run = made_run("maml", normalisation="batch")
    command = ("adapt", run, "--support", "support", "--out", "learner")
    refused(*command, says=["beside it", "metalearner.normalisation=support"])
    refused(*command, "train.steps=3", says=["'train.steps=3'", "metalearner.KEY=value"])
    refused(*command, "metalearner.inner_lrr=3", says=["'inner_lrr'", "did you mean 'inner_lr'"])
    assert umeta(*command, "metalearner.normalisation=support")[0] == 0
    assert umeta("predict", "learner", "images")[0] == 0


# bad images


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n", b""], ids=["text", "header", "empty"])
def test_a_bad_image_is_left_out_and_named_or_stops(place, made_run, learner, umeta, refused, content):
    (place / "images" / "1.png").write_bytes(content)
    for name in ("notes.txt", "Thumbs.db"):
        for folder in ("images", "support", "support/five"):
            (place / folder / name).write_text("hello")
    refused("predict", learner, "images", "--strict", says=["images/", "not a readable image", "--strict"])
    assert not Path("predictions.csv").exists()
    code, out, err = umeta("predict", learner, "images", "--json")
    assert code == 0
    assert "1 left out, not readable as an image: images/1.png" in err
    assert json.loads(out.splitlines()[-1])["left_out"] == ["images/1.png"]
    assert len(table("predictions.csv")) == 4
    (place / "support" / "five" / "1.png").write_bytes(content)
    command = ("adapt", made_run("protonet"), "--support", "support", "--out", "learner")
    refused(*command, "--strict", says=["support/five/1.png", "not a readable image", "--strict"])
    assert not Path("learner").exists()
    code, out, err = umeta(*command)
    assert code == 0
    assert "1 left out, not readable as an image: support/five/1.png" in err
    assert "five 1" in out
    (place / "support" / "six" / "0.png").write_bytes(content)
    refused(*command[:-1], "other", says=["class 'six' has no readable image"])


def test_images_of_other_sizes_and_modes_are_prepared(place, made_run, learner, umeta):
    grey = Image.fromarray(digit(0, 20))
    wide = Image.new("L", (56, 28))
    wide.paste(grey, (14, 0))
    for name, picture in {"rgb": grey.convert("RGB"), "rgba": grey.convert("RGBA"), "wide": wide, "grey": grey}.items():
        picture.save(place / "images" / f"{name}.png")
    names = ["images/grey.png", "images/rgb.png", "images/rgba.png", "images/wide.png"]
    assert umeta("predict", learner, *names)[0] == 0
    rows = table("predictions.csv")
    assert [row["path"] for row in rows] == names
    assert len({tuple(row.values())[1:] for row in rows}) == 1


def test_a_name_that_is_no_text_comes_through(place, learner, umeta):
    name = os.fsencode(place / "images") + b"/\xff.png"
    shutil.copy(place / "images" / "0.png", name)
    assert umeta("predict", learner, "images")[0] == 0
    assert b"images/\xff.png," in Path("predictions.csv").read_bytes()


def test_ctrl_c_leaves_no_file_behind(place, learner, umeta, monkeypatch):
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict.Progress, "update", pressed)
    code, _, err = umeta("predict", learner, "images")
    assert code == 130
    assert "stopped; nothing was written" in err
    assert sorted(path.name for path in place.iterdir()) == ["images", "support"]


# mistakes


def test_a_run_that_is_not_on_images_is_not_to_be_adapted(place, made_run, refused):
    """As the run of an environment, or of functions, says of its items."""
    shutil.copytree(made_run("protonet"), "walker")
    manifest = artifacts.read_json(Path("walker/manifest.json"))
    content = {"umeta": "0", "true_labels": False, "item_shape": [4], "outputs": 4}
    artifacts.write_manifest(Path("walker"), "run", content, list(manifest["files"]))
    refused("predict", "walker", "images", says=["not on images", "umeta evaluate walker tests it"])


def spoil(place: Path) -> None:
    """Everything that a mistake below needs."""
    (place / "void" / "cat").mkdir(parents=True)
    shutil.copytree("support", "gap")
    (place / "gap" / "eel" / ".hidden").mkdir(parents=True)
    shutil.copytree("support", "loose")
    draw(place / "loose" / "x.png", 0, 0)
    texts = {
        "columns": "file,label\na.png,cat\n",
        "empty": "",
        "header": "path,label\n",
        "label": "path,label\nsupport/five/0.png,five\nsupport/six/0.png\n",
        "blank": "path,label\nsupport/five/0.png,  \n",
        "missing": "path,label\nsupport/five/9.png,five\n",
        "quote": 'path,label\n"support/five/0.png,five\n',
    }
    for name, text in texts.items():
        (place / f"{name}.csv").write_text(text)
    (place / "latin.csv").write_bytes("path,label\nsupport/five/0.png,größe\n".encode("latin-1"))
    np.save("wide.npy", np.zeros((2, 32, 32), np.uint8))
    np.save("words.npy", np.array(["a", "b"]))
    np.save("none.npy", np.zeros((0, 28, 28), np.uint8))
    (place / "broken.npy").write_bytes(b"\x93NUMPY")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["adapt", "nowhere", "--support", "support", "--out", "x"], ["nowhere: no such run"]),
        (["adapt", "LEARNER", "--support", "support", "--out", "x"], ["kind 'run'", "'learner'"]),
        (["adapt", "RUN", "--support", "nowhere", "--out", "x"], ["nowhere: no such folder"]),
        (["adapt", "RUN", "--support", "void", "--out", "x"], ["void: holds no files"]),
        (["adapt", "RUN", "--support", "gap", "--out", "x"], ["gap/eel: a class without images"]),
        (["adapt", "RUN", "--support", "loose", "--out", "x"], ["'x.png' lies in no class folder"]),
        (["adapt", "RUN", "--support", "columns.csv", "--out", "x"], ["no column 'path'", "found file, label"]),
        (["adapt", "RUN", "--support", "empty.csv", "--out", "x"], ["no column 'path'", "found nothing"]),
        (["adapt", "RUN", "--support", "header.csv", "--out", "x"], ["header.csv: lists no images"]),
        (["adapt", "RUN", "--support", "label.csv", "--out", "x"], ["label.csv, line 3: the label is missing"]),
        (["adapt", "RUN", "--support", "blank.csv", "--out", "x"], ["blank.csv, line 2: the label is missing"]),
        (
            ["adapt", "RUN", "--support", "missing.csv", "--out", "x"],
            ["support/five/9.png: no such file; mend its row in missing.csv"],
        ),
        (["adapt", "RUN", "--support", "quote.csv", "--out", "x"], ["quote.csv", "CSV"]),
        (["adapt", "RUN", "--support", "latin.csv", "--out", "x"], ["latin.csv", "UTF-8"]),
        (["adapt", "RUN", "--support", "support/five/0.png", "--out", "x"], ["0.png", "CSV"]),
        (["adapt", "RUN", "--support", "support", "--out", "images"], ["images exists", "choose another place"]),
        (["adapt", "RUN", "--support", "support", "--out", "x", "--device", "gpu"], ["device 'gpu'"]),
        (["predict", "nowhere", "images"], ["nowhere: no such learner"]),
        (["predict", "RUN", "images"], ["adapt it first: umeta adapt", "--support DIR --out learner"]),
        (["predict", "LEARNER", "nowhere"], ["nowhere: no such image or folder"]),
        (["predict", "LEARNER", "void"], ["void: holds no files"]),
        (["predict", "LEARNER", "wide.npy"], ["arrays of 1x28x28", "got 1x32x32"]),
        (["predict", "LEARNER", "words.npy"], ["words.npy", "expected"]),
        (["predict", "LEARNER", "none.npy"], ["none.npy", "holds no images"]),
        (["predict", "LEARNER", "broken.npy"], ["broken.npy: not a readable .npy"]),
        (["predict", "LEARNER", "label.csv"], ["label.csv: holds no readable image"]),
        (["predict", "LEARNER", "images/0.png", "--out", "images/0.png"], ["images/0.png: is one of the images"]),
        (["predict", "LEARNER", "images", "--out", "x.csv", "--preview", "x.csv"], ["--preview x.csv", "x.png"]),
        (["predict", "LEARNER", "images", "--out", "support"], ["support: is a folder", "support/predictions.csv"]),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing_behind(place, made_run, learner, refused, arguments, says):
    spoil(place)
    before = sorted(place.rglob("*"))
    run = made_run("protonet")
    refused(*[{"RUN": run, "LEARNER": learner}.get(word, word) for word in arguments], says=says)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", ["learner.json", "model.safetensors", "support.npy", "manifest.json"])
def test_a_damaged_learner_is_refused(place, learner, refused, name):
    shutil.copytree(learner, "learner")
    path = place / "learner" / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"x" + content[len(content) // 2 + 1 :])
    refused("predict", "learner", "images", says=[name, "damaged"])
    path.unlink()
    refused("inspect", "learner", says=[name if name != "manifest.json" else "unfinished"])


def test_a_learner_of_another_version_is_refused(place, learner, refused):
    shutil.copytree(learner, "learner")
    manifest = artifacts.read_json(place / "learner" / "manifest.json")
    artifacts.write_json(place / "learner" / "manifest.json", {**manifest, "schema": 99})
    refused("predict", "learner", "images", says=["learner: written with schema 99"])


def test_a_learner_that_names_a_plug_in_is_followed_only_when_trusted(place, made_run, umeta, refused):
    (place / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom umeta.metalearners.protonet import ProtoNet\n"
        "@dataclass\nclass Mine(ProtoNet):\n    '''Mine (2026).'''\n"
    )
    command = ("adapt", made_run("protonet"), "--support", "support", "--out", "learner")
    plain = artifacts.read_json(made_run("protonet") / "asked.json")["metalearner"]
    refused(*command, "metalearner.name=mine.py:Mine", says=["'mine.py:Mine'", "--allow-plugin"])
    options = ["metalearner.name=mine.py:Mine", f"metalearner.model={json.dumps(plain['model'])}"]
    assert umeta(*command, *options, "--allow-plugin")[0] == 0
    refused("predict", "learner", "images", says=["'mine.py:Mine'", "--allow-plugin"])
    assert umeta("predict", "learner", "images", "--allow-plugin")[0] == 0
    assert umeta("inspect", "learner")[0] == 0


def test_help_imports_nothing_heavy_and_predict_no_scikit_learn(learner, place):
    code = (
        "import sys; from umeta.cli.main import main\n"
        "for command in ('adapt', 'predict'):\n"
        "    try:\n        main([command, '--help'])\n    except SystemExit:\n        pass\n"
        "assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "assert main(['predict', sys.argv[1], 'images']) == 0\n"
        "assert 'sklearn' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, learner], capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: umeta") == 2
