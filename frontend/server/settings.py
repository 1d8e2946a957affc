"""What the server may be told: where it listens, how long a client may take, how much it may send."""

from collections.abc import Callable
from dataclasses import dataclass

KIB = 1024

Headers = list[tuple[bytes, bytes]]


def no_headers(_origin: bytes | None) -> Headers:
    return []


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits of the HTTP server. Times are seconds, sizes bytes; the defaults are the ones to run with.

    A connection is always in one of five phases, and each has its own clock:

    ========  ==============================================  ======================
    phase     the client has                                  limit
    ========  ==============================================  ======================
    head      connected, or begun a request                   `header_seconds`
    body      sent a request's head but not its whole body    `body_seconds`
    response  sent its request and waits                      none: the app's own
    idle      had its response and may send another request   `keep_alive_seconds`
    linger    had its last response but is still sending      `linger_seconds`
    ========  ==============================================  ======================

    Writing has one more: `write_stall_seconds` is how long a client may leave 64 KiB of response unread.
    """

    host: str = "127.0.0.1"
    port: int = 0
    backlog: int = 1024
    reuse_port: bool = False
    max_connections: int = 10_000
    max_connections_per_address: int = 0
    """Of one IPv4 address or one IPv6 network of 64 bits; 0 for any number, as behind a proxy all come from there."""

    header_seconds: float = 5
    body_seconds: float = 30
    keep_alive_seconds: float = 75
    linger_seconds: float = 2
    write_stall_seconds: float = 30
    graceful_seconds: float = 630

    max_header_bytes: int = 16 * KIB
    max_headers: int = 100
    max_waiting_bytes: int = 64 * KIB
    """Bytes that may wait behind a request that is still being answered (pipelining)."""
    max_unread_body_bytes: int = 256 * KIB
    """Body bytes that the app has not taken yet, after which no more is read."""

    refusal_headers: Callable[[bytes | None], Headers] = no_headers
    """From a request's `Origin` to headers for the server's own refusals, so that web pages may read those as well."""
