"""Tables as spreadsheets write them are read as they are meant, and what we write is no formula to them."""

from __future__ import annotations

import csv
import io

import pytest

from umeta.data.spreadsheet import guard, read_table, unguard
from umeta.errors import UserError

ROWS = [("a.png", "größe"), ("b, c.png", "=1+1"), ("d;e.png", "日本")]


def written(separator: str, header: tuple[str, ...] = ("path", "label"), end: str = "\r\n") -> str:
    file = io.StringIO(newline="")
    table = csv.writer(file, delimiter=separator, lineterminator=end)
    table.writerow(header)
    table.writerows(ROWS)
    return file.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", list(",;\t|"))
@pytest.mark.parametrize("before", ["", "\r\n", "sep=SEPARATOR\r\n"])
@pytest.mark.parametrize("header", [("path", "label"), ("Path ", " LABEL")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_any_spreadsheet_hold_the_same(tmp_path, encoding, separator, before, header, end):
    text = before.replace("SEPARATOR", separator) + written(separator, header, end) + 2 * separator + end
    (tmp_path / "x.csv").write_bytes(text.encode(encoding))
    found = [(row["path"], row["label"]) for _, row in read_table(tmp_path / "x.csv", ("path", "label"))]
    assert found == ROWS


def test_further_columns_and_spaces_do_no_harm(tmp_path):
    (tmp_path / "x.csv").write_text(",note,Label,Path\n0,x, cat , a.png \n\n , , ,\n1,,dog,b.png,more\n")
    found = list(read_table(tmp_path / "x.csv", ("path", "label")))
    assert found == [(2, {"path": "a.png", "label": "cat"}), (5, {"path": "b.png", "label": "dog"})]


@pytest.mark.parametrize("content", ["größe".encode("latin-1"), b"\xff\xfea", b'path,label\n"a.png,x\n'])
def test_what_is_no_such_table_is_refused_with_what_to_do(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.csv: expected a table .* save it as CSV UTF-8"):
        list(read_table(tmp_path / "x.csv", ("path", "label")))


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "'=1", "''=1", "=", "-"])
def test_what_a_spreadsheet_would_run_is_guarded_and_comes_back(text):
    assert guard(text)[0] == "'"
    assert unguard(guard(text)) == text


@pytest.mark.parametrize("text", ["cat", "-1", "+4", "-0.5", "3", "'tis", "", "größe", "a=b", "p_=1"])
def test_other_words_and_numbers_stay_as_they_are(text):
    assert guard(text) == text
    assert unguard(text) == text
