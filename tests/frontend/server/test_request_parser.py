"""The parser alone: bytes in, events out, however they are cut into pieces."""

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.server.request_parser import RequestParser

PLAIN = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
WITH_LENGTH = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
TRAILERS = b"POST /d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: 1\r\n\r\n"
REQUESTS = {
    b"/a": (PLAIN, b""),
    b"/b": (WITH_LENGTH, b"hello"),
    b"/c": (CHUNKED, b"hello"),
    b"/d": (TRAILERS, b"hello"),
}


def make_parser():
    return RequestParser(max_header_bytes=1000, max_headers=10)


def events(parser):
    while (event := parser.next_event()) is not h11.NEED_DATA:
        yield event


def serve_all(parser, pieces):
    """Feed the pieces, answer each request when it is complete; return targets with bodies."""
    requests = []

    def look():
        for event in events(parser):
            if isinstance(event, h11.Request):
                requests.append([event.target, b""])
            elif isinstance(event, h11.Data):
                requests[-1][1] += event.data
            elif isinstance(event, h11.EndOfMessage):
                parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                parser.send(h11.EndOfMessage())
                parser.start_next_cycle()

    for piece in pieces:
        parser.receive_data(piece)
        look()
    return [(target, bytes(body)) for target, body in requests]


@pytest.mark.parametrize("target", REQUESTS)
@pytest.mark.parametrize("cut", ["whole", "byte by byte"])
@pytest.mark.parametrize("before, after", [(b"", b""), (b"\r\n", b"\r\n\r\n"), (b"", PLAIN), (PLAIN, CHUNKED)])
def test_requests_are_the_same_however_they_are_cut(target, cut, before, after):
    request, body = REQUESTS[target]
    stream = before + request + after
    pieces = [stream] if cut == "whole" else [stream[i : i + 1] for i in range(len(stream))]
    expected = [(b"/a", b"")] if before.strip() else []
    expected.append((target, body))
    expected += {b"": [], PLAIN: [(b"/a", b"")], CHUNKED: [(b"/c", b"hello")]}[after.strip(b"\r\n") and after]
    assert serve_all(make_parser(), pieces) == expected


@given(st.lists(st.sampled_from(list(REQUESTS)), max_size=6), st.data())
@settings(max_examples=50, deadline=None)
def test_any_row_of_requests_in_any_pieces(targets, data):
    stream = b"".join(REQUESTS[target][0] + data.draw(st.sampled_from([b"", b"\r\n"])) for target in targets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert serve_all(make_parser(), pieces) == [(target, REQUESTS[target][1]) for target in targets]


@given(st.binary(max_size=300), st.sampled_from([b"", b"GET / HTTP/1.1\r\nHost: h\r\n", CHUNKED[:-5]]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_parsed_or_refused(noise, beginning):
    try:
        serve_all(make_parser(), [beginning, noise])
    except h11.RemoteProtocolError as error:
        assert error.error_status_hint in {400, 405, 431, 501, 505}


@pytest.mark.parametrize("ending", [b"0\r\n\n", b"0\r\nX: 1\r\n\n"])
@pytest.mark.parametrize("cut", ["whole", "byte by byte"])
def test_a_bare_line_feed_at_the_end_of_a_chunked_body_is_refused(ending, cut):
    stream = CHUNKED.removesuffix(b"0\r\n\r\n") + ending + PLAIN
    pieces = [stream] if cut == "whole" else [stream[i : i + 1] for i in range(len(stream))]
    with pytest.raises(h11.RemoteProtocolError, match="bare line feed"):
        serve_all(make_parser(), pieces)


def test_bytes_wait_while_a_request_is_being_answered():
    parser = make_parser()
    parser.receive_data(PLAIN + b"POST")
    assert len(list(events(parser))) == 2
    parser.receive_data(b" /next")
    assert list(events(parser)) == []
    assert parser.waiting_bytes() == len(b"POST /next")


def test_no_request_begins_while_the_parser_is_on_hold():
    parser = make_parser()
    parser.on_hold = True
    parser.receive_data(PLAIN)
    assert list(events(parser)) == []
    parser.on_hold = False
    assert len(list(events(parser))) == 2


def test_the_reason_is_said_in_place_of_an_empty_refusal():
    parser = make_parser()
    parser.receive_data(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(h11.RemoteProtocolError):
        parser.next_event()
    said = parser.send(h11.Response(status_code=405, headers=[("content-length", "0")]))
    said += parser.send(h11.EndOfMessage())
    assert said.startswith(b"HTTP/1.1 405")
    assert b"This is not a proxy." in said
