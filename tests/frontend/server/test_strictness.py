"""What another parser could read differently, and other protocols, are refused: one answer, and the connection is closed."""

import json

import pytest
import trio

from tests.frontend.server.apps import Waiting, demo
from tests.frontend.server.wire import Cut, get, post, running

HEAD = b"POST /echo HTTP/1.1\r\nHost: test\r\n"
SMUGGLED = get("/smuggled")

REFUSED = {
    "length and transfer coding": (400, HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "transfer coding and length": (400, HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    "transfer coding in 1.0": (400, b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "two lengths": (400, HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
    "one length twice": (400, HEAD + b"Content-Length: 1\r\ncontent-length: 1\r\n\r\nx"),
    "one length twice in a line": (400, HEAD + b"Content-Length: 1, 1\r\n\r\nx"),
    "signed length": (400, HEAD + b"Content-Length: +1\r\n\r\nx"),
    "negative length": (400, HEAD + b"Content-Length: -1\r\n\r\nx"),
    "hexadecimal length": (400, HEAD + b"Content-Length: 0x1\r\n\r\nx"),
    "huge length": (400, HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\nx"),
    "space before the colon": (400, HEAD + b"Content-Length : 1\r\n\r\nx"),
    "unknown transfer coding": (501, HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "transfer coding twice": (501, HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "disguised transfer coding": (501, HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "bare line feed": (400, HEAD + b"X: 1\nContent-Length: 0\r\n\r\n"),
    "only bare line feeds": (400, b"GET / HTTP/1.1\nHost: test\n\n"),
    "bare line feed at the end": (400, HEAD + b"Content-Length: 0\r\n\n"),
    "folded header": (400, HEAD + b"X: 1\r\n Content-Length: 5\r\n\r\n"),
    "header without colon": (400, HEAD + b"nonsense\r\n\r\n"),
    "NUL in a header": (400, HEAD + b"X: a\x00b\r\n\r\n"),
    "bare CR in a header": (400, HEAD + b"X: a\rContent-Length: 5\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "bad chunk size": (400, HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"),
    "chunk size with sign": (400, HEAD + b"Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n"),
    "chunk without its end": (400, HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"),
    "chunk size with bare line feed": (400, HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"),
    "chunked body ends with bare line feed": (400, HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\n"),
    "not a request": (400, b"nonsense\r\n\r\n"),
    "binary": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/1.2": (505, b"GET / HTTP/1.2\r\nHost: test\r\n\r\n"),
    "HTTP/2 by prior knowledge": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
    "CONNECT": (405, b"CONNECT test:443 HTTP/1.1\r\nHost: test:443\r\n\r\n"),
    "target without slash": (400, b"GET v1/models HTTP/1.1\r\nHost: test\r\n\r\n"),
    "target of a foreign scheme": (400, b"GET file:///etc/passwd HTTP/1.1\r\nHost: test\r\n\r\n"),
    "asterisk for GET": (400, b"GET * HTTP/1.1\r\nHost: test\r\n\r\n"),
    "too many headers": (431, get(headers="X: 1\r\n" * 101)),
    "large head": (431, get(headers=f"X: {'x' * 17_000}\r\n")),
    "large head in lines": (431, get(headers="X: 1234567890\r\n" * 2000)),
    "large head without end": (431, b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000),
}


@pytest.mark.parametrize("status, request_bytes", REFUSED.values(), ids=REFUSED.keys())
async def test_refused_once_and_closed(status, request_bytes):
    app = Waiting()
    async with running(app, linger_seconds=0.02) as server:
        client = await server.connect()
        await client.send(request_bytes + SMUGGLED)
        reply = await client.answer()
        assert reply.status == status
        assert reply.headers["connection"] == "close"
        assert set(json.loads(reply.body)["error"]) == {"message", "type", "param", "code"}
        assert await client.closed() == ("closed", b"")
        if app.calls:  # the head was in order and the app had begun
            with trio.fail_after(1):
                await app.told.wait()


@pytest.mark.parametrize("request_bytes", [
    HEAD + b"Origin: https://app.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    HEAD + b"Origin:https://app.example \r\nContent-Length: x\r\n\r\n",
    HEAD + b"origin: https://app.example\r\n" + b"X: 1\r\n" * 101 + b"\r\n",
    HEAD + b"Origin: https://app.example\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    HEAD + b"Origin: https://app.example\r\nContent-Length: 9\r\n\r\nlate",
])  # fmt: skip
async def test_a_web_page_may_read_why_it_is_refused(request_bytes):
    def headers(origin):
        return [(b"access-control-allow-origin", origin)] if origin == b"https://app.example" else []

    app = Waiting()
    async with running(app, refusal_headers=headers, body_seconds=0.1, linger_seconds=0.02) as server:
        reply = await server.ask(request_bytes)
        assert reply.status in (400, 408, 431)
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        foreign = await server.ask(request_bytes.replace(b"app.example", b"evil.example"))
        assert "access-control-allow-origin" not in foreign.headers


async def test_a_request_line_without_end_is_refused():
    async with running(demo, linger_seconds=0.02) as server:
        assert (await server.ask(b"GET /" + b"x" * 20_000)).status == 431


async def test_a_refusal_does_not_repeat_what_the_client_sent():
    async with running(demo) as server:
        reply = await server.ask(HEAD + b"Authorization : Bearer sk-secret\r\n\r\n")
        assert reply.status == 400
        assert b"secret" not in reply.body


async def test_a_refused_head_request_gets_no_body():
    async with running(demo) as server:
        client = await server.connect()
        await client.send(b"HEAD * HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (await client.answer(to_head=True)).status == 400
        assert await client.closed() == ("closed", b"")


async def test_a_head_of_just_under_the_limit_is_accepted():
    async with running(demo) as server:
        reply = await server.ask(get("/ok", headers=f"X: {'x' * 16_000}\r\n"))
        assert reply.status == 200
        reply = await server.ask(get("/ok", headers="X: 1\r\n" * 99))
        assert reply.status == 200


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.2", "foo"])
async def test_no_upgrade_is_accepted(upgrade):
    headers = (
        f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    )
    async with running(demo) as server:
        client = await server.connect()
        await client.send(get("/plain", headers=headers))
        reply = await client.answer()
        assert (reply.status, reply.body) == (200, b"GET /plain")
        await client.send(get("/again"))
        assert (await client.answer()).body == b"GET /again"


@pytest.mark.parametrize(
    "target, path",
    [
        ("http://test/v1/models", b"/v1/models"),
        ("HTTPS://other:8080/v1/models?a=b", b"/v1/models"),
        ("http://test", b"/"),
        ("http://test?x=1", b"/"),
        ("//v1/models", b"//v1/models"),
        ("/v1/%6dodels", b"/v1/models"),
    ],
)
async def test_spellings_of_a_target_come_down_to_a_path(target, path):
    async with running(demo) as server:
        assert (await server.ask(get(target))).body == b"GET " + path


async def test_asterisk_is_for_options():
    async with running(demo) as server:
        reply = await server.ask(b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (reply.status, reply.body) == (200, b"OPTIONS *")


async def test_garbage_behind_a_request_is_refused_after_its_answer():
    async with running(demo, linger_seconds=0.02) as server:
        client = await server.connect()
        await client.send(post("/echo", b"good") + b"garbage\r\n\r\n")
        assert (await client.answer()).body == b"good"
        assert (await client.answer()).status == 400
        assert await client.closed() == ("closed", b"")


async def test_a_broken_body_behind_the_start_of_a_response_cuts_it():
    app = Waiting(b"begun")
    async with running(app, linger_seconds=0.02) as server:
        client = await server.connect()
        await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        await client.received(b"begun")
        await client.send(b"nonsense\r\n")
        how, rest = await client.closed()
        assert how == "closed"
        assert b"0\r\n\r\n" not in rest
        with trio.fail_after(1):
            await app.told.wait()


async def test_cut_means_cut():
    """The client of these tests is no witness unless it tells a cut from an end."""
    app = Waiting(b"begun")
    async with running(app) as server:
        client = await server.connect()
        await client.send(get())
        await client.received(b"\r\n\r\n")
        server.shutdown.set()
        with pytest.raises(Cut):
            async for piece in client.pieces():
                assert piece == b"begun"
