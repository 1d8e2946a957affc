"""The worker's rules in the model: claim, start, say what the upstream says, retain, report, obey."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from shared.errors import Failure
from shared.sansio.sequence import Sender
from shared.schema.job import FrameKind, OrderKind, Orders, Parcel
from tests.shared.sansio.road.ground import Ground, Process

CLAIM_SECONDS = 0.2
REPORT_SECONDS = 1.0
PATIENCE_SECONDS = 3.0
EMPTY_REPORTS = 3
REDIS_AWAY_SECONDS = 10.0
ROOM = 3
WINDOW_FRAMES = 6
RETRYABLE = ("overloaded", "upstream_error", "disconnected")
FINAL = ("invalid_request", "timeout")

Key = tuple[bytes, int]


@dataclass
class Execution:
    """One call of an upstream, and what it will say. Its chunks carry its name, so that a mixture of two calls shows."""

    name: str
    chunks: int
    ending: str
    said: int = 0
    open: bool = False

    @property
    def worker(self) -> str:
        return self.name.partition("/")[0]


@dataclass
class Attempt:
    """The worker's side of an attempt."""

    key: Key
    call: Execution
    streaming: bool
    sender: Sender[Any] = field(default_factory=Sender)
    confirmed: bool = False
    ended: bool = False
    dropped: bool = False
    unwanted_since: float | None = None


class Worker(Process):
    """One incarnation."""

    def __init__(self, ground: Ground, name: str, owner: Process, ledger: dict[str, Execution]) -> None:
        super().__init__(ground, name)
        self.attempts: dict[Key, Attempt] = {}
        self.calls: list[Execution] = []
        self.draining = False
        self._owner = owner
        self._ledger = ledger
        self._given_up: set[Key] = set()
        self._deaf_since: float | None = None
        self._empty_reports = EMPTY_REPORTS
        self._hurry = ground.rng.choice([0.02, 0.2, 1.0])
        self.regularly(CLAIM_SECONDS, self._claim)
        self.regularly(REPORT_SECONDS, self._look_around)

    @property
    def busy(self) -> bool:
        return bool(self.attempts) or any(call.open for call in self.calls)

    # --- intake

    def _claim(self) -> None:
        while self.redis.up and self.redis.queue and not self.draining and self._running() < ROOM:
            entry, (job_id, number, streaming) = next(iter(self.redis.queue.items()))
            del self.redis.queue[entry]
            if self.ground.strikes("double delivery"):
                come_back = partial(self.redis.queue.__setitem__, entry, (job_id, number, streaming))
                self.ground.at(self.ground.rng.uniform(0, 6), come_back)
            self._accept((job_id, number), streaming)

    def _running(self) -> int:
        return sum(not attempt.ended for attempt in self.attempts.values())

    def _accept(self, key: Key, streaming: bool) -> None:
        if key in self.attempts or key in self._given_up:
            return
        rng = self.ground.rng
        ending = rng.choice(["done"] * 5 + ["endless", rng.choice(RETRYABLE), rng.choice(RETRYABLE), rng.choice(FINAL)])
        call = Execution(f"{self.id}/{len(self._ledger)}", rng.randint(0, 12), ending)
        attempt = self.attempts[key] = Attempt(key, call, streaming)
        self._ledger[call.name] = call
        self.calls.append(call)
        self.ground.say("{} claims {} attempt {} as {}", self.id, key[0].hex()[-2:], key[1], call)
        self._put(attempt, FrameKind.STARTED)
        self.soon(0.0, lambda: self._begin(attempt))
        self.soon(PATIENCE_SECONDS, lambda: None if attempt.confirmed or attempt.dropped else self._give_up(attempt))

    # --- attempt

    def _begin(self, attempt: Attempt) -> None:
        """Call the upstream as soon as the owner is known to have heard of it."""
        if attempt.dropped or attempt.ended:
            return
        if not attempt.confirmed:
            self.soon(0.1, lambda: self._begin(attempt))
            return
        attempt.call.open = True
        self.soon(self._pause(), lambda: self._accepted(attempt))

    def _accepted(self, attempt: Attempt) -> None:
        if attempt.call.open:
            self._put(attempt, FrameKind.ACCEPTED, attempt.call.name.encode())
            self.soon(self._pause(), lambda: self._say_more(attempt))

    def _say_more(self, attempt: Attempt) -> None:
        call = attempt.call
        if not call.open:
            return
        if attempt.streaming and attempt.sender.retained_bytes > WINDOW_FRAMES:
            self.soon(0.1, lambda: self._say_more(attempt))
            return
        more = call.chunks - call.said  # one that does not stream gets everything at the end
        if attempt.streaming:
            more = min(more, self.ground.rng.randint(1, 3))
        for _ in range(more):
            self._put(attempt, FrameKind.CHUNK, b"%b %d" % (call.name.encode(), call.said))
            call.said += 1
        if call.said < call.chunks:
            self.soon(self._pause(), lambda: self._say_more(attempt))
        elif call.ending == "done":
            self._end(attempt, FrameKind.DONE, call.name.encode())
        elif call.ending != "endless":
            self._fail(attempt, call.ending)

    def _fail(self, attempt: Attempt, kind: str) -> None:
        self._end(attempt, FrameKind.FAILED, msgspec.msgpack.encode(Failure(kind, attempt.call.name)))

    def _end(self, attempt: Attempt, kind: int, payload: bytes) -> None:
        attempt.call.open = False
        self._put(attempt, kind, payload)

    def _pause(self) -> float:
        return self.ground.rng.uniform(0, self._hurry)

    # --- outbox

    def _put(self, attempt: Attempt, kind: int, payload: bytes = b"") -> None:
        if attempt.dropped or attempt.ended:
            return
        attempt.ended = kind >= FrameKind.DONE
        frame = (*attempt.key, attempt.sender.next, kind, payload)
        attempt.sender.keep(frame, 1)
        self._send([frame])

    def _send(self, frames: list[Any], running: list[Any] | None = None) -> None:
        receivers = self.redis.publish(self._owner, Parcel(self.id, frames, running))
        if receivers is None:
            self._deaf_since = None
        elif receivers:
            self._deaf_since = None
            for attempt in self.attempts.values():
                attempt.confirmed = True
        elif self._deaf_since is None:
            self._deaf_since = self.ground.now

    def _look_around(self) -> None:
        """Once a second: give up for an owner or a Redis that is gone; else report."""
        now = self.ground.now
        deaf = self._deaf_since is not None and now - self._deaf_since >= PATIENCE_SECONDS
        if deaf or (self.redis.down_since is not None and now - self.redis.down_since > REDIS_AWAY_SECONDS):
            for attempt in list(self.attempts.values()):
                self._give_up(attempt)
        self._empty_reports = 0 if self.attempts else self._empty_reports + 1
        if self._empty_reports <= EMPTY_REPORTS:
            self._send([], [(*attempt.key, attempt.sender.next) for attempt in self.attempts.values()])

    def _drop(self, attempt: Attempt) -> None:
        attempt.dropped = True
        self.attempts.pop(attempt.key, None)

    def _give_up(self, attempt: Attempt) -> None:
        """Drop an attempt although its owner has not said so: it must never run here again under the same number."""
        self.ground.say("{} gives up {}", self.id, attempt.call)
        self._given_up.add(attempt.key)
        attempt.call.open = False
        self._drop(attempt)

    # --- orders and signals

    def take_in(self, message: object) -> None:
        assert isinstance(message, Orders)
        for kind, job_id, number, seq in message.orders:
            attempt = self.attempts.get((job_id, number))
            if attempt is None:
                continue
            if kind == OrderKind.CONSUMED:
                attempt.sender.consumed(seq)
            elif kind == OrderKind.RESEND:
                if frames := attempt.sender.since(seq):
                    self._send(frames)
            else:
                self.ground.say(
                    "{} is told to {} {}", self.id, "cancel" if kind == OrderKind.CANCEL else "forget", attempt.call
                )
                self._drop(attempt)
                if kind == OrderKind.CANCEL:
                    attempt.call.open = False

    def drain(self) -> None:
        """SIGTERM: claim no more, stop the rest after a while, and leave when every owner has everything or time is up."""
        if not self.draining and self.alive:
            self.ground.say("{} drains", self.id)
            self.draining = True
            self.soon(self.ground.rng.uniform(0, 2), self._stop_stragglers)

    def _stop_stragglers(self) -> None:
        for attempt in list(self.attempts.values()):
            if not attempt.ended:
                attempt.call.ending = "shutting_down"
                self._fail(attempt, "shutting_down")
        self.soon(2.0, self.die)
