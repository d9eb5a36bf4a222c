"""Pictures in the rows of parquet files, as sites that share data sets keep them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umeta.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

ONE_GROUP = threading.Lock()  # rows are read in order: no two threads shall read the same group


def list_rows(path: Path) -> Iterator[tuple[str, tuple[int, ...], Callable[[], bytes]]]:
    """Name each picture, say what changes when it does, and how to read it; the rows of a class lie in its folder.

    Its column of pictures is binary, or as Hugging Face's `datasets` writes it: a struct with `bytes`. A column
    `label` beside it gives classes, called by their names where the file has them.

    Raises:
        UserError: pyarrow is missing, the file is none of parquet, or has not one column of pictures.
    """
    file = _open(path)
    column = _find_pictures(path, file)
    info = path.stat()
    labels = _read_labels(file)
    row = 0
    for group in range(file.num_row_groups):
        for place in range(file.metadata.row_group(group).num_rows):
            name = f"{row:08}" if labels is None else f"{labels[row]}/{row:08}"
            yield name, (row, info.st_size, info.st_mtime_ns), partial(_read, path, column, group, place)
            row += 1


def _open(path: Path) -> ParquetFile:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: pyarrow is not installed; pip install 'umeta[parquet]'") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: expected a parquet file of pictures ({error})") from error


def _find_pictures(path: Path, file: ParquetFile) -> str:
    """Return the column of pictures, as a path: `image.bytes`, or `image` where it is binary."""
    columns = [file.schema.column(i) for i in range(len(file.schema))]
    found = [c.path for c in columns if c.physical_type == "BYTE_ARRAY" and str(c.logical_type.type) == "NONE"]
    if len(found) != 1:
        raise UserError(
            f"{path}: expected one column of pictures, binary or a struct with bytes, found "
            f"{', '.join(found) or 'none'} among {', '.join(file.schema_arrow.names)}"
        )
    return str(found[0])


def _read_labels(file: ParquetFile) -> list[str] | None:
    """Return the name of each row's class, or its number; None without a column `label`."""
    schema = file.schema_arrow
    if "label" not in schema.names:
        return None
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = told.get("info", {}).get("features", {}).get("label", {}).get("names")
    values = file.read(columns=["label"])["label"].to_pylist()
    return [(names[v] if names and v is not None and v >= 0 else str(v)).replace("/", "_") for v in values]


def _read(path: Path, column: str, group: int, place: int) -> bytes:
    with ONE_GROUP:
        found: Any = _read_group(path, path.stat().st_mtime_ns, column, group)[place].as_py()
    if found is None:
        raise ValueError("a row without a picture")
    return bytes(found)


@lru_cache(maxsize=2)
def _read_group(path: Path, changed: int, column: str, group: int) -> Any:
    """Read the pictures of a group of rows; changed: when the file did."""
    values = _open(path).read_row_group(group, columns=[column])[column.partition(".")[0]]
    for inner in column.split(".")[1:]:
        values = values.combine_chunks().field(inner)
    return values
