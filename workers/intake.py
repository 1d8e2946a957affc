"""Claims jobs while there is room; stops claiming when draining.

1. Ask for as many entries as there is room for, so that waiting work stays in Redis and goes to whoever is free.
2. Acknowledge and delete what was read at once: from then on the owner, not the queue, notices when this worker dies. The
   same message lets waiting jobs move up, as many as there is room for.
3. Now and then take over entries that were read but never acknowledged: their reader died in between.
4. Draining lets a read that is under way finish, since an entry that is read by a cancelled reader is pending for nobody.
"""

import logging
import math
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from shared.errors import Failure
from shared.redis import keys
from shared.redis.blocking import BlockingLink
from shared.redis.failures import LinkDown, RedisError, Refused
from shared.redis.link import Link
from shared.redis.submission.queue import claimed
from shared.schema.job import PROTOCOL, Job, JobHead
from shared.sealing import ForeignSeal, Seal, SealBroken
from shared.version import VERSION

_log = logging.getLogger(__name__)
_head = msgspec.msgpack.Decoder(JobHead)
_job = msgspec.msgpack.Decoder(Job)

BLOCK_SECONDS: Final = 0.5
TAKE_OVER_IDLE_SECONDS: Final = 1.0
TAKE_OVER_EVERY_SECONDS: Final = 1.0
BATCH: Final = 64
HANDS_OFF_SECONDS: Final = 10.0
"""How long a worker with another secret key leaves the queue alone."""


class Intake:
    """Reads one provider's queue. `accept` is called synchronously for each job that is claimed, with whether it is a probe;
    `refuse` for each job of another protocol."""

    def __init__(
        self,
        provider: str,
        link: Link,
        blocking: BlockingLink,
        seal: Seal,
        concurrency: int,
        *,
        accept: Callable[[Job, bool], None],
        refuse: Callable[[JobHead, Failure], None],
    ) -> None:
        self._provider = provider
        self._stream = keys.jobs(provider)
        self._link = link
        self._blocking = blocking
        self._seal = seal
        self._accept = accept
        self._refuse = refuse
        self._room = trio.Event()
        self._running = 0
        self._concurrency = concurrency
        self._paused = False
        self._hands_off_until = -math.inf
        self.draining = False
        self.refused_entries = 0
        self.taken_over = 0
        self.claimed = 0

    @property
    def room(self) -> int:
        return 0 if self.draining or self._paused else max(0, self._concurrency - self._running)

    @property
    def running(self) -> int:
        return self._running

    def one_more_done(self) -> None:
        self._running -= 1
        self._room.set()

    def pause(self, paused: bool) -> None:
        """Claim nothing while jobs that were claimed already wait for a credential: others may have one."""
        self._paused = paused
        if not paused:
            self._room.set()

    def drain(self) -> None:
        self.draining = True
        self._room.set()

    async def run(self) -> None:
        """Claim until draining. Redis may be away for a while: waits for it and goes on."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_over)
            while not self.draining:
                if self.room > 0 and trio.current_time() >= self._hands_off_until:
                    await self._claim()
                    continue
                self._room = trio.Event()
                with trio.move_on_at(self._hands_off_until if self.room > 0 else math.inf):
                    await self._room.wait()
            nursery.cancel_scope.cancel()

    async def _claim(self) -> None:
        block = str(int(BLOCK_SECONDS * 1000))
        count = str(min(self.room, BATCH))
        try:
            reply = await self._blocking.call(
                b"XREADGROUP", b"GROUP", keys.GROUP, keys.CONSUMER, b"COUNT", count, b"BLOCK", block,
                b"STREAMS", self._stream, b">", block_seconds=BLOCK_SECONDS,
            )  # fmt: skip
        except Refused as refusal:
            await self._repair(refusal)
            return
        except LinkDown:
            await self._link.wait_up()
            return
        if not reply:  # nobody should wait while a worker does, but whoever was to let them move up may have died
            self._answer_for([], [])
        for _stream, entries in reply or ():
            self._take(entries)

    async def _repair(self, refusal: Refused) -> None:
        """NOGROUP: the stream is new, or Redis came back empty. Anything else waits a little."""
        if refusal.code == "NOGROUP":
            try:
                await self._link.call(b"XGROUP", b"CREATE", self._stream, keys.GROUP, b"0", b"MKSTREAM")
                return
            except LinkDown:
                await self._link.wait_up()
                return
            except Refused as second:
                if second.code == "BUSYGROUP":
                    return
                refusal = second
        _log.error("cannot claim jobs: %s", refusal)
        await trio.sleep(BLOCK_SECONDS)

    async def _take_over(self) -> None:
        idle = str(int(TAKE_OVER_IDLE_SECONDS * 1000))
        while True:
            await trio.sleep(TAKE_OVER_EVERY_SECONDS)
            if self.room <= 0 or trio.current_time() < self._hands_off_until:
                continue
            try:
                reply = await self._link.call(
                    b"XAUTOCLAIM",
                    self._stream,
                    keys.GROUP,
                    keys.CONSUMER,
                    idle,
                    b"0",
                    b"COUNT",
                    str(min(self.room, BATCH)),
                )
            except RedisError:
                continue  # the claiming loop repairs what needs repair
            if reply[1]:
                _log.info("took over %d entries whose reader died", len(reply[1]))
                self.taken_over += len(reply[1])
                self._take(reply[1])

    def _take(self, entries: list[tuple[bytes, list[bytes] | None]]) -> None:
        jobs: list[tuple[Job, bool]] = []
        settled: list[bytes] = []
        names: list[bytes] = []
        for entry_id, fields in entries:
            try:
                job = self._open(entry_id, fields)
            except ForeignSeal as problem:
                self._leave_to_others(problem)
                continue
            settled.append(entry_id)
            if fields is not None and len(fields) >= 4:
                names.append(fields[3])
            if job is not None:
                jobs.append((job, fields is not None and b"probe" in fields[4:]))
        self._running += len(jobs)
        self.claimed += len(jobs)
        if settled:
            self._answer_for(settled, names)
        for job, probe in jobs:
            self._accept(job, probe)

    def _answer_for(self, entries: list[bytes], names: list[bytes]) -> None:
        self._link.post_script(*claimed(self._provider, entries, names, self.room))

    def _leave_to_others(self, problem: ForeignSeal) -> None:
        """Somebody's jobs are not for us: let those who can open them take them over, and keep our hands off for a while."""
        self.refused_entries += 1
        self._hands_off_until = trio.current_time() + HANDS_OFF_SECONDS
        _log.error("a job in the queue is %s; SLUICE_SECRET_KEY must be the same everywhere", problem)

    def _open(self, entry_id: bytes, fields: list[bytes] | None) -> Job | None:
        """The job, or None for what nobody can use. Raises `ForeignSeal`."""
        if fields is None:
            return None  # deleted by its owner between being read and being taken over
        try:
            packed = self._seal.open(fields[1], self._stream)
            head = _head.decode(packed)
            if head.protocol == PROTOCOL:
                return _job.decode(packed)
        except ForeignSeal:
            raise
        except (SealBroken, msgspec.DecodeError, UnicodeDecodeError, IndexError) as problem:
            self.refused_entries += 1
            _log.error("refused queue entry %s: %s", entry_id.decode("ascii", "replace"), problem)
            return None
        self.refused_entries += 1
        versions = f"protocol {head.protocol}, this worker ({VERSION}) speaks {PROTOCOL}"
        _log.error("refused queue entry %s: %s", entry_id.decode("ascii", "replace"), versions)
        self._refuse(head, Failure("version_mismatch", f"The frontend's jobs are of {versions}."))
        return None
