"""Tables for spreadsheets: CSV in which nothing is run.

Lines end with CR LF and cells are quoted as in RFC 4180. A cell that begins like a formula gets an apostrophe before it, which
spreadsheets take for the sign of a text: names come from people, and models even from callers.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The columns' names in the first line, then a line for each row."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([inert(cell) for cell in row] for row in rows)
    return text.getvalue()


def inert(cell: object) -> object:
    """The cell, as a text that is no formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
