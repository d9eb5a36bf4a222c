"""Tables as spreadsheets write and read them."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from umeta.errors import UserError

SEPARATORS = ",;\t|"
LARGEST = 64 << 20  # bytes of a table
FORMULA = re.compile(r"'*[=+@\t\r-]")  # what a spreadsheet calculates, or what `guard` has made of it
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")


def guard(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would take for a formula, and run."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def unguard(text: str) -> str:
    """Return what `guard` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Return the line and the cells in these columns of each row that is not empty; more columns do no harm.

    The separator is a comma, semicolon, tab or bar, the encoding UTF-8 or UTF-16. Cells are stripped, headers of any
    case, and a line `sep=;` above them is passed over.

    Raises:
        UserError: not such a table, a column is missing, or a cell is empty.
    """
    try:
        text = decode_text(path)
        first = next((line for line in text.splitlines() if line.strip() and not line.lower().startswith("sep=")), "")
        separator = max(SEPARATORS, key=first.count)
        table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        names: list[str] = []
        for row in table:
            cells = [cell.strip() for cell in row]
            if not any(cells) or (not names and cells[0].lower().startswith("sep=")):
                continue
            if not names:
                names = [cell.lower() for cell in cells]
                if missing := [column for column in columns if column not in names]:
                    raise UserError(
                        f"{path}: has no column '{missing[0]}'; expected the header {','.join(columns)}, found "
                        f"{', '.join(cells)}"
                    )
                continue
            found = {name: unguard(cell) for name, cell in zip(names, cells, strict=False) if name in columns}
            if missing := [column for column in columns if not found.get(column)]:
                raise UserError(f"{path}, line {table.line_num}: the {missing[0]} is missing")
            yield table.line_num, found
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: expected a table (CSV) in UTF-8 or UTF-16 with the columns {' and '.join(columns)} ({error}); "
            "save it as CSV UTF-8"
        ) from error
    if not names:
        raise UserError(f"{path}: has no column '{columns[0]}'; expected the header {','.join(columns)}, found nothing")


def decode_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with its mark; raise UnicodeDecodeError for another encoding."""
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(f"{path}: refused, a table of more than {LARGEST:,} bytes")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig")
