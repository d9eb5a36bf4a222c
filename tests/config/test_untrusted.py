"""Files of strangers: nothing in them is run, and none takes more memory than a refusal needs."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from umeta.cli.main import main
from umeta.config import build, reading, registry
from umeta.data import archives, arrays, decode
from umeta.data.folder import Folder
from umeta.data.inputs import Format
from umeta.deploy import adapt, export
from umeta.deploy.adapted import AdaptedLearner
from umeta.deploy.predict import list_files
from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.runtime.checkpoints import Checkpoints
from umeta.runtime.loop import RunContext
from umeta.stages import domains, runs, tasks


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def trap(tmp_path) -> Path:
    """The file that appears when code of a stranger was run."""
    path = tmp_path / "trap"
    pickle.loads(pickle.dumps(Malicious(path)))
    assert path.exists()
    path.unlink()
    return path


def copied(folder: Path, target: Path, **changes: Callable[[bytes], bytes]) -> Path:
    """A copy of an artefact with files exchanged (`config_yaml=...`), and a manifest that fits."""
    target.mkdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        change = changes.get(name.replace(".", "_"), lambda content: content)
        (target / name).write_bytes(change((folder / name).read_bytes()))
    content = {key: value for key, value in manifest.items() if key not in ("schema", "kind", "files", "hash")}
    artifacts.write_manifest(target, manifest["kind"], content, list(manifest["files"]))
    return target


def described(folder: Path, **changes: Any) -> Path:
    """An artefact whose manifest says something else, with a hash that fits."""
    manifest = {**json.loads((folder / "manifest.json").read_text()), **changes}
    manifest["hash"] = artifacts.hash_value({key: value for key, value in manifest.items() if key != "hash"})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def header(shape: list[int], length: int = 16, **more: Any) -> bytes:
    """A safetensors file whose header says so."""
    text = json.dumps({"params.x": {"dtype": "F32", "shape": shape, "data_offsets": [0, length]}, **more}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


# pickles


def test_a_pickle_in_place_of_weights_arrays_or_checkpoints_is_not_run(tmp_path, trap):
    evil = pickle.dumps(Malicious(trap))
    (tmp_path / "x.safetensors").write_bytes(evil)
    (tmp_path / "x.npy").write_bytes(evil)
    np.save(tmp_path / "object.npy", np.array([Malicious(trap)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", images=np.array([Malicious(trap)], dtype=object))
    torch.save(Malicious(trap), tmp_path / "torch.safetensors")
    torch.save(Malicious(trap), tmp_path / "torch.npy")
    for name in ("x", "torch"):
        with pytest.raises(UserError, match=f"{name}.safetensors: missing or damaged"):
            artifacts.read_tensors(tmp_path / f"{name}.safetensors")
    for name in ("x.npy", "object.npy", "object.npz", "torch.npy"):
        with pytest.raises(UserError, match=name):
            artifacts.read_array(tmp_path / name)
        with pytest.raises(UserError, match=name):
            arrays.load(tmp_path / name, "images")
    step = tmp_path / "checkpoints" / "metatrain" / "step-3"
    step.mkdir(parents=True)
    (step / "state.safetensors").write_bytes(evil)
    meta = {"step": 3, "seconds": 1.0, "hash": artifacts.hash_file(step / "state.safetensors")}
    artifacts.write_json(step / "meta.json", meta)
    assert Checkpoints(tmp_path, "metatrain").newest() is None
    assert not trap.exists()


def test_a_pickle_in_a_run_or_in_place_of_an_exported_network_is_not_run(tmp_path, trap, made_run):
    run = made_run("protonet")
    evil = copied(run, tmp_path / "run", model_safetensors=lambda _: pickle.dumps(Malicious(trap)))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        runs.load_run(evil, device="cpu")
    exported = export.export_run(run, tmp_path / "export")
    (exported / "README.md").unlink()
    evil = copied(exported, tmp_path / "evil", features_pt2=lambda _: pickle.dumps(Malicious(trap)))
    export.load_export(evil)  # the weights are what it reads, the graph is for torch alone
    assert not trap.exists()


def test_torchvisions_old_pickles_of_mnist_are_not_run(tmp_path, trap):
    from umeta.data.mnist import MNIST

    (tmp_path / "MNIST" / "processed").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((Malicious(trap), Malicious(trap)), tmp_path / "MNIST" / "processed" / name)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / "MNIST" / "raw" / f"{part}-{kind}-ubyte").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        MNIST(str(tmp_path)).read("train")
    assert not trap.exists()


# YAML


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:pathlib.Path.touch [{trap}]",
        "name: !!python/object/new:pathlib.Path [{trap}]",
        "name: !!python/object/apply:pathlib.PosixPath [/etc]",
        "name: !!python/name:os.system ''",
        "name: !!binary aGVsbG8=",
        "name: !!set {{a, b}}",
        "name: ${{oc.create:'!!python/object/apply:os.system [\"touch {trap}\"]'}}",
        "name: ${{oc.decode:x}}",
        "name: ${{${{a}}.create:x}}\na: oc",
    ],
)
def test_tags_and_resolvers_run_nothing(tmp_path, trap, text):
    (tmp_path / "x.yaml").write_text(text.format(trap=trap))
    with pytest.raises(UserError, match=r"x\.yaml"):
        reading.read(tmp_path / "x.yaml")
    assert not trap.exists()


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "10,000 values"),
        (MERGES, "10,000 values"),
        ("a: " + "[" * 60_000, "nested deeper than 50"),
        ("a: " + "{b: " * 15_000, "nested deeper than 50"),
        ("- " * 30_000, "nested deeper than 50"),
        ("a: " + "x" * 70_000, "more than 65,536 bytes"),
        ("a: &a [*a]", "recursive: the alias *a"),
        ("a: &a {b: [1, *a]}", "recursive: the alias *a"),
        ("a: &a\n  <<: *a", "recursive: the alias *a"),
    ],
)
def test_bombs_of_yaml_are_refused(tmp_path, text, says):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml") as error:
        reading.read(tmp_path / "x.yaml")
    assert says in str(error.value)


def test_as_many_values_and_levels_as_are_allowed_are_read():
    assert reading.load_yaml("[" * 50 + "]" * 50)
    with pytest.raises(ValueError, match="nested deeper than 50"):
        reading.load_yaml("[" * 51 + "]" * 51)
    text = "a: &a [{}]\nb: [{}]".format("x, " * 97, "*a, " * 100)  # a hundred aliases of 98 values each, and a few
    assert len(reading.load_yaml(text)["b"]) == 100
    with pytest.raises(ValueError, match="10,000 values"):
        reading.load_yaml(text.replace("*a, ", "*a, x, "))


def test_an_override_cannot_nest_too_deeply_either():
    with pytest.raises(UserError, match="nested deeper"):
        reading.parse_overrides(["a=" + "[" * 60_000])


@pytest.mark.parametrize("text", ["[" * 60_000, "{b: " * 15_000, "[1, {a: " * 30])
def test_nesting_is_refused_in_our_words_when_the_parser_stops_first(monkeypatch, text):
    """As PyYAML does since 6.0.4, whose parser allows 1,000 levels and reads ahead of what it tells of."""

    def stop(*_: Any) -> Any:
        raise yaml.YAMLError("maximum nesting depth")

    monkeypatch.setattr(yaml, "load", stop)
    with pytest.raises(UserError, match="nested deeper than 50 levels"):
        reading.parse_overrides([f"a={text}"])


@pytest.mark.parametrize("text", ["[1, 2", "[]]" + "[], " * 60, "{a: }: }"])
def test_other_errors_of_yaml_are_left_to_the_parser(text):
    with pytest.raises(UserError) as error:
        reading.parse_overrides([f"a={text}"])
    assert "nested deeper" not in str(error.value)


# archives and pictures


def test_a_member_without_a_name_is_passed_over(tmp_path):
    with pytest.MonkeyPatch.context() as patch, zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        patch.setattr(
            zipfile.ZipInfo, "is_dir", lambda info: info.filename.endswith("/")
        )  # Python's fails at such a name
        file.writestr(zipfile.ZipInfo(""), b"?")
        file.writestr("cat/1.png", b"?")
        file.writestr("dog/", b"")
    assert [found.name for found in archives.list_files(tmp_path / "x.zip")] == ["cat/1.png"]


def test_a_zip_of_overlapping_or_lying_members_costs_no_more_than_it_says(tmp_path):
    """A member that unpacks to more than its entry says is cut there, and then fails its checksum."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.png", bytes(50_000_000))
    data = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(data.replace(struct.pack("<I", 50_000_000), struct.pack("<I", 1000)))
    with pytest.raises(UserError, match=r"x\.png.*CRC"):
        Folder(str(tmp_path / "x.zip")).read("train")


def test_a_picture_with_huge_declared_sides_is_refused_unread(tmp_path):
    bomb = bytearray(b"BM" + bytes(52))  # a bitmap of 60000 x 60000 pixels in 54 bytes
    bomb[10], bomb[14], bomb[26], bomb[28] = 54, 40, 1, 24
    bomb[18:26] = struct.pack("<ii", 60000, 60000)
    (tmp_path / "x.bmp").write_bytes(bomb)
    with pytest.raises(UserError, match="million pixels"):
        Folder(str(tmp_path)).read("train")


def test_postscript_is_not_handed_to_another_program(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "EPS")
    assert isinstance(decode.try_decode(buffer.getvalue, decode.Rule(8, 3)), Exception)


def test_pipes_devices_and_huge_files_are_not_read(tmp_path, monkeypatch, draw):
    import os

    draw(tmp_path / "a", flat=1)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png.*not a file"):
        Format((1, 8, 8)).items([tmp_path / "a" / "pipe.png"])
    assert len(archives.list_files(tmp_path / "a")) == 1
    named = dict(list_files([tmp_path / "a"]))
    with pytest.raises(OSError, match="not a file"):
        named[str(tmp_path / "a" / "pipe.png")]()
    (tmp_path / "support.csv").write_text("path,label\n/dev/zero,x\n")
    with pytest.raises(UserError, match=r"/dev/zero.*not a file"):
        adapt.decode_examples(adapt.read_csv(tmp_path / "support.csv"), Format((1, 8, 8)), tmp_path, skip_bad=False)
    with open(tmp_path / "a" / "large.png", "wb") as file:
        file.truncate(archives.LARGEST_FILE + 1)
    with pytest.raises(UserError, match=r"large\.png.*a file of 268,435,457 bytes"):
        Format((1, 8, 8)).items([tmp_path / "a" / "large.png"])


# shapes that are not there


@pytest.mark.parametrize("shape", [[10**12], [2**40, 2**40], [-1, 4], [0, 10**18]])
def test_a_huge_declared_shape_of_tensors_is_refused(tmp_path, shape):
    (tmp_path / "x.safetensors").write_bytes(header(shape))
    with pytest.raises(UserError, match=r"x\.safetensors"):
        artifacts.read_tensors(tmp_path / "x.safetensors")


def test_a_header_said_to_be_huge_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(UserError, match=r"x\.safetensors"):
        artifacts.read_tensors(tmp_path / "x.safetensors")


def npy(descr: Any, shape: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(64)


@pytest.mark.parametrize(
    ("descr", "shape"),
    [("<f4", (10**15,)), ("<f4", (2**40, 2**40)), ("|u1", (-1, 4)), ([("a", "<f4")], (4,)), ("<M8[s]", (4,))],
)
def test_a_huge_or_odd_array_is_refused(tmp_path, descr, shape):
    (tmp_path / "x.npy").write_bytes(npy(descr, shape))
    with pytest.raises(UserError, match=r"x\.npy"):
        artifacts.read_array(tmp_path / "x.npy")
    with pytest.raises(UserError, match=r"x\.npy"):
        arrays.load(tmp_path / "x.npy", "images")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("images.npy", npy(descr, shape))
    with pytest.raises(UserError, match=r"x\.npz"):
        arrays.load(tmp_path / "x.npz", "images")


def test_a_bomb_of_arrays_is_refused_unread(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((1000, 28, 28), np.uint8))
    monkeypatch.setattr(arrays, "available", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"unpacks to 784,128 bytes, 1,000,000 are available; save it as a \.npy"):
        arrays.load(tmp_path / "x.npz", "images")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"item_shape": [1, 10**6, 10**6]}, "items of shape"),
        ({"item_shape": [1, -28, 28]}, "items of shape"),
        ({"item_shape": 3}, "damaged"),
        ({"item_shape": [1, 28, "28"]}, "items of shape"),
        ({"files": {"../config.yaml": {"bytes": 1, "hash": ""}}}, "outside its folder"),
        ({"files": {"/etc/passwd": {"bytes": 1, "hash": ""}}}, "outside its folder"),
        ({"files": {"x" * 300: {"bytes": 1, "hash": ""}}}, "missing from the run"),
        ({"files": []}, "damaged"),
        ({"files": {"config.yaml": 3}}, "damaged"),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path, made_run, changes, says):
    run = described(copied(made_run("protonet"), tmp_path / "run"), **changes)
    with pytest.raises(UserError, match=says):
        runs.load_run(run, device="cpu")


def test_a_config_of_another_network_than_the_weights_is_refused_before_it_is_built(tmp_path, made_run):
    """A million filters would be 36 TB; the weights have eight."""
    run = copied(
        made_run("protonet"),
        tmp_path / "run",
        config_yaml=lambda text: text.replace(b"filters: 8", b"filters: 1000000"),
    )
    with pytest.raises(UserError, match=r"weights that do not fit.*\(8, 1, 3, 3\), expected.*\(1000000, 1, 3, 3\)"):
        runs.load_run(run, device="cpu")


def test_json_that_nests_deeply_or_is_huge_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"x\.json"):
        artifacts.read_json(tmp_path / "x.json")
    monkeypatch.setattr(artifacts.read_text, "__defaults__", (100,))
    (tmp_path / "x.json").write_text(" " * 101)
    with pytest.raises(UserError, match="more than 100 bytes"):
        artifacts.read_json(tmp_path / "x.json")


# plug-ins


PLUGIN = "from pathlib import Path\nPath({trap!r}).touch()\n"


@pytest.fixture
def plugin(tmp_path, trap) -> Path:
    path = tmp_path / "evil.py"
    path.write_text(PLUGIN.format(trap=str(trap)))
    return path


@pytest.mark.parametrize("part", ["metalearner", "data", "proposer", "model"])
def test_a_plug_in_of_a_downloaded_run_is_followed_only_when_allowed(tmp_path, trap, plugin, made_run, capsys, part):
    inner = {"metalearner": {"model": f"{plugin}:X"}} if part == "model" else {part: f"{plugin}:X"}

    def change(text: bytes) -> bytes:
        plain = reading.merge(reading.load_yaml(text.decode()), reading.expand_names(inner))
        return reading.dump_yaml(plain).encode()

    run = copied(made_run("protonet"), tmp_path / "run", config_yaml=change)
    out = ["--out", str(tmp_path / "out")]
    for command in (["evaluate", run], ["export", run, *out], ["adapt", run, "--support", tmp_path, *out]):
        assert main([str(word) for word in command]) == 2
        assert "--allow-plugin" in capsys.readouterr().err
    assert main(["inspect", str(run)]) == 0  # shows it, follows nothing
    assert not trap.exists()
    assert main(["evaluate", str(run), "--allow-plugin"]) == 2  # followed, and no part in it
    assert trap.exists()


def test_a_plug_in_of_downloaded_tasks_is_not_followed(tmp_path, trap, plugin):
    """Rewards that are a formula are proposed again, by the proposer that the tasks name."""
    plain = reading.read("nav2d_oracle", [f"out={tmp_path}", "name=t"])
    good = build.build(plain)
    env = domains.domain_of(good).fingerprint(good, good.env)  # type: ignore[union-attr]
    folder = good.tasks_folder
    folder.mkdir(parents=True)
    artifacts.write_json(folder / "asked.json", {"proposer": {"name": f"{plugin}:X"}, "seed": 0})
    content = {"fingerprint": env, "true_labels": True, "tasks": {"kind": "oracle"}}
    artifacts.write_manifest(folder, "tasks", content, ["asked.json"])
    with pytest.raises(UserError, match=r"asks to run the code of .*evil\.py"):
        tasks.load_tasks(good)
    assert not trap.exists()


def test_a_plug_in_of_a_downloaded_learner_or_export_is_not_followed(tmp_path, trap, plugin, made_run):
    run = made_run("protonet")
    source = AdaptedLearner.adapt(load_source(run), np.zeros((4, 1, 28, 28), np.uint8), ["a", "a", "b", "b"])
    source.save(tmp_path / "learner")

    def change(content: bytes) -> bytes:
        return content.replace(b'"protonet"', json.dumps(f"{plugin}:X").encode())

    evil = copied(tmp_path / "learner", tmp_path / "evil learner", learner_json=change)
    with pytest.raises(UserError, match="--allow-plugin"):
        AdaptedLearner.load(evil)
    exported = export.export_run(run, tmp_path / "export")
    evil = copied(exported, tmp_path / "evil export", model_json=change)
    with pytest.raises(UserError, match="--allow-plugin"):
        export.load_export(evil)
    assert not trap.exists()


def load_source(run: Path) -> Any:
    from umeta.deploy.adapted import load_source

    return load_source(run, device="cpu")[0]


# properties


KEYS = ["metalearner", "classes", "labels", "shape", "invert", "calibration", "steps", "run", "true_labels"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def learner(made_run, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("learner") / "learner"
    items = np.zeros((4, 1, 28, 28), np.uint8)
    AdaptedLearner.adapt(load_source(made_run("protonet")), items, ["a", "a", "b", "b"]).save(place)
    return place


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_in_a_learner_is_a_value_or_a_user_error(tmp_path_factory, learner, key, value):
    def change(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), key: value}).encode()

    target = tmp_path_factory.mktemp("any") / "learner"
    try:
        found = AdaptedLearner.load(copied(learner, target, learner_json=change), device="cpu")
    except UserError as error:
        assert str(target) in str(error) or key in str(error)  # noqa: PT017
    else:
        assert len(found.answers(np.zeros((1, 1, 28, 28), np.uint8))[0]) == 1


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_any_value_as_a_part_is_a_user_error(value):
    with pytest.raises(UserError):
        registry.build_part("metalearner", value)
    with pytest.raises(UserError):
        registry.build_part("data", {"name": value})


def test_a_checkpoint_of_something_else_is_named(tmp_path):
    def load(state: dict[str, torch.Tensor]) -> None:
        state["missing"]

    context = RunContext(folder=tmp_path, resume=True)
    Checkpoints(tmp_path, "acai").write({"x": torch.zeros(2)}, 1, 0.0)
    with pytest.raises(UserError, match=r"checkpoints/acai/step-1: damaged"):
        context.loop("acai", 3, lambda i: {}, dict, load)


if sys.platform != "linux":
    pytestmark = pytest.mark.skip(reason="pipes and devices as Linux has them")
