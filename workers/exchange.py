"""What an HTTP exchange with an upstream is made of, and the ways in which one fails.

    TransportError
     ├─ ConnectFailed       nothing was sent: name, TCP, proxy or TLS failed
     ├─ Disconnected        the peer left; `response_started` says whether a byte of the answer had come
     ├─ ProtocolViolation   the peer's bytes are not the HTTP, WebSocket or Socket.IO that we accept
     ├─ TooLarge            the answer exceeds what we are ready to hold
     ├─ TransportTimeout    the time that the caller of the transport allowed is over
     ├─ SocketRefused       the server does not open a socket for us
     └─ Overflow            whoever asked for it does not take it fast enough

Every message is safe to log: it names at most a host and a port, never a query, a header or a body.
"""

from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import urlsplit

import msgspec

from shared.errors import KINDS, Failure


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to an upstream: absolute http(s) URL, headers in order, whole body.

    `Host` and `Content-Length` are added by the transport, as is `Accept-Encoding: identity` where no
    `Accept-Encoding` is given.
    """

    method: str
    url: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""

    def __repr__(self) -> str:
        parts = urlsplit(self.url)
        return f"<HttpRequest {self.method} {parts.scheme}://{parts.hostname}{parts.path} ({len(self.body)} bytes)>"


class HttpReply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer: status, headers by lower-case name (repeated ones joined with `, `), decoded body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"<HttpReply {self.status} ({len(self.body)} bytes)>"


class TransportError(Exception):
    """An exchange with an upstream failed; the message is safe to log, but it is not written for the caller."""

    kind: ClassVar[str]

    def failure(self) -> Failure:
        """The same in words for the caller, which name no host."""
        return Failure(self.kind, KINDS[self.kind].meaning)


class ConnectFailed(TransportError):
    """No connection came about, so the upstream has seen nothing of the request."""

    kind = "unreachable"


class Disconnected(TransportError):
    """The connection ended before the answer did.

    `response_started`: at least one byte of the answer had arrived, so the upstream has acted on the request.
    """

    kind = "disconnected"

    def __init__(self, message: str, *, response_started: bool) -> None:
        super().__init__(message)
        self.response_started = response_started


class ProtocolViolation(TransportError):
    """The upstream sent something that is not the HTTP/1.1, WebSocket or Socket.IO that we accept."""

    kind = "protocol_error"


class TooLarge(TransportError):
    """The answer is larger than the limit, or unpacks to something absurdly larger than what was sent."""

    kind = "protocol_error"


class TransportTimeout(TransportError):
    """The whole answer did not arrive within the time that was given for it."""

    kind = "timeout"


class SocketRefused(TransportError):
    """The server does not open a socket, or does not let us into a namespace of one.

    `reply`: its words in the form of an HTTP answer, for the provider to judge. What a namespace's refusal says is the body
    of a 401, since it is the place where Socket.IO servers check who is asking.
    """

    kind = "credential_invalid"

    def __init__(self, message: str, reply: HttpReply) -> None:
        super().__init__(message)
        self.reply = reply


class Overflow(TransportError):
    """More has arrived for one job than we hold for it: its caller takes the answer too slowly."""

    kind = "caller_too_slow"
