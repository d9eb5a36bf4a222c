"""Pictures in tars are read where they are, and what does not fit in memory stays on disk."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

from umeta.data import archives, decode, images
from umeta.data.folder import Folder
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.runtime import artifacts


def pack(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_tar_gives_the_same_items_as_the_folder(tmp_path, draw):
    root = draw(tmp_path / "pictures", cat=3, dog=2)
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        archive.add(root, ".")
    folder, tar = (Folder(str(path), test=str(path), size=16) for path in (root, tmp_path / "pictures.tar"))
    for split in ("train", "test"):
        ours, theirs = folder.read(split), tar.read(split)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert ours.names == theirs.names


def test_shards_of_a_folder_are_read_in_order_and_what_is_no_picture_is_passed_over(tmp_path, draw):
    root = draw(tmp_path / "pictures", flat=6)
    files = sorted(root.glob("*.png"))
    (tmp_path / "shards").mkdir()
    for number, some in enumerate((files[:4], files[4:])):
        members = [(path.name, path.read_bytes()) for path in some] + [("00.cls", b"3"), ("00.json", b"{}")]
        pack(tmp_path / "shards" / f"data-{number:06}.tar", members)
    names = [file.name for file in archives.list_files(tmp_path / "shards") if decode.is_picture(file.name)]
    assert names == [f"data-{i // 4:06}.tar/{i:02}.png" for i in range(6)]
    found = Folder(str(tmp_path / "shards"), size=16).read("train").pixels
    np.testing.assert_array_equal(found, Folder(str(root), size=16).read("train").pixels)


@pytest.mark.parametrize("mode", ["w:gz", "cut", "text"])
def test_a_tar_that_cannot_be_read_at_its_places_is_refused(tmp_path, mode):
    path = tmp_path / "x.tar"
    if mode == "w:gz":
        pack(path, [("a.png", b"x" * 5000)], mode)
    else:
        whole = pack(path, [("a.png", b"x" * 5000)]).read_bytes()
        path.write_bytes(whole[:300] if mode == "cut" else b"not a tar" * 100)
    with pytest.raises(UserError, match=r"x\.tar: expected a tar of images that is not compressed"):
        archives.list_files(path)


def test_members_outside_of_a_tar_are_refused(tmp_path):
    with pytest.raises(UserError, match="would leave the target folder"):
        archives.list_files(pack(tmp_path / "x.tar", [("../a.png", b"x")]))


def test_hidden_members_are_left_out(tmp_path):
    path = pack(tmp_path / "x.tar", [("a/.b.png", b"x"), (".a/b.png", b"x"), ("a/b.png", b"x")])
    assert [file.name for file in archives.list_files(path)] == ["a/b.png"]


def test_blocks_are_written_as_one_array(tmp_path):
    whole = np.arange(24, dtype=np.int16).reshape(12, 2)
    artifacts.write_blocks(tmp_path / "x.npy", (whole[i : i + 5] for i in range(0, 12, 5)))
    np.testing.assert_array_equal(artifacts.read_array(tmp_path / "x.npy"), whole)


def test_decoding_holds_some_pictures_at_a_time_and_leaves_bad_ones_out(tmp_path, draw, monkeypatch):
    root = draw(tmp_path / "pictures", flat=7)
    whole = Folder(str(root), size=16).read("train").pixels
    (root / "03.png").write_bytes(b"damaged")
    monkeypatch.setattr(decode, "BLOCK", 2)
    blocks = []
    stack = np.stack
    monkeypatch.setattr(decode.np, "stack", lambda rows: blocks.append(len(rows)) or stack(rows))
    with pytest.warns(UserWarning, match=r"03\.png"):
        found = Folder(str(root), size=16).read("train").pixels
    assert blocks == [2, 1, 2, 1]
    np.testing.assert_array_equal(found, np.delete(whole, 3, 0))


def test_pictures_that_are_large_on_disk_stay_there(tmp_path, draw, monkeypatch):
    pixels = Folder(str(draw(tmp_path / "pictures", flat=20)), size=16).read("train").pixels
    here = UnlabelledImages.of(pixels)
    assert not isinstance(here.pixels, np.memmap)
    monkeypatch.setattr(images, "LARGE", 0)
    monkeypatch.setattr(images, "BLOCK", 6)
    there = UnlabelledImages.of(pixels)
    assert isinstance(there.pixels, np.memmap)
    np.testing.assert_array_equal(there.pixels, here.pixels)
    np.testing.assert_array_equal(there.rows, here.rows)
    assert there.fingerprint == here.fingerprint
