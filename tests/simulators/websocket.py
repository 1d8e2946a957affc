"""The server's end of one WebSocket, on a connection of the simulators' HTTP server; the protocol is wsproto's."""

from __future__ import annotations

from contextlib import suppress

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request, TextMessage
from wsproto.utilities import RemoteProtocolError

from tests.simulators.http_server import Answer


class WebSocket:
    """Text messages both ways. Sending may raise OSError or ClosedResourceError when the connection is gone."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.call = answer.call
        self._protocol = WSConnection(ConnectionType.SERVER)
        self._sending = trio.Lock()

    @classmethod
    async def accept(cls, answer: Answer) -> WebSocket:
        """Answer the upgrade request with 101. Raises RemoteProtocolError if it is not a WebSocket upgrade."""
        websocket = cls(answer)
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.call.headers]
        websocket._protocol.initiate_upgrade_connection(headers, answer.call.target)
        if not any(isinstance(event, Request) for event in websocket._protocol.events()):
            raise RemoteProtocolError("not an upgrade to WebSocket")
        connection = await answer.upgrade()
        answer.call.status = 101
        answer.call.head_at = trio.current_time()
        await answer.raw(websocket._protocol.send(AcceptConnection()))
        if connection.buffer:  # frames sent without waiting for the 101; no bytes would mean the end
            websocket._protocol.receive_data(bytes(connection.buffer))
            connection.buffer.clear()
        return websocket

    @property
    def open(self) -> bool:
        return self.call.open and not self.answer.connection.closed

    async def send(self, text: str) -> None:
        """One text message."""
        async with self._sending:
            if not self.open:
                raise trio.ClosedResourceError
            await self.answer.raw(self._protocol.send(TextMessage(data=text)))

    async def receive(self) -> str | None:
        """The next text message; None when the connection has ended, however it did."""
        parts: list[str] = []
        while True:
            for event in self._protocol.events():
                if isinstance(event, TextMessage):
                    parts.append(event.data)
                    if event.message_finished:
                        return "".join(parts)
                elif isinstance(event, Ping):
                    async with self._sending:
                        await self.answer.raw(self._protocol.send(event.response()))
                elif isinstance(event, CloseConnection):
                    await self._answer_close(event)
                    return None
            if not await self._fill():
                return None

    async def _fill(self) -> bool:
        try:
            received = await self.answer.connection.receive()
        except (OSError, trio.ClosedResourceError):
            received = b""
        if not received:
            self.answer.ledger.close(self.call, "client")
            return False
        try:
            self._protocol.receive_data(received)
        except RemoteProtocolError:
            self.answer.cut()
            return False
        return True

    async def _answer_close(self, event: CloseConnection) -> None:
        self.answer.ledger.close(self.call, "client")
        with suppress(OSError):  # the client need not wait for the answer
            await self.answer.raw(self._protocol.send(event.response()))
        self.answer.connection.close()

    async def close(self, code: int = 1000) -> None:
        """Close with a close frame and FIN; safe to repeat."""
        if self.open:
            with suppress(OSError):
                await self.answer.raw(self._protocol.send(CloseConnection(code=code)))
            self.answer.cut()

    def drop(self, *, reset: bool = False) -> None:
        """Close without a close frame."""
        self.answer.cut(reset=reset)
