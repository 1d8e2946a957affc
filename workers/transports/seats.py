"""A job's place in a session that other jobs use as well."""

from types import TracebackType
from typing import Final, Protocol

import trio

from shared.sansio.socketio import SocketEvent
from workers.exchange import Overflow, TransportError

EVENTS: Final = 8192
EVENT_CHARACTERS: Final = 8 * 1024 * 1024
"""How much waits for one job."""


class Session(Protocol):
    """What a seat needs of its session."""

    def claimed(self, seat: "Seat", execution: str) -> None: ...
    def left(self, seat: "Seat") -> None: ...


class Seat:
    """One job's place in a session, from before its run is started until its end. Leaving its `with` block gives it up.

    `began` is to be set when the run may have been started, and to be cleared if it turns out that it was not.
    """

    def __init__(self, session: "Session") -> None:
        self.execution: str | None = None
        self.began = False
        self.over = False
        self._session: Session | None = session
        self._queue: list[SocketEvent] = []
        self._size = 0
        self._ended = False
        self._error: TransportError | None = None
        self._news = trio.Event()

    def claim(self, execution: str) -> None:
        """The run's name is known: what was heard of it and what will be heard of it comes here."""
        self.execution = execution
        if self._session is not None:
            self._session.claimed(self, execution)

    async def receive(self) -> list[SocketEvent]:
        """What has come, at least one; nothing after the server has said goodbye.

        Raises Disconnected when the connection was lost, Overflow when this job was too slow.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._queue:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return []
            self._news = trio.Event()
            await self._news.wait()
        events, self._queue, self._size = self._queue, [], 0
        return events

    def put(self, event: SocketEvent, size: int, *, last: bool) -> None:
        self.over |= last
        self._size += size
        if len(self._queue) < EVENTS and self._size <= EVENT_CHARACTERS:
            self._queue.append(event)
            self._news.set()
        else:
            self._queue.clear()
            self.end(Overflow("the answer came faster than its caller took it"))
            self.close()

    def end(self, error: TransportError | None) -> None:
        """Nothing more will come."""
        if not self._ended:
            self._ended, self._error = True, error
            self._news.set()

    def close(self) -> None:
        """Give the place up: nothing is heard from now on. Synchronous; any number of times."""
        if self._session is not None:
            session, self._session = self._session, None
            session.left(self)
        self.end(None)

    def __enter__(self) -> "Seat":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
