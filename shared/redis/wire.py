"""One non-blocking socket to Redis and the parser of what comes back: bytes in, replies out, no policy.

Sending is synchronous: `write` hands the kernel what it takes at once, so a command costs no task switch, and can be sent
from a `finally` or from code that is not async. What the kernel does not take waits in `unsent` for `drain`.
A TLS socket in non-blocking mode has the same methods, so there is one class for both. It may also say "would block" in
two more ways, and a rest must be offered again with the same beginning, which an append-only buffer does by itself.

Protocol: RESP2, https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

import contextlib
import socket
import ssl
from typing import Any, Final

import hiredis
import trio

from shared.redis.address import Address
from shared.redis.counts import Counts
from shared.redis.failures import LinkDown, RefusalKind, Refused

Reply = Any
"""`bytes`, `int`, `None`, or a list of replies. An error is an instance of `Refused`, also inside a list."""

Word = str | bytes | int | float | memoryview
"""One word of a command. Anything else (`None`, `bool`, `bytearray`) is a `TypeError`."""

INCOMPLETE: Final = object()
"""What `next_reply` returns while there is no whole reply."""

BROKEN: Final = (OSError, hiredis.ProtocolError, trio.ClosedResourceError)
"""What the methods of `Wire` raise when the connection has ended, each with a reason in its text."""

# More costs an allocation that the kernel has to map (20 µs). Less than 16 KiB would leave a part of a TLS record inside
# the TLS library, where `wait_readable` does not see it.
RECEIVE_BYTES: Final = 64 * 1024

_NOT_READABLE = (BlockingIOError, ssl.SSLWantReadError)
_NOT_WRITABLE = (BlockingIOError, ssl.SSLWantWriteError)


def pack(command: tuple[Word, ...]) -> bytes:
    """The bytes of one command. `ValueError` for the empty one, to which a server would never reply."""
    if not command:
        raise ValueError("a command has at least one word")
    return hiredis.pack_command(command)  # type: ignore[arg-type, no-any-return]


class Wire:
    """One connected socket. Used by one task that receives and any code that sends."""

    def __init__(self, sock: socket.socket, counts: Counts) -> None:
        self.unsent = bytearray()
        self.counts = counts
        self._sock = sock
        self._fd = sock.fileno()
        self._parser = hiredis.Reader(replyError=Refused, notEnoughData=INCOMPLETE)
        self.next_reply = self._parser.gets
        """The next whole reply among the bytes received so far, or `INCOMPLETE`."""

    def write(self, data: bytes) -> None:
        """Send what is unsent, and `data` behind it, as far as the kernel takes it now; never blocks."""
        unsent = self.unsent
        if unsent:
            unsent += data
            del unsent[: self._send(unsent)]
        else:
            sent = self._send(data)
            if sent < len(data):
                unsent += memoryview(data)[sent:]

    async def drain(self) -> None:
        """Return when nothing is unsent."""
        while self.unsent:
            await self.writable()
            self.write(b"")

    async def writable(self) -> None:
        """Return when the kernel takes bytes again."""
        self._check_open()
        await trio.lowlevel.wait_writable(self._fd)

    async def receive(self) -> None:
        """Wait for bytes and feed them to the parser."""
        self._check_open()
        await trio.lowlevel.wait_readable(self._fd)
        try:
            received = self._sock.recv(RECEIVE_BYTES)
        except _NOT_READABLE:
            return
        if not received:
            raise ConnectionResetError("the server closed the connection")
        self.counts.bytes_received += len(received)
        self._parser.feed(received)

    async def reply(self) -> Reply:
        """The next reply, waiting for it if need be."""
        while (reply := self.next_reply()) is INCOMPLETE:
            await self.receive()
        return reply

    def close(self) -> None:
        """Close now; whoever waits on the socket gets `trio.ClosedResourceError`. Once is enough, more is harmless."""
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            self._fd = -1
            self._sock.close()

    def _check_open(self) -> None:
        if self._fd < 0:
            raise trio.ClosedResourceError("this end of the connection was closed")

    def _send(self, data: bytes | bytearray) -> int:
        try:
            sent = self._sock.send(data)
        except _NOT_WRITABLE:
            return 0
        counts = self.counts
        counts.sends += 1
        counts.bytes_sent += sent
        return sent


async def open_wire(address: Address, *, name: str, timeout_seconds: float, counts: Counts) -> Wire:
    """Connect, log in, and see one reply. `LinkDown` if that fails or takes too long, `Refused` if the server says no."""
    with trio.move_on_after(timeout_seconds):
        try:
            wire = Wire(await _open_socket(address), counts)
        except OSError as error:
            raise LinkDown(f"{address}: {reason(error)}") from error
        try:
            await _greet(wire, address, name)
        except BROKEN as error:
            wire.close()
            raise LinkDown(f"{address}: {reason(error)}") from error
        except BaseException:
            wire.close()
            raise
        return wire
    raise LinkDown(f"{address}: no answer within {timeout_seconds:g} s")


def reason(error: BaseException) -> str:
    """Why a connection ended, for people."""
    if isinstance(error, OSError) and error.__cause__ is not None:
        error = error.__cause__  # trio says that all attempts failed, and hangs the reason on it
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(reason(each) for each in error.exceptions))
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


async def _greet(wire: Wire, address: Address, name: str) -> None:
    """Everything in one round trip; the replies come in the order of the commands."""
    steps: list[tuple[Word, ...]] = []
    if address.password is not None:
        login = (address.username, address.password) if address.username else (address.password,)
        steps.append(("AUTH", *login))
    if address.db:
        steps.append(("SELECT", address.db))
    steps.append(("PING",))
    steps.append(("CLIENT", "SETNAME", name))
    with contextlib.suppress(OSError):  # a server without room for us has said so and hung up; its words come first
        wire.write(b"".join(pack(step) for step in steps))
        await wire.drain()
    for step in steps:
        reply = await wire.reply()
        # PING is what counts: it is refused without a login, without rights, and while the server loads its data. A full
        # disk refuses it as well, but not what we most need then. The name is a courtesy to whoever reads CLIENT LIST, and
        # some servers do not allow it.
        if isinstance(reply, Refused) and step[0] != "CLIENT" and reply.kind is not RefusalKind.CAPACITY:
            raise reply


async def _open_socket(address: Address) -> socket.socket:
    """A connected non-blocking socket; trio resolves the name and tries all of its addresses."""
    if address.path is not None:
        stream = await trio.open_unix_socket(address.path)
    else:
        stream = await trio.open_tcp_stream(address.host, address.port)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock = socket.socket(fileno=stream.socket.detach())
    try:
        sock.setblocking(False)
        return await _start_tls(sock, address) if address.tls else sock
    except BaseException:
        sock.close()
        raise


async def _start_tls(plain: socket.socket, address: Address) -> ssl.SSLSocket:
    sock = address.tls_context().wrap_socket(plain, server_hostname=address.host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                sock.do_handshake()
                return sock
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(sock)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(sock)
    except BaseException:
        sock.close()
        raise
