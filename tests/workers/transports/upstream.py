"""Scripted upstreams for the tests of the transport: raw sockets, so that they can break HTTP and see every close.

`async with serving(script) as upstream` runs `script(peer)` for every connection that is accepted. The certificates are
made anew for every test run.
"""

import datetime
import ipaddress
import os
import socket
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

OK = b"HTTP/1.1 200 OK\r\n"


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, stream: trio.abc.Stream, sock: trio.socket.SocketType, number: int) -> None:
        self.stream = stream
        self.number = number
        self.socket = sock
        self._buffer = b""

    async def request(self) -> Asked | None:
        """The next request, or None when the client has left."""
        while b"\r\n\r\n" not in self._buffer:
            if not await self._more():
                return None
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        method, target, _ = first.split(" ")
        asked = Asked(method, target, headers, b"")
        length = int(asked.header("content-length") or 0)
        while len(self._buffer) < length:
            if not await self._more():
                return None
        asked.body, self._buffer = self._buffer[:length], self._buffer[length:]
        return asked

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def gone(self) -> float:
        """Wait until the client has closed or reset the connection; the time at which that was seen."""
        while await self._more():
            pass
        return trio.current_time()

    def reset(self) -> None:
        """Break the connection with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    async def secure(self, context: ssl.SSLContext) -> None:
        """Go on under TLS, as the far end of a tunnel would."""
        self.stream = trio.SSLStream(self.stream, context, server_side=True, https_compatible=True)

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            return False
        self._buffer += data
        return bool(data)


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Upstream:
    """A running upstream; `accepted` counts its connections, `open` those that have not ended."""

    port: int
    scheme: str = "http"
    accepted: int = 0
    open: int = 0
    asked: list[Asked] = field(default_factory=list)

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://localhost:{self.port}{path}"


@asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """An upstream on a free port of 127.0.0.1; all its connections have ended when the block is left."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    upstream = Upstream(listeners[0].socket.getsockname()[1], "https" if tls else "http")

    async def accept(stream: trio.SocketStream) -> None:
        upstream.accepted += 1
        upstream.open += 1
        wrapped = trio.SSLStream(stream, tls, server_side=True, https_compatible=True) if tls else stream
        try:
            await script(Peer(wrapped, stream.socket, upstream.accepted))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client left, or the script broke the connection
        finally:
            upstream.open -= 1
            stream.socket.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, accept, listeners)
        try:
            yield upstream
        finally:
            nursery.cancel_scope.cancel()


def answering(*pieces: bytes, close: bool = True) -> Script:
    """A script that answers every request with these pieces, each sent by itself; then closes, if it is to."""

    async def script(peer: Peer) -> None:
        while await peer.request():
            for piece in pieces:
                await peer.send(piece)
            if close:
                await peer.stream.aclose()
                return

    return script


def whole(body: bytes) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds, at most five seconds."""
    with trio.fail_after(5):
        while not condition():
            await trio.lowlevel.checkpoint()


class Authority:
    """A certificate authority of our own."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.pem = self._sign(self._name, self._key, authority=True, names=[], days=2).public_bytes(_PEM)

    def server(self, *names: str, days: int = 1) -> ssl.SSLContext:
        """A server context with a certificate for these names; `days` < 0: it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test server")])
        certificate = self._sign(subject, key, authority=False, names=list(names), days=days)
        secret = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(secret + certificate.public_bytes(_PEM))
        try:
            context.load_cert_chain(file.name)
        finally:
            os.unlink(file.name)
        return context

    def client(self) -> ssl.SSLContext:
        """A client context that trusts this authority alone."""
        return ssl.create_default_context(cadata=self.pem.decode("ascii"))

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool, names: list[str], days: int
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=3))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general(name) for name in names]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())


_PEM = serialization.Encoding.PEM


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@cache
def authority() -> Authority:
    return Authority()
