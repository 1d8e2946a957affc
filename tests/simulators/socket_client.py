"""A WebSocket client of a few lines, for tests of the simulators: it does nothing that the test does not ask for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, RejectConnection, Request, TextMessage

from tests.simulators.http_server import Simulator

SOCKET_PATH = "/socket.io/?EIO=4&transport=websocket"


class SocketClient:
    """Text frames both ways."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._text = ""
        self.status = 0

    async def upgrade(self, path: str) -> None:
        await self.stream.send_all(self._protocol.send(Request(host="upstream", target=path)))
        while not self.status:
            self._protocol.receive_data(await self.stream.receive_some())
            for event in self._protocol.events():
                if isinstance(event, AcceptConnection):
                    self.status = 101
                elif isinstance(event, RejectConnection):
                    self.status = event.status_code
                break

    async def send(self, frame: str) -> None:
        await self.stream.send_all(self._protocol.send(TextMessage(data=frame)))

    async def receive(self) -> str | None:
        """The next frame; None when the server has closed or reset the connection."""
        while True:
            for event in self._protocol.events():
                if isinstance(event, TextMessage):
                    self._text += event.data
                    if event.message_finished:
                        text, self._text = self._text, ""
                        return text
                elif isinstance(event, CloseConnection):
                    return None
            try:
                received = await self.stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not received:
                return None
            self._protocol.receive_data(received)

    async def receive_event(self) -> tuple[str, Any] | None:
        """The next Socket.IO event, pings answered on the way; None when the connection has ended."""
        while (frame := await self.receive()) is not None:
            if frame == "2":
                await self.send("3")
            elif frame.startswith("42"):
                name, payload = json.loads(frame[2:])
                return name, payload
        return None

    async def connect(self, token: str) -> str | None:
        """Open packet, `40` with the token, and what the server answers to it."""
        assert (await self.receive() or "").startswith("0{")
        await self.send("40" + json.dumps({"token": token}))
        return await self.receive()


@asynccontextmanager
async def socket_client(upstream: Simulator, path: str = SOCKET_PATH) -> AsyncIterator[SocketClient]:
    """A client whose upgrade has been answered, well or not: see `status`."""
    stream = await trio.open_tcp_stream("127.0.0.1", upstream.port)
    async with stream:
        client = SocketClient(stream)
        await client.upgrade(path)
        yield client
