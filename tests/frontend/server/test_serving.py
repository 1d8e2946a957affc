"""Starting, stopping, and how many clients there is room for."""

import json
import resource
import socket
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from frontend.server import ServerSettings, serve
from frontend.server.connection import Surroundings, serve_connection
from frontend.server.hypercorn_parts import WorkerContext, end_keep_alive, make_config
from frontend.server.listener import RESERVED_DESCRIPTORS, connection_limit, open_listener
from frontend.server.serving import network_of
from tests.frontend.server.apps import Waiting, demo
from tests.frontend.server.wire import Client, get, running

TCP_CLOSE_WAIT = 8  # in Linux's tcp_states.h


async def test_shutdown_may_be_a_function_that_returns():
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve_it(task_status):
            await serve(demo, ServerSettings(), shutdown=stop.wait, task_status=task_status)

        host, port = await nursery.start(lambda task_status: serve_it(task_status))
        client = Client(await trio.open_tcp_stream(host, port))
        await client.send(get())
        assert (await client.answer()).status == 200
        stop.set()


async def test_shutdown_closes_idle_connections_at_once_and_refuses_new_ones():
    async with running(demo, graceful_seconds=30) as server:
        silent, idle = await server.connect(), await server.connect()
        await idle.send(get())
        await idle.answer()
        server.shutdown.set()
        with trio.fail_after(0.5):
            await server.ended.wait()
        assert await idle.closed() == ("closed", b"")
        assert await silent.closed() == ("closed", b"")
        with pytest.raises(OSError, match="refused"):
            await server.connect()


async def test_shutdown_ends_with_the_last_stream():
    app = Waiting(b"begun")
    async with running(app, graceful_seconds=30) as server:
        client = await server.connect()
        await client.send(get())
        await client.received(b"begun\r\n")
        server.shutdown.set()
        await trio.sleep(0.05)
        assert not server.ended.is_set()
        app.finish.set()
        with trio.fail_after(0.5):
            await server.ended.wait()
        assert [piece async for piece in client.pieces()] == []
        assert await client.closed() == ("closed", b"")


async def test_after_shutdown_a_response_says_that_it_is_the_last():
    app = Waiting()
    async with running(app, graceful_seconds=30) as server:
        client = await server.connect()
        await client.send(get())
        await app.called.wait()
        server.shutdown.set()
        await trio.sleep(0.02)
        app.finish.set()
        assert (await client.answer()).headers["connection"] == "close"


async def test_clients_that_connect_at_the_last_moment_are_answered():
    stop = trio.Event()
    late = socket.socket()

    async def shutdown():
        await stop.wait()
        late.connect(address)  # and no checkpoint until the server has stopped accepting
        late.send(get("/late"))

    with late:
        async with trio.open_nursery() as nursery:

            async def serve_it(task_status):
                await serve(demo, ServerSettings(graceful_seconds=30), shutdown=shutdown, task_status=task_status)

            address = await nursery.start(lambda task_status: serve_it(task_status))
            stop.set()
        late.settimeout(1)
        assert late.recv(65536).endswith(b"GET /late")


@asynccontextmanager
async def served_socket(kind=socket.SOCK_STREAM):
    """The far end of a pair whose near end is being served, with the server's connections and surroundings."""
    settings = ServerSettings()
    around = Surroundings(demo, settings, make_config(settings), WorkerContext(None), ("127.0.0.1", 1))
    connections = set()
    near, far = socket.socketpair(type=kind)
    with far:
        near.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_connection, near, ("127.0.0.1", 2), around, connections)
            await trio.testing.wait_all_tasks_blocked()
            yield far, connections, around
            nursery.cancel_scope.deadline = trio.current_time() + 1
        assert not connections


async def test_a_request_that_has_come_but_was_not_read_yet_is_answered_before_the_end():
    async with served_socket() as (far, connections, around):
        [connection] = connections
        far.send(get("/late"))
        await end_keep_alive(around.config, around.context)
        connection.retire()
        await trio.testing.wait_all_tasks_blocked()
        reply = far.recv(65536, socket.MSG_DONTWAIT)
        assert b"connection: close" in reply.lower()
        assert reply.endswith(b"GET /late")


async def test_a_small_response_is_written_in_one_go():
    """Sockets of this kind keep apart what was written apart."""
    async with served_socket(socket.SOCK_SEQPACKET) as (far, _connections, _around):
        for path in ("/one", "/two"):
            far.send(get(path))
            await trio.testing.wait_all_tasks_blocked()
            assert far.recv(65536, socket.MSG_DONTWAIT).endswith(b"GET " + path.encode())
        far.send(get("/stream/2"))
        await trio.testing.wait_all_tasks_blocked()
        pieces = [far.recv(65536, socket.MSG_DONTWAIT) for _ in range(4)]
        assert [piece[-14:] for piece in pieces[1:]] == [b"8\r\npiece 0\n\r\n", b"8\r\npiece 1\n\r\n", b"0\r\n\r\n"]
        far.close()


@pytest.mark.parametrize("version, how", [("1.1", "closed"), ("1.0", "reset")])
async def test_what_is_left_after_the_grace_is_cut_and_looks_it(version, how):
    app = Waiting(b"begun")
    async with running(app, graceful_seconds=0.1) as server:
        client = await server.connect()
        await client.send(get(version=version))
        await client.received(b"begun")
        server.shutdown.set()
        with trio.fail_after(0.5):
            await server.ended.wait()
        ended, rest = await client.closed()
        assert ended == how
        assert b"0\r\n\r\n" not in rest


async def test_clients_beyond_the_limit_are_told_so_and_room_is_found_again():
    async with running(demo, max_connections=2) as server:
        first, second = await server.connect(), await server.connect()
        for client in (first, second):
            await client.send(get())
            await client.answer()
        third = await server.connect()
        await third.send(get())
        reply = await third.answer()
        assert (reply.status, reply.headers["connection"], reply.headers["retry-after"]) == (503, "close", "1")
        assert json.loads(reply.body)["error"]["type"] == "service_unavailable_error"
        assert await third.closed() == ("closed", b"")

        await first.leave("fin")
        with trio.fail_after(1):
            while (await server.ask(get())).status != 200:
                await trio.lowlevel.checkpoint()
        await second.send(get())
        assert (await second.answer()).status == 200


async def test_an_address_has_its_share_and_no_more():
    async with running(demo, max_connections=4, max_connections_per_address=2, linger_seconds=0.2) as server:
        inside = [await server.connect() for _ in range(2)]
        for client in inside:
            await client.send(get())
            assert (await client.answer()).status == 200
        reply = await server.ask(get())
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        assert json.loads(reply.body)["error"]["code"] == "rate_limit_exceeded"
        neighbour = trio.socket.socket()
        await neighbour.bind(("127.0.0.2", 0))
        await neighbour.connect((server.host, server.port))
        await neighbour.send(get())
        assert (await neighbour.recv(4096)).startswith(b"HTTP/1.1 200")
        neighbour.close()
        await inside[0].leave("fin")
        with trio.fail_after(1):
            while (await server.ask(get())).status != 200:
                await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "host, network",
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_a_customers_ipv6_network_is_one_address(host, network):
    assert network_of(host) == network


async def test_a_crowd_beyond_the_limit_harms_nobody_inside():
    async with running(demo, max_connections=1, linger_seconds=0.2) as server:
        inside = await server.connect()
        await inside.send(get())
        await inside.answer()
        refused = []
        for _ in range(60):
            with suppress(ConnectionResetError):  # beyond what can be refused politely at once
                refused.append(await server.connect())
        assert len(refused) >= 32
        for client in refused[:32]:
            assert (await client.answer()).status == 503
        await inside.send(get())
        assert (await inside.answer()).status == 200


async def test_a_refusal_is_not_lost_to_a_reset():
    async with running(demo, max_connections=1) as server:
        inside = await server.connect()
        await inside.send(get())
        await inside.answer()
        for _ in range(40):  # one after the other: more than may be refused at once
            with socket.create_connection((server.host, server.port)) as eager:
                eager.send(get())  # before the server can run: these bytes are unread when it refuses
                eager.setblocking(False)
                await trio.lowlevel.wait_readable(eager)
                assert eager.recv(65536).startswith(b"HTTP/1.1 503")
                await trio.lowlevel.wait_readable(eager)
                assert eager.recv(65536) == b""
                state = eager.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
                assert state == TCP_CLOSE_WAIT  # after a reset it would be TCP_CLOSE


async def test_running_out_of_descriptors_pauses_accepting_and_recovers(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with running(demo) as server:
        inside = await server.connect()
        await inside.send(get())
        await inside.answer()
        waiting = await server.connect()
        with socket.socket() as probe:
            lowest_free = probe.fileno()
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            await trio.sleep(0.05)
            await inside.send(get())
            assert (await inside.answer()).status == 200
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await waiting.send(get())
        assert (await waiting.answer()).status == 200


def test_descriptors_bound_the_connections(monkeypatch):
    for soft, expected in (
        (256, 256 - RESERVED_DESCRIPTORS),
        (10, 1),
        (100_000, 10_000),
        (resource.RLIM_INFINITY, 10_000),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _what, soft=soft: (soft, soft))
        assert connection_limit(10_000) == expected


def test_accepted_connections_inherit_their_options():
    settings = ServerSettings(write_stall_seconds=7)
    with open_listener(settings) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 16 * 1024
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_listeners_share_a_port_only_on_request():
    with open_listener(ServerSettings(reuse_port=True)) as first:
        port = first.getsockname()[1]
        with open_listener(ServerSettings(reuse_port=True, port=port)) as second:
            assert second.getsockname()[1] == port
        with pytest.raises(OSError, match="in use"):
            open_listener(ServerSettings(port=port))


async def test_a_failed_start_up_of_the_app_is_an_error():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(BaseExceptionGroup) as caught:
        await serve(app, ServerSettings(), shutdown=trio.Event())
    assert "no database" in str(caught.value.exceptions[0])
