"""Our ear: one connection that listens to channels, knows whether it still hears, and comes back when it was cut off.

Pub/sub loses what is published while nobody listens, and a dead connection is as silent as a quiet one. So the subscription
pings on its own connection, which also proves that messages would have come through, and tells when it had to subscribe
again: from then on its owner knows that anything may have been missed. It ends by cancellation only, never by itself.

Protocol: a subscribed RESP2 connection gets lists: `[subscribe, channel, count]`, `[message, channel, payload]`, and
`[pong, payload]` for a PING; https://redis.io/docs/latest/develop/pubsub/
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from shared.redis.address import Address
from shared.redis.callbacks import call_safely
from shared.redis.dialer import Dialer
from shared.redis.failures import LinkDown, RedisError, RefusalKind, Refused
from shared.redis.wire import BROKEN, INCOMPLETE, Reply, Wire, Word, pack, reason

Deliver = Callable[[bytes, bytes], object]
"""Is called synchronously with channel and message. An exception of it is logged and costs this message alone."""

MESSAGES_PER_TURN = 32
"""After so many messages other tasks get their turn. A message may carry frames of many jobs, so this is few."""

GRACE_SECONDS = 0.05
"""What we have not heard may lie in our socket, unread because this very process was stopped or busy. Time to read it."""


@dataclass(frozen=True)
class Ping:
    """A ping that was answered; times are `trio.current_time()`."""

    sent_at: float
    answered_at: float

    @property
    def round_trip_seconds(self) -> float:
        """The answer queues behind messages, so this is also how late they are."""
        return self.answered_at - self.sent_at


class Subscription:
    """Listens to channels of one server."""

    def __init__(
        self,
        address: Address,
        channels: Iterable[bytes | str],
        *,
        name: str = "sluice",
        on_lost: Callable[[RedisError], object] | None = None,
        on_resubscribed: Callable[[], object] | None = None,
        ping_seconds: float = 0.5,
        silence_seconds: float = 2.0,
        start_seconds: float = 10.0,
    ) -> None:
        """A connection on which nothing at all, not even a pong, comes for `silence_seconds` is replaced.

        Called synchronously: `on_lost` with the reason when the connection has ended; `on_resubscribed` when all channels
        are subscribed again on another one.
        """
        self.subscribed = False
        """Does the server send us, right now, what is published on each of the channels?"""
        self.last_ping: Ping | None = None
        """The last one that was answered on this connection: proof that messages would have come through."""
        self.messages = 0
        self.losses = 0
        self._channels = dict.fromkeys(_as_bytes(channel) for channel in channels)
        if not self._channels:
            raise ValueError("a subscription needs at least one channel")
        self._confirmed: set[bytes] = set()
        self._was_subscribed = False
        """Has everything been confirmed on this connection? Channels may still have been added since."""
        self._all_confirmed = trio.Event()
        self._dialer = Dialer(address, name=name, timeout_seconds=silence_seconds)
        self._name = name
        self._on_lost = on_lost
        self._on_resubscribed = on_resubscribed
        self._ping_seconds = ping_seconds
        self._silence_seconds = silence_seconds
        self._start_seconds = start_seconds
        self._started = False
        self._task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        self._wire: Wire | None = None
        self._heard_at = 0.0
        self._pinged_at: float | None = None
        """When the ping was sent that has not been answered yet. One at a time: behind a stall several would be answered
        together, and the last of them would look quick."""

    async def run(self, deliver: Deliver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled. Started by `nursery.start`, which returns when all channels are subscribed.

        Before that it raises `Refused` if credentials or rights are wrong, and `LinkDown` if there is no server to be
        reached within `start_seconds`.
        """
        self._task_status = task_status
        while True:
            wire = await (self._dialer.again() if self._started else self._dialer.first(self._start_seconds))
            await self._listen(wire, deliver)
            failure = self._dialer.failure
            if not self._started and isinstance(failure, Refused) and failure.kind is RefusalKind.CONFIGURATION:
                raise failure

    def extend(self, *channels: bytes | str) -> None:
        """Listen to more channels, now and after every reconnect; `wait_subscribed` tells when it has happened."""
        new = [channel for channel in map(_as_bytes, channels) if channel not in self._channels]
        self._channels.update(dict.fromkeys(new))
        if new:
            self.subscribed = False
            self._all_confirmed = trio.Event()
            if self._wire is not None:
                self._send("SUBSCRIBE", *new)

    async def wait_subscribed(self) -> None:
        """Return when all channels are subscribed."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self.subscribed:
            await self._all_confirmed.wait()

    def moved(self, why: RedisError) -> None:
        """Another connection of ours has ended. If it met a server that is no master any more, this one listens there too."""
        if isinstance(why, Refused) and why.kind is RefusalKind.WRONG_NODE:
            self._end(why)

    @property
    def connections(self) -> int:
        """How often a connection has come about."""
        return self._dialer.counts.connections

    @property
    def channels(self) -> list[bytes]:
        return list(self._channels)

    @property
    def failure(self) -> RedisError | None:
        """Why nothing is heard; None while it is."""
        return None if self.subscribed else self._dialer.failure

    def __repr__(self) -> str:
        state = "subscribed" if self.subscribed else f"not subscribed: {self._dialer.failure or 'not yet'}"
        return f"<Subscription {self._name!r} to {len(self._channels)} channels of {self._dialer.address}, {state}>"

    # --- one connection, from SUBSCRIBE to its end

    async def _listen(self, wire: Wire, deliver: Deliver) -> None:
        self._wire, self._heard_at = wire, trio.current_time()
        try:
            self._send("SUBSCRIBE", *self._channels)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, wire)
                await self._read(wire, deliver)
                nursery.cancel_scope.cancel()
        finally:
            self._end(LinkDown("the subscription was closed"))

    def _end(self, why: RedisError) -> None:
        """Close the connection and forget what was true of it. Only the first reason counts."""
        if self._wire is None:
            return
        self._wire.close()
        self._wire = self.last_ping = self._pinged_at = None
        self._dialer.failed(why)
        self._confirmed.clear()
        if self.subscribed:
            self.subscribed = False
            self._all_confirmed = trio.Event()
        if self._was_subscribed:
            self._was_subscribed = False
            self.losses += 1
            if self._on_lost is not None:
                call_safely(self._dialer.counts, self._on_lost, why)

    def _send(self, *command: Word) -> None:
        if self._wire is not None:
            try:
                self._wire.write(pack(command))
            except BROKEN as error:
                self._end(LinkDown(reason(error)))

    async def _read(self, wire: Wire, deliver: Deliver) -> None:
        next_reply, turn = wire.next_reply, 0
        try:
            while True:
                await wire.receive()
                self._heard_at = trio.current_time()
                while self._wire is wire and (reply := next_reply()) is not INCOMPLETE:
                    if type(reply) is list and reply[0] == b"message":
                        self.messages += 1
                        call_safely(self._dialer.counts, deliver, reply[1], reply[2])
                    else:
                        self._notice(reply)
                    turn += 1
                    if turn == MESSAGES_PER_TURN:
                        turn = 0
                        await trio.lowlevel.checkpoint()
                        self._heard_at = trio.current_time()  # we are still reading what it has sent
        except BROKEN as error:
            self._end(LinkDown(reason(error)))

    def _notice(self, reply: Reply) -> None:
        """Take in anything but a message."""
        if isinstance(reply, Refused) and reply.kind is RefusalKind.CAPACITY and self._pinged_at is not None:
            self._answered()  # a server that cannot write refuses even PING, and goes on publishing
        elif isinstance(reply, Refused):
            self._end(reply)
        elif type(reply) is list and reply[0] == b"subscribe":
            self._confirmed.add(reply[1])
            if not self.subscribed and self._channels.keys() <= self._confirmed:
                self.subscribed = True
                self._all_confirmed.set()
                if not self._was_subscribed:
                    self._was_subscribed = True
                    self._tell_subscribed()
        elif type(reply) is list and reply[0] == b"pong" and self._pinged_at is not None:
            self._answered()
        else:
            self._end(LinkDown("the server answered something that is no message"))

    def _answered(self) -> None:
        assert self._pinged_at is not None
        self.last_ping = Ping(sent_at=self._pinged_at, answered_at=trio.current_time())
        self._pinged_at = None

    def _tell_subscribed(self) -> None:
        if not self._started:
            self._started = True
            self._task_status.started()
        elif self._on_resubscribed is not None:
            call_safely(self._dialer.counts, self._on_resubscribed)

    async def _watch(self, wire: Wire) -> None:
        """Ping, and end a connection on which nothing comes back."""
        while True:
            if self._pinged_at is None:
                self._pinged_at = trio.current_time()
                self._send("PING")
            try:
                await wire.drain()
            except BROKEN as error:
                self._end(LinkDown(reason(error)))
            await trio.sleep(self._ping_seconds)
            if self._silent_seconds() > self._silence_seconds:
                await trio.sleep(GRACE_SECONDS)
                if self._silent_seconds() > self._silence_seconds:
                    self._end(LinkDown(f"nothing heard for {self._silence_seconds:g} s"))

    def _silent_seconds(self) -> float:
        return trio.current_time() - self._heard_at


def _as_bytes(channel: bytes | str) -> bytes:
    return channel.encode() if isinstance(channel, str) else channel
