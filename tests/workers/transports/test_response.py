"""The parser of responses: every case is fed whole, byte by byte and in two pieces cut at every place."""

import pytest

from workers.exchange import Disconnected, ProtocolViolation
from workers.transports.response import BARREN_BYTES, HEAD_BYTES, HEAD_FIELDS, INTERIM_RESPONSES, ResponseParser

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def parse(pieces: list[bytes], *, head_only: bool = False, ended: bool = False) -> tuple[ResponseParser, bytes]:
    parser = ResponseParser(head_only=head_only)
    body = b""
    for piece in pieces:
        parser.feed(piece)
        body += parser.take()
    if ended:
        parser.end()
    return parser, body


def cuts(data: bytes) -> list[list[bytes]]:
    whole = [[data], [data[i : i + 1] for i in range(len(data))]]
    return whole + [[data[:i], data[i:]] for i in range(1, len(data))]


COMPLETE = {
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", 200, b"hello", True),
    "length zero": (OK + b"Content-Length: 0\r\n\r\n", 200, b"", True),
    "chunks": (CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", 200, b"hello world", True),
    "chunk extension": (CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", 200, b"hello", True),
    "trailer": (CHUNKED + b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n", 200, b"a", True),
    "coding in capitals": (OK + b"Transfer-Encoding: Chunked \r\n\r\n1\r\na\r\n0\r\n\r\n", 200, b"a", True),
    "asked to close": (OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na", 200, b"a", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", 200, b"a", False),
    "HTTP/1.0 kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na", 200, b"a", True),
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\na", 200, b"a", True),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b"", True),
    "interim": (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na", 200, b"a", True),
    "redirect": (b"HTTP/1.1 307 T\r\nLocation: http://x/\r\nContent-Length: 1\r\n\r\na", 307, b"a", True),
    "upgrade offered": (OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\na", 200, b"a", True),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_complete_however_it_is_cut(name: str) -> None:
    data, status, body, reusable = COMPLETE[name]
    for pieces in cuts(data):
        parser, got = parse(pieces)
        assert (parser.complete, parser.status, got, parser.reusable) == (True, status, body, reusable)
        parser.end()  # an end behind the answer is no concern of the answer


def test_headers_are_lower_case_and_in_order_without_those_of_interim_responses_and_trailers() -> None:
    data = b"HTTP/1.1 100 C\r\nA: 0\r\n\r\n" + OK + b"B: 1\r\nSet-Cookie: x\r\nSet-Cookie: y\r\n"
    data += b"Transfer-Encoding: chunked\r\n\r\n0\r\nD: 4\r\n\r\n"
    for pieces in cuts(data):
        parser, _ = parse(pieces)
        assert parser.headers == [
            (b"b", b"1"),
            (b"set-cookie", b"x"),
            (b"set-cookie", b"y"),
            (b"transfer-encoding", b"chunked"),
        ]


def test_until_close_ends_with_the_connection() -> None:
    for pieces in cuts(OK + b"\r\nhello"):
        parser, body = parse(pieces)
        assert (body, parser.complete) == (b"hello", False)
        parser.end()
        assert parser.complete
        assert not parser.reusable


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: 6\r\n\r\nhello",
        CHUNKED,
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        OK + b"Content-Type: text/html\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"H",
    ],
)
def test_a_cut_answer_is_an_error(data: bytes) -> None:
    for pieces in cuts(data):
        with pytest.raises(Disconnected) as caught:
            parse(pieces, ended=True)
        assert caught.value.response_started


def test_an_end_before_any_byte_says_so() -> None:
    with pytest.raises(Disconnected) as caught:
        parse([], ended=True)
    assert not caught.value.response_started


@pytest.mark.parametrize("surplus", [b"X", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb", b"\x00"])
@pytest.mark.parametrize("head", [OK, OK + b"Connection: close\r\n"])
def test_bytes_behind_the_answer_only_spoil_the_connection(head: bytes, surplus: bytes) -> None:
    data = head + b"Content-Length: 1\r\n\r\na"
    for pieces in ([data + surplus], [data, surplus]):
        parser, body = parse(pieces)
        assert (parser.complete, body, parser.reusable) == (True, b"a", False)


@pytest.mark.parametrize("fields", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_an_answer_to_head_ends_with_its_head(fields: bytes) -> None:
    parser, body = parse([OK + fields + b"\r\n"], head_only=True)
    assert (parser.complete, body, parser.reusable) == (True, b"", False)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 1000 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"Content-Length: 5, 5\r\n\r\nhello",
        OK + b"Content-Length: +5\r\n\r\nhello",
        OK + b"Content-Length: 99999999999999999999999\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\n",
        OK + b"A: b\r\n folded\r\n\r\n",
        OK + b"A : b\r\n\r\n",
        OK + b"A: b\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        CHUNKED + b"5\r\nhelloX",
        CHUNKED + b"fffffffffffffffff\r\n",
        CHUNKED + b"-1\r\n",
    ],
)
def test_what_is_not_http_as_we_accept_it(data: bytes) -> None:
    for pieces in cuts(data):
        with pytest.raises(ProtocolViolation):
            parse(pieces)


def violation(*pieces: bytes) -> str:
    with pytest.raises(ProtocolViolation) as caught:
        parse(list(pieces))
    return str(caught.value)


def test_limits_of_a_head() -> None:
    fits = OK + b"A: 1\r\n" * HEAD_FIELDS + b"\r\n"
    assert parse([fits])[0].head_complete
    assert "header fields" in violation(OK + b"A: 1\r\n" * (HEAD_FIELDS + 1) + b"\r\n")
    assert "bytes of header fields" in violation(OK + b"A: " + b"x" * HEAD_BYTES + b"\r\nB: 1\r\n\r\nbody")
    piece = b"x" * 1024
    endless = [OK + b"A: "] + [piece] * (BARREN_BYTES // len(piece))
    assert "without any body" in violation(*endless)


def test_limits_of_interim_responses() -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    assert parse([interim * INTERIM_RESPONSES + OK + b"\r\n"])[0].head_complete
    assert "interim" in violation(interim * (INTERIM_RESPONSES + 1))
    assert "header fields" in violation((b"HTTP/1.1 102 P\r\n" + b"A: 1\r\n" * 20 + b"\r\n") * 11)


def test_limits_of_what_comes_with_a_body() -> None:
    piece = b"x" * 1024
    flood = [piece] * (BARREN_BYTES // len(piece) + 1)
    assert "without any body" in violation(CHUNKED + b"1;a=", *flood)
    assert "without any body" in violation(CHUNKED + b"1\r\na\r\n0\r\nA: ", *flood)
    parser, body = parse([CHUNKED] + [b"1\r\na\r\n"] * (BARREN_BYTES // 2))
    assert len(body) == BARREN_BYTES // 2
    assert not parser.complete
