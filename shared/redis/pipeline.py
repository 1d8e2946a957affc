"""One connection for commands, from its first command to its end: who waits for which reply, what is sent when, and how long.

Redis answers the commands of a connection in their order. So the whole bookkeeping is a queue: every command puts one entry
in, every reply takes one out. Somebody who no longer wants a reply leaves the entry in its place, and nobody else notices.

Sending is Nagle's algorithm for commands. If nothing is outstanding, a command goes out at once, in the task that has it.
Otherwise it gathers with others until replies arrive (the connection is woken then anyway) or a segment is full. Waiting
costs a command at most the way to the server and back, which it would partly spend behind the outstanding ones in any case,
and saves both sides a system call and a wake-up for each.

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

    def submit(self, packed: bytes, deliver: Deliver | None) -> None:
        """Send one command; `deliver` gets its reply."""
        outstanding = self._outstanding
        if outstanding:
            if self._is_full(packed):
                self._turn_away(deliver)
                return
            outstanding.append((time.monotonic(), deliver))
            self._gather(packed)
        else:
            outstanding.append((time.monotonic(), deliver))
            self._write(packed)
        self._counts.commands += 1

    def submit_many(self, packed: bytes, count: int, deliver: Deliver) -> None:
        """Send `count` commands in one piece; `deliver` gets their replies one by one."""
        if self._is_full(packed):
            for _ in range(count):
                self._turn_away(deliver)
            return
        nothing_outstanding = not self._outstanding
        self._outstanding.extend(repeat((time.monotonic(), deliver), count))
        self._counts.commands += count
        if nothing_outstanding:
            self._write(packed)
        else:
            self._gather(packed)

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

    def _write(self, packed: bytes) -> None:
        try:
            self._wire.write(packed)
        except BROKEN as error:
            self.end(LinkDown(reason(error)))
        else:
            if self._wire.unsent:
                self._kernel_is_full.set()

    def _gather(self, packed: bytes) -> None:
        unsent = self._wire.unsent
        unsent += packed
        if len(unsent) >= SEGMENT_BYTES:
            self._push()

    def _push(self) -> None:
        """Send what has gathered, unless the kernel took no more the last time: then it is the turn of `_drain`."""
        if self._kernel_is_full.is_set() or self._ended:
            return
        try:
            self._wire.push()
        except BROKEN as error:
            self.end(LinkDown(reason(error)))
        else:
            if self._wire.unsent:
                self._kernel_is_full.set()

    async def _drain(self) -> None:
        while True:
            await self._kernel_is_full.wait()
            try:
                await self._wire.drain()
            except BROKEN as error:
                self.end(LinkDown(reason(error)))
                return
            self._kernel_is_full = trio.Event()

    def _is_full(self, packed: bytes) -> bool:
        """A single command may be as large as it likes; a heap of them may not."""
        unsent = len(self._wire.unsent)
        return (unsent > 0 and unsent + len(packed) > self._max_unsent_bytes) or len(
            self._outstanding
        ) >= self._max_outstanding

    def _turn_away(self, deliver: Deliver | None) -> None:
        self._counts.turned_away += 1
        if deliver is not None:
            call_safely(self._counts, deliver, LinkDown("too much waits to be sent to Redis already"))

    def _end_in_order(self) -> None:
        """What has gathered still goes out, as far as that is possible without waiting."""
        if self._wire.unsent:
            self._push()
        self.end(LinkDown("the link was closed"))

    # --- receiving

    async def _read(self) -> None:
        wire, next_reply, settle = self._wire, self._wire.next_reply, self._settle
        try:
            while True:
                await wire.receive()
                turn = 0
                while (reply := next_reply()) is not INCOMPLETE:
                    settle(reply)
                    turn += 1
                    if turn == REPLIES_PER_TURN:
                        turn = 0
                        await trio.lowlevel.checkpoint()
                if wire.unsent:
                    self._push()
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
