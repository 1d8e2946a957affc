"""Keeps connections alive between requests: idle ones per origin, the youngest used first.

There are no slots and nobody waits here. A pool that also limits concurrency has to hand slots from task to task,
which is where slots are lost under cancellation; how many calls an upstream may see is the credential pool's
question, and it is answered before a connection is wanted. So a connection is in one of three hands: the pool's
(idle), one exchange's (in use), nobody's (closed), and every move between them is synchronous.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from workers.transports.connection import Connection, Origin


class TransportStatistics(NamedTuple):
    """`opened` and `reused` count since the start; `idle` and `open` (idle ones included) are of now."""

    opened: int
    reused: int
    idle: int
    open: int


class ConnectionPool:
    """At most `idle_connections` in all, each idle for at most `idle_seconds`."""

    def __init__(
        self, dial: Callable[[Origin], Awaitable[Connection]], *, idle_connections: int, idle_seconds: float
    ) -> None:
        self._dial = dial
        self._idle_connections = idle_connections
        self._idle_seconds = idle_seconds
        self._idle: dict[Origin, list[Connection]] = {}  # each list from oldest to youngest
        self._opened = 0
        self._reused = 0
        self._open = 0
        self._closed = False

    def take(self, origin: Origin) -> Connection | None:
        """An idle connection that the peer has not closed meanwhile, or None."""
        self._close_expired()
        while idle := self._idle.get(origin):
            connection = idle.pop()
            if not idle:
                del self._idle[origin]
            if connection.is_quiet():
                self._reused += 1
                return connection
            self.discard(connection)
        return None

    async def connect(self, origin: Origin) -> Connection:
        """A fresh connection. Raises ConnectFailed."""
        connection = await self._dial(origin)
        self._opened += 1
        self._open += 1
        return connection

    def keep(self, connection: Connection) -> None:
        """Take back a connection whose last answer is complete, for the next request."""
        if self._closed:
            self.discard(connection)
            return
        connection.idle_since = trio.current_time()
        self._idle.setdefault(connection.origin, []).append(connection)
        self._close_expired()
        if sum(map(len, self._idle.values())) > self._idle_connections:
            self._close_oldest()

    def discard(self, connection: Connection, *, reset: bool = False) -> None:
        """Close a connection that was taken or connected; at most once each."""
        connection.close(reset=reset)
        self._open -= 1

    def close(self) -> None:
        """Close the idle connections now and the others when their exchanges end."""
        self._closed = True
        while self._idle:
            self._close_oldest()

    def statistics(self) -> TransportStatistics:
        idle = sum(map(len, self._idle.values()))
        return TransportStatistics(self._opened, self._reused, idle, self._open)

    def _close_expired(self) -> None:
        horizon = trio.current_time() - self._idle_seconds
        while self._idle and min(idle[0].idle_since for idle in self._idle.values()) < horizon:
            self._close_oldest()

    def _close_oldest(self) -> None:
        origin = min(self._idle, key=lambda origin: self._idle[origin][0].idle_since)
        self.discard(self._idle[origin].pop(0))
        if not self._idle[origin]:
            del self._idle[origin]
