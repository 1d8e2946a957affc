"""A connection of its own for commands that block inside Redis, such as `XREADGROUP … BLOCK 1000`.

A blocking read holds up everything behind it, so it cannot share a `Link`. There is one call at a time, no background task,
and no connection until the first call. If a call is cancelled or gets no answer, its connection is closed, since the reply
would otherwise be taken for the next one's; the next call connects anew.
"""

from types import TracebackType
from typing import Self

import trio

from shared.redis.address import Address
from shared.redis.dialer import Dialer
from shared.redis.failures import LinkDown, RedisError, RefusalKind
from shared.redis.wire import BROKEN, Reply, Wire, Word, pack, reason


class BlockingLink:
    """One connection, one call at a time. Leaving it as a context manager closes the connection."""

    def __init__(
        self, address: Address, *, name: str = "sluice", timeout_seconds: float = 2.0, margin_seconds: float = 2.0
    ) -> None:
        """A reply may take `margin_seconds` longer than the block; connecting may take `timeout_seconds`."""
        self._dialer = Dialer(address, name=name, timeout_seconds=timeout_seconds)
        self._name = name
        self._margin_seconds = margin_seconds
        self._wire: Wire | None = None
        self._busy = False

    async def call(self, *command: Word, block_seconds: float) -> Reply:
        """Send a command that blocks for at most `block_seconds`, and return its reply.

        Raises `LinkDown` (after a pause, if the call before failed as well, so a loop around it is no storm) and `Refused`.
        """
        if self._busy:
            raise trio.BusyResourceError("a blocking link serves one call at a time")
        packed = pack(command)
        self._busy = True
        try:
            if self._wire is None:
                self._wire = await self._dialer.once()
            reply = await self._ask(self._wire, packed, block_seconds + self._margin_seconds)
        finally:
            self._busy = False
        if isinstance(reply, RedisError):
            if getattr(reply, "kind", None) is RefusalKind.WRONG_NODE:
                self._drop(reply)
            raise reply
        return reply

    def close(self) -> None:
        """Close the connection. The next call opens another."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    @property
    def connected(self) -> bool:
        return self._wire is not None

    async def _ask(self, wire: Wire, packed: bytes, timeout_seconds: float) -> Reply:
        try:
            with trio.move_on_after(timeout_seconds):
                wire.write(packed)
                await wire.drain()
                return await wire.reply()
            failure = LinkDown(f"no answer within {timeout_seconds:g} s", may_have_executed=True)
        except BROKEN as error:
            failure = LinkDown(reason(error), may_have_executed=True)
        except trio.Cancelled:
            self.close()
            raise
        self._drop(failure)
        return failure

    def _drop(self, why: RedisError) -> None:
        self.close()
        self._dialer.failed(why)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "waiting for a reply" if self._busy else "idle" if self._wire else "not connected"
        return f"<BlockingLink {self._name!r} to {self._dialer.address}, {state}>"
