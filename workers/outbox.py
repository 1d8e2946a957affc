"""Frames on their way to each frontend: batched, retained until consumed, sent again on demand.

1. `put` retains the frame with its attempt and hands it to the frontend's road.
2. A road sends at once when nothing of its own is under way; what arrives meanwhile gathers into the next parcel. No timer:
   batches grow exactly as far as Redis is the slower side.
3. A lost parcel is not repeated here. The owner sees the hole, or reads in the report that goes out every second that more
   was sent than it has, and orders a resend from the attempt's retention.
4. `PUBLISH` answers how many receivers there were. A frontend without any for a few seconds, on a healthy link, is gone,
   and with it the reason for its attempts. A neighbour is asked past Redis (`shared.neighbours`): one whose process has ended
   is gone at once, one that lives was cut off and has longer to come back. One that seems to listen and leaves our reports
   unanswered for as long is gone as well.
5. An attempt that is given up without a word from its owner never runs here again under the same number: the owner might
   still listen, and would take the words of the second run for the rest of the first.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec
import trio

from shared.errors import Failure
from shared.neighbours import Sign
from shared.redis import keys
from shared.redis.link import Link
from shared.sansio.sequence import Sender
from shared.schema.job import Frame, FrameKind, Job, JobHead, Parcel, Running
from shared.sealing import Seal

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode

WINDOW_BYTES: Final = 1024 * 1024
"""What one attempt may have on the way to a caller who does not read before it stops reading the upstream."""
PARCEL_BYTES: Final = 128 * 1024
"""Far less than Redis buffers for a subscriber before it hangs up, also where an operator lets it buffer little: a larger one
would never arrive."""
FRAME_OVERHEAD_BYTES: Final = 64
PATIENCE_SECONDS: Final = 3.0
"""How long a frontend may have no ear on its channel: it may be reconnecting."""
CUT_OFF_SECONDS: Final = 10.0
"""… and one that is known to live: after that its callers have been told that the queue is unreachable."""
UNANSWERED_SECONDS: Final = 12.0
"""How long a frontend that seems to listen may leave our reports unanswered."""
FORGET_SECONDS: Final = 30.0
"""How long a finished attempt is kept for an owner that does not say that it has everything."""
EMPTY_REPORTS: Final = 3
"""How often a frontend is told that nothing runs here for it any more, so that it does not wait for what was given up."""


Ask = Callable[[str, float], Sign]
"""Whether a frontend of this machine lives, by its id and `trio.current_time()`: `Neighbours.ask`."""


def _all_live_elsewhere(frontend_id: str, now: float) -> Sign:
    return Sign.UNKNOWN


class Retained:
    """What the worker holds of one attempt for its owner. `gone` is called once, when nobody wants the attempt any more, and
    before it `orphaned`, if that is because the owner itself is no more."""

    __slots__ = ("_room", "dropped", "ended_at", "gone", "job", "orphaned", "road", "sender")

    def __init__(self, job: Job, road: "Road", gone: Callable[[], None], orphaned: Callable[[], None]) -> None:
        self.job = job
        self.road = road
        self.gone = gone
        self.orphaned = orphaned
        self.dropped = False
        self.sender: Sender[Frame] = Sender()
        self.ended_at: float | None = None
        self._room: trio.Event | None = None

    @property
    def full(self) -> bool:
        return self.sender.retained_bytes > WINDOW_BYTES

    async def room(self) -> None:
        """Wait until the owner has consumed enough."""
        while self.full:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def consumed(self, below: int) -> None:
        self.sender.consumed(below)
        if self._room is not None and not self.full:
            self._room.set()
            self._room = None

    def frame(self, kind: int, payload: bytes) -> Frame:
        """Number a frame and retain it."""
        frame = (self.job.id, self.job.attempt, self.sender.next, kind, payload)
        self.sender.keep(frame, len(payload) + FRAME_OVERHEAD_BYTES)
        return frame


class Road:
    """The way to one frontend's channel."""

    def __init__(self, link: Link, seal: Seal, worker_id: str, frontend_id: str) -> None:
        self.attempts: dict[tuple[bytes, int], Retained] = {}
        self.deaf_since: float | None = None
        self.answered_at = trio.current_time()
        self.empty_reports = 0
        self._link = link
        self._seal = seal
        self._worker_id = worker_id
        self._channel = keys.frontend_channel(frontend_id)
        self._waiting: list[Frame] = []
        self._waiting_bytes = 0
        self._under_way = False
        self._unconfirmed: list[trio.Event] = []

    @property
    def unsent(self) -> int:
        """Frames that wait, and one more if Redis has yet to answer for a parcel."""
        return len(self._waiting) + self._under_way

    def deaf_seconds(self, now: float) -> float:
        """How long nobody has been listening, as far as is known."""
        return 0.0 if self.deaf_since is None else now - self.deaf_since

    def put(self, frames: list[Frame], confirmed: trio.Event | None = None, *, urgent: bool = True) -> None:
        """`confirmed` is set when a parcel with these frames, or a later one, has reached somebody. What is not urgent travels
        with what is, or with the next `flush`."""
        self._waiting += frames
        self._waiting_bytes += sum(len(frame[4]) for frame in frames)
        if confirmed is not None:
            self._unconfirmed.append(confirmed)
        if urgent:
            self.flush()

    def flush(self) -> None:
        """Send what waits, unless a parcel is under way: then it follows by itself."""
        if self._waiting and not self._under_way:
            self._send(self._next_frames())

    def report(self) -> None:
        """Tell the owner what runs here and how far it is; a parcel of its own, so it also finds out who listens.

        Frames that have to wait for a later parcel do not count yet: asked for again they would wait twice.
        """
        frames = self._next_frames()
        waits_from = {(job_id, attempt): seq for job_id, attempt, seq, _, _ in reversed(self._waiting)}
        self._send(frames, [(*key, waits_from.get(key, item.sender.next)) for key, item in self.attempts.items()])
        self.empty_reports = 0 if self.attempts else self.empty_reports + 1

    def _send(self, frames: list[Frame], running: list[Running] | None = None) -> None:
        self._under_way = True
        parcel = self._seal.seal(_encode(Parcel(self._worker_id, frames, running)), self._channel)
        self._link.post(b"PUBLISH", self._channel, parcel, on_reply=partial(self._sent, self._take_unconfirmed()))

    def _take_unconfirmed(self) -> Sequence[trio.Event]:
        if not self._unconfirmed or self._waiting:
            return ()
        unconfirmed, self._unconfirmed = self._unconfirmed, []
        return unconfirmed

    def _next_frames(self) -> list[Frame]:
        frames = self._waiting
        if self._waiting_bytes <= PARCEL_BYTES:
            self._waiting = []
            self._waiting_bytes = 0
            return frames
        size = count = 0
        for frame in frames:
            size += len(frame[4])
            count += 1
            if size > PARCEL_BYTES:
                break
        self._waiting = frames[count:]
        self._waiting_bytes -= size
        return frames[:count]

    def _sent(self, unconfirmed: Sequence[trio.Event], reply: object) -> None:
        self._under_way = False
        if isinstance(reply, int) and reply:
            for event in unconfirmed:
                event.set()
        else:
            self._unconfirmed.extend(unconfirmed)
        if not isinstance(reply, int):
            # The link is down or Redis refused: the frames stay retained, and silence proves nothing about the frontend.
            self._waiting.clear()
            self._waiting_bytes = 0
            self.deaf_since = None
            self.answered_at = trio.current_time()
            return
        if reply:
            self.deaf_since = None
        elif self.deaf_since is None:
            self.deaf_since = trio.current_time()
        if self._waiting:
            self._send(self._next_frames())


class Outbox:
    """All roads of one worker process."""

    def __init__(self, link: Link, seal: Seal, worker_id: str, ask: Ask = _all_live_elsewhere) -> None:
        self._link = link
        self._seal = seal
        self._ask = ask
        self._worker_id = worker_id
        self._roads: dict[str, Road] = {}
        self._attempts: dict[tuple[bytes, int], Retained] = {}
        self._given_up: dict[tuple[bytes, int], float] = {}
        self._emptied = trio.Event()
        self.resends = 0
        self.frontends_lost = 0

    def open(self, job: Job, gone: Callable[[], None], orphaned: Callable[[], None] = lambda: None) -> Retained:
        """Begin to retain an attempt. `KeyError` if the same attempt runs here already, or did and was given up."""
        key = (job.id, job.attempt)
        if key in self._attempts or key in self._given_up:
            raise KeyError(key)
        if not self._attempts:
            self._emptied = trio.Event()
        road = self._road(job.owner)
        if not road.attempts:
            road.answered_at = trio.current_time()
        retained = self._attempts[key] = road.attempts[key] = Retained(job, road, gone, orphaned)
        return retained

    def start(self, retained: Retained) -> trio.Event:
        """Put STARTED. The event is set when the owner has heard it, which `heard` waits for."""
        confirmed = trio.Event()
        retained.road.put([retained.frame(FrameKind.STARTED, b"")], confirmed)
        return confirmed

    async def heard(self, retained: Retained, confirmed: trio.Event) -> bool:
        """Whether the owner has heard STARTED: nothing is asked of an upstream for an owner that is gone.

        Waits `PATIENCE_SECONDS` for one that may be reconnecting, then gives the attempt up.
        """
        if not confirmed.is_set():
            with trio.move_on_after(PATIENCE_SECONDS):
                await confirmed.wait()
        if not confirmed.is_set():
            self._give_up(retained)
        return confirmed.is_set()

    def refuse(self, head: JobHead, failure: Failure) -> None:
        """Tell the owner of a job that nothing begins with it here; not retained, since a lost word costs only time."""
        frames = [(FrameKind.STARTED, b""), (FrameKind.FAILED, _encode(failure))]
        self._road(head.owner).put([(head.id, head.attempt, seq, *frame) for seq, frame in enumerate(frames)])

    def accept(self, retained: Retained, payload: bytes = b"") -> None:
        """Put ACCEPTED, which can wait for the first chunk, or for the next `flush`."""
        self._put(retained, [(FrameKind.ACCEPTED, payload)], urgent=False)

    def put(self, retained: Retained, frames: Sequence[tuple[int, bytes]]) -> None:
        """Number `(kind, payload)` frames that were born together, retain them and send them on their way.

        DONE and FAILED end the attempt, and nothing comes after.
        """
        self._put(retained, frames, urgent=True)

    def _put(self, retained: Retained, frames: Sequence[tuple[int, bytes]], *, urgent: bool) -> None:
        if retained.dropped or retained.ended_at is not None or not frames:
            return
        if frames[-1][0] >= FrameKind.DONE:
            retained.ended_at = trio.current_time()
        retained.road.put([retained.frame(kind, payload) for kind, payload in frames], urgent=urgent)

    def flush(self) -> None:
        """Send what was not urgent."""
        for road in self._roads.values():
            road.flush()

    def find(self, job_id: bytes, attempt: int) -> Retained | None:
        return self._attempts.get((job_id, attempt))

    def resend(self, retained: Retained, seq: int) -> None:
        frames = retained.sender.since(seq)
        self.resends += len(frames)
        if frames:
            retained.road.put(frames)

    def drop(self, retained: Retained) -> None:
        """Forget the attempt: its owner has everything, or wants nothing. Any number of times."""
        if retained.dropped:
            return
        retained.dropped = True
        key = (retained.job.id, retained.job.attempt)
        del self._attempts[key], retained.road.attempts[key]
        if not self._attempts:
            self._emptied.set()

    def _give_up(self, retained: Retained) -> None:
        """Forget an attempt whose owner may still listen to it; it does so no longer than the job may last."""
        if not retained.dropped:
            self._given_up[retained.job.id, retained.job.attempt] = trio.current_time() + retained.job.budget_seconds
            self.drop(retained)

    async def emptied(self) -> None:
        """Wait until every owner has everything."""
        while self._attempts:
            await self._emptied.wait()

    async def run(self) -> None:
        """Report every second; give up attempts whose frontend is gone and forget those that nobody asks about."""
        while True:
            await trio.sleep(keys.REFRESH_SECONDS)
            now = trio.current_time()
            for frontend_id, road in list(self._roads.items()):
                if road.attempts and self._is_gone(frontend_id, road, now):
                    _log.warning("frontend %s is gone, cancelling %d attempts", frontend_id, len(road.attempts))
                    self.frontends_lost += 1
                    for retained in list(road.attempts.values()):
                        retained.orphaned()
                    self._abandon(road)
                for retained in list(road.attempts.values()):
                    if retained.ended_at is not None and now - retained.ended_at > FORGET_SECONDS:
                        self._give_up(retained)
                if road.attempts or road.empty_reports < EMPTY_REPORTS:
                    road.report()
                else:
                    del self._roads[frontend_id]
            if self._given_up:
                self._given_up = {key: until for key, until in self._given_up.items() if until > now}

    def answered(self, frontend_id: str) -> None:
        """The frontend has said something to us."""
        road = self._roads.get(frontend_id)
        if road is not None:
            road.answered_at = trio.current_time()

    def remind(self, frontend_id: str) -> None:
        """The frontend asks for an attempt that is not here: let it see again what is."""
        self._road(frontend_id).empty_reports = 0

    def ear_restored(self) -> None:
        """Orders may have been lost: that nobody has answered until now proves nothing."""
        for road in self._roads.values():
            road.answered_at = trio.current_time()

    def _is_gone(self, frontend_id: str, road: Road, now: float) -> bool:
        if road.deaf_since is None:
            return now - road.answered_at > UNANSWERED_SECONDS
        sign = self._ask(frontend_id, now)
        patience = CUT_OFF_SECONDS if sign is Sign.ANSWERS else PATIENCE_SECONDS - keys.REFRESH_SECONDS / 2
        return sign is Sign.GONE or road.deaf_seconds(now) > patience

    def abandon_all(self) -> None:
        """Redis has been away for too long: no owner waits for these attempts any more."""
        for road in list(self._roads.values()):
            self._abandon(road)

    def _abandon(self, road: Road) -> None:
        for retained in list(road.attempts.values()):
            self._give_up(retained)
            retained.gone()

    def _road(self, frontend_id: str) -> Road:
        road = self._roads.get(frontend_id)
        if road is None:
            road = self._roads[frontend_id] = Road(self._link, self._seal, self._worker_id, frontend_id)
        return road

    def statistics(self) -> dict[str, int]:
        retained = sum(item.sender.retained_bytes for item in self._attempts.values())
        unsent = sum(road.unsent for road in self._roads.values())
        return {"attempts": len(self._attempts), "retained_bytes": retained, "unsent": unsent, "resends": self.resends}
