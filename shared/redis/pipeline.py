"""One connection for commands, from its first command to its end: who waits for which reply, what is sent when, and how long.

Redis answers the commands of a connection in their order. So the whole bookkeeping is a queue: every command puts one entry
in, every reply takes one out. Somebody who no longer wants a reply leaves the entry in its place, and nobody else notices.

Sending is Nagle's algorithm for commands. If nothing is outstanding, a command goes out at once, in the task that has it.
Otherwise it gathers with others until replies arrive (the connection is woken then anyway) or a segment is full. Waiting
costs a command at most the way to the server and back, which it would partly spend behind the outstanding ones in any case,
and saves both sides a system call and a wake-up for each.

`submit` may be called from a `finally`, so also from that of a generator which the garbage collector closes at a moment of
its own choosing: in the middle of another `submit`. So what is submitted gets its place by a single append, and whoever was
interrupted while sending sends the interruption as well; bytes and queue cannot get different orders.

Deadlines: all commands have the same, so only the oldest can be overdue, and one watchdog looks at that one alone. A server
that does not answer in time is as good as gone: the connection ends, and everybody who waits is told.
"""

import time
from collections import deque
from collections.abc import Callable
from itertools import repeat

import trio

from shared.redis.callbacks import call_safely
from shared.redis.failures import LinkDown, RedisError, RefusalKind, Refused
from shared.redis.wire import BROKEN, INCOMPLETE, Reply, Wire, pack, reason

Deliver = Callable[[Reply], object]
"""Is called once, synchronously, with the reply, or with a `RedisError` in its place."""

SEGMENT_BYTES = 64 * 1024
REPLIES_PER_TURN = 256
"""After so many replies other tasks get their turn."""

GRACE_SECONDS = 0.05
"""An overdue reply may lie in our socket, unread because this very process was stopped or busy. Time to read it."""

_PING = pack(("PING",))


class Pipeline:
    """Commands and replies over one wire."""

    def __init__(
        self,
        wire: Wire,
        *,
        timeout_seconds: float,
        max_unsent_bytes: int,
        max_outstanding: int,
        on_end: Callable[[RedisError], object],
    ) -> None:
        self._wire = wire
        self._counts = wire.counts
        self._timeout_seconds = timeout_seconds
        self._max_unsent_bytes = max_unsent_bytes
        self._max_outstanding = max_outstanding
        self._on_end = on_end
        # (time.monotonic() of submission, who gets the reply). trio.current_time() would cost four times as much here.
        self._outstanding: deque[tuple[float, Deliver | None]] = deque()
        self._sending = False
        self._submitted: deque[tuple[bytes, Deliver | None, int]] = deque()
        self._kernel_is_full = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = False

    @property
    def outstanding(self) -> int:
        """How many commands have no reply yet."""
        return len(self._outstanding)

    @property
    def unsent_bytes(self) -> int:
        return len(self._wire.unsent)

    def submit(self, packed: bytes, deliver: Deliver | None, count: int = 1) -> None:
        """Send `count` commands in one piece; `deliver` gets their replies one by one."""
        self._submitted.append((packed, deliver, count))
        self._take_submitted()

    async def run(self) -> None:
        """Serve until the connection ends, for whatever reason. Cancelling is one."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._drain)
                    nursery.start_soon(self._watch)
                    await self._read()
        finally:
            self._end_in_order()

    def end(self, why: RedisError) -> None:
        """Close the connection and tell everybody who waits. Only the first reason counts."""
        if self._ended:
            return
        self._ended = True
        self._wire.close()
        self._scope.cancel()
        self._on_end(why)
        outstanding = self._outstanding
        while outstanding:
            _, deliver = outstanding.popleft()
            if deliver is not None:
                call_safely(self._counts, deliver, LinkDown(str(why), may_have_executed=True))

    # --- sending

    def _take_submitted(self) -> None:
        while self._submitted and not self._sending:
            self._sending = True
            try:
                while self._submitted:
                    self._put(*self._submitted.popleft())
            finally:
                self._sending = False

    def _put(self, packed: bytes, deliver: Deliver | None, count: int) -> None:
        outstanding, wire = self._outstanding, self._wire
        nothing_outstanding = not outstanding
        if self._ended:
            self._turn_away(deliver, count, "the connection was lost")
            return
        if not nothing_outstanding and self._is_full(packed):
            self._turn_away(deliver, count, "too much waits to be sent to Redis already")
            return
        self._counts.commands += count
        entry = (time.monotonic(), deliver)
        if count == 1:
            outstanding.append(entry)
        else:
            outstanding.extend(repeat(entry, count))
        if nothing_outstanding:
            self._transfer(packed)
        else:
            wire.unsent += packed
            if len(wire.unsent) >= SEGMENT_BYTES and not self._kernel_is_full.is_set():
                self._transfer(b"")

    def _transfer(self, packed: bytes) -> None:
        """Give the kernel what is unsent and `packed`; what it does not take is left to `_drain`."""
        try:
            self._wire.write(packed)
        except BROKEN as error:
            self.end(LinkDown(reason(error)))
        else:
            if self._wire.unsent:
                self._kernel_is_full.set()

    def _flush(self) -> None:
        """Send what has gathered."""
        self._sending = True
        try:
            self._transfer(b"")
        finally:
            self._sending = False
            self._take_submitted()

    async def _drain(self) -> None:
        """Go on sending whenever the kernel had taken all it could."""
        while True:
            await self._kernel_is_full.wait()
            try:
                while self._wire.unsent:
                    await self._wire.writable()
                    self._flush()
            except BROKEN as error:
                self.end(LinkDown(reason(error)))
                return
            self._kernel_is_full = trio.Event()

    def _is_full(self, packed: bytes) -> bool:
        """A single command may be as large as it likes; a heap of them may not."""
        unsent = len(self._wire.unsent)
        too_long = unsent > 0 and unsent + len(packed) > self._max_unsent_bytes
        return too_long or len(self._outstanding) >= self._max_outstanding

    def _turn_away(self, deliver: Deliver | None, count: int, why: str) -> None:
        self._counts.turned_away += count
        if deliver is not None:
            for _ in range(count):
                call_safely(self._counts, deliver, LinkDown(why))

    def _end_in_order(self) -> None:
        """What has gathered still goes out, as far as that is possible without waiting."""
        if self._wire.unsent:
            self._flush()
        self.end(LinkDown("the link was closed"))

    # --- receiving

    async def _read(self) -> None:
        wire, next_reply, settle, outstanding = self._wire, self._wire.next_reply, self._settle, self._outstanding
        round_trips = self._counts.round_trips
        try:
            while True:
                await wire.receive()
                waited = time.monotonic() - outstanding[0][0] if outstanding else 0.0
                turn = 0
                while (reply := next_reply()) is not INCOMPLETE:
                    settle(reply)
                    turn += 1
                    if turn == REPLIES_PER_TURN:
                        turn = 0
                        await trio.lowlevel.checkpoint()
                if turn:
                    round_trips.observe(waited)
                if wire.unsent and not self._kernel_is_full.is_set():
                    self._flush()
        except BROKEN as error:
            self.end(LinkDown(reason(error)))

    def _settle(self, reply: Reply) -> None:
        if not self._outstanding:
            raise ConnectionAbortedError("a reply came that nobody had asked for")
        _, deliver = self._outstanding.popleft()
        if deliver is not None:
            call_safely(self._counts, deliver, reply)
        if isinstance(reply, Refused) and reply.kind is RefusalKind.WRONG_NODE:
            self.end(reply)

    # --- watching

    async def _watch(self) -> None:
        """End the connection when the oldest command is overdue; ask a quiet server whether it is still there."""
        outstanding, counts = self._outstanding, self._counts
        while True:
            if not outstanding:
                heard = counts.bytes_received
                await trio.sleep(self._timeout_seconds)
                if not outstanding and counts.bytes_received == heard:
                    self.submit(_PING, None)
                continue
            oldest = outstanding[0]
            left = oldest[0] + self._timeout_seconds - time.monotonic()
            if left > 0:
                await trio.sleep(left)
                continue
            await trio.sleep(GRACE_SECONDS)
            if outstanding and outstanding[0] is oldest:
                self.end(LinkDown(f"no answer within {self._timeout_seconds:g} s"))
                return
