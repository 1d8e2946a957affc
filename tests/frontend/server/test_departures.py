"""A client that leaves is noticed at once, whatever it was doing and whatever it had sent before."""

import pytest
import trio
import trio.testing

from frontend.server import OnLeave
from tests.frontend.server.apps import Waiting, demo, no_lifespan, start
from tests.frontend.server.apps import body as piece
from tests.frontend.server.wire import get, post, running

WAYS = ["fin", "rst", "half-close"]
AT_ONCE_SECONDS = 1


async def told_at_once(app):
    with trio.fail_after(AT_ONCE_SECONDS):
        await app.told.wait()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("pieces", [(), (b"begun",)], ids=["before the first byte", "in the middle"])
async def test_leaving_is_seen(how, pieces):
    app = Waiting(*pieces)
    async with running(app) as server:
        client = await server.connect()
        await client.send(post())
        await app.called.wait()
        if pieces:
            await client.received(b"begun")
        await client.leave(how)
        await told_at_once(app)


@pytest.mark.parametrize("how", WAYS)
async def test_leaving_in_the_middle_of_the_body_is_seen(how):
    app = Waiting()
    async with running(app) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\npart")
        await app.called.wait()
        await client.leave(how)
        await told_at_once(app)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "extra", [b"\r\n", b"x", get("/next"), bytes(60_000)], ids=["crlf", "byte", "request", "60 kB"]
)
async def test_bytes_behind_the_request_do_not_hide_a_departure(how, extra):
    app = Waiting(b"begun")
    async with running(app) as server:
        client = await server.connect()
        await client.send(post() + extra)
        await client.received(b"begun")
        await client.send(b"\r\n")
        await client.leave(how)
        await told_at_once(app)
        assert app.calls == 1


@pytest.mark.parametrize("version, headers", [("1.1", "Connection: close\r\n"), ("1.0", "")])
async def test_bytes_behind_a_last_request_do_not_hide_a_departure(version, headers):
    app = Waiting(b"begun")
    async with running(app) as server:
        client = await server.connect()
        await client.send(get(version=version, headers=headers) + b"\r\nxyz")
        assert b" 200 " in await client.received(b"begun")
        await client.leave("fin")
        await told_at_once(app)


async def test_the_bytes_that_may_wait_behind_a_request_are_bounded():
    app = Waiting(b"begun")
    async with running(app) as server:
        client = await server.connect()
        await client.send(post())
        await client.received(b"begun")
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(1000):
                await client.send(bytes(10_000))
        await told_at_once(app)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_forty_clients_that_leave_at_once_are_all_seen(how):
    app = Waiting(b"begun")
    async with running(app) as server:
        clients = [await server.connect() for _ in range(40)]
        for client in clients:
            await client.send(post())
        for client in clients:
            await client.received(b"begun")
        for client in clients:
            await client.leave(how)
        with trio.fail_after(1):
            while app.departures < 40:
                await trio.lowlevel.checkpoint()
        assert app.calls == 40


async def test_an_app_that_goes_on_sending_to_nobody_lets_others_run():
    left, ended = trio.Event(), trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        await send(start())
        await left.wait()
        for _ in range(1000):
            await send(piece(b"x", more=True))
        await send(piece(b""))
        ended.set()

    async with running(app) as server:
        client = await server.connect()
        await client.send(get())
        await client.received(b"\r\n\r\n")
        await client.leave("rst")
        await trio.sleep(0.02)
        left.set()
        with trio.fail_after(1):
            await ended.wait()


async def test_receive_keeps_saying_that_the_client_left():
    messages = []
    done = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        messages.extend([await receive() for _ in range(4)])
        done.set()

    async with running(app) as server:
        client = await server.connect()
        await client.send(post(body=b"12"))
        await client.leave("fin")
        with trio.fail_after(1):
            await done.wait()
    assert [message["type"] for message in messages] == ["http.request"] * 2 + ["http.disconnect"] * 2
    assert messages[0]["body"] == b"12"


async def test_a_body_that_the_app_does_not_take_is_not_read_without_end():
    called, go = trio.Event(), trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            called.set()
            await go.wait()
        await demo(scope, receive, send)

    async with running(app, max_unread_body_bytes=10_000) as server, trio.open_nursery() as nursery:
        client = await server.connect(receive_buffer=4096)
        size = 3_000_000
        sent = 0

        async def upload():
            nonlocal sent
            await client.send(b"POST /x HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % size)
            while sent < size:
                await client.send(bytes(50_000))
                sent += 50_000

        nursery.start_soon(upload)
        await called.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent < size
        go.set()
        assert (await client.answer()).status == 200
        assert sent == size


# ---- OnLeave


class Recorded:
    """An app inside `OnLeave` that registers two functions, then does what its test says."""

    def __init__(self, act):
        self.act = act
        self.calls = []
        self.left = trio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await no_lifespan(receive, send)
        scope["sluice.on_leave"].append(self.left.set)
        scope["sluice.on_leave"].append(lambda: self.calls.append("called"))
        await self.act(scope, receive, send)


async def test_on_leave_is_called_once_after_a_complete_response():
    app = Recorded(demo)
    async with running(OnLeave(app)) as server:
        assert (await server.ask(get())).status == 200
        with trio.fail_after(1):
            await app.left.wait()
    assert app.calls == ["called"]


async def test_on_leave_is_called_when_the_app_fails():
    async def fail(scope, receive, send):
        raise ZeroDivisionError

    app = Recorded(fail)
    async with running(OnLeave(app)) as server:
        assert (await server.ask(get())).status == 500
    assert app.calls == ["called"]


async def test_on_leave_calls_every_function_even_if_one_raises():
    calls = []

    async def act(scope, receive, send):
        scope["sluice.on_leave"].append(lambda: 1 / 0)
        scope["sluice.on_leave"].append(lambda: calls.append("after"))

    app = Recorded(act)
    with pytest.raises(ZeroDivisionError):
        await OnLeave(app)({"type": "http"}, None, None)
    assert app.calls == ["called"]
    assert calls == ["after"]


async def test_on_leave_runs_in_a_cancelled_task_too():
    async def act(scope, receive, send):
        await trio.sleep_forever()

    app = Recorded(act)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(OnLeave(app), {"type": "http"}, None, None)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert app.calls == ["called"]
