"""Writes to a non-blocking socket: at once what the kernel takes, the rest by a task of its own, under a deadline.

What the kernel takes at once costs one system call, 4 µs; a lock, a shield and `send_all` around it made that 30. And
since no caller ever waits inside a write, a cancelled app cannot tear a half-written chunk, and a client that stops
reading holds nobody.
"""

import socket
from collections.abc import Callable

import trio

from frontend.server.settings import KIB

PATIENCE_BYTES = 64 * KIB


class SocketWriter:
    """The writing half of a connection.

    `on_written` is called when the kernel has taken what had to wait, `on_broken` when it never will: the connection
    is gone, or (with True) the client took less than 64 KiB within `stall_seconds`. Both are synchronous.
    """

    def __init__(
        self,
        sock: socket.socket,
        nursery: trio.Nursery,
        stall_seconds: float,
        on_written: Callable[[], None],
        on_broken: Callable[[bool], None],
    ) -> None:
        self.together = False
        self._sock = sock
        self._nursery = nursery
        self._stall_seconds = stall_seconds
        self._on_written = on_written
        self._on_broken = on_broken
        self._kept = b""
        self._unsent = bytearray()
        self._settled = trio.Event()
        self._closed = False

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return len(self._unsent)

    def write(self, data: bytes) -> None:
        """Write in order, without waiting. Nothing happens once the writer is closed.

        While `together` is set nothing leaves; what gathers goes out with the first write after it.
        """
        if self._closed:
            return
        if self.together:
            self._kept += data
            return
        if self._kept:
            data, self._kept = self._kept + data, b""
        if self._unsent:
            self._unsent += data
        elif data:
            sent = self._send(data)
            if sent < len(data) and not self._closed:
                self._unsent += memoryview(data)[sent:]
                self._settled = trio.Event()
                self._nursery.start_soon(self._write_rest)

    async def written(self) -> None:
        """Wait until the kernel has taken everything, or the writer is closed."""
        if self._unsent:
            await self._settled.wait()

    def close(self) -> None:
        """Forget what is unsent and take nothing more. To be called before the socket is closed."""
        self._closed = True
        self._unsent.clear()
        self._settled.set()

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.close()
            self._on_broken(False)
            return 0

    async def _write_rest(self) -> None:
        taken = 0
        with trio.CancelScope(deadline=trio.current_time() + self._stall_seconds) as patience:
            while self._unsent:
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                except trio.ClosedResourceError:
                    return
                sent = self._send(bytes(memoryview(self._unsent)[:PATIENCE_BYTES]))
                del self._unsent[:sent]
                taken += sent
                if taken >= PATIENCE_BYTES:
                    taken = 0
                    patience.deadline = trio.current_time() + self._stall_seconds
        if patience.cancelled_caught:
            self.close()
            self._on_broken(True)
        elif not self._closed:
            self._settled.set()
            self._on_written()
