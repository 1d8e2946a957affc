"""The Socket.IO client against two real servers, each a process of its own: python-socketio's and Node's."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from shared.sansio.socketio import SocketEvent
from tests.workers.transports.socketio_servers.processes import NODE, ServerProcess, server
from tests.workers.transports.test_proxy import proxy
from tests.workers.transports.upstream import Peer, authority, serving
from workers.exchange import ConnectFailed, Disconnected, SocketRefused
from workers.transports.dial import Dialer, Proxy
from workers.transports.socketio import Address, SocketIO

KINDS = ["python", pytest.param("node", marks=pytest.mark.skipif(NODE is None, reason="no node on this machine"))]
PINGS = (1.0, 1.0)
"""Interval and timeout in seconds; python-engineio announces whole seconds only."""
GOOD = {"token": "good"}
HEADERS = (("user-agent", "sluice/test"),)


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server for the tests that leave it alive."""
    with server(request.param, *PINGS) as process:
        yield process


@pytest.fixture(params=KINDS)
def mortal(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server for one test, which may kill it."""
    with server(request.param, *PINGS) as process:
        yield process


class Client:
    """A connection that remembers what it hears, and answers what it is asked."""

    def __init__(self, url: str, proxy: Proxy | None = None) -> None:
        dialer = Dialer(authority().client(), 5.0, proxy)
        self.heard: list[SocketEvent] = []
        self._counts: Counter[str] = Counter()
        self._news = trio.Event()
        self.connection = SocketIO(Address(url, HEADERS), dialer, on_event=self._hear)

    def _hear(self, event: SocketEvent, size: int) -> None:
        assert size > 0
        self.heard.append(event)
        self._counts[event.name] += 1
        self.connection.acknowledge(event, "yes", *event.arguments)
        self._news.set()

    async def named(self, name: str, count: int = 1) -> list[SocketEvent]:
        """The events of that name, as soon as there are so many."""
        with trio.fail_after(10):
            while self._counts[name] < count:
                self._news = trio.Event()
                await self._news.wait()
        return [event for event in self.heard if event.name == name]


@asynccontextmanager
async def connected(url: str, proxy: Proxy | None = None) -> AsyncIterator[Client]:
    client = Client(url, proxy)
    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.connection.run)
            yield client
            client.connection.close()


async def test_events_and_acknowledgements_both_ways(nothing_left: None, running: ServerProcess) -> None:
    async with connected(running.url) as client:
        connection = client.connection
        sid = await connection.join("/", GOOD)
        welcome = (await client.named("welcome"))[0].arguments[0]
        assert (welcome["sid"], welcome["auth"]) == (sid, GOOD)
        assert welcome["headers"] == {"user-agent": "sluice/test", "host": f"127.0.0.1:{running.port}"}

        assert await connection.call("add", 1, 2) == (3,)
        assert await connection.call("pair", b"\x00\xff", {"deep": [b"bytes"]}) == ({"deep": [b"bytes"]}, b"\x00\xff")
        said = (1, "ä👋\u2028", None, {"k": [1.5, True]}, b"bytes")
        connection.emit("echo", *said)
        assert (await client.named("echoed"))[0].arguments == said
        connection.emit("ask", "really?")
        assert (await client.named("answered"))[0].arguments == ("yes", "really?")
    assert connection.error is None
    assert connection.ignored == 0


async def test_namespaces_are_apart(nothing_left: None, running: ServerProcess) -> None:
    async with connected(running.url) as client:
        connection = client.connection
        first, second = await connection.join("/", GOOD), await connection.join("/other", GOOD)
        assert first != second
        connection.emit("echo", "to the other", namespace="/other")
        assert (await client.named("echoed"))[0].namespace == "/other"

        connection.emit("kick")
        assert await connection.call("add", 1, 2, namespace="/other") == (3,)
        with trio.fail_after(5), pytest.raises(Disconnected):
            while True:
                await connection.call("never")
        assert not connection.ended.is_set()


async def test_calls_that_overlap_are_told_apart(nothing_left: None, running: ServerProcess) -> None:
    async with connected(running.url) as client:
        await client.connection.join("/", GOOD)
        sums: dict[int, Any] = {}

        async def add(number: int) -> None:
            sums[number] = await client.connection.call("add", number, 1000)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(add, number)
        assert sums == {number: (number + 1000,) for number in range(50)}


async def test_a_call_that_is_given_up_disturbs_nobody(nothing_left: None, running: ServerProcess) -> None:
    async with connected(running.url) as client:
        await client.connection.join("/", GOOD)
        with trio.move_on_after(0.05) as patience:
            await client.connection.call("never")
        assert patience.cancelled_caught
        assert await client.connection.call("add", 1, 2) == (3,)


@pytest.mark.parametrize("auth", [None, {}, {"token": "bad"}])
async def test_a_bad_token_is_refused_in_the_servers_words(
    nothing_left: None, running: ServerProcess, auth: Any
) -> None:
    async with connected(running.url) as client:
        with pytest.raises(SocketRefused) as caught:
            await client.connection.join("/", auth)
        assert (caught.value.reply.status, caught.value.reply.body) == (401, b'{"message":"Authentication error"}')
        with pytest.raises(SocketRefused):
            await client.connection.join("/nowhere", GOOD)


async def test_a_server_that_pings_is_heard_for_longer_than_its_patience(
    nothing_left: None, running: ServerProcess
) -> None:
    async with connected(running.url) as client:
        await client.connection.join("/", GOOD)
        with trio.move_on_after(1.2 * sum(PINGS)):
            await client.connection.ended.wait()
        assert await client.connection.call("add", 1, 2) == (3,), "both sides still think that the other lives"


async def test_a_thousand_events_come_in_order(nothing_left: None, running: ServerProcess) -> None:
    async with connected(running.url) as client:
        await client.connection.join("/", GOOD)
        client.connection.emit("many", 1000, 100)
        events = await client.named("item", 1000)
        assert [event.arguments for event in events] == [(number, "x" * 100) for number in range(1000)]
        client.connection.emit("many", 1, 2_000_000)
        assert len((await client.named("item", 1001))[-1].arguments[1]) == 2_000_000


async def test_a_server_that_puts_us_out_has_said_goodbye(nothing_left: None, running: ServerProcess) -> None:
    async with connected(running.url) as client:
        await client.connection.join("/", GOOD)
        client.connection.emit("kick")
        await client.connection.ended.wait()
        assert client.connection.error is None
        with pytest.raises(Disconnected):
            await client.connection.join("/", GOOD)


async def test_a_killed_server_is_noticed_at_once(nothing_left: None, mortal: ServerProcess) -> None:
    async with connected(mortal.url) as client:
        await client.connection.join("/", GOOD)
        async with trio.open_nursery() as nursery:

            async def never() -> None:
                with pytest.raises(Disconnected):
                    await client.connection.call("never")

            nursery.start_soon(never)
            await client.connection.call("add", 1, 2)
            mortal.kill()
            with trio.fail_after(0.5):
                await client.connection.ended.wait()
        assert isinstance(client.connection.error, Disconnected)


async def test_a_frozen_server_is_noticed_when_its_ping_is_due(nothing_left: None, mortal: ServerProcess) -> None:
    async with connected(mortal.url) as client:
        await client.connection.join("/", GOOD)
        mortal.freeze()
        began = trio.current_time()
        await client.connection.ended.wait()
        interval, timeout = PINGS
        assert timeout <= trio.current_time() - began < interval + timeout + 1
        assert isinstance(client.connection.error, Disconnected)
        with pytest.raises(Disconnected):
            await client.connection.call("add", 1, 2)


async def test_a_frozen_server_does_not_hold_up_the_goodbye(nothing_left: None, mortal: ServerProcess) -> None:
    client = Client(mortal.url)
    with trio.fail_after(4):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.connection.run)
            await client.connection.join("/", GOOD)
            mortal.freeze()
            client.connection.emit("echo", "x" * 20_000_000)
            await trio.testing.wait_all_tasks_blocked()
            client.connection.close()
            assert client.connection.ended.is_set()


async def test_cancelling_closes_the_socket(nothing_left: None, running: ServerProcess) -> None:
    client = Client(running.url)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.connection.run)
        await client.connection.join("/", GOOD)
        nursery.cancel_scope.cancel()
    assert client.connection.ended.is_set()


async def test_it_is_cancelled_at_any_moment_of_the_opening(nothing_left: None, running: ServerProcess) -> None:
    for turns in range(40):
        client = Client(running.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.connection.run)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            if turns % 2:
                client.connection.close()
            else:
                nursery.cancel_scope.cancel()


async def test_tls(nothing_left: None, running: ServerProcess) -> None:
    """The servers stand behind a relay that speaks TLS, as they do behind a proxy in real life."""

    async def relay(peer: Peer) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", running.port) as behind, trio.open_nursery() as nursery:

            async def pump(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
                try:
                    async for data in source:
                        await sink.send_all(data)
                except trio.BrokenResourceError:
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, peer.stream, behind)
            nursery.start_soon(pump, behind, peer.stream)

    async with serving(relay, authority().server("localhost")) as upstream:
        for scheme in ("wss", "https"):
            async with connected(f"{scheme}://localhost:{upstream.port}/socket.io/") as client:
                await client.connection.join("/", GOOD)
                assert await client.connection.call("add", 1, 2) == (3,)
        async with connected(f"wss://127.0.0.1:{upstream.port}") as client:
            with pytest.raises(ConnectFailed, match="certificate"):
                await client.connection.join("/", GOOD)


async def test_a_proxy_is_asked_for_a_tunnel(nothing_left: None, running: ServerProcess) -> None:
    seen: list[str] = []
    async with serving(proxy(seen)) as between:
        async with connected(running.url, Proxy.from_url(f"http://user:p%40ss@localhost:{between.port}")) as client:
            await client.connection.join("/", GOOD)
            assert await client.connection.call("add", 1, 2) == (3,)
        assert seen == [f"CONNECT 127.0.0.1:{running.port}"]
        async with connected(running.url, Proxy.from_url(f"http://localhost:{between.port}")) as client:
            with pytest.raises(ConnectFailed, match="407"):
                await client.connection.join("/", GOOD)
