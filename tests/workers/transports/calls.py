"""Short ways to call an upstream in the tests of the transport."""

from workers.exchange import HttpReply, HttpRequest
from workers.transports.http import HttpTransport


def get(url: str, *, method: str = "GET") -> HttpRequest:
    return HttpRequest(method=method, url=url)


async def fetch(transport: HttpTransport, url: str, *, method: str = "GET", limit_bytes: int = 1 << 20) -> HttpReply:
    return await transport.fetch(get(url, method=method), limit_bytes=limit_bytes, timeout_seconds=5)


async def pieces_of(transport: HttpTransport, url: str) -> list[bytes]:
    with await transport.stream(get(url)) as exchange:
        pieces = []
        while piece := await exchange.receive():
            pieces.append(piece)
        assert await exchange.receive() == b""  # an end stays an end
        return pieces
