"""docs/reliability.md and docs/security.md are true: each row has a test that carries its marker, or says why there is none."""

import re

from tests.faults.matrix import DOCUMENTS, LINE, UNTESTED, filled, marked

TEXT = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
ROWS = {"A": 18, "B": 21, "C": 28, "D": 20, "E": 8, "P": 19, "S": 24}


def test_the_document_has_every_row_once():
    named = [match[1] for match in LINE.finditer(TEXT)]
    assert named == sorted(set(named), key=named.index)
    assert set(named) == {f"{letter}{number}" for letter, count in ROWS.items() for number in range(1, count + 1)}


def test_every_row_is_shown_by_a_test_or_says_why_not():
    bare = [match[1] for match in LINE.finditer(TEXT) if not match[3].strip()]
    assert not bare
    for match in LINE.finditer(TEXT):
        assert "::test_" in match[3] or len(match[3].strip()) > len(UNTESTED) + 20, match[1]


def test_the_tests_are_those_that_carry_the_markers():
    assert filled(TEXT) == TEXT, "run `make docs`"
    unknown = set(marked()) - {match[1] for match in LINE.finditer(TEXT)}
    assert not unknown
    assert not re.search(r"\|  ", TEXT)
