"""The event-stream splitter: every case whole, byte by byte, and cut at every position."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.errors import GatewayError
from shared.sansio.sse import ServerSentEvent, Splitter

WIRE = Path(__file__).parents[2] / "wire"


def split(pieces, **options):
    splitter = Splitter(**options)
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events + splitter.end()


def everywhere_cut(stream, **options):
    """The events of `stream`, after checking that they do not depend on where it was cut."""
    whole = split([stream], **options)
    assert split([stream[i : i + 1] for i in range(len(stream))], **options) == whole
    for position in range(len(stream)):
        assert split([stream[:position], b"", stream[position:]], **options) == whole
    return whole


def datas(events):
    return [event.data for event in events]


CASES = {
    b"data: a\n\n": [b"a"],
    b"data:a\n\n": [b"a"],
    b"data:  a\n\n": [b" a"],
    b"data: a\r\n\r\n": [b"a"],
    b"data: a\r\rdata: b\r\n\n": [b"a", b"b"],
    b"data: a\n\ndata: b\n\ndata: c\n\n": [b"a", b"b", b"c"],
    b"data: a\ndata: b\ndata:c\n\n": [b"a\nb\nc"],
    b"data: a\ndata\n\n": [b"a\n"],
    b"\xef\xbb\xbfdata: a\n\n": [b"a"],
    b"\xef\xbb\xbf: comment\n\ndata: a\n\n": [b"a"],
    b"data: a\n\n\xef\xbb\xbfdata: b\n\n": [b"a"],
    b": keep-alive\n\n:\n\ndata: a\n\n: more\n\n": [b"a"],
    b"data\n\ndata:\n\ndata: \n\ndata: a\n\n": [b"a"],
    b"retry: 1\nid: 7\nunknown: x\nnonsense\ndata: a\n\n": [b"a"],
    "data: a\u2028b\u2029c\u0085d\x0be\x0c\n\n".encode(): ["a\u2028b\u2029c\u0085d\x0be\x0c".encode()],
    b"data: [DONE]\n\n": [b"[DONE]"],
    b"data: [DONE]": [b"[DONE]"],
    b"data: [DONE]\n": [b"[DONE]"],
    b'data: {"a":1}': [b'{"a":1}'],
    b'data: {"a":"\\ud83d"}': [b'{"a":"\\ud83d"}'],
    b'data: {"a":1': [],
    b'data: {"a":1}\n\ndat': [b'{"a":1}'],
    b"\n\n\n\ndata: a\n\n\n\n": [b"a"],
    b"": [],
    b"\n\r\n": [],
}


@pytest.mark.parametrize("stream", CASES, ids=repr)
def test_payloads(stream):
    assert datas(everywhere_cut(stream)) == CASES[stream]


def test_torture_recording():
    stream = (WIRE / "sse_framing_torture.sse").read_bytes()
    assert datas(everywhere_cut(stream)) == [
        b'{"n":1}',
        b'{"n":2}',
        b'{"n":\n3}',
        '{"n":4,"s":"你好 data: \\n"}'.encode(),
        b'{"n":5}',
        b"[DONE]",
    ]


def test_event_name_belongs_to_its_event_only():
    events = everywhere_cut(
        b"event: error\ndata: a\n\ndata: b\n\nevent: ping\n\ndata: c\n\nevent: x\n: c\ndata:d\ndata:e\n\n"
    )
    assert [(event.event, event.data) for event in events] == [
        ("error", b"a"),
        ("message", b"b"),
        ("message", b"c"),
        ("x", b"d\ne"),
    ]


def test_status_comment_belongs_to_its_event_only():
    events = everywhere_cut(b"event:error\n:HTTP_STATUS/400\ndata:a\n\ndata: b\n\n:HTTP_STATUS/x\ndata: c\n\n")
    assert [(event.status, event.data) for event in events] == [(400, b"a"), (None, b"b"), (None, b"c")]


def test_tolerant_begins_an_event_where_blank_lines_are_missing():
    stream = (WIRE / "dashscope_native_noblank.sse").read_bytes()
    events = everywhere_cut(stream, tolerant=True)
    assert len(events) == stream.count(b"data:") == 5
    assert {event.status for event in events} == {200}
    assert {event.event for event in events} == {"result"}
    assert len(split([stream])) == 0  # by the letter it is one event that makes no sense


def test_tolerant_hands_an_event_out_as_soon_as_the_next_one_begins():
    splitter = Splitter(tolerant=True)
    assert splitter.feed(b"id:1\ndata:a\n") == []
    assert splitter.feed(b"id:2\n") == [ServerSentEvent(b"a")]


@pytest.mark.parametrize("name", sorted(path.name for path in WIRE.glob("*.sse")))
def test_recordings_do_not_depend_on_the_cuts(name):
    stream = (WIRE / name).read_bytes()
    tolerant = name.startswith("dashscope_native")
    whole = split([stream], tolerant=tolerant)
    for size in (1, 2, 3, 7, 64, 1000):
        pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert split(pieces, tolerant=tolerant) == whole


@pytest.mark.parametrize(
    "body",
    [b'{"a":1}', b'\n \n\n{\n "a": 1\n}\n', b'\xef\xbb\xbf{"a":1}', b"<html>\n\ndata: x\n\n</html>", b"[1]", b" {}"],
)
def test_a_body_that_is_no_event_stream_is_handed_out_whole(body):
    (whole,) = everywhere_cut(body)
    assert isinstance(whole, bytes)
    assert whole.strip() == body.removeprefix(b"\xef\xbb\xbf").strip()


def test_an_event_is_handed_out_as_soon_as_it_is_complete():
    splitter = Splitter()
    assert splitter.feed(b"data: a\r") == []
    assert splitter.feed(b"\n\r") == [ServerSentEvent(b"a")]
    assert splitter.feed(b"\ndata: b\n\n") == [ServerSentEvent(b"b")]


@pytest.mark.parametrize("filler", [b"x", b"data: x\n", b": c\ndata:\n"])
def test_memory_is_bounded(filler):
    splitter = Splitter(limit_bytes=10_000)
    with pytest.raises(GatewayError) as caught:
        for _ in range(20_000):
            splitter.feed(filler)
    assert caught.value.failure.kind == "protocol_error"


@pytest.mark.parametrize(
    "event", [b"data: x\n\n", b"data:x\n\n", b": keep-alive\n\n", b"event: a\ndata: b\ndata: c\n\n"]
)
def test_the_bound_is_for_one_event_not_for_the_stream(event):
    splitter = Splitter(limit_bytes=100)
    for _ in range(1000):
        for byte in event:
            splitter.feed(bytes([byte]))


@given(
    st.lists(
        st.lists(st.sampled_from([b"a", b"{}", b"[DONE]", "ü\u2028".encode(), b": ", b"data: "]), min_size=1),
        max_size=6,
    ),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b"data:", b"data: "]),
    st.lists(st.integers(0, 300), max_size=10),
)
def test_whatever_is_written_by_the_rules_is_read_back(events, line_end, field, cuts):
    payloads = [b"\n".join(lines) for lines in events]
    stream = b"".join(b"".join(field + line + line_end for line in lines) + line_end for lines in events)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:end] for start, end in pairwise(edges)]
    assert datas(split(pieces)) == [
        payload.removeprefix(b" ") if field == b"data:" else payload for payload in payloads
    ]


@given(
    st.lists(
        st.sampled_from([b"data", b":", b" ", b"\n", b"\r", b"a", b"event", b"\xef\xbb\xbf", b"{", b"\xff"]),
        max_size=40,
    )
)
@example(pieces=[b"\n", b"\xef\xbb\xbf", b"\n", b"{"])
def test_no_bytes_confuse_it_and_cuts_never_matter(pieces):
    for tolerant in (False, True):
        assert split(pieces, tolerant=tolerant) == split([b"".join(pieces)], tolerant=tolerant)
