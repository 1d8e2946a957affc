"""WebSocket connections: trio-websocket's protocol on connections of our own.

Ours are dialed through the same proxies and with the same certificates as all others, and close without awaiting. What
trio-websocket does not notice, a connection that ends before the upgrade is answered, is told by an exception here.
"""

from collections.abc import Sequence
from typing import Any, Final

import trio
import trio.abc
from trio_websocket import ConnectionRejected, WebSocketConnection, wrap_client_stream

from workers.exchange import Disconnected, HttpReply, ProtocolViolation, SocketRefused
from workers.transports.connection import Connection

MESSAGE_BYTES: Final = 8 * 1024 * 1024
"""The longest message."""
UPGRADE_BYTES: Final = 256 * 1024
"""The longest answer to the upgrade."""


class ConnectionStream(trio.abc.Stream):
    """One of our connections as trio-websocket wants it. Before `upgraded` its end raises `TransportError`."""

    def __init__(self, connection: Connection) -> None:
        self.upgraded = False
        self._connection = connection
        self._received = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            if not self._connection.offer(memoryview(data)):
                await self._connection.flush()
        except OSError as error:
            raise self._broken(error) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            data = await self._connection.receive()
        except OSError as error:
            raise self._broken(error) from error
        if not self.upgraded:
            self._received += len(data)
            if not data:
                raise Disconnected("the upstream closed instead of opening a socket", response_started=False)
            if self._received > UPGRADE_BYTES:
                raise ProtocolViolation("the answer to the upgrade does not end")
        return data

    async def wait_send_all_might_not_block(self) -> None:
        await self._connection.flush()

    async def aclose(self) -> None:
        self._connection.close()
        await trio.lowlevel.checkpoint()
        if not self.upgraded:  # trio-websocket gives up on a peer that speaks no HTTP, and tells nobody
            raise ProtocolViolation("the answer to the upgrade is not HTTP")

    def _broken(self, error: OSError) -> Exception:
        if self.upgraded:
            return trio.BrokenResourceError()
        return Disconnected(f"the connection was lost before the upgrade: {error}", response_started=False)


async def open_websocket(
    nursery: trio.Nursery, connection: Connection, target: str, headers: Sequence[tuple[str, str]]
) -> WebSocketConnection:
    """Upgrade a fresh connection; its reader runs in `nursery`.

    What goes wrong before the upgrade is raised by the reader, in the nursery: `TransportError`, or trio-websocket's
    `ConnectionRejected`, of which `refusal` makes one.
    """
    stream: Any = ConnectionStream(connection)
    origin = connection.origin
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    if origin.port not in (80, 443):
        host = f"{host}:{origin.port}"
    websocket = await wrap_client_stream(
        nursery, stream, host, target,
        extra_headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        max_message_size=MESSAGE_BYTES, receive_buffer_size=None,
    )  # fmt: skip
    stream.upgraded = True
    return websocket


def refusal(rejected: ConnectionRejected) -> SocketRefused:
    """What a server said instead of opening a socket."""
    fields = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in rejected.headers}
    reply = HttpReply(status=rejected.status_code, headers=fields, body=bytes(rejected.body or b""))
    return SocketRefused(f"the upstream answered the upgrade with status {reply.status}", reply)
