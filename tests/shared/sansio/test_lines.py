"""The line splitter: cut anywhere, bounded, and only LF ends a line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import GatewayError
from shared.sansio.lines import LineSplitter


def split(pieces):
    splitter = LineSplitter()
    return [line for piece in pieces for line in splitter.feed(piece)] + splitter.end()


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\r\nb", [b"a", b"b"]),
        (b"\n\n \na\n\r\n", [b"a"]),
        ("ü\u2028\u0085\x0b\x0c\n".encode(), ["ü\u2028\u0085\x0b\x0c".encode()]),
        (b"a\rb\n", [b"a\rb"]),
    ],
)
def test_lines(body, lines):
    assert split([body]) == lines
    assert split([body[i : i + 1] for i in range(len(body))]) == lines
    for position in range(len(body)):
        assert split([body[:position], body[position:]]) == lines


def test_memory_is_bounded():
    splitter = LineSplitter(limit_bytes=1000)
    with pytest.raises(GatewayError, match="protocol_error"):
        for _ in range(1001):
            splitter.feed(b"x")


def test_the_bound_is_for_one_line():
    splitter = LineSplitter(limit_bytes=10)
    assert [line for _ in range(100) for line in splitter.feed(b"12345\n123")] == [b"12345"] + [b"12312345"] * 99


@given(st.lists(st.binary(max_size=8)))
def test_cuts_never_matter(pieces):
    assert split(pieces) == split([b"".join(pieces)])
