"""One TCP connection to an upstream, plain or TLS, driven by hand so that a read costs one task switch.

trio's own streams check for conflicts, lock and checkpoint on every call, and its SSLStream does so at two
levels. Here a read is one `wait_readable` and one `recv`, and TLS is OpenSSL working on two memory buffers,
which has a second merit: everything but the waiting is synchronous, closing included.

A connection knows nothing of HTTP. Failures of the peer or the network are OSError (ssl.SSLError is one);
after `close` the waiting methods raise trio.ClosedResourceError.
"""

import socket
import ssl
import struct
from typing import NamedTuple

import trio
from trio.lowlevel import notify_closing, wait_readable, wait_writable

from workers.transports.ears import Ears

RECV_BYTES = 64 * 1024
"""Most bytes of one `recv`; a larger buffer costs more to allocate than it saves."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Origin(NamedTuple):
    """Where a connection leads; `host` is ASCII and without brackets."""

    scheme: str
    host: str
    port: int


class Connection:
    """A plain connection; takes over the non-blocking socket. One task may read while another writes.

    With `ears` its reads wait there, otherwise in trio.
    """

    __slots__ = ("_ear", "_fd", "_socket", "_unsent", "idle_since", "origin")

    def __init__(self, sock: socket.socket, origin: Origin, ears: Ears | None = None) -> None:
        self.origin = origin
        self.idle_since = 0.0
        """trio time; kept by the pool."""
        self._socket = sock
        self._fd = sock.fileno()
        self._ear = ears.listen(self._fd) if ears is not None else None
        self._unsent = memoryview(b"")

    async def receive(self) -> bytes:
        """What one read gives, at most RECV_BYTES; b"" when the peer has closed its side."""
        while True:
            if self._fd < 0:
                raise trio.ClosedResourceError("this connection is closed")
            if self._ear is None:
                await wait_readable(self._fd)
            else:
                await self._ear.wait()
            try:
                data = self._socket.recv(RECV_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                if self._fd < 0:  # another task closed it after the wait was over
                    raise trio.ClosedResourceError("this connection is closed") from None
                raise
            if len(data) == RECV_BYTES and self._ear is not None:
                self._ear.more()
            return data

    def offer(self, data: bytes | memoryview) -> bool:
        """Send what the socket takes without waiting; False if some is left for `flush`."""
        sealed = self._seal(data)
        self._unsent = memoryview(bytes(self._unsent) + sealed if self._unsent else sealed)
        return self._push()

    async def flush(self) -> None:
        """Send what is left of earlier offers."""
        while not self._push():
            await wait_writable(self._fd)

    def is_quiet(self) -> bool:
        """Nothing has arrived on this idle connection; a byte or an end condemns it, as nobody asked for one."""
        try:
            return self._is_quiet()
        except OSError:
            return False

    def close(self, *, reset: bool = False) -> None:
        """Close the socket now; `reset` also throws away what the kernel has not yet sent.

        Without `reset` the peer sees our FIN behind the last byte, which TCP repeats until it has arrived.
        Where it does not read, that FIN would wait in line, so there a reset is the quicker message.
        """
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        if self._ear is not None:
            self._ear.close()
        notify_closing(fd)
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._socket.close()

    def _is_quiet(self) -> bool:
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        return False

    def _seal(self, data: bytes | memoryview) -> bytes | memoryview:
        return data

    def _push(self) -> bool:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return False
        self._unsent = self._unsent[sent:]
        return not self._unsent


class TlsConnection(Connection):
    """A connection under TLS; usable after `handshake`.

    A peer that closes the socket without `close_notify` has not ended its stream in a way that can be told from
    an attack (RFC 8446 section 6.1): that is ssl.SSLEOFError, not b"".
    """

    __slots__ = ("_ended", "_incoming", "_outgoing", "_tls")

    def __init__(self, sock: socket.socket, origin: Origin, context: ssl.SSLContext, ears: Ears | None = None) -> None:
        super().__init__(sock, origin, ears)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=origin.host)
        self._ended = False

    async def handshake(self) -> None:
        """Agree on keys and verify the peer. Our last message leaves with the first request."""
        while True:
            try:
                return self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.offer(b"")
                await self.flush()
                self._take_in(await super().receive())

    async def receive(self) -> bytes:
        while not self._ended:
            self._take_in(await super().receive())
            if plain := self._unseal():
                return plain
        return b""

    def _is_quiet(self) -> bool:
        while not self._ended:
            try:
                self._take_in(self._socket.recv(RECV_BYTES))
            except BlockingIOError:
                return True
            if self._unseal():
                return False
        return False

    def _take_in(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _unseal(self) -> bytes:
        """All plain text that the bytes taken in so far give; may be none."""
        pieces = []
        try:
            while piece := self._tls.read(RECV_BYTES):
                pieces.append(piece)
                # Asking on until OpenSSL raises SSLWantReadError would cost more than the read itself.
                if not self._incoming.pending and not self._tls.pending():
                    break
            else:
                self._ended = True
        except ssl.SSLWantReadError:
            pass
        if self._outgoing.pending:  # OpenSSL answers some messages by itself, such as a key update
            self.offer(b"")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _seal(self, data: bytes | memoryview) -> bytes | memoryview:
        if data:
            self._tls.write(data)
        return self._outgoing.read()
