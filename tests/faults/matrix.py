"""Which test shows what: the markers `fault` and `promise` of all tests, and the last columns of two documents.

    python -m tests.faults.matrix        writes these columns; `make docs` does it, too

Markers are read from the source, so that nothing has to be imported: of a test's decorators, of its class and of its module
(`pytestmark`), and of the tables that they name.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "docs" / "reliability.md", ROOT / "docs" / "security.md"]
ROW = re.compile(r"[A-EPS]\d{1,2}")
LINE = re.compile(r"^\| ([A-EPS]\d{1,2}) \|(.*\|)([^|]*)\|$", re.M)
UNTESTED = "not tested: "


def marked() -> dict[str, list[str]]:
    """Row or promise to the tests that carry its marker, as `test_file.py::test_name`."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.fault" in text or "mark.promise" in text:
            for name, rows in _marked_in(ast.parse(text)):
                for row in rows:
                    found[row].append(f"{path.name}::{name}")
    return found


def _marked_in(module: ast.Module) -> Iterator[tuple[str, set[str]]]:
    tables = {
        target.id: node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    everywhere = _rows(tables["pytestmark"], tables) if "pytestmark" in tables else set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            rows = set(everywhere)
            for decorator in node.decorator_list:
                rows |= _rows(decorator, tables)
            yield node.name, rows


def _rows(marks: ast.expr, tables: dict[str, ast.expr], seen: frozenset[str] = frozenset()) -> set[str]:
    """What looks like a row in this expression, and in the tables of the module that it names."""
    rows = set()
    for node in ast.walk(marks):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ROW.fullmatch(node.value):
            rows.add(node.value)
        elif isinstance(node, ast.Name) and node.id in tables and node.id not in seen:
            rows |= _rows(tables[node.id], tables, seen | {node.id})
    return rows


def filled(document: str) -> str:
    """The document with its last columns as the markers would have them. A reason why there is no test stays as it is."""
    found = marked()

    def line(match: re.Match[str]) -> str:
        row, told, shown = match[1], match[2], match[3].strip()
        tests = "<br>".join(f"`{test}`" for test in found.get(row, ()))
        return f"| {row} |{told} {tests or (shown if shown.startswith(UNTESTED) else '')} |".replace("  |", " |")

    return LINE.sub(line, document)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")
