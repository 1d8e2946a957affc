"""Tables that a spreadsheet reads and does not run."""

import csv
import io

from shared.spreadsheet import inert, table


def test_what_is_written_is_read():
    rows = [["a", 5], ['"quoted", twice', -5], ["two\r\nlines", 0.5], ["ключ", ""]]
    text = table(["name", "count"], rows)
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read == [["name", "count"], *[[str(cell) for cell in row] for row in rows]]
    assert text.startswith("name,count\r\n") and text.endswith("\r\n")


def test_a_spreadsheet_runs_nothing():
    for formula in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"):
        assert inert(formula) == f"'{formula}"
        assert table(["=x"], [[formula]]).count("'") == 1
    assert [inert(value) for value in ("gpt-4o", "", 5, -5)] == ["gpt-4o", "", 5, -5]
