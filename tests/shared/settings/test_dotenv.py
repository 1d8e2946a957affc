"""The grammar of `.env`, line by line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.settings.dotenv import parse, quoted


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("A=1", "1"),
        ("  A = 1  ", "1"),
        ("export A=1", "1"),
        ("A=", ""),
        ("A=# nothing", ""),
        ("A=1 # one", "1"),
        ("A=1#2", "1#2"),
        ("A=a=b", "a=b"),
        ("A='x # y'", "x # y"),
        ("A='x' # y", "x"),
        ("A='\\n'", "\\n"),
        ('A="x\\n\\t\\"\\\\y"', 'x\n\t"\\y'),
        ('A="\\d"', "\\d"),
        ("A=$HOME", "$HOME"),
        ("A=it's", "it's"),
        ("A=1\r", "1"),
        ("\ufeffA=1", "1"),
    ],
)
def test_a_line(line, expected):
    entries, problems = parse(f"\n# comment\n{line}\n" if "\ufeff" not in line else line, ".env")
    assert problems == []
    assert entries["A"].text == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("just words", ".env line 1: expected NAME=value"),
        ("1A=x", ".env line 1: expected NAME=value"),
        ("A B=x", ".env line 1: expected NAME=value"),
        ("A='x", ".env line 1: expected a value with closed quotes"),
        ('A="x', ".env line 1: expected a value with closed quotes"),
        ('A="x" y', ".env line 1: expected a value with closed quotes"),
        ("A=1\nA=2", ".env line 2: A stands on line 1 already; keep one"),
    ],
)
def test_a_bad_line_is_told_without_its_content(line, message):
    assert [str(problem) for problem in parse(line, ".env")[1]] == [message]


@given(st.text(alphabet=st.characters(blacklist_characters="\r\0", blacklist_categories=["Cs"])).map(str.strip))
def test_what_is_quoted_is_read_back(text):
    entries, problems = parse(f"A={quoted(text)}", ".env")
    assert problems == []
    assert entries["A"].text == text
