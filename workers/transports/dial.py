"""Makes connections: name, TCP, a proxy's tunnel, TLS, all within one time limit.

An `http://` proxy is spoken to here, with the connections of our own transport, because a tunnel must be closed
as promptly as any other connection when its caller leaves. For `https` upstreams it is asked for a tunnel
(CONNECT, RFC 9110 section 9.3.6), for WebSockets too (RFC 6455 section 4.1); for `http` ones it gets the request itself in
absolute form (RFC 9112 section 3.2.2), which `Proxy.authorization` accompanies.
"""

import base64
import socket
import ssl
from dataclasses import dataclass, field

import httpx2
import trio

from workers.exchange import ConnectFailed, TransportError
from workers.transports.connection import Connection, Origin, TlsConnection
from workers.transports.ears import Ears
from workers.transports.response import ResponseParser

_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""A thinking model says nothing for minutes; probes keep address translators from forgetting the connection
and show within two minutes that the peer's machine is gone. Seconds, seconds, count."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; `authorization` is the value of its `Proxy-Authorization` field, if it wants one."""

    host: str
    port: int
    authorization: bytes | None = field(default=None, repr=False)

    @classmethod
    def from_url(cls, url: str) -> "Proxy":
        """From `http://[user:password@]host[:port]`. Raises ValueError."""
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL:
            raise ValueError("the proxy's address is not a URL") from None
        if parsed.scheme != "http" or not parsed.host:
            raise ValueError("a proxy's address is http://[user:password@]host[:port]")
        authorization = None
        if parsed.username or parsed.password:
            pair = f"{parsed.username}:{parsed.password}".encode()
            authorization = b"Basic " + base64.b64encode(pair)
        return cls(parsed.raw_host.decode("ascii"), parsed.port or 80, authorization)


@dataclass(frozen=True, slots=True)
class Dialer:
    """Opens connections, each ready for a request, within `connect_seconds`."""

    context: ssl.SSLContext
    connect_seconds: float
    proxy: Proxy | None = None
    ears: Ears | None = None

    async def __call__(self, origin: Origin) -> Connection:
        """Raises ConnectFailed, whose message names the host."""
        target = f"{origin.host}:{origin.port}" + (" through the proxy" if self.proxy else "")
        with trio.move_on_after(self.connect_seconds):
            try:
                return await self._connect(origin)
            except ssl.SSLCertVerificationError as error:
                raise ConnectFailed(f"certificate of {origin.host} refused: {error.verify_message}") from error
            except ssl.SSLError as error:
                raise ConnectFailed(f"TLS with {origin.host} failed: {error.reason}") from error
            except OSError as error:
                raise ConnectFailed(f"cannot connect to {target}: {error}") from error
        raise ConnectFailed(f"no connection to {target} within {self.connect_seconds:g} s")

    async def _connect(self, origin: Origin) -> Connection:
        if self.proxy is None:
            sock = await _open_socket(origin.host, origin.port)
        else:
            sock = await _open_socket(self.proxy.host, self.proxy.port)
        try:
            if self.proxy is not None and origin.scheme != "http":
                await _open_tunnel(Connection(sock, origin), self.proxy)
        except BaseException:
            sock.close()
            raise
        if origin.scheme in ("http", "ws"):
            return Connection(sock, origin, self.ears)
        secured = TlsConnection(sock, origin, self.context, self.ears)
        try:
            await secured.handshake()
        except BaseException:
            secured.close()
            raise
        return secured


def tls_context(authorities: ssl.SSLContext | str | None = None) -> ssl.SSLContext:
    """`authorities`: None for the system's certificate authorities, else a PEM file, or a context that is ready."""
    if isinstance(authorities, ssl.SSLContext):
        context = authorities
    elif isinstance(authorities, str):
        context = ssl.create_default_context(cafile=authorities)
    else:
        context = httpx2.create_ssl_context(trust_env=False)
    context.set_alpn_protocols(["http/1.1"])
    # Some builds of Python take a cut connection for the end of a body unless they are told not to.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


async def _open_socket(host: str, port: int) -> socket.socket:
    """A connected non-blocking socket; tries several addresses of the host at once (RFC 8305)."""
    stream = await trio.open_tcp_stream(host, port)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


async def _open_tunnel(connection: Connection, proxy: Proxy) -> None:
    """Have the proxy connect us to the connection's origin. Raises ConnectFailed, OSError."""
    host = f"[{connection.origin.host}]" if ":" in connection.origin.host else connection.origin.host
    target = f"{host}:{connection.origin.port}".encode("ascii")
    lines = [b"CONNECT %b HTTP/1.1" % target, b"Host: " + target]
    if proxy.authorization is not None:
        lines.append(b"Proxy-Authorization: " + proxy.authorization)
    connection.offer(b"\r\n".join([*lines, b"", b""]))
    await connection.flush()
    parser = ResponseParser(head_only=True)
    try:
        while not parser.complete:
            if data := await connection.receive():
                parser.feed(data)
            else:
                parser.end()
    except TransportError as error:
        raise ConnectFailed(f"no tunnel through the proxy: {error}") from error
    if not 200 <= parser.status < 300:
        raise ConnectFailed(f"the proxy refused a tunnel with status {parser.status}")
