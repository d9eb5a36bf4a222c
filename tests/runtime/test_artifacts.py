"""Artefacts: whole or absent, and never read when damaged."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch

from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.runtime.checkpoints import Checkpoints


@pytest.fixture
def artefact(tmp_path) -> Path:
    folder = tmp_path / "some"
    folder.mkdir()
    artifacts.write_array(folder / "a.npy", np.arange(20))
    artifacts.write_tensors(folder / "b.safetensors", {"w": torch.arange(6.0).view(2, 3).T})
    artifacts.write_manifest(folder, "tasks", {"seed": 3}, ["a.npy", "b.safetensors"])
    return folder


def test_what_is_written_is_read(artefact):
    assert artifacts.read_manifest(artefact, "tasks")["seed"] == 3
    assert artifacts.read_manifest(artefact, "run", "tasks")["kind"] == "tasks"
    np.testing.assert_array_equal(artifacts.read_array(artefact / "a.npy"), np.arange(20))
    assert artifacts.read_tensors(artefact / "b.safetensors")["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_arrays_are_read_only_memory_maps(artefact):
    array = artifacts.read_array(artefact / "a.npy")
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize("name", ["a.npy", "b.safetensors", "manifest.json"])
def test_no_flipped_bit_goes_unseen(artefact, name):
    content = (artefact / name).read_bytes()
    for i in range(len(content)):
        damaged = content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :]  # keeps digits digits, letters letters
        (artefact / name).write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged|schema|of kind"):
            artifacts.read_manifest(artefact, "tasks")


def test_a_sealed_file_gives_back_plain_values(tmp_path):
    artifacts.write_sealed(tmp_path / "x.json", {"rows": {1: (2, 3)}})
    assert artifacts.read_sealed(tmp_path / "x.json") == {"rows": {"1": [2, 3]}}


def test_no_flipped_bit_of_a_sealed_file_goes_unseen(tmp_path):
    path = tmp_path / "x.json"
    artifacts.write_sealed(path, {"rows": [1, 2]})
    content = path.read_bytes()
    for i, byte in enumerate(content):
        if not chr(byte).isspace():
            path.write_bytes(content[:i] + bytes([byte ^ 4]) + content[i + 1 :])
            with pytest.raises(UserError, match=r"x\.json: damaged"):
                artifacts.read_sealed(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="does not match its own hash"):
        artifacts.read_sealed(path)


@pytest.mark.parametrize("name", ["a.npy", "b.safetensors", "manifest.json"])
@pytest.mark.parametrize("length", [0, 1, 40, -1])
def test_no_truncation_goes_unseen(artefact, name, length):
    content = (artefact / name).read_bytes()
    (artefact / name).write_bytes(content.strip()[:length])
    with pytest.raises(UserError, match="damaged"):
        artifacts.read_manifest(artefact, "tasks")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "a.npy").unlink(), "a.npy: missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "some: unfinished tasks.*--resume"),
        (lambda folder: folder.rename(folder.with_name("x")), "some: no such tasks directory"),
        (lambda folder: artifacts.write_manifest(folder, "run", {}, []), "kind 'tasks', found 'run'"),
        (lambda folder: artifacts.write_manifest(folder, "tasks", {"schema": 99}, []), "schema 99"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json: damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"kind": "tasks", "schema": 1}'), "json: damaged"),
    ],
)
def test_what_cannot_be_read_is_named(artefact, spoil, message):
    spoil(artefact)
    with pytest.raises(UserError, match=message):
        artifacts.read_manifest(artefact, "tasks")


@pytest.mark.parametrize("read", [artifacts.read_array, artifacts.read_tensors, artifacts.read_json])
@pytest.mark.parametrize("content", [None, b"", b"x", b"\x93NUMPY\x01\x00\xff\xff{", b"\xff" * 16])
def test_single_files_that_are_missing_or_damaged_are_named(tmp_path, read, content):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="file: "):
        read(tmp_path / "file")


def test_pickles_are_refused(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        np.save(file, np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"x\.npy"):
        artifacts.read_array(tmp_path / "x.npy")


@pytest.mark.parametrize("folder", [False, True])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, folder):
    path = tmp_path / "x"
    old = path / "f" if folder else path
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")

    def failing() -> None:
        with artifacts.replace_atomically(path) as temporary:
            if folder:
                temporary.mkdir()
            (temporary / "f" if folder else temporary).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path):
    place = tmp_path / "deep"
    begun = [artifacts.replace_atomically(place / name) for name in ("file", "folder")]
    file, folder = (write.__enter__() for write in begun)
    file.write_text("half")
    folder.mkdir()
    (folder / "f").write_text("half")
    (place / "mine.tmp").write_text("whole")
    assert len(list(place.iterdir())) == 3
    artifacts.remove_leftovers(tmp_path)
    assert [path.name for path in place.iterdir()] == ["mine.tmp"]


def test_a_write_replaces_files_and_folders(tmp_path):
    for text in ("old", "new"):
        artifacts.write_text(tmp_path / "deep" / "x", text)
        with artifacts.replace_atomically(tmp_path / "y") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert (tmp_path / "deep" / "x").read_text() == "new"
    assert [path.name for path in (tmp_path / "y").iterdir()] == ["new"]


def test_manifests_and_hashes_do_not_depend_on_key_order_or_clock(tmp_path):
    assert artifacts.hash_value({"a": 1, "b": [2]}) == artifacts.hash_value({"b": [2], "a": 1})
    assert artifacts.hash_value({"a": 1}) != artifacts.hash_value({"a": 2})
    # as those in manifests that are on people's disks
    assert artifacts.hash_value({"b": None, "a": 1}) == blake2b(b'{"a": 1, "b": null}', digest_size=16).hexdigest()
    (tmp_path / "file").write_bytes(b"content")
    assert artifacts.hash_file(tmp_path / "file") == blake2b(b"content", digest_size=16).hexdigest()
    for name, content in (("one", {"a": 1, "b": 2}), ("two", {"b": 2, "a": 1})):
        (tmp_path / name).mkdir()
        artifacts.write_manifest(tmp_path / name, "run", content, [])
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two"))
    assert one == two
    assert "time" not in json.loads(one)


def test_the_cache_is_made_once_and_again_when_damaged(tmp_path):
    made = []

    def make(folder: Path) -> list[str]:
        made.append(1)
        (folder / "f").write_text("x")
        return ["f"]

    for expected in (1, 1):
        assert (artifacts.make_cached(tmp_path / "c", "images", make) / "f").read_text() == "x"
        assert len(made) == expected
    (tmp_path / "c" / "f").write_text("y")
    assert (artifacts.make_cached(tmp_path / "c", "images", make) / "f").read_text() == "x"
    assert len(made) == 2


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("UMETA_CACHE", "/a")
    assert artifacts.cache_folder() == Path("/a")
    monkeypatch.delenv("UMETA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert artifacts.cache_folder() == Path("/b/umeta")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert artifacts.cache_folder() == Path.home() / ".cache" / "umeta"


def test_a_metric_may_not_hide_the_number_of_its_step(tmp_path):
    """A resume finds by it what it has to drop."""
    kept = Checkpoints(tmp_path, "loop")
    kept.append(3, {"loss": 0.5})
    with pytest.raises(UserError, match="loop: it measures a 'step'"):
        kept.append(4, {"step": 0.1})
    assert (tmp_path / "loop.jsonl").read_text() == '{"step": 3, "loss": 0.5}\n'


def test_a_list_of_numbers_is_a_line_of_json_and_text_stays_as_it_is(tmp_path):
    value = {"returns": [[-1.5, 2e-07, 3], []], "text": "[\n 1,\n 2\n] [ 3 ]", "mixed": [1, None, float("inf")]}
    artifacts.write_json(tmp_path / "x.json", value)
    assert artifacts.read_json(tmp_path / "x.json") == value
    assert "  [-1.5, 2e-07, 3]" in (tmp_path / "x.json").read_text().splitlines()[2]
