"""Long-lived Socket.IO sessions, one for each account, and the places that jobs take in them.

    seat = await sessions.seat(exchange.session, exchange.owner)      # connected
    with seat:
        ...                                                           # start the run, learn its name
        seat.claim(name)
        while events := await seat.receive():
            ...

1. A session is connected when somebody wants a seat in it, stays connected for whoever comes next, and is closed when nobody
   has come for a while. Lost connections are made again when they are wanted, with full jitter.
2. An event goes to the seat that has claimed its run, and to no other. Those that come before the claim wait for it.
3. An event that names no run goes to the only seat there is, and to nobody as long as a run may still be talking that its own
   job has left: upstreams that cannot be told to stop go on saying things to the account.
4. A seat whose job does not keep up is given up; the session and the other seats do not notice.
"""

import logging
import math
import random
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

import trio

from shared.sansio.socketio import SocketEvent
from workers.exchange import Disconnected, SocketRefused, TransportError, TransportTimeout
from workers.provider import Belonging, SocketIOSession
from workers.transports.dial import Dialer
from workers.transports.seats import EVENT_CHARACTERS, EVENTS, Seat
from workers.transports.socketio import DISCONNECT_SECONDS, OPENING_SECONDS, Address, SocketIO

_log = logging.getLogger(__name__)

Owner = Callable[[SocketEvent], Belonging | None]

IDLE_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 5.0
"""How long a job puts up with a session that fails to connect."""
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 10.0
MOST_DOUBLINGS: Final = 10
STABLE_SECONDS: Final = 5.0
"""A connection that lasted so long, or that an event came from, was a success, however it ended."""
STRANGER_SECONDS: Final = 300.0
"""How long a run that was left may go on talking."""


class _Heard(NamedTuple):
    whose: Hashable
    event: SocketEvent
    size: int
    last: bool


class _Session:
    """One account's session: at most one connection at a time."""

    def __init__(self, wanted: SocketIOSession, owner: Owner, dial: Dialer, idle_seconds: float) -> None:
        self.wanted = wanted
        self.stopping = False
        self.connections = 0
        self._owner = owner
        self._dial = dial
        self._idle_seconds = idle_seconds
        self._connection: SocketIO | None = None
        self._opening: SocketIO | None = None
        self._news = trio.Event()
        self._useful = False
        self._seats: set[Seat] = set()
        self._by_execution: dict[str, Seat] = {}
        self._unclaimed: deque[_Heard] = deque()
        self._unclaimed_size = 0
        self._strangers: dict[Hashable, float] = {}
        self._wanting = 0
        self._attempts = 0
        self._tried = trio.Event()
        self._error: TransportError | None = None
        self._refused_auth: object = None

    # --- for jobs

    async def take(self) -> Seat:
        """A seat, as soon as the session is connected. Raises why it is not: a refusal at once, anything else after a while."""
        give_up_at = trio.current_time() + RETRY_SECONDS
        seen = self._attempts
        self._wanting += 1
        self._news.set()
        try:
            while self._connection is None:
                failed = self._attempts > seen and self._error is not None
                if failed and (self._is_refusal_of(self.wanted.auth) or trio.current_time() >= give_up_at):
                    assert self._error is not None
                    raise self._error
                with trio.move_on_at(give_up_at if failed else math.inf):
                    await self._tried.wait()
        finally:
            self._wanting -= 1
        seat = Seat(self)
        self._seats.add(seat)
        return seat

    def claimed(self, seat: Seat, execution: str) -> None:
        self._by_execution[execution] = seat
        waiting, self._unclaimed, self._unclaimed_size = self._unclaimed, deque(), 0
        for heard in waiting:
            if heard.whose in (execution, seat):
                seat.put(heard.event, heard.size, last=heard.last)
            elif self._someone_may_claim():
                self._keep(heard)

    def left(self, seat: Seat) -> None:
        self._seats.discard(seat)
        if seat.execution is not None:
            self._by_execution.pop(seat.execution, None)
        if seat.began and not seat.over:
            self._forget_strangers()
            self._strangers[seat.execution or seat] = trio.current_time() + STRANGER_SECONDS
        if not self._someone_may_claim():
            self._unclaimed.clear()
            self._unclaimed_size = 0
        self._news.set()

    def stop(self) -> None:
        """Say goodbye and end."""
        self.stopping = True
        for connection in (self._connection, self._opening):
            if connection is not None:
                connection.close()
        self._news.set()

    # --- one session's life

    async def run(self) -> None:
        """Be connected while that is of use to somebody; end when nobody has wanted anything for a while."""
        failures = 0
        while await self._is_wanted():
            if failures:
                longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (failures - 1))
                await trio.sleep(random.uniform(0, longest))
                if not self._wanting:
                    continue
            began, self._useful = trio.current_time(), False
            await self._live()
            if self._useful or trio.current_time() - began > STABLE_SECONDS or _is_final(self._error):
                failures = 0
            if self._error is not None and not _is_final(self._error):
                failures = min(failures + 1, MOST_DOUBLINGS)

    async def _is_wanted(self) -> bool:
        while not self._wanting and not self.stopping:
            self._news = trio.Event()
            with trio.move_on_after(self._idle_seconds) as patience:
                await self._news.wait()
            if patience.cancelled_caught and not self._wanting:
                return False
        return not self.stopping

    async def _live(self) -> None:
        """One connection, from the dialing to its end."""
        wanted = self.wanted
        connection = SocketIO(Address(wanted.url, wanted.headers), self._dial, on_event=self._hear)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            if await self._open(connection, wanted):
                nursery.start_soon(self._watch, connection)
                await self._stay(connection)
            connection.close()

    async def _open(self, connection: SocketIO, wanted: SocketIOSession) -> bool:
        self._opening = connection
        try:
            with trio.fail_after(OPENING_SECONDS):
                await connection.join(wanted.namespace, wanted.auth)
        except trio.TooSlowError:
            self._error = TransportTimeout(f"the upstream's socket did not let us in within {OPENING_SECONDS:g} s")
        except TransportError as error:
            self._error = error
        else:
            self._error, self._connection = None, connection
            self.connections += 1
        finally:
            self._opening = None
        if self._error is not None:
            self._refused_auth = wanted.auth
            _log.warning("the session of %s was not connected: %s", wanted.account, self._error)
        self._attempts += 1
        tried, self._tried = self._tried, trio.Event()
        tried.set()
        return self._error is None

    async def _stay(self, connection: SocketIO) -> None:
        """Until the connection ends, or nobody has needed it for a while."""
        while not connection.ended.is_set():
            self._news = trio.Event()
            in_use = self._seats or self._wanting
            with trio.move_on_after(math.inf if in_use else self._idle_seconds) as patience:
                await self._news.wait()
            if patience.cancelled_caught and not self._seats and not self._wanting:
                self._connection = None
                return

    async def _watch(self, connection: SocketIO) -> None:
        """Tell everybody in the same instant when the connection ends."""
        await connection.ended.wait()
        self._connection = None
        self._error = connection.error or Disconnected("the upstream's socket said goodbye", response_started=True)
        if connection.error is not None:
            _log.warning("the session of %s was lost: %s", self.wanted.account, connection.error)
        for seat in list(self._seats):
            seat.end(connection.error)
        self._news.set()

    def _is_refusal_of(self, auth: object) -> bool:
        return _is_final(self._error) and self._refused_auth == auth

    # --- events

    def _hear(self, event: SocketEvent, size: int) -> None:
        self._useful = True
        try:
            belonging = self._owner(event)
        except Exception:  # noqa: BLE001 - the boundary of an attempt: a provider's defect must not end everybody's session
            _log.exception("an event was not understood")
            return
        if belonging is None:
            return
        if belonging.execution is None:
            self._hear_nameless(event, size, last=belonging.last)
            return
        seat = self._by_execution.get(belonging.execution)
        if seat is not None:
            seat.put(event, size, last=belonging.last)
        elif belonging.execution in self._strangers:
            if belonging.last:
                del self._strangers[belonging.execution]
        elif self._someone_may_claim():
            self._keep(_Heard(belonging.execution, event, size, belonging.last))

    def _hear_nameless(self, event: SocketEvent, size: int, *, last: bool) -> None:
        self._forget_strangers()
        if self._strangers:
            if last and len(self._strangers) == 1 and not self._seats:
                self._strangers.clear()
        elif len(self._seats) == 1:
            (seat,) = self._seats
            if seat.execution is not None:
                seat.put(event, size, last=last)
            else:
                self._keep(_Heard(seat, event, size, last))

    def _forget_strangers(self) -> None:
        now = trio.current_time()
        self._strangers = {who: until for who, until in self._strangers.items() if until > now}

    def _someone_may_claim(self) -> bool:
        return any(seat.began and seat.execution is None for seat in self._seats)

    def _keep(self, heard: _Heard) -> None:
        self._unclaimed.append(heard)
        self._unclaimed_size += heard.size
        while len(self._unclaimed) > EVENTS or self._unclaimed_size > EVENT_CHARACTERS:
            self._unclaimed_size -= self._unclaimed.popleft().size


def _is_final(error: TransportError | None) -> bool:
    """The server has said no, and would say it again; a proxy whose server is away says 502 or 503."""
    return isinstance(error, SocketRefused) and error.reply.status < 500


class Sessions:
    """All sessions of one worker process. `run` them before a seat is taken."""

    def __init__(self, dial: Dialer, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._dial = dial
        self._idle_seconds = idle_seconds
        self._sessions: dict[tuple[str, str, str], _Session] = {}
        self._nursery: trio.Nursery | None = None
        self._emptied = trio.Event()
        self._closed = False

    @property
    def open(self) -> int:
        """Sessions that are there, connected or not."""
        return len(self._sessions)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled, or closed."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def seat(self, wanted: SocketIOSession, owner: Owner) -> Seat:
        """A place in the account's session, which is connected first if it is not yet.

        Raises SocketRefused, ConnectFailed, Disconnected, ProtocolViolation, TransportTimeout; ValueError for a bad address.
        """
        if self._closed or self._nursery is None:
            raise Disconnected("the sessions are closed", response_started=False)
        key = (wanted.url, wanted.namespace, wanted.account)
        session = self._sessions.get(key)
        if session is None:
            _ = Address(wanted.url).origin
            session = self._sessions[key] = _Session(wanted, owner, self._dial, self._idle_seconds)
            self._nursery.start_soon(self._keep, key, session)
        session.wanted = wanted  # its token may be newer
        return await session.take()

    async def aclose(self) -> None:
        """Take leave of all servers; within two seconds."""
        self._closed = True
        for session in list(self._sessions.values()):
            session.stop()
        if self._sessions:
            with trio.move_on_after(DISCONNECT_SECONDS):
                await self._emptied.wait()

    async def _keep(self, key: tuple[str, str, str], session: _Session) -> None:
        try:
            await session.run()
        finally:
            del self._sessions[key]
            if not self._sessions:
                emptied, self._emptied = self._emptied, trio.Event()
                emptied.set()
