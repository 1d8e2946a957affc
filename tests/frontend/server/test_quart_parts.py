"""Quart-Trio on this server: what it does with streams, errors, bodies and departures."""

import pytest
import trio
import trio.testing
from quart import Response, request
from quart_trio import QuartTrio

from frontend.server import ServerSettings, StreamBody, on_leave, prepare
from tests.frontend.server.wire import Cut, get, post, running

SETTINGS = ServerSettings(body_seconds=0.2)


class Pieces:
    """A stream that the test feeds; counts how often it was begun and closed."""

    def __init__(self, *ready):
        self.ready = list(ready)
        self.more = trio.Event()
        self.begun = 0
        self.closed = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.begun += 1
        if not self.ready:
            await self.more.wait()
        if not self.ready:
            raise StopAsyncIteration
        piece = self.ready.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece

    async def aclose(self):
        self.closed += 1


class App:
    def __init__(self, pieces=None):
        self.pieces = pieces
        self.left = trio.Event()
        self.departures = 0
        self.quart = QuartTrio("tests")
        self.quart.config["RESPONSE_TIMEOUT"] = 0.1
        self.quart.add_url_rule("/stream", view_func=self.stream)
        self.quart.add_url_rule("/generator", view_func=self.generator)
        self.quart.add_url_rule("/wait", view_func=self.wait, methods=["POST"])
        self.quart.add_url_rule("/echo", view_func=self.echo, methods=["POST"])
        prepare(self.quart, SETTINGS, max_body_bytes=1000)

    def _register(self):
        on_leave(request.scope, self._leave)

    def _leave(self):
        self.departures += 1
        self.left.set()

    async def stream(self):
        self._register()
        return Response(StreamBody(self.pieces), content_type="text/event-stream")

    async def generator(self):
        self._register()

        async def pieces():
            async for piece in self.pieces:
                yield piece

        return Response(pieces())

    async def wait(self):
        self._register()
        await trio.sleep_forever()

    async def echo(self):
        return await request.get_data()


async def left_at_once(app):
    with trio.fail_after(1):
        await app.left.wait()
    assert app.departures == 1


async def test_a_stream_may_take_longer_than_the_response_timeout():
    app = App(Pieces(b"one"))
    async with running(app.quart) as server:
        client = await server.connect()
        await client.send(get("/stream"))
        await client.received(b"one")
        await trio.sleep(0.3)
        app.pieces.ready.append(b"two")
        app.pieces.more.set()
        await client.received(b"two\r\n0\r\n\r\n")
        await left_at_once(app)
        await client.send(post("/echo", b"and on"))
        assert (await client.answer()).body == b"and on"
    assert app.pieces.closed == 1


async def test_every_piece_is_one_chunk_and_an_empty_one_none():
    app = App(Pieces(b"a", b"", b"bc", b"d"))
    app.pieces.more.set()
    async with running(app.quart) as server:
        client = await server.connect()
        await client.send(get("/stream"))
        await client.received(b"\r\n\r\n")
        assert [piece async for piece in client.pieces()] == [b"a", b"bc", b"d"]


async def test_headers_leave_before_the_first_piece():
    app = App(Pieces())
    async with running(app.quart) as server:
        client = await server.connect()
        await client.send(get("/stream"))
        assert b"text/event-stream" in await client.received(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/stream", "/generator"])
@pytest.mark.parametrize("version, how", [("1.1", "closed"), ("1.0", "reset")])
async def test_a_stream_that_fails_is_cut_and_never_ends_cleanly(path, version, how):
    app = App(Pieces(b"one", RuntimeError("broken")))
    async with running(app.quart) as server:
        client = await server.connect()
        await client.send(get(path, version=version))
        with pytest.raises(Cut) as cut:
            await client.answer()
        assert cut.value.how == how
        await left_at_once(app)


async def test_an_idle_connection_is_closed_after_a_quart_response():
    app = App(Pieces(b"one"))
    app.pieces.more.set()
    async with running(app.quart, keep_alive_seconds=0.1) as server:
        client = await server.connect()
        for request_bytes in (post("/echo", b"x"), get("/stream"), get("/missing")):
            await client.send(request_bytes)
            await client.answer()
        assert await client.closed() == ("closed", b"")


async def test_connection_close_is_honoured():
    app = App()
    async with running(app.quart) as server:
        client = await server.connect()
        await client.send(post("/echo", b"x", headers="Connection: close\r\n"))
        assert (await client.answer()).body == b"x"
        assert await client.closed() == ("closed", b"")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_413_and_closes(chunked):
    framing = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 100000\r\n\r\n"
    body = b"800\r\n" + bytes(2048) + b"\r\n" if chunked else bytes(2048)
    async with running(App().quart, linger_seconds=0.1) as server:
        client = await server.connect()
        await client.send(b"POST /echo HTTP/1.1\r\nHost: t\r\n" + framing + body)
        assert (await client.answer()).status == 413
        assert await client.closed() == ("closed", b"")


async def test_a_body_that_does_not_come_is_the_apps_408():
    async with running(App().quart, linger_seconds=0.1) as server:
        client = await server.connect()
        await client.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nabc")
        reply = await client.answer()
        assert reply.status == 408
        assert b"<title>408 Request Timeout</title>" in reply.body
        assert await client.closed() == ("closed", b"")


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
@pytest.mark.parametrize(
    "request_bytes", [post("/wait"), get("/stream"), get("/generator")], ids=["wait", "stream", "gen"]
)
async def test_leaving_is_told_once(how, request_bytes):
    app = App(Pieces(b"one"))
    async with running(app.quart) as server:
        client = await server.connect()
        await client.send(request_bytes)
        if b"/wait" not in request_bytes:
            await client.received(b"one")
        await client.leave(how)
        await left_at_once(app)


@pytest.mark.parametrize("path", ["/stream", "/generator"])
async def test_leaving_while_a_send_is_blocked_is_told_once(path):
    pieces = Pieces(*[bytes(500_000)] * 20)
    app = App(pieces)
    async with running(app.quart) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(get(path))
        await client.received(b"\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert 0 < pieces.begun < 20
        await client.leave("rst")
        await left_at_once(app)
    assert pieces.closed == (1 if path == "/stream" else 0)


async def test_leaving_between_the_view_and_the_first_byte_is_told_once():
    app = App(Pieces(b"one"))
    answered = trio.Event()

    @app.quart.after_request
    async def dawdle(response):
        answered.set()
        await trio.sleep_forever()

    async with running(app.quart) as server:
        client = await server.connect()
        await client.send(get("/stream"))
        await answered.wait()
        await client.leave("fin")
        await left_at_once(app)
    assert (app.pieces.begun, app.pieces.closed) == (0, 0)
