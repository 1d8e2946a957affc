"""The life of a connection: how many requests it carries, how long it may take, how it ends."""

import contextvars

import pytest
import trio

from tests.frontend.server.apps import Waiting, answer, demo, no_lifespan
from tests.frontend.server.wire import get, post, running


async def test_requests_follow_each_other_on_one_connection():
    async with running(demo) as server:
        client = await server.connect()
        for number in range(3):
            await client.send(post("/echo", b"%d" % number))
            reply = await client.answer()
            assert (reply.status, reply.body) == (200, b"%d" % number)
            assert "server" not in reply.headers
            assert "x-powered-by" not in reply.headers
            assert "connection" not in reply.headers


async def test_the_connection_survives_a_stream_and_an_error_of_the_app():
    async def app(scope, receive, send):
        if scope["path"] == "/missing":
            return await answer(send, b"no", 404)
        await demo(scope, receive, send)

    async with running(app) as server:
        client = await server.connect()
        await client.send(get("/stream/3"))
        assert (await client.answer()).body == b"piece 0\npiece 1\npiece 2\n"
        await client.send(get("/missing"))
        assert (await client.answer()).status == 404
        await client.send(get("/stream/1"))
        assert (await client.answer()).body == b"piece 0\n"


async def test_an_answer_to_half_a_request_says_that_it_is_the_last():
    async with running(demo) as server:
        head, body = b"POST /refuse HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\n", bytes(10)
        client = await server.connect()
        await client.send(head)
        reply = await client.answer()
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        client = await server.connect()
        await client.send(head + body)
        reply = await client.answer()
        assert (reply.status, reply.headers.get("connection")) == (413, None)
        await client.send(get("/next"))
        assert (await client.answer()).body == b"GET /next"


async def test_three_pipelined_requests_are_answered_in_order():
    async with running(demo) as server:
        client = await server.connect()
        await client.send(post("/echo", b"first") + get("/stream/2") + b"\r\n" + get("/third"))
        assert (await client.answer()).body == b"first"
        assert (await client.answer()).body == b"piece 0\npiece 1\n"
        assert (await client.answer()).body == b"GET /third"


async def test_pipelined_requests_do_not_share_a_context():
    mark = contextvars.ContextVar("mark", default="clean")
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        seen.append(mark.get())
        mark.set("dirty")
        await answer(send, b"ok")

    async with running(app) as server:
        client = await server.connect()
        await client.send(get("/1") + get("/2") + get("/3"))
        for _ in range(3):
            await client.answer()
    assert seen == ["clean"] * 3


async def test_a_request_fed_byte_by_byte_is_a_request():
    async with running(demo) as server:
        client = await server.connect()
        for byte in post("/echo", b"slowly"):
            await client.send(bytes([byte]))
            await trio.lowlevel.checkpoint()
        assert (await client.answer()).body == b"slowly"


async def test_empty_lines_between_requests_are_skipped():
    async with running(demo) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(post("/echo", b"x") + b"\r\n")
            assert (await client.answer()).body == b"x"
            await client.send(b"\r\n\r\n")


async def test_a_chunked_request_body_arrives_whole():
    head = b"POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with running(demo) as server:
        client = await server.connect()
        for tail in (b"0\r\n\r\n", b"0\r\nX-Trailer: 1\r\n\r\n"):
            await client.send(head + b"5\r\nhello\r\n6;ext=1\r\n world\r\n" + tail)
            assert (await client.answer()).body == b"hello world"


async def test_continue_is_sent_before_the_body_that_waits_for_it():
    async with running(demo) as server:
        client = await server.connect()
        await client.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.answer()).status == 100
        await client.send(b"hi")
        assert (await client.answer()).body == b"hi"


async def test_head_gives_headers_and_no_body():
    async with running(demo) as server:
        client = await server.connect()
        for path in ("/some", "/stream/3"):
            await client.send(b"HEAD " + path.encode() + b" HTTP/1.1\r\nHost: test\r\n\r\n")
            assert (await client.answer(to_head=True)).status == 200
        await client.send(get("/after"))
        assert (await client.answer()).body == b"GET /after"


async def test_http_1_0_is_answered_and_closed():
    async with running(demo) as server:
        for path, expected in (("/old", b"GET /old"), ("/stream/2", b"piece 0\npiece 1\n")):
            client = await server.connect()
            await client.send(get(path, version="1.0"))
            reply = await client.answer()
            assert (reply.status, reply.body) == (200, expected)
            assert reply.headers["connection"] == "close"
            assert "transfer-encoding" not in reply.headers
            assert (await client.closed())[0] == "closed"


@pytest.mark.parametrize("path", ["/small", "/stream/2"])
async def test_connection_close_is_honoured(path):
    async with running(demo) as server:
        client = await server.connect()
        await client.send(get(path, headers="Connection: close\r\n"))
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.closed() == ("closed", b"")


async def test_what_follows_a_last_request_is_ignored():
    async with running(demo, linger_seconds=0.05) as server:
        client = await server.connect()
        await client.send(post("/echo", b"last", headers="Connection: close\r\n") + b"\r\n" + get("/never"))
        assert (await client.answer()).body == b"last"
        assert await client.closed() == ("closed", b"")


# ---- Clocks


async def test_an_idle_connection_is_closed_after_its_first_request_too():
    async with running(demo, keep_alive_seconds=0.2) as server:
        client = await server.connect()
        for path in ("/1", "/stream/2"):
            await client.send(get(path))
            await client.answer()
            await trio.sleep(0.1)  # less than the limit: each request starts the clock anew
        started = trio.current_time()
        assert await client.closed() == ("closed", b"")
        assert trio.current_time() - started < 1


async def test_a_connection_that_says_nothing_is_closed():
    async with running(demo, header_seconds=0.1) as server:
        client = await server.connect()
        assert await client.closed() == ("closed", b"")


@pytest.mark.parametrize("earlier_requests", [0, 1])
async def test_a_head_that_trickles_in_is_cut_off(earlier_requests):
    async with running(demo, header_seconds=0.2, keep_alive_seconds=30) as server:
        client = await server.connect()
        for _ in range(earlier_requests):
            await client.send(get())
            await client.answer()
        started = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            for byte in get("/" + "x" * 500):
                await client.send(bytes([byte]))
                await trio.sleep(0.02)
        assert 0.15 < trio.current_time() - started < 1


async def test_a_body_that_trickles_in_is_refused_and_the_app_told():
    app = Waiting()
    async with running(app, body_seconds=0.2, linger_seconds=0.1) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\nabc")
        reply = await client.answer()
        assert reply.status == 408
        assert b'"code":"request_timeout"' in reply.body
        assert await client.closed() == ("closed", b"")
        with trio.fail_after(1):
            await app.told.wait()


async def test_a_response_may_take_longer_than_any_limit_of_the_server():
    app = Waiting(b"begun")
    limits = dict.fromkeys(("header_seconds", "body_seconds", "keep_alive_seconds", "write_stall_seconds"), 0.05)
    async with running(app, **limits) as server:
        client = await server.connect()
        await client.send(get())
        await client.received(b"begun")
        await trio.sleep(0.3)
        app.finish.set()
        assert (await client.received(b"0\r\n\r\n")).endswith(b"0\r\n\r\n")


# ---- Ends


async def test_an_answer_before_the_body_reaches_its_client_and_closes():
    """The client is still sending: closing at once would reset the connection and destroy the answer."""
    async with running(demo, linger_seconds=1) as server:
        client = await server.connect()
        await client.send(b"POST /refuse HTTP/1.1\r\nHost: t\r\nContent-Length: 10000000\r\n\r\n" + bytes(500_000))
        for _ in range(10):
            await client.send(bytes(100_000))
        reply = await client.answer()
        assert (reply.status, reply.body) == (413, b"too large")
        assert await client.closed() == ("closed", b"")


async def test_a_client_that_never_stops_sending_is_not_listened_to_for_ever():
    async with running(demo, linger_seconds=0.2) as server:
        client = await server.connect()
        await client.send(b"POST /refuse HTTP/1.1\r\nHost: t\r\nContent-Length: 10000000000\r\n\r\n")
        assert (await client.answer()).status == 413
        with trio.fail_after(2), pytest.raises(trio.BrokenResourceError):
            while True:
                await client.send(bytes(1000))
                await trio.sleep(0.01)


async def test_an_app_that_fails_before_its_response_gives_500():
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        raise ZeroDivisionError

    async with running(app) as server:
        reply = await server.ask(get())
        assert reply.status == 500
