"""Pictures in the rows of parquet files, in the layouts that people download."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from umeta.data import archives
from umeta.data.folder import Folder
from umeta.errors import UserError

NAMES = ["cat", "a dog/wolf"]


def pack(path: Path, pictures: list[bytes | None], labels: list[int] | list[str] | None, nested: bool = True) -> Path:
    """As `datasets` of Hugging Face writes it, or with a binary column; two groups of rows."""
    column = [{"bytes": data, "path": "x.png"} for data in pictures] if nested else pictures
    columns = {"picture": column, "note": ["seen"] * len(pictures)} | ({"label": labels} if labels else {})
    table = pyarrow.table(columns)
    if nested and labels and isinstance(labels[0], int):
        features = {"label": {"names": NAMES, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path, row_group_size=max(1, len(pictures) // 2))
    return path


@pytest.fixture
def pictures(draw, tmp_path) -> list[bytes]:
    """Of six drawings, in the order of their names."""
    return [path.read_bytes() for path in sorted(draw(tmp_path / "plain", cat=3, dog=3).rglob("*.png"))]


@pytest.mark.parametrize("nested", [True, False])
def test_rows_give_the_same_items_as_the_folder(tmp_path, pictures, nested):
    path = pack(tmp_path / "x.parquet", pictures, [0, 0, 0, 1, 1, 1], nested)
    plain = tmp_path / "plain"
    ours, theirs = (Folder(str(root), test=str(root), size=16) for root in (path, plain))
    found, expected = ours.read("test"), theirs.read("test")
    order = np.argsort(found.labels, kind="stable") if nested else np.arange(6)
    named = ("a dog_wolf", "cat") if nested else ("0", "1")
    assert found.names == named
    wanted = expected.pixels[[3, 4, 5, 0, 1, 2]] if nested else expected.pixels
    np.testing.assert_array_equal(found.pixels[order], wanted)
    assert len(ours.read("train").pixels) == 6


def test_a_folder_of_shards_without_labels(tmp_path, pictures):
    (tmp_path / "shards").mkdir()
    pack(tmp_path / "shards" / "b.parquet", pictures[3:], None)
    pack(tmp_path / "shards" / "a.parquet", pictures[:3], None)
    names = [file.name for file in archives.list_files(tmp_path / "shards")]
    assert names == [f"{shard}.parquet/{row:08}" for shard in "ab" for row in range(3)]
    found = Folder(str(tmp_path / "shards"), size=16).read("train").pixels
    np.testing.assert_array_equal(found, Folder(str(tmp_path / "plain"), size=16).read("train").pixels)


def test_rows_are_read_in_any_order_and_anew_when_the_file_changes(tmp_path, pictures):
    path = pack(tmp_path / "x.parquet", pictures, ["b"] * 6)
    files = archives.list_files(path)
    assert [files[i].read() for i in (5, 0, 3, 1)] == [pictures[i] for i in (5, 0, 3, 1)]
    pack(path, pictures[::-1], ["b"] * 6)
    again = archives.list_files(path)
    assert {file.stamp for file in files}.isdisjoint({file.stamp for file in again})
    assert again[0].read() == pictures[5]


def test_a_row_without_a_picture_is_left_out(tmp_path, pictures):
    path = pack(tmp_path / "x.parquet", [None, *pictures], None)
    with pytest.warns(match=r"1 left out.*00000000.*a row without a picture"):
        assert len(Folder(str(path), size=16).read("train").pixels) == 6


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"text": ["a", "b"]},
            r"expected one column of pictures, binary or a struct with bytes, found none among text",
        ),
        ({"a": [b"1"], "b": [b"2"]}, r"found a, b among a, b"),
    ],
)
def test_other_columns_are_named(tmp_path, columns, says):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=says):
        archives.list_files(tmp_path / "x.parquet")


@pytest.mark.parametrize("content", [b"", b"not parquet" * 100, b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_what_is_no_parquet_is_named(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.parquet: expected a parquet file of pictures"):
        archives.list_files(tmp_path / "x.parquet")


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'umeta\[parquet\]'"):
        archives.list_files(tmp_path / "x.parquet")
