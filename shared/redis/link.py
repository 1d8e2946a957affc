"""Our way to ask Redis something: one connection that all tasks of a process share, and that mends itself.

    link = Link(Address.parse(url))
    await nursery.start(link.run)                       # connected, or an error that says why not
    length = await link.call("XLEN", "some:stream")     # a reply, or RedisError within the deadline
    link.post("PUBLISH", channel, frames)               # synchronous: fits into a finally

* Commands run in the order in which they were handed over, whatever mixture of `call` and `post` that is. So
  `await link.call("PING")` returns when everything posted before has been answered.
* Any waiting may be cancelled at any time, without effect on others. The command itself may have been executed.
* While the link is down every command fails at once, and none is kept for later.
* Not for commands that answer several times or never (SUBSCRIBE, MONITOR, CLIENT REPLY) nor for those that block
  (XREADGROUP BLOCK): see `subscription.py` and `blocking.py`.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from shared.measuring import Distribution
from shared.redis.address import Address
from shared.redis.blocking import BlockingLink
from shared.redis.callbacks import call_safely
from shared.redis.dialer import Dialer
from shared.redis.failures import LinkDown, RedisError, RefusalKind, Refused
from shared.redis.pipeline import Deliver, Pipeline
from shared.redis.script import Script
from shared.redis.wire import Reply, Wire, Word, pack

_log = logging.getLogger(__name__)

__all__ = ["BlockingLink", "Link", "LinkDown", "LinkStatistics", "RedisError", "RefusalKind", "Refused", "Script"]

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class LinkStatistics:
    """Counts since the link was made, except for the first three."""

    up: bool
    outstanding: int
    """Commands without a reply right now."""
    unsent_bytes: int
    """What waits in our memory because the kernel takes no more, or replies are awaited first."""
    commands: int
    turned_away: int
    """Commands that were never sent: the link was down or full."""
    connections: int
    sends: int
    """System calls that sent something; `commands / sends` is how many went out together."""
    bytes_sent: int
    bytes_received: int
    callback_errors: int
    """Exceptions of `on_reply`, `on_up`, `on_down`; each was logged."""


class Link:
    """One connection for commands, kept up by `run`."""

    def __init__(
        self,
        address: Address,
        *,
        name: str = "sluice",
        timeout_seconds: float = 2.0,
        start_seconds: float = 10.0,
        max_unsent_bytes: int = 64 * MEBIBYTE,
        max_outstanding: int = 200_000,
    ) -> None:
        """`name` is what CLIENT LIST shows. `timeout_seconds` is the deadline of every command and of connecting.

        `start_seconds` is how long an unreachable server is tried at first. At most `max_unsent_bytes` and
        `max_outstanding` commands wait for a server that does not read; what comes on top fails with `LinkDown`.
        """
        self.on_up: list[Callable[[], object]] = []
        """Called whenever the link has come up, also the first time. Must not block."""
        self.on_down: list[Callable[[RedisError], object]] = []
        """Called whenever the link has gone down, with the reason, before those who wait for a reply learn of it."""
        self.down_since: float | None = None
        """`trio.current_time()` of the loss; None while up, and before `run`."""
        self._dialer = Dialer(address, name=name, timeout_seconds=timeout_seconds)
        self._counts = self._dialer.counts
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._start_seconds = start_seconds
        self._max_unsent_bytes = max_unsent_bytes
        self._max_outstanding = max_outstanding
        self._pipeline: Pipeline | None = None
        self._came_up = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the connection until cancelled. Started by `nursery.start`, which returns when the link is up.

        Before that it raises `Refused` if credentials or rights are wrong, and `LinkDown` if there is no server to be
        reached within `start_seconds`. Later on nothing but cancellation ends it: see `up` and `failure`.
        """
        self.down_since = trio.current_time()
        wire = await self._dialer.first(self._start_seconds)
        while True:
            pipeline = self._go_up(wire)
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await pipeline.run()
            lost_at = trio.current_time()
            _log.warning("lost Redis at %s: %s", self._dialer.address, self._dialer.failure)
            wire = await self._dialer.again()
            _log.warning("Redis is back after %.1f s", trio.current_time() - lost_at)

    # --- commands

    async def call(self, *command: Word, unclaimed: Deliver | None = None) -> Reply:
        """Send a command and return its reply. Raises `LinkDown`, `Refused`.

        If the caller is cancelled in between, `unclaimed` gets the reply: for commands whose effect has to be undone then.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waiter = _Waiter(unclaimed)
        self.post(*command, on_reply=waiter.deliver)
        reply = await waiter.wait()
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def post(self, *command: Word, on_reply: Deliver | None = None) -> None:
        """Send a command without waiting, from anywhere in the event loop's thread; never raises for the sake of Redis.

        `on_reply` is called with the reply, or with a `RedisError` in its place: at once if the link is down, else from
        the task that reads. It must not block; an exception of it is logged and does no harm.
        """
        packed = pack(command)
        if self._pipeline is not None:
            self._pipeline.submit(packed, on_reply)
        else:
            self._turn_away(on_reply)

    def post_many(self, commands: Iterable[Sequence[Word]]) -> None:
        """Post commands together, in one write, for whoever does not care what becomes of them."""
        packed = [pack(tuple(command)) for command in commands]
        if packed and self._pipeline is not None:
            self._pipeline.submit(b"".join(packed), None, len(packed))

    async def many(self, commands: Iterable[Sequence[Word]], *, raise_refusals: bool = True) -> list[Reply]:
        """Send commands together and return their replies in order.

        All replies are awaited in any case; then the first `Refused` is raised, or left in the list among the others if
        `raise_refusals` is false. `LinkDown` is always raised. This is no transaction: others' commands may run between.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        packed = [pack(tuple(command)) for command in commands]
        if not packed:
            await trio.lowlevel.checkpoint()
            return []
        gathering = _Gathering(len(packed))
        if self._pipeline is not None:
            self._pipeline.submit(b"".join(packed), gathering.deliver, len(packed))
        else:
            for _ in packed:
                self._turn_away(gathering.deliver)
        replies = await gathering.wait()
        for reply in replies:
            if isinstance(reply, LinkDown) or (raise_refusals and isinstance(reply, Refused)):
                raise reply
        return list(replies)

    async def script(
        self, script: Script, keys: Sequence[Word] = (), args: Sequence[Word] = (), unclaimed: Deliver | None = None
    ) -> Reply:
        """Run a script by its digest, and by its source if the server does not know it. As `call` otherwise."""
        try:
            return await self.call("EVALSHA", script.digest, len(keys), *keys, *args, unclaimed=unclaimed)
        except Refused as refusal:
            if refusal.code != "NOSCRIPT":
                raise
        return await self.call("EVAL", script.source, len(keys), *keys, *args, unclaimed=unclaimed)

    def post_script(
        self, script: Script, keys: Sequence[Word] = (), args: Sequence[Word] = (), on_reply: Deliver | None = None
    ) -> None:
        """`script` without waiting. A script that the server does not know runs after what was posted meanwhile."""

        def on_first_reply(reply: Reply) -> None:
            if isinstance(reply, Refused) and reply.code == "NOSCRIPT":
                self.post("EVAL", script.source, len(keys), *keys, *args, on_reply=on_reply)
            elif on_reply is not None:
                on_reply(reply)

        self.post("EVALSHA", script.digest, len(keys), *keys, *args, on_reply=on_first_reply)

    # --- state

    @property
    def up(self) -> bool:
        """Connected, and nothing is overdue."""
        return self._pipeline is not None

    @property
    def failure(self) -> RedisError | None:
        """Why the link is down; None while it is up."""
        return None if self.up else self._dialer.failure

    async def wait_up(self) -> None:
        """Return when the link is up."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._pipeline is None:
            await self._came_up.wait()

    @property
    def round_trips(self) -> Distribution:
        """Seconds from a command to its reply: of the first reply of each read."""
        return self._counts.round_trips

    def statistics(self) -> LinkStatistics:
        pipeline, counts = self._pipeline, self._counts
        return LinkStatistics(
            up=pipeline is not None,
            outstanding=pipeline.outstanding if pipeline else 0,
            unsent_bytes=pipeline.unsent_bytes if pipeline else 0,
            commands=counts.commands,
            turned_away=counts.turned_away,
            connections=counts.connections,
            sends=counts.sends,
            bytes_sent=counts.bytes_sent,
            bytes_received=counts.bytes_received,
            callback_errors=counts.callback_errors,
        )

    def __repr__(self) -> str:
        if self._pipeline is not None:
            state = f"up, {self._pipeline.outstanding} outstanding"
        else:
            state = f"down: {self._dialer.failure}" if self._dialer.failure else "down"
        return f"<Link {self._name!r} to {self._dialer.address}, {state}>"

    # --- up and down

    def _go_up(self, wire: Wire) -> Pipeline:
        pipeline = Pipeline(
            wire,
            timeout_seconds=self._timeout_seconds,
            max_unsent_bytes=self._max_unsent_bytes,
            max_outstanding=self._max_outstanding,
            on_end=self._go_down,
        )
        self._pipeline = pipeline
        self.down_since = None
        self._came_up.set()
        for callback in self.on_up:
            call_safely(self._counts, callback)
        return pipeline

    def _go_down(self, why: RedisError) -> None:
        self._pipeline = None
        self.down_since = trio.current_time()
        self._came_up = trio.Event()
        self._dialer.failed(why)
        for callback in self.on_down:
            call_safely(self._counts, callback, why)

    def _turn_away(self, deliver: Deliver | None) -> None:
        self._counts.turned_away += 1
        if deliver is not None:
            down = LinkDown(f"Redis is not connected ({self._dialer.failure or 'not yet'})")
            call_safely(self._counts, deliver, down)


class _Waiter:
    """One task that waits for one reply; it may go away at any time."""

    __slots__ = ("_gone", "_reply", "_settled", "_task", "_unclaimed")

    def __init__(self, unclaimed: Deliver | None = None) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._reply: Reply = None
        self._settled = False
        self._gone = False
        self._unclaimed = unclaimed

    def deliver(self, reply: Reply) -> None:
        if self._gone and self._unclaimed is not None:
            self._unclaimed(reply)
            return
        self._reply = reply
        self._settled = True
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    async def wait(self) -> Reply:
        if not self._settled:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        return self._reply

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._gone = True
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class _Gathering(_Waiter):
    """One task that waits for several replies, and is woken by the last."""

    __slots__ = ("_missing", "_replies")

    def __init__(self, count: int) -> None:
        super().__init__()
        self._missing = count
        self._replies: list[Reply] = []

    def deliver(self, reply: Reply) -> None:
        self._replies.append(reply)
        self._missing -= 1
        if self._missing == 0:
            super().deliver(self._replies)
