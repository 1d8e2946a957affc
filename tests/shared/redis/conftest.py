"""Links to the test's own server, and servers that misbehave on purpose."""

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from shared.redis.address import Address
from shared.redis.link import Link
from tests.redis_server import RedisServer

Play = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture(params=["unix", "tcp"])
def address(redis_server: RedisServer, request: pytest.FixtureRequest) -> Address:
    return Address.parse(redis_server.url if request.param == "unix" else redis_server.tcp_url)


@pytest.fixture
async def link(redis_server: RedisServer, nursery: trio.Nursery) -> Link:
    """Up, over the unix socket."""
    link = Link(Address.parse(redis_server.url))
    await nursery.start(link.run)
    return link


@pytest.fixture
async def impatient(redis_server: RedisServer, nursery: trio.Nursery) -> Link:
    """Up, with a deadline that a test can wait for."""
    link = Link(Address.parse(redis_server.url), timeout_seconds=0.25)
    await nursery.start(link.run)
    return link


@pytest.fixture
async def impostor(nursery: trio.Nursery) -> Callable[[Play], Awaitable[Address]]:
    """Starts a server that logs every client in and then plays the given part."""

    async def start(play: Play) -> Address:
        async def serve(stream: trio.SocketStream) -> None:
            try:
                greeting = b""
                while not greeting.endswith(b"sluice\r\n"):
                    greeting += await stream.receive_some()
                await stream.send_all(b"+PONG\r\n+OK\r\n")
                await play(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the link left first, which many tests want

        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        return Address(host="127.0.0.1", port=listeners[0].socket.getsockname()[1])

    return start
