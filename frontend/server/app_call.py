"""One run of the app for one request: its task, its messages in, its messages out.

The app speaks ASGI (https://asgi.readthedocs.io, HTTP version 2.1): it is called with a scope and two functions, `receive`
for the request's body and the client's departure, `send` for the response.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from frontend.server.hypercorn_parts import AsgiApp, Message

log = logging.getLogger("frontend.server")

SENDS_BEFORE_OTHERS = 32
DISCONNECT: Message = {"type": "http.disconnect"}
BODILESS = {204, 304}


class Outlet(Protocol):
    """Where the response goes: the connection, seen from the app's side."""

    together: bool
    """Keep the response's head until there is a body to send with it."""

    def write(self, data: bytes) -> None: ...
    async def written(self) -> None: ...


class AppCall:
    """The app's two functions for one request, and the task that calls it."""

    def __init__(
        self,
        scope: Any,
        outlet: Outlet,
        answer: Callable[[Message | None], Awaitable[None]],
        max_unread_bytes: int,
    ) -> None:
        self._scope = scope
        self._outlet = outlet
        self._answer = answer
        self._max_unread_bytes = max_unread_bytes
        self._messages: deque[Message] = deque()
        self._unread_bytes = 0
        self._gone = False
        self._changed = trio.Event()
        self._chunked = False
        self._sends = 0

    async def run(self, app: AsgiApp) -> None:
        """Call the app. The request boundary: whatever it raises is logged, and an unfinished response is cut."""
        try:
            await app(self._scope, self.receive, self.send)
        except* Exception:
            log.exception("the app failed at %s %r", self._scope["method"], self._scope["path"])
        finally:
            await self._answer(None)

    async def deliver(self, message: Message) -> None:
        """Take a message for the app; wait while it leaves more of the body unread than it may."""
        if message["type"] == "http.disconnect":
            self._gone = True
        else:
            self._messages.append(message)
            self._unread_bytes += len(message["body"])
        self._notify()
        while self._unread_bytes > self._max_unread_bytes and not self._gone:
            await self._changed.wait()

    async def receive(self) -> Message:
        """ASGI's receive: the request's body in pieces, then once and for all that the client has left."""
        while not self._messages:
            if self._gone:
                return DISCONNECT
            await self._changed.wait()
        message = self._messages.popleft()
        self._unread_bytes -= len(message["body"])
        self._notify()
        return message

    async def send(self, message: Message) -> None:
        """ASGI's send: returns once the bytes are with the kernel, or at once when the client has left.

        May be cancelled at any point: what was begun is written to its end by the connection.
        """
        if self._gone:
            await trio.lowlevel.checkpoint()
            return
        if self._chunked and message.get("more_body"):
            # The hot path, for the body of a stream: one piece, one write. Hypercorn and h11 would add 7 µs.
            if body := message.get("body"):
                self._outlet.write(b"%x\r\n%b\r\n" % (len(body), body))
        elif message["type"] == "http.response.start":
            lengths = [value for name, value in message.get("headers", ()) if name.lower() == b"content-length"]
            self._outlet.together = bool(lengths)
            await self._answer(message)
            self._chunked = not lengths and self._may_be_chunked(message["status"])
        else:
            self._chunked = False
            self._outlet.together = False
            await self._answer(message)
        await self._outlet.written()
        self._sends += 1
        if self._sends % SENDS_BEFORE_OTHERS == 0:
            # A send that finds room in the kernel does not give way. An app that is never short of data must now and then.
            await trio.lowlevel.checkpoint()

    def _may_be_chunked(self, status: int) -> bool:
        """Whether h11 frames a response without Content-Length in chunks (RFC 9112, 6.3 and 7.1)."""
        return self._scope["http_version"] == "1.1" and self._scope["method"] != "HEAD" and status not in BODILESS

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
