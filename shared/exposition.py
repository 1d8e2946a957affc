"""A small HTTP server for machines that watch: `/metrics`, `/health/live` and `/health/ready`, on a port of its own.

It serves whoever can connect, so it belongs on an address that only the watchers reach. One request a connection, few
connections at once, and each has a few seconds for everything: who is slow is cut off.
"""

import json
import logging
from collections.abc import Callable
from typing import Final

import h11
import trio

from shared.measuring import Measures

_log = logging.getLogger(__name__)

MOST_CONNECTIONS: Final = 32
CONNECTION_SECONDS: Final = 5.0
HEAD_BYTES: Final = 16 * 1024
PIECE_BYTES: Final = 16 * 1024

Answer = tuple[int, str, bytes]
"""Status, content type, body."""


class Exposition:
    """`readiness`: what keeps this process from its work, as short sentences; empty when it is ready."""

    def __init__(self, measures: Measures, readiness: Callable[[], list[str]]) -> None:
        self._measures = measures
        self._readiness = readiness
        self._connections = 0

    async def serve(
        self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; `nursery.start` returns the port. Raises OSError if the address cannot be listened on."""
        listeners = await trio.open_tcp_listeners(port, host=host)
        bound: int = listeners[0].socket.getsockname()[1]
        _log.info("metrics on port %d of %s", bound, host)
        task_status.started(bound)
        await trio.serve_listeners(self._connected, listeners)

    async def _connected(self, stream: trio.SocketStream) -> None:
        if self._connections >= MOST_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        try:
            with trio.move_on_after(CONNECTION_SECONDS):
                await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it left
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        try:
            while (event := connection.next_event()) is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(PIECE_BYTES))
        except h11.RemoteProtocolError as error:
            status, kind, body = error.error_status_hint, "text/plain; charset=utf-8", b"Not HTTP.\n"
        else:
            if not isinstance(event, h11.Request):
                return
            status, kind, body = await self._answer(event)
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")]
        head = connection.send(h11.Response(status_code=status, headers=[*headers, ("Cache-Control", "no-store")]))
        assert head is not None
        await stream.send_all(head + (connection.send(h11.Data(data=body)) or b""))
        await stream.send_eof()
        while await stream.receive_some(PIECE_BYTES):
            pass  # to close on unread bytes would take back what was sent

    async def _answer(self, request: h11.Request) -> Answer:
        path = request.target.partition(b"?")[0]
        if request.method != b"GET":
            return 405, "text/plain; charset=utf-8", b"Only GET.\n"
        if path == b"/metrics":
            accept = next((value for name, value in request.headers if name == b"accept"), b"")
            return (200, *await self._measures.scrape(accept.decode("latin-1")))
        if path == b"/health/live":
            return 200, "application/json", b'{"status":"ok"}'
        if path == b"/health/ready":
            problems = self._readiness()
            body = {"status": "not ready" if problems else "ready", "problems": problems}
            return 503 if problems else 200, "application/json", json.dumps(body).encode()
        return 404, "text/plain; charset=utf-8", b"Try /metrics, /health/live or /health/ready.\n"
