"""Opens connections, again and again if need be, without ever becoming a storm.

Pauses between attempts grow from 20 ms to one second with full jitter (each is a random part of the bound), so that many
processes that lose the same server do not come back in step. A server that answers, but with a refusal (wrong password, too
many clients, still loading), is asked once or twice a second and not more.
"""

import random

import trio

from shared.redis.address import Address
from shared.redis.counts import Counts
from shared.redis.failures import LinkDown, RedisError, RefusalKind, Refused
from shared.redis.wire import Wire, open_wire

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 1.0
STABLE_SECONDS = 0.1
"""A connection that lasted this long was a good one; one that ends sooner counts as another failed attempt."""
SHORT_LIVED_FAILURES = 3
"""… but as no more than so many: the server does answer, and somebody who cuts our connections must not keep us away."""


class Dialer:
    """The way to one server."""

    def __init__(self, address: Address, *, name: str, timeout_seconds: float) -> None:
        self.address = address
        self.counts = Counts()
        self.failure: RedisError | None = None
        """Why the last attempt failed; None after one that succeeded."""
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._give_up_at: float | None = None
        self._failed = 0
        self._connected_at = 0.0

    async def first(self, start_seconds: float) -> Wire:
        """Connect for the first time, or again while that has not led to anything.

        A server that cannot be reached (yet) is tried until `start_seconds` have passed in all, then `LinkDown` says why.
        A mistake in credentials or rights does not mend itself: `Refused` at once.
        """
        if self._give_up_at is None:
            self._give_up_at = trio.current_time() + start_seconds
        with trio.move_on_at(self._give_up_at):
            while True:
                try:
                    return await self.once()
                except LinkDown:
                    pass
                except Refused as refusal:
                    if refusal.kind is RefusalKind.CONFIGURATION:
                        raise
        raise LinkDown(
            f"no Redis at {self.address} within {start_seconds:g} s"
            f" ({self.failure or 'it did not answer'}); is it running, and is the address right?"
        )

    async def again(self) -> Wire:
        """Connect after a connection was lost; tries for ever."""
        while True:
            try:
                return await self.once()
            except RedisError:
                pass

    async def once(self) -> Wire:
        """One attempt, after the pause that the attempts before it ask for. Raises `LinkDown`, `Refused`."""
        await trio.sleep(self._pause_seconds())
        try:
            wire = await open_wire(
                self.address, name=self._name, timeout_seconds=self._timeout_seconds, counts=self.counts
            )
        except RedisError as error:
            self.failed(error)
            raise
        self.failure = None
        self.counts.connections += 1
        self._connected_at = trio.current_time()
        return wire

    def failed(self, error: RedisError) -> None:
        """An attempt, or the connection that it led to, has failed."""
        if self.failure is None:
            stable = trio.current_time() - self._connected_at >= STABLE_SECONDS
            self._failed = 0 if stable else min(self._failed, SHORT_LIVED_FAILURES - 1)
        self.failure = error
        self._failed += 1

    def _pause_seconds(self) -> float:
        if self._failed == 0:
            return 0.0
        if isinstance(self.failure, Refused):
            return random.uniform(LONGEST_PAUSE_SECONDS / 2, LONGEST_PAUSE_SECONDS)
        bound = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._failed - 1, 16))
        return random.uniform(0.0, bound)
