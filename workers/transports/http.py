"""HTTP towards upstreams as the rest of a worker sees it: requests and bytes, no client library.

    transport = HttpTransport(connect_seconds=5, idle_connections=100, idle_seconds=60)
    reply = await transport.fetch(request, limit_bytes=1 << 20, timeout_seconds=30)
    with await transport.stream(request) as exchange:
        while data := await exchange.receive():
            ...

Nothing here follows redirects, reads the environment or retries, except once on a fresh connection when an idle
one turns out to be dead (see `LeanTransport`).
"""

import ssl
from functools import lru_cache
from types import TracebackType

import httpx2
import trio

from workers.exchange import HttpReply, HttpRequest, TooLarge, TransportTimeout
from workers.transports.dial import tls_context
from workers.transports.ears import Ears
from workers.transports.inflate import Inflater
from workers.transports.lean import LeanTransport, ResponseStream
from workers.transports.pool import TransportStatistics


class HttpExchange:
    """One streaming call whose head has arrived. A synchronous context manager: leaving it closes the call."""

    __slots__ = ("_inflater", "_stream", "headers", "status")

    def __init__(self, stream: ResponseStream) -> None:
        self._stream = stream
        self.status = stream.status
        self.headers = _joined(stream.headers)
        """By lower-case name; repeated fields are joined with `, `."""
        coding = self.headers.get("content-encoding", "identity").strip().lower()
        self._inflater = None if coding in ("identity", "") else Inflater(coding)

    async def receive(self) -> bytes:
        """The decoded body bytes that one read gave, at least one; b"" at the clean end of the body.

        Never waits longer than the upstream does: the caller has one watchdog around all its reads.
        Raises Disconnected, ProtocolViolation, TooLarge; trio.ClosedResourceError after or during `close`.
        """
        if self._inflater is None:
            return await self._stream.receive()
        try:
            return await self._receive_inflated(self._inflater)
        except BaseException:
            self.close()
            raise

    async def read(self, limit_bytes: int) -> HttpReply:
        """The whole answer, to be asked for instead of `receive`. Raises TooLarge if the decoded body exceeds the limit."""
        body = bytearray()
        while data := await self.receive():
            body += data
            if len(body) > limit_bytes:
                raise TooLarge(f"the answer is larger than {limit_bytes} bytes")
        return HttpReply(status=self.status, headers=self.headers, body=bytes(body))

    def close(self) -> None:
        """End the call now: the upstream sees the connection close. Does nothing after the end of the body."""
        self._stream.close()

    def __enter__(self) -> "HttpExchange":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _receive_inflated(self, inflater: Inflater) -> bytes:
        if piece := inflater.take():
            await trio.lowlevel.checkpoint()  # one small read can unpack to many pieces: let others run
            return piece
        while data := await self._stream.receive():
            inflater.feed(data)
            if piece := inflater.take():
                return piece
        inflater.end()
        return b""


class HttpTransport:
    """All HTTP of one worker process; long-lived, shared by all its tasks.

    `authorities`: None for the system's certificate authorities, else a PEM file or a ready context. There is no way
    to switch verification off. `proxy`: `http://[user:password@]host[:port]`; none is taken from the environment.
    """

    def __init__(
        self,
        *,
        connect_seconds: float,
        idle_connections: int,
        idle_seconds: float,
        authorities: ssl.SSLContext | str | None = None,
        proxy: str | None = None,
        ears: Ears | None = None,
    ) -> None:
        self._lean = LeanTransport(
            context=tls_context(authorities),
            connect_seconds=connect_seconds,
            idle_connections=idle_connections,
            idle_seconds=idle_seconds,
            proxy=proxy,
            ears=ears,
        )

    async def stream(self, request: HttpRequest) -> HttpExchange:
        """Send the request and wait for the head of the answer, without a time limit but the one to connect.

        Use it as `with await transport.stream(request) as exchange`. A body that is larger than one piece is sent
        while we listen: an upstream that refuses early is heard. Raises TransportError, ValueError for a request
        that HTTP cannot carry.
        """
        headers = list(request.headers)
        if all(name.lower() != "accept-encoding" for name, _ in headers):
            headers.append(("Accept-Encoding", "identity"))
        url = _parsed(request.url)
        response = await self._lean.handle_async_request(
            httpx2.Request(request.method, url, headers=headers, content=request.body)
        )
        assert isinstance(response.stream, ResponseStream)
        return HttpExchange(response.stream)

    async def fetch(self, request: HttpRequest, *, limit_bytes: int, timeout_seconds: float) -> HttpReply:
        """The whole answer, whatever its status. Raises TransportError; TooLarge beyond `limit_bytes` of decoded body."""
        with trio.move_on_after(timeout_seconds):
            with await self.stream(request) as exchange:
                return await exchange.read(limit_bytes)
        raise TransportTimeout(f"no complete answer within {timeout_seconds:g} s")

    def statistics(self) -> TransportStatistics:
        return self._lean.statistics()

    async def aclose(self) -> None:
        """Close idle connections now, the others as their exchanges end."""
        await self._lean.aclose()


@lru_cache(maxsize=256)
def _parsed(url: str) -> httpx2.URL:
    """Parsing costs as much as the rest of a request object, and a worker calls few addresses."""
    try:
        return httpx2.URL(url)
    except httpx2.InvalidURL:
        raise ValueError("the upstream's address is not a URL") from None


def _joined(fields: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
