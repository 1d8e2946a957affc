"""An HTTP/1.1 transport under the httpx API that costs one task switch per read and closes without awaiting.

    async with httpx2.AsyncClient(transport=LeanTransport(...)) as client: ...

What it does not do: HTTP/2, request bodies that are produced while they are sent, timeouts (but the one to
connect: the caller brings one cancel scope for the whole call), decoding of bodies, redirects. Its failures are
those of `workers.exchange`, not httpx's, because a retry has to know what httpx's do not say.
"""

import ssl
from collections.abc import AsyncIterator

import httpx2
import trio

from workers.exchange import Disconnected, TransportError
from workers.transports.connection import Connection, Origin
from workers.transports.dial import Dialer, Proxy
from workers.transports.ears import Ears
from workers.transports.pool import ConnectionPool, TransportStatistics
from workers.transports.response import ResponseParser

SEND_BYTES = 64 * 1024
"""Request bodies leave in pieces of this size."""


class ResponseStream(httpx2.AsyncByteStream):
    """One request and its answer on one connection, which goes back to the pool as soon as the answer is complete.

    Whatever else ends it, an error, a cancellation or `close`, closes the connection in the same instant.
    """

    __slots__ = ("_connection", "_parser", "_pool", "_sending")

    def __init__(self, connection: Connection, pool: ConnectionPool, *, head_only: bool) -> None:
        self._connection: Connection | None = connection
        self._pool = pool
        self._parser = ResponseParser(head_only=head_only)
        self._sending = True

    @property
    def status(self) -> int:
        return self._parser.status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Fields in order, names in lower case."""
        return self._parser.headers

    async def ask(self, head: bytes, body: bytes) -> None:
        """Send the request and wait for the head of the answer. Raises TransportError."""
        try:
            await self._send(head, body)
            while not self._parser.head_complete:
                await self._fill()
            self._settle()
        except BaseException:
            self.close()
            raise

    async def receive(self) -> bytes:
        """The body bytes that one read gave, at least one; b"" at the end of the body. Raises TransportError.

        No time limit: the caller has one around all its reads.
        """
        parser = self._parser
        while not (data := parser.take()) and not parser.complete:
            await self._fill()
            self._settle()
        return data

    def close(self) -> None:
        """Close the connection at once, if this exchange still has it; a task in `receive` gets ClosedResourceError."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._pool.discard(connection, reset=self._sending)

    async def aclose(self) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.receive():
            yield data

    def _settle(self) -> None:
        """Let go of the connection if the answer is complete."""
        if self._parser.complete and self._connection is not None:
            if self._sending or not self._parser.reusable:
                self.close()
            else:
                connection, self._connection = self._connection, None
                self._pool.keep(connection)

    async def _fill(self) -> None:
        """One read into the parser."""
        if self._connection is None:
            raise trio.ClosedResourceError("this exchange is closed")
        try:
            if data := await self._connection.receive():
                self._parser.feed(data)
            else:
                self._parser.end()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._disconnected(error) from error
            raise

    async def _send(self, head: bytes, body: bytes) -> None:
        assert self._connection is not None
        try:
            sent = self._connection.offer(head + body[:SEND_BYTES])
        except OSError as error:
            raise self._disconnected(error) from error
        if sent and len(body) <= SEND_BYTES:
            self._sending = False
        else:
            await self._send_while_listening(self._connection, memoryview(body)[SEND_BYTES:])

    async def _send_while_listening(self, connection: Connection, rest: memoryview) -> None:
        """Send a long body but hear an answer that does not wait for it.

        An early refusal ends the sending (RFC 9112 section 9.5), as the upstream may well have stopped reading. An
        early success does not: the upstream needs the rest to make its answer.
        """

        async def send_rest() -> None:
            try:
                await connection.flush()
                for start in range(0, len(rest), SEND_BYTES):
                    if not connection.offer(rest[start : start + SEND_BYTES]):
                        await connection.flush()
                self._sending = False
            except (OSError, trio.ClosedResourceError):
                pass  # whoever listens learns why, and perhaps reads an answer that came before

        failure: TransportError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_rest)
            try:
                while not self._parser.head_complete:
                    await self._fill()
            except TransportError as error:
                failure = error
            if failure or self._parser.status >= 300:
                nursery.cancel_scope.cancel()
        if failure:
            raise failure

    def _disconnected(self, error: OSError) -> Disconnected:
        why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        message = f"the connection to the upstream was lost: {why or type(error).__name__}"
        return Disconnected(message, response_started=self._parser.started)


class LeanTransport(httpx2.AsyncBaseTransport):
    """Long-lived; safe for any number of tasks. `proxy`: `http://[user:password@]host[:port]`."""

    def __init__(
        self,
        *,
        context: ssl.SSLContext,
        connect_seconds: float,
        idle_connections: int,
        idle_seconds: float,
        proxy: str | None = None,
        ears: Ears | None = None,
    ) -> None:
        self._proxy = None if proxy is None else Proxy.from_url(proxy)
        self._pool = ConnectionPool(
            Dialer(context, connect_seconds, self._proxy, ears),
            idle_connections=idle_connections,
            idle_seconds=idle_seconds,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; return once the head of the answer is there, `stream` being a ResponseStream.

        A request that fails on a connection that was idle, before any byte of an answer, is sent once more on a fresh
        one: peers close idle connections without asking, and the request and that end can cross on the way.
        Raises TransportError, ValueError for a request that cannot be put on the wire.
        """
        head = self._head(request)
        body = await request.aread()
        origin = Origin(request.url.scheme, request.url.raw_host.decode("ascii"), _port(request.url))
        stream = None
        if connection := self._pool.take(origin):
            try:
                stream = await self._ask(connection, request.method, head, body)
            except Disconnected as error:
                if error.response_started:
                    raise
        if stream is None:
            stream = await self._ask(await self._pool.connect(origin), request.method, head, body)
        return httpx2.Response(stream.status, headers=stream.headers, stream=stream)

    def statistics(self) -> TransportStatistics:
        return self._pool.statistics()

    async def aclose(self) -> None:
        """Close idle connections now, the others as their exchanges end."""
        self._pool.close()

    async def _ask(self, connection: Connection, method: str, head: bytes, body: bytes) -> ResponseStream:
        stream = ResponseStream(connection, self._pool, head_only=method == "HEAD")
        await stream.ask(head, body)
        return stream

    def _head(self, request: httpx2.Request) -> bytes:
        target = request.url.raw_path
        extra: list[tuple[bytes, bytes]] = []
        if self._proxy is not None and request.url.scheme == "http":
            target = b"http://" + request.url.netloc + target
            if self._proxy.authorization is not None:
                extra.append((b"Proxy-Authorization", self._proxy.authorization))
        lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), target)]
        lines += [b"%b: %b" % field for field in request.headers.raw + extra]
        head = b"\r\n".join([*lines, b"", b""])
        breaks = len(lines) + 1
        if head.count(b"\r") != breaks or head.count(b"\n") != breaks or b"\0" in head:
            raise ValueError("a request header field contains a line break or NUL")
        if "transfer-encoding" in request.headers:
            raise ValueError("request bodies are sent whole, with their length")
        return head


def _port(url: httpx2.URL) -> int:
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("an upstream's address is an absolute http or https URL")
    return url.port or (443 if url.scheme == "https" else 80)
