"""A TCP relay between any two parties, whose faults the test switches on and off while connections are open.

    proxy = ChaosProxy(("127.0.0.1", redis_port))
    await nursery.start(proxy.run)
    …                                       # somebody connects to 127.0.0.1:proxy.port
    proxy.away()                            # FIN to both sides; who connects meanwhile is refused
    proxy.back()

| fault | what the parties see |
|---|---|
| `cut()` | both get FIN, as when a process ends |
| `rst()` | both get RST, as when a machine reboots or a firewall forgets |
| `away()` … `back()` | as `cut` or `rst`, and connections are refused until then |
| `direction.hole` | nothing passes, no byte, no FIN, no RST: a cable that is out. It all arrives when the hole is closed |
| `half(direction)` | FIN in one direction, the other goes on |
| `direction.delay_seconds` | a piece waits that long; what comes meanwhile waits with the next |
| `direction.bytes_per_second` | a thin line |
| `direction.cut_after` | so many more bytes of a connection pass, then `cut` (or `rst`, with `cut_by_rst`) |
| `direction.garble` | each piece goes through this function |

`up` is the direction towards the target, `down` the one back. Everything is synchronous except `run`.
"""

import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

PIECE_BYTES: Final = 64 * 1024
THIN_LINE_TICKS: Final = 50
"""A thin line gets its bytes in so many pieces a second."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Direction:
    """The faults of one direction, for all connections, and what has passed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.delay_seconds = 0.0
        self.bytes_per_second = 0.0
        self.cut_after: int | None = None
        self.cut_by_rst = False
        self.garble: Callable[[bytes], bytes] | None = None
        self.bytes = 0
        self.pieces = 0
        self._hole = False
        self._changed = trio.Event()

    @property
    def hole(self) -> bool:
        return self._hole

    @hole.setter
    def hole(self, hole: bool) -> None:
        self._hole = hole
        self._changed.set()
        self._changed = trio.Event()

    async def open(self) -> None:
        """Wait until there is no hole."""
        while self._hole:
            await self._changed.wait()

    def __repr__(self) -> str:
        return f"<Direction {self.name}, {self.bytes} bytes{', hole' if self.hole else ''}>"


@dataclass(frozen=True)
class Statistics:
    """Counts since the proxy was made, except `open`."""

    connections: int
    open: int
    refused: int
    """By the target. Who is refused while the proxy is away is seen by nobody."""
    cut: int
    up_bytes: int
    down_bytes: int


@dataclass(eq=False)
class _Pair:
    """One connection and its continuation."""

    client: trio.SocketStream
    target: trio.SocketStream
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    halved: set[str] = field(default_factory=set)
    by_rst: bool = False

    def end(self, *, by_rst: bool = False) -> None:
        self.by_rst = by_rst
        self.scope.cancel()


class ChaosProxy:
    """A relay on a loopback port of its own. `target`: `(host, port)`, or the path of a unix socket."""

    def __init__(self, target: tuple[str, int] | str, *, host: str = "127.0.0.1") -> None:
        self.target = target
        """May be changed: counts for connections from then on."""
        self.up = Direction("up")
        self.down = Direction("down")
        self._host = host
        self._port = 0
        self._pairs: set[_Pair] = set()
        self._listener: trio.SocketListener | None = None
        self._returns = trio.Event()
        self._connections = self._refused = self._cut = 0

    @property
    def port(self) -> int:
        """Stays the same over `away` and `back`."""
        return self._port

    @property
    def statistics(self) -> Statistics:
        return Statistics(self._connections, len(self._pairs), self._refused, self._cut, self.up.bytes, self.down.bytes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled. Started by `nursery.start`, which returns when it listens."""
        async with trio.open_nursery() as nursery:
            self._listen()
            task_status.started()
            try:
                while True:
                    if self._listener is None:
                        await self._returns.wait()
                        continue
                    with contextlib.suppress(trio.ClosedResourceError):
                        client = await self._listener.accept()
                        nursery.start_soon(self._serve, client)
            finally:
                self._stop_listening()
                nursery.cancel_scope.cancel()

    # --- faults

    def cut(self) -> int:
        """End all connections with FIN; how many there were."""
        return self._end_all(by_rst=False)

    def rst(self) -> int:
        """End all connections with RST; how many there were."""
        return self._end_all(by_rst=True)

    def away(self, *, by_rst: bool = False) -> None:
        """End all connections, and refuse further ones until `back`."""
        self._stop_listening()
        self._end_all(by_rst=by_rst)

    def back(self) -> None:
        if self._listener is None:
            self._listen()
            self._returns.set()

    def hole(self, hole: bool = True) -> None:
        """In both directions."""
        self.up.hole = self.down.hole = hole

    def half(self, direction: Direction) -> None:
        """Nothing more passes in this direction of the open connections: its receiver gets FIN."""
        for pair in self._pairs:
            if direction.name not in pair.halved:
                pair.halved.add(direction.name)
                sink = pair.target if direction is self.up else pair.client
                with contextlib.suppress(OSError):
                    sink.socket.shutdown(socket.SHUT_WR)

    def __repr__(self) -> str:
        return f"<ChaosProxy :{self._port} to {self.target}, {len(self._pairs)} open>"

    # --- the relay

    def _listen(self) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((self._host, self._port))
        listening.listen(128)
        listening.setblocking(False)
        self._port = listening.getsockname()[1]
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.socket.close()
            self._listener = None
            self._returns = trio.Event()

    def _end_all(self, *, by_rst: bool) -> int:
        ended = list(self._pairs)
        self._cut += len(ended)
        for pair in ended:
            pair.end(by_rst=by_rst)
        return len(ended)

    async def _serve(self, client: trio.SocketStream) -> None:
        self._connections += 1
        try:
            if isinstance(self.target, str):
                target = await trio.open_unix_socket(self.target)
            else:
                target = await trio.open_tcp_stream(*self.target)
        except OSError:
            self._refused += 1
            _close(client, by_rst=True)
            return
        pair = _Pair(client, target)
        self._pairs.add(pair)
        try:
            with pair.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, pair, self.up, client, target)
                    nursery.start_soon(self._pump, pair, self.down, target, client)
        finally:
            self._pairs.discard(pair)
            for stream in (client, target):
                _close(stream, by_rst=pair.by_rst)

    async def _pump(
        self, pair: _Pair, direction: Direction, source: trio.SocketStream, sink: trio.SocketStream
    ) -> None:
        passed = 0
        while True:
            await trio.lowlevel.wait_readable(source.socket)
            await direction.open()
            try:
                rate = direction.bytes_per_second
                piece = await source.receive_some(max(1, int(rate / THIN_LINE_TICKS)) if rate else PIECE_BYTES)
            except trio.BrokenResourceError:
                pair.end(by_rst=True)
                return
            if not piece:
                break
            if direction.delay_seconds:
                await trio.sleep(direction.delay_seconds)
            if direction.garble is not None:
                piece = direction.garble(piece)
            limit = direction.cut_after
            if limit is not None:
                piece = piece[: max(0, limit - passed)]
            if direction.name not in pair.halved:
                try:
                    await sink.send_all(piece)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pair.end(by_rst=True)
                    return
                passed += len(piece)
                direction.bytes += len(piece)
                direction.pieces += 1
            if limit is not None and passed >= limit:
                self._cut += 1
                pair.end(by_rst=direction.cut_by_rst)
                return
            if rate:
                await trio.sleep(len(piece) / rate)
        await direction.open()
        with contextlib.suppress(OSError):
            sink.socket.shutdown(socket.SHUT_WR)


def _close(stream: trio.SocketStream, *, by_rst: bool) -> None:
    if by_rst:
        with contextlib.suppress(OSError):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    stream.socket.close()
