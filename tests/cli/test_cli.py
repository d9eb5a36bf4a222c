"""The command line as a person meets it: every command on a tiny job, and every mistake answered in one line."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from umeta import FewShotClassifier
from umeta.cli.main import main
from umeta.outer.adam import Adam
from umeta.runtime import artifacts

CONFIG = {
    "data": "digits",
    "embedding": "pixels",
    "proposer": {"name": "kmeans", "k": 5, "partitions": 2},
    "metalearner": {"name": "protonet", "model": {"name": "conv4", "filters": 4}},
    "train": {"outer": "adam", "steps": 2, "way": 3, "shot": 1, "query": 2, "meta_batch": 2},
    "evaluate": {"episodes": [[3, 1]], "query": 2, "tasks": 4, "baselines": ["pixels_knn"]},
}
FOLDER = {
    **CONFIG,
    "data": {"name": "folder", "root": "images", "test": "images", "size": 16, "channels": 1},
    "proposer": {"name": "kmeans", "k": 3, "partitions": 2, "smallest": 1, "keep": 0},
    "train": {**CONFIG["train"], "way": 2, "query": 1},
}


def write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A directory with two configs that were run in one go; nothing may change it."""
    place = tmp_path_factory.mktemp("finished")
    write(place / "tiny.yaml", CONFIG)
    write(place / "other.yaml", {**CONFIG, "title": "other title", "embedding": {"name": "pixels", "whiten": 8}})
    with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["run", "tiny.yaml", "other.yaml", "--json"]) == 0
    (place / "out.txt").write_text(out.getvalue())
    return place


@pytest.fixture
def place(finished, tmp_path, monkeypatch) -> Path:
    """A copy of it, and the current directory."""
    shutil.copytree(finished, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


# every command


def test_two_configs_share_one_table_and_a_report(finished):
    out = (finished / "out.txt").read_text()
    table = out.splitlines()[:5]
    assert table[0].split() == ["3-way", "1-shot"]
    assert [line.split("  ")[0] for line in table[1:]] == ["chance", "raw pixels, 1-NN", "tiny", "other title"]
    result = json.loads(out.splitlines()[-1])
    assert [row["name"] for row in result["results"]] == ["tiny", "other"]
    page = (finished / result["report"]).read_text()
    for name, title in (("tiny", "tiny"), ("other", "other title")):
        told = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        assert "tasks of seed" in told
        assert f"](runs/{name}/test_tasks.png)" in told
        assert (finished / "runs" / name / "test_tasks.png").exists()
        assert (finished / "tasks" / name / "preview.png").exists()


def test_the_stages_one_by_one_give_the_same_learner_and_numbers(place, umeta):
    before = artifacts.read_json(place / "runs/tiny/report.json")["rows"]
    model = (place / "runs/tiny/model.safetensors").read_bytes()
    shutil.rmtree("runs")
    shutil.rmtree("tasks")
    for command in (["propose", "tiny.yaml"], ["metatrain", "tiny.yaml"], ["evaluate", "runs/tiny"]):
        assert umeta(*command)[0] == 0
    assert (place / "runs/tiny/model.safetensors").read_bytes() == model
    assert artifacts.read_json(place / "runs/tiny/report.json")["rows"] == before


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (["propose", "tiny.yaml", "name=new"], {"tasks"}),
        (["metatrain", "tiny.yaml", "tasks=tasks/tiny", "name=new"], {"run"}),
        (["evaluate", "runs/tiny"], {"name", "rows", "protocol", "seed"}),
        (["run", "tiny.yaml", "name=new"], {"report", "results"}),
        (["list"], {"data", "embedding", "proposer", "metalearner", "model", "outer", "configs"}),
        (["list", "kmeans"], {"kind", "name", "help", "options"}),
        (["list", "digits_acai_kmeans_maml"], {"config"}),
        (["inspect", "tasks/tiny"], {"manifest", "arrays", "picture"}),
        (["inspect", "runs/tiny"], {"manifest", "report"}),
    ],
)
def test_json_is_one_object_on_the_last_line_and_only_when_asked_for(place, umeta, command, keys):
    code, out, err = umeta(*command, "--json")
    assert (code, "Traceback" in err) == (0, False)
    *lines, last = out.splitlines()
    assert keys <= set(json.loads(last))
    assert lines
    assert [line for line in lines if line.startswith('{"')] == []
    if command[0] in ("list", "inspect"):
        assert umeta(*command)[1].splitlines() == lines


def test_list_shows_each_part_with_its_line(umeta):
    out = umeta("list")[1]
    for name, cited in {"acai": "2019", "kmeans": "2019", "maml": "2017", "protonet": "2017", "pixels": "2018"}.items():
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert cited in line
    assert "omniglot_acai_kmeans_protonet" in out


def test_list_shows_meta_learners_by_family(umeta):
    lines = umeta("list")[1].splitlines()
    for family, name in {
        "by gradient steps": "maml",
        "by comparing embeddings": "protonet",
        "by solving for a linear layer": "r2d2",
        "by reading the support": "snail",
    }.items():
        above = lines[: next(i for i, line in enumerate(lines) if line.split()[:1] == [name])]
        assert [line for line in above if line.endswith(":")][-1] == f" {family}:"


def test_list_shows_the_options_of_a_part(umeta):
    out = umeta("list", "kmeans")[1]
    assert "k: int > 1 = 500\n      clusters per partition" in out
    assert "arXiv 1810.02334" in out


def test_inspect_gives_the_numbers_of_the_files(place, umeta):
    out = umeta("inspect", "tasks/tiny", "--json")[1]
    partitions = np.load("tasks/tiny/partitions.npy")
    sizes = [np.sum(row == c) for row in partitions for c in np.unique(row[row >= 0])]
    result = json.loads(out.splitlines()[-1])
    assert result["arrays"]["partitions.npy"] == list(partitions.shape) == [2, 901]
    assert Path(result["picture"]).read_bytes().startswith(b"\x89PNG")
    assert f"items a kept cluster: {min(sizes)} to {max(sizes)}, median {np.median(sizes):.0f}" in out
    out = umeta("inspect", "runs/tiny")[1]
    assert "3-way 1-shot" in out
    assert "test_tasks.png" in out
    (place / "runs/tiny/report.json").unlink()
    assert "not evaluated yet" in umeta("inspect", "runs/tiny")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["tiny.yaml", "train.steps=3", "name=new", "tasks=tasks/tiny", "--seed", "4"],
        ["--seed", "4", "tiny.yaml", "train.steps=3", "name=new", "tasks=tasks/tiny"],
        ["tiny.yaml", "train.steps=3", "--seed", "4", "name=new", "tasks=tasks/tiny"],
        ["tiny.yaml", "--device", "cpu", "train.steps=3", "--seed=4", "name=new", "--json", "tasks=tasks/tiny"],
        ["tiny.yaml", "seed=4", "train.steps=3", "name=new", "tasks=tasks/tiny"],
    ],
)
def test_overrides_may_stand_before_and_after_options(place, umeta, arguments):
    assert umeta("metatrain", *arguments)[0] == 0
    config = yaml.safe_load((place / "runs/new/config.yaml").read_text())
    assert (config["train"]["steps"], config["seed"]) == (3, 4)
    assert (place / "runs/new/model.safetensors").read_bytes() != (place / "runs/tiny/model.safetensors").read_bytes()


def test_evaluate_takes_its_own_options(place, umeta):
    _, out, _ = umeta("evaluate", "runs/tiny", "evaluate.tasks=6", "--json", "evaluate.episodes=[[2,1],[3,2]]")
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert list(rows["tiny"]) == ["2-way 1-shot", "3-way 2-shot"]
    assert {cell["tasks"] for cell in rows["tiny"].values()} == {6}
    assert yaml.safe_load((place / "runs/tiny/config.yaml").read_text())["evaluate"]["tasks"] == 4


def test_record_appends_to_a_results_file(place, umeta):
    for _ in range(2):
        assert umeta("evaluate", "runs/tiny", "--record", "results.json")[0] == 0
    (row,) = artifacts.read_json(place / "results.json")
    assert row["name"] == "tiny"


@pytest.mark.parametrize(
    "command", [["propose", "tiny.yaml"], ["metatrain", "tiny.yaml"], ["run", "tiny.yaml", "other.yaml"]]
)
def test_resuming_what_is_finished_changes_nothing(place, umeta, command):
    watched = [*place.glob("tasks/*/*"), *place.glob("runs/*/model.safetensors"), *place.glob("runs/*/*.jsonl")]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in watched if path.is_file()}
    assert len(before) > 10
    assert umeta(*command, "--resume")[0] == 0
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before


def test_ctrl_c_keeps_the_work_and_resume_ends_in_the_same_bytes(place, umeta, refused, monkeypatch):
    command = ("metatrain", "tiny.yaml", "tasks=tasks/tiny", "name=new", "train.steps=4")
    assert umeta(*command)[0] == 0
    model = (place / "runs/new/model.safetensors").read_bytes()
    shutil.rmtree("runs/new")
    step = Adam.step
    taken: list[int] = []

    def pressing(self, problem, progress):
        taken.append(1)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, problem, progress)

    monkeypatch.setattr(Adam, "step", pressing)
    code, _, err = umeta(*command)
    assert (code, len(taken)) == (130, 2)
    assert "stopped after step 2 of 4" in err
    assert "--resume" in err
    refused(*command, says=["runs/new exists, unfinished", "--resume"])
    refused("inspect", "runs/new", says=["runs/new", "unfinished", "--resume"])
    assert umeta(*command, "--resume")[0] == 0
    assert len(taken) == 4
    assert (place / "runs/new/model.safetensors").read_bytes() == model


def python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


@pytest.mark.parametrize("arguments", [["--help"], ["propose", "--help"], ["run", "--help"], ["evaluate", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    heavy = {"torch", "faiss", "sklearn", "matplotlib", "numpy", "pydantic", "yaml", "PIL"}
    done = python(
        "import atexit, sys\n"
        f"atexit.register(lambda: print('heavy:', sorted({heavy!r} & set(sys.modules))))\n"
        f"from umeta.cli.main import main\nmain({arguments!r})"
    )
    assert done.returncode == 0
    assert "usage: umeta" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize(("part", "code"), [("conv4", 0), ("no_such", 2)])
def test_the_package_is_the_command(monkeypatch, capsys, part, code):
    monkeypatch.setattr(sys, "argv", ["umeta", "list", part])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("umeta", run_name="__main__")
    assert end.value.code == code
    said = capsys.readouterr()
    assert part in (said.err if code else said.out)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.npy"), "umeta: No such file or directory: x.npy\n"),
        (OSError(28, "No space left on device"), "umeta: No space left on device\n"),
        (OSError("a fault of a library"), None),
    ],
)
def test_what_the_system_refuses_is_told_and_a_fault_of_ours_is_not_hidden(monkeypatch, capsys, error, said):
    def refuse(options):
        raise error

    monkeypatch.setattr("umeta.cli.list.run", refuse)
    if said is None:
        with pytest.raises(OSError, match="a fault of a library"):
            main(["list"])
    else:
        assert main(["list"]) == 2
        assert capsys.readouterr().err == said


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "umeta", "list", "conv4"]  # short enough to wait in the buffer until the end
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [["proposee"], ["propose"], ["list", "a", "b"], ["propose", "x", "--nope"], ["propose", "x", "--seed", "one"]],
)
def test_a_command_that_is_not_understood_gets_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert "usage: umeta" in err
    assert "--help" in err.splitlines()[-1]


def test_umeta_alone_says_where_to_start(umeta):
    code, out, err = umeta()
    assert (code, err) == (0, "")
    for command in ("umeta demo", "umeta run --images", "umeta list", "umeta --help"):
        assert command in out


# mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["propose", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["propose", "digits_acai_kmeans_mamml"], ["did you mean 'digits_acai_kmeans_maml'"]),
        (["propose", "."], ["config '.'"]),
        (["propose", "tasks/tiny/preview.png"], ["preview.png"]),
        (["propose", "list.yaml"], ["list.yaml", "mapping"]),
        (["propose", "twice.yaml"], ["twice.yaml", "duplicate key seed"]),
        (["propose", "tag.yaml"], ["tag.yaml", "python/object"]),
        (["propose", "tiny.yaml", "trian.steps=3"], ["'trian'", "did you mean 'train'"]),
        (["propose", "tiny.yaml", "proposer.partition=3"], ["'partition'", "did you mean 'partitions'"]),
        (["propose", "tiny.yaml", "embedding=pixel"], ["'pixel'", "did you mean 'pixels'"]),
        (["propose", "tiny.yaml", "train.steps=many"], ["train.steps", "'many'"]),
        (["propose", "tiny.yaml", "train.steps"], ["'train.steps'", "key=value"]),
        (["propose", "tiny.yaml", "name=a/b"], ["name", "'a/b'"]),
        (["propose", "tiny.yaml", "--seed", "-1"], ["seed", "-1"]),
        (["propose", "tiny.yaml"], ["tasks/tiny exists", "name=NAME"]),
        (["metatrain", "tiny.yaml"], ["runs/tiny exists", "name=NAME"]),
        (["propose", "tiny.yaml", "--resume", "proposer.k=6"], ["tasks/tiny", "proposer.k: 5 before, 6 now"]),
        (["metatrain", "tiny.yaml", "--resume", "train.steps=6"], ["runs/tiny", "train.steps: 2 before, 6 now"]),
        (["run", "tiny.yaml"], ["tasks/tiny exists", "name=NAME"]),
        (["propose", "tiny.yaml", "out=tiny.yaml"], ["tiny.yaml: nothing can be written there"]),
        (["propose", "tiny.yaml", "out=/dev/null"], ["/dev/null: nothing can be written there"]),
        (["propose", "tiny.yaml", "name=new", "--device", "gpu"], ["device 'gpu'"]),
        (["evaluate", "runs/tiny", "--device", "gpu"], ["device 'gpu'"]),
        (["evaluate", "runs/tiny", "--device", "meta"], ["device 'meta'", "cpu"]),
        (["propose", "tiny.yaml", "name=new", "proposer.k=5000"], ["proposer.k", "5000", "901"]),
        (["propose", "tiny.yaml", "name=new", "embedding=null"], ["kmeans", "embedding"]),
        (["propose", "tiny.yaml", "name=new", "train.query=500"], ["3-way", "501 items", "cluster"]),
        (["propose", "tiny.yaml", "name=new", "train.way=6"], ["6-way", "5 of 5"]),
        (["propose", "tiny.yaml", "name=new", "--strict"], ["data", "'skip_bad'"]),
        (["propose", "tiny.yaml", "name=new", "embedding.whiten=5000"], ["embedding.whiten", "5000"]),
        (["metatrain", "tiny.yaml", "name=new"], ["tasks/new", "no such tasks"]),
        (["metatrain", "tiny.yaml", "tasks=runs/tiny", "name=new"], ["runs/tiny", "'tasks'", "'run'"]),
        (["metatrain", "tiny.yaml", "tasks=tasks/tiny", "name=new", "train.way=6"], ["6-way", "5 of 5"]),
        (["metatrain", "tiny.yaml", "tasks=tasks/tiny", "name=new", "data=changed"], ["fingerprint"]),
        (["run", "name=x"], ["config"]),
        (["run"], ["umeta run --images", "umeta list", "umeta demo"]),
        (["run", "tiny.yaml", "other.yaml", "name=x"], ["name="]),
        (["run", "tiny.yaml", "tiny.yaml", "out=o"], ["tiny.yaml", "named the same"]),
        (["evaluate", "runs/nowhere"], ["runs/nowhere", "no such run"]),
        (["evaluate", "tasks/tiny"], ["tasks/tiny", "'run'", "'tasks'"]),
        (["evaluate", "runs/tiny", "train.steps=3"], ["train.steps=3", "evaluate.KEY"]),
        (["evaluate", "runs/tiny", "evaluate.tasks"], ["evaluate.tasks", "key=value"]),
        (["evaluate", "runs/tiny", "evaluate.episodes=[["], ["evaluate.episodes=[["]),
        (["evaluate", "runs/tiny", "evaluate.task=3"], ["'task'", "did you mean 'tasks'"]),
        (["evaluate", "runs/tiny", "evaluate.protocol=cactuss"], ["'cactuss'", "did you mean 'cactus'"]),
        (["evaluate", "runs/tiny", "evaluate.baselines=[knnn]"], ["'knnn'", "knn"]),
        (["evaluate", "runs/tiny", "evaluate.episodes=[[6,1]]"], ["6-way", "5 of 5"]),
        (["evaluate", "runs/tiny", "evaluate.episodes=[[5,173]]"], ["175 items", "'8' has 174"]),
        (["evaluate", "runs/tiny", "evaluate.split=val"], ["val split"]),
        (["evaluate", "runs/tiny", "--record", "list.json"], ["list.json", "list of results"]),
        (["inspect", "."], ["unfinished tasks or run"]),
        (["inspect", "nowhere"], ["nowhere: no such tasks or run"]),
        (["list", "kmaens"], ["'kmaens'", "did you mean 'kmeans'"]),
    ],
)
def test_a_mistake_is_named_and_costs_nothing(place, refused, arguments, says):
    (place / "list.yaml").write_text("- a\n- b\n")
    (place / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (place / "tag.yaml").write_text("seed: !!python/object/apply:os.getpid []\n")
    (place / "list.json").write_text("{}")
    pixels = np.load(place / "tasks/tiny/embeddings.npy").reshape(-1, 28, 28)  # pixels embed as themselves
    pixels[5, 3, 3] = 1 - pixels[5, 3, 3]
    np.save(place / "changed.npy", pixels)
    arguments = ["data={name: arrays, path: changed.npy}" if word == "data=changed" else word for word in arguments]
    kept = [path for path in place.rglob("*") if path.is_file() and "tiny" in path.parts]
    before = {path: path.read_bytes() for path in kept}
    refused(*arguments, says=says)
    assert {path: path.read_bytes() for path in kept} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("command", [["propose", "tiny.yaml", "name=new"], ["evaluate", "runs/tiny"]])
def test_a_gpu_that_is_not_there_is_named(place, refused, command):
    refused(*command, "--device", "cuda", says=["device 'cuda'", "--device cpu"])


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip])
@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("tasks/tiny/partitions.npy", [["inspect", "tasks/tiny"], ["propose", "tiny.yaml", "--resume"]]),
        ("tasks/tiny/manifest.json", [["inspect", "tasks/tiny"], ["metatrain", "tiny.yaml", "name=new"]]),
        ("tasks/tiny/partitions.npy", [["metatrain", "tiny.yaml", "name=new", "tasks=tasks/tiny"]]),
        ("runs/tiny/model.safetensors", [["inspect", "runs/tiny"], ["evaluate", "runs/tiny"]]),
        ("runs/tiny/manifest.json", [["inspect", "runs/tiny"], ["evaluate", "runs/tiny"]]),
        ("runs/tiny/config.yaml", [["evaluate", "runs/tiny"], ["metatrain", "tiny.yaml", "--resume"]]),
    ],
)
def test_a_damaged_artefact_is_refused(place, refused, damage, name, commands):
    (place / name).write_bytes(damage((place / name).read_bytes()))
    for command in commands:
        tasks = ["tasks=tasks/tiny"] if "name=new" in command and "tasks=tasks/tiny" not in command else []
        refused(*command, *tasks, says=[Path(name).name, "damaged"])


# mistakes in folders of images


@pytest.fixture
def images(tmp_path, monkeypatch, draw) -> Iterator[Path]:
    """A config over three classes of eight images; the current directory holds both."""
    draw(tmp_path / "images", cat=8, dog=8, eel=8)
    write(tmp_path / "folder.yaml", FOLDER)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


def test_a_folder_of_images_runs_from_beginning_to_end(images, umeta):
    code, out, _ = umeta("run", "folder.yaml", "--json")
    assert code == 0
    (result,) = json.loads(out.splitlines()[-1])["results"]
    assert result["protocol"]["classes"] == 3


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n", None, b""], ids=["text", "header", "cut", "empty"])
def test_a_bad_image_is_left_out_and_named_or_stops(images, umeta, refused, content):
    bad = images / "dog" / "03.png"
    bad.write_bytes(bad.read_bytes()[:90] if content is None else content)
    refused("propose", "folder.yaml", "--strict", says=["'dog/03.png'", "not a readable image", "--strict"])
    code, _, err = umeta("propose", "folder.yaml", "name=new")
    assert (code, "images: 1 left out, not readable as an image: dog/03.png" in err) == (0, True)
    assert np.load("tasks/new/partitions.npy").shape[1] == 23
    assert umeta("metatrain", "folder.yaml", "name=new")[0] == 0
    assert umeta("evaluate", "runs/new")[0] == 0


def test_evaluate_can_leave_out_bad_test_images(images, umeta, refused):
    shutil.copytree(images, "test")
    assert umeta("propose", "folder.yaml", "data.test=test")[0] == 0
    assert umeta("metatrain", "folder.yaml", "data.test=test")[0] == 0
    Path("test/cat/00.png").write_text("hello")
    refused("evaluate", "runs/folder", "--strict", says=["'cat/00.png'", "--strict"])
    assert umeta("evaluate", "runs/folder")[0] == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.root=nowhere"], ["nowhere: no such folder"]),
        (["data.root=void"], ["void: holds no files"]),
        (["data.root=folder.yaml"], ["folder.yaml", "folder or a zip"]),
        (["data.root=evil.zip"], ["evil.zip", "'../../evil.png' would leave"]),
    ],
)
def test_a_root_that_holds_no_images_is_named(images, refused, overrides, says):
    Path("void").mkdir()
    with zipfile.ZipFile("evil.zip", "w") as file:
        file.writestr("../../evil.png", b"x")
    refused("propose", "folder.yaml", *overrides, says=says)


def test_a_mistake_that_is_mended_needs_no_cleaning_up(images, umeta, refused):
    refused("propose", "folder.yaml", "data.root=nowhere", says=["nowhere"])
    refused("propose", "folder.yaml", "proposer.k=50", says=["proposer.k"])
    assert umeta("propose", "folder.yaml")[0] == 0


def test_a_small_class_is_named_with_its_count(images, umeta, refused):
    assert umeta("propose", "folder.yaml")[0] == 0
    assert umeta("metatrain", "folder.yaml")[0] == 0
    for i in range(2, 8):
        (images / "eel" / f"{i:02}.png").unlink()
    refused("evaluate", "runs/folder", says=["3-way", "3 items", "2 of 3", "'eel' has 2"])


def test_tasks_do_not_fit_changed_images(images, umeta, refused):
    assert umeta("propose", "folder.yaml")[0] == 0
    shutil.copy(images / "cat" / "00.png", images / "dog" / "00.png")
    refused("metatrain", "folder.yaml", says=["tasks/folder", "fingerprint"])


def test_a_run_that_names_a_plug_in_is_followed_only_when_trusted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom umeta.metalearners.protonet import ProtoNet\n"
        "@dataclass\nclass Mine(ProtoNet):\n    '''Mine (2026).'''\n"
    )
    (tmp_path / "tiny.yaml").write_text(
        "data: digits\nembedding: pixels\nproposer: {name: kmeans, k: 5, partitions: 1}\n"
        "metalearner: {name: 'mine.py:Mine', model: {name: conv4, filters: 4}}\n"
        "train: {outer: adam, steps: 2, way: 3, query: 2}\nevaluate: {protocol: small, tasks: 4, baselines: []}\n"
    )
    assert main(["run", "tiny.yaml", "--device", "cpu"]) == 0
    assert main(["evaluate", "runs/tiny", "--device", "cpu"]) == 2
    assert "runs/tiny: asks to run the code of 'mine.py:Mine'" in capsys.readouterr().err
    assert main(["evaluate", "runs/tiny", "--device", "cpu", "--allow-plugin"]) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("evaluate.protocol=smal", "did you mean 'small'"),
        ("evaluate.baselines=[knnn]", "did you mean 'knn'"),
        ("evaluate.episodes=[[20,1]]", "20-way"),
        ("metalearner={name: maml, head: fixed, model: {name: conv4, filters: 4}}", "maml: with its options"),
        ("metalearner={name: snail, model: {name: conv4, filters: 4}}", "alone, 15; evaluate.episodes asks for 5"),
    ],
)
def test_run_finds_what_would_stop_its_evaluation_before_it_begins(change, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "digits_acai_kmeans_protonet", change, "--device", "cpu"]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"tasks": "tasks/none"}, "b: tasks: tasks/none: there are no such tasks"),
        ({"start": "runs/none"}, "runs/none: no such run"),
        ({"name": "done"}, "runs/done exists"),
        ({"out": "a.yaml"}, "a.yaml: nothing can be written there"),
    ],
)
def test_run_finds_what_would_stop_a_later_config_before_the_first_begins(second, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.yaml", CONFIG)
    write(tmp_path / "b.yaml", {**CONFIG, **second})
    (tmp_path / "runs" / "done").mkdir(parents=True)
    (tmp_path / "runs" / "done" / "model.safetensors").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", "a.yaml", "b.yaml", "--device", "cpu"]) == 2
    assert says in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", [".", "X"])
def test_a_config_may_use_tasks_and_weights_that_one_before_it_makes(tmp_path, monkeypatch, out, capsys):
    """Those that are made now, and not what an earlier command has left beside `out`."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.yaml", CONFIG)
    write(tmp_path / "b.yaml", {**CONFIG, "tasks": "tasks/a", "start": "runs/a"})
    if out != ".":
        for left in ("tasks/a", "runs/a"):
            (tmp_path / left).mkdir(parents=True)
    assert main(["run", "a.yaml", "b.yaml", f"out={out}", "--device", "cpu"]) == 0
    start = artifacts.read_json(tmp_path / out / "runs/b/manifest.json")["start"]
    assert start["hash"] == artifacts.hash_file(tmp_path / out / "runs/a/manifest.json")
    assert main(["evaluate", f"{out}/runs/b", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["run", "b.yaml", "out=Y"]) == (0 if out == "." else 2)  # elsewhere they are as the config names them


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "LEARNER", "a.png", "--out", "NO/x.csv"],
        ["predict", "LEARNER", "a.png", "--preview", "NO/x.png"],
        ["adapt", "RUN", "--support", "a", "--out", "NO/x"],
        ["evaluate", "RUN", "--record", "NO/x.json"],
        ["run", "digits_oracle_protonet", "--record", "NO/x.json"],
        ["run", "digits_oracle_protonet", "out=NO"],
        ["run", "--images", "a", "out=NO"],
    ],
)
def test_a_place_that_cannot_be_written_is_named_at_once(place, refused, command, made_run, monkeypatch):
    monkeypatch.setattr("umeta.data.decode.open_image", None)
    FewShotClassifier(made_run("protonet")).fit(np.zeros((2, 28, 28), np.uint8), ["a", "b"]).save("learner")
    names = {"LEARNER": "learner", "RUN": made_run("protonet")}
    for no in ("tiny.yaml", "/proc/none"):
        words = [names.get(word, word.replace("NO", no)) if isinstance(word, str) else word for word in command]
        refused(*words, says=[f"{no}: nothing can be written there"])


def test_another_cache_is_taken_where_it_cannot_be_written(images, monkeypatch, umeta, refused, tmp_path):
    monkeypatch.setenv("UMETA_CACHE", "/proc/none")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    artifacts.choose_other_cache.cache_clear()
    code, _, err = umeta("propose", "folder.yaml")
    assert code == 0
    other = tmp_path / "temporary" / f"umeta-{getpass.getuser()}"
    assert err.count("/proc/none: nothing can be written there") == 1
    assert f"for now it is {other}" in err
    made = {path: path.stat().st_mtime_ns for path in other.rglob("*.npy")}
    assert made
    assert umeta("propose", "folder.yaml", "name=again")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in other.rglob("*.npy")} == made
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/proc/neither")
    artifacts.choose_other_cache.cache_clear()
    refused("propose", "folder.yaml", "name=third", says=["cache", "/proc/none", "UMETA_CACHE=DIR"])
    artifacts.choose_other_cache.cache_clear()


def test_a_run_that_was_moved_with_its_tasks_finds_them(place):
    from umeta.stages.runs import load_run

    (place / "moved").mkdir()
    for kind in ("runs", "tasks"):
        (place / kind).rename(place / "moved" / kind)
    assert load_run("moved/runs/tiny", device="cpu").config.tasks_folder == Path("moved/tasks/tiny")


def test_the_next_command_has_the_seed(place, umeta):
    _, out, _ = umeta("propose", "tiny.yaml", "name=other one", "--seed", "3")
    assert "umeta metatrain tiny.yaml 'name=other one' 'tasks=tasks/other one' seed=3" in out


def test_a_name_that_only_looks_like_the_librarys_is_a_plug_in():
    from umeta.config.registry import find_plugins

    names = ["umeta.dl/evil.py", "umeta.dl/evil.py:Umeta", "umeta.py:X", "umeta/x.py", "umetax.mod:X"]
    assert find_plugins([{"name": name} for name in names]) == set(names)
    assert find_plugins({"name": "umeta.benchmarks.oracle:Oracle"}) == set()
