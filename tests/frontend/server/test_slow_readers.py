"""A client that stops reading holds nobody: not its app, not the server; and one that reads slowly gets everything."""

import socket

import pytest
import trio
import trio.testing

from tests.frontend.server.apps import body, demo, no_lifespan, start
from tests.frontend.server.wire import Cut, get, running

PIECE = bytes(64 * 1024)


class Endless:
    """Sends as fast as it may until it is told that the client left."""

    def __init__(self):
        self.blocked = trio.Event()
        self.told = trio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_for_ever, send)
            while (await receive())["type"] == "http.request":
                pass
            self.told.set()
            nursery.cancel_scope.cancel()

    async def _send_for_ever(self, send):
        await send(start())
        while True:
            with trio.move_on_after(0.05) as patience:
                await send(body(PIECE, more=True))
            if patience.cancelled_caught:
                self.blocked.set()
                await send(body(PIECE, more=True))


async def blocked_client(server, app):
    client = await server.connect(receive_buffer=4096)
    await client.send(get())
    with trio.fail_after(2):
        await app.blocked.wait()
    return client


async def test_a_client_that_never_reads_is_dropped(monkeypatch):
    """Without the kernel's help, which has its own test below."""
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    app = Endless()
    async with running(app, write_stall_seconds=0.3) as server:
        client = await blocked_client(server, app)
        with trio.fail_after(1):
            await app.told.wait()
        how, _ = await client.closed()
        assert how == "reset"


async def test_the_kernel_drops_a_client_that_never_reads(monkeypatch):
    """The same without the writer's clock: what is unsent is in the kernel, and nothing more is being written."""

    async def never(self):
        await trio.sleep_forever()

    monkeypatch.setattr("frontend.server.socket_writer.SocketWriter._write_rest", never)
    app = Endless()
    async with running(app, write_stall_seconds=0.3) as server:
        await blocked_client(server, app)
        with trio.fail_after(2):
            await app.told.wait()


@pytest.mark.parametrize("drop", [10, 2000])
async def test_a_client_that_reads_in_drops_is_dropped(drop):
    """The larger ones make room in the kernel again and again, but less than 64 KiB in the time that the client has."""
    app = Endless()
    async with running(app, write_stall_seconds=0.3) as server:
        client = await blocked_client(server, app)
        with trio.fail_after(2):
            while not app.told.is_set():
                await client.stream.receive_some(drop)
                await trio.sleep(0.03)


async def test_a_client_that_reads_slowly_gets_everything():
    size = 600_000

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        await send(start())
        await send(body(bytes(size), more=True))
        await send(body(b""))

    async with running(app, write_stall_seconds=0.5) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(get())
        started = trio.current_time()
        with trio.fail_after(10):
            while len(client.unread) < size:
                enough = len(client.unread) + 50_000
                while len(client.unread) < min(enough, size):
                    client.unread += await client.stream.receive_some(65536)
                await trio.sleep(0.06)
        assert trio.current_time() - started > 0.5  # or this test says nothing
        assert len((await client.answer()).body) == size


async def test_shutdown_does_not_wait_for_a_client_that_does_not_read():
    app = Endless()
    async with running(app, write_stall_seconds=30, graceful_seconds=0.1) as server:
        await blocked_client(server, app)
        server.shutdown.set()
        with trio.fail_after(1):
            await server.ended.wait()


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_leaves_while_a_write_is_blocked_is_seen(how):
    app = Endless()
    async with running(app) as server:
        client = await blocked_client(server, app)
        await client.leave(how)
        with trio.fail_after(1):
            await app.told.wait()


async def test_a_send_that_was_cancelled_leaves_no_torn_piece_behind():
    cancelled = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        await send(start())
        with trio.move_on_after(0.05) as patience:
            await send(body(b"x" * 1_000_000, more=True))
        assert patience.cancelled_caught
        cancelled.set()
        await send(body(b"the end", more=True))
        await send(body(b""))

    async with running(app) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(get())
        with trio.fail_after(1):
            await cancelled.wait()
        assert (await client.answer()).body == b"x" * 1_000_000 + b"the end"


async def test_an_early_answer_that_is_long_is_not_cut_by_the_clock_of_the_body():
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        await send(start(413, (b"content-length", b"1000000")))
        await send(body(bytes(1_000_000)))

    async with running(app, body_seconds=0.1) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\nabc")
        await trio.sleep(0.2)
        assert len((await client.answer()).body) == 1_000_000
        assert await client.closed() == ("closed", b"")


async def test_answers_do_not_pile_up_for_a_client_that_only_asks():
    calls = 0

    async def app(scope, receive, send):
        nonlocal calls
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        calls += 1
        await send(start(200, (b"content-length", b"300000")))
        await send(body(bytes(300_000)))

    async with running(app) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(get())
        for _ in range(20):
            await client.send(get())
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert calls == 1
        for _ in range(21):
            assert len((await client.answer()).body) == 300_000
        assert calls == 21


async def test_a_stalled_response_of_http_1_0_does_not_end_like_a_whole_one():
    app = Endless()
    async with running(app, write_stall_seconds=0.2) as server:
        client = await server.connect(receive_buffer=4096)
        await client.send(get(version="1.0"))
        with trio.fail_after(2):
            await app.told.wait()
        with pytest.raises(Cut) as cut:
            await client.answer()
        assert cut.value.how == "reset"


async def test_others_are_served_while_one_client_is_stuck():
    app = Endless()

    async def both(scope, receive, send):
        await (demo if scope.get("path") == "/demo" else app)(scope, receive, send)

    async with running(both) as server:
        await blocked_client(server, app)
        assert (await server.ask(get("/demo"))).body == b"GET /demo"
