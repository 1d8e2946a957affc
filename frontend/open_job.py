"""One open job: what its caller asked for, what has come of it, and the one task that waits for news.

Everything but the waiting is synchronous: a frame that arrives, a deadline that passes and a caller that leaves meet nobody.
"""

import secrets
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec
import trio

from frontend.budget import NO_ESTIMATE, Estimate, Sent
from frontend.catalog import Route
from shared.errors import Failure
from shared.measuring import Distribution, Histogram
from shared.redis.submission.limits import Left, Terms
from shared.sansio.job import Ownership, State
from shared.schema.caller import MASTER, Priority
from shared.schema.job import Accepted, FrameKind, OrderKind, Outcome
from shared.tracing import NO_SPAN, Span

_accepted = msgspec.msgpack.Decoder(Accepted)
_outcome = msgspec.msgpack.Decoder(Outcome)

CONSUMED_BYTES: Final = 256 * 1024
"""A fast stream tells its worker that it may go on before the worker's window is used up."""

HEARD_SECONDS: Final = 0.25


class Roads(Protocol):
    """What a job needs of `frontend.jobs.Jobs`."""

    def order(self, job: "OpenJob", kind: int, seq: int) -> None: ...
    def send_orders(self, job: "OpenJob") -> None: ...
    def unqueue(self, job: "OpenJob") -> None: ...
    def forget(self, job: "OpenJob") -> None: ...
    def admitted(self, job: "OpenJob") -> None: ...
    def submit(self, job: "OpenJob") -> None: ...


@dataclass(frozen=True)
class Submission:
    """What a request asks for, after it was checked and routed.

    `budget_seconds`: for everything, queue included; `patience_seconds`: for the queue alone. `caller`: id of the key that is
    charged. `fair_to`: between whom the queue is fair, where that is not the caller's id, which some share. `estimate`: of
    tokens, for the caller's limits; `terms`: these limits, if there are any. `further`: where to go if this provider does
    not serve it, in order.
    """

    endpoint: str
    provider: str
    model: str
    asked_model: str
    stream: bool
    include_usage: bool
    body: bytes
    request_id: str
    budget_seconds: float
    credential: str | None = None
    caller: str = MASTER
    trace: Span = NO_SPAN
    fair_to: str = ""
    priority: Priority = "normal"
    patience_seconds: float = 30.0
    estimate: Estimate = NO_ESTIMATE
    terms: Terms | None = None
    further: tuple[Route, ...] = ()

    def moved_on(self) -> "Submission":
        """The same request, to the next provider."""
        route = self.further[0]
        return replace(self, provider=route.provider, model=route.model, further=self.further[1:])


class OpenJob:
    """One caller's job. One task waits on it; everything else is synchronous.

    `admitted`: Redis has taken it, or a worker has it. `unanswered_since`: Redis did not say whether it has taken it.
    `queued`: it waits, and Redis says so. `let_in`: the queue of its provider has taken it once, `had_turn`: and a worker has
    had it. `waits_since`: on `trio.current_time()`, None while it does not wait. `noted`: it is over and was counted.
    `gaps`: between pieces of a stream.
    """

    def __init__(self, submission: Submission, jobs: Roads, max_starts: int, gaps: Histogram | None = None) -> None:
        self.submission = submission
        self.ownership = Ownership(
            secrets.token_bytes(16), max_starts=max_starts, commits_on_chunk=submission.stream,
            routes=1 + len(submission.further),
        )  # fmt: skip
        self.opened_at = trio.current_time()
        self.queued_at = self.opened_at
        self.waits_since: float | None = self.opened_at
        self.queued = False
        self.let_in = False
        self.had_turn = False
        self._route = 0
        self.admitted = False
        self.noted = False
        self.queue_span: Span = NO_SPAN
        self.unanswered_since: float | None = None
        self.started_at: float | None = None
        self.looked_at = self.opened_at
        self.missed_looks = 0
        self.accepted_at: float | None = None
        self.dropped: list[str] = []
        self.outcome: Outcome | None = None
        self.first_chunk_at: float | None = None
        self.last_sent_at = self.opened_at
        self.keepalive_due = False
        self.consumed = 0
        self.workers_lost: list[str] = []
        self.at_door = False
        self.left: Left | None = None
        self.sent = Sent()
        self._waited_seconds = 0.0
        self._gaps = gaps if submission.stream else None
        self._gaps_here: Distribution | None = None
        self._jobs = jobs
        self._chunks: list[bytes] = []
        self._taken = 0
        self._taken_bytes = 0
        self._piece_at = 0.0
        self._news = False
        self._parked: trio.lowlevel.Task | None = None

    def __repr__(self) -> str:
        return f"<OpenJob {self.submission.request_id} {self.ownership!r}>"

    @property
    def ended(self) -> bool:
        return self.ownership.state is State.ENDED

    @property
    def name(self) -> str:
        """What the current attempt is called in the queue."""
        return f"{self.ownership.id.hex()}.{self.ownership.attempt}"

    @property
    def waited_seconds(self) -> float:
        """How long the job has been in the queue, all attempts together."""
        since = self.waits_since
        return self._waited_seconds + (0.0 if since is None else trio.current_time() - since)

    @property
    def has_chunks(self) -> bool:
        return bool(self._chunks)

    @property
    def failure(self) -> Failure | None:
        return self.ownership.failure

    def take(self) -> list[bytes]:
        """The chunks that wait. Whatever an earlier call returned counts as consumed by the caller."""
        if self._taken_bytes > CONSUMED_BYTES:
            self._taken_bytes = 0
            self._jobs.order(self, OrderKind.CONSUMED, self._taken)
        self.consumed = self._taken
        chunks, self._chunks = self._chunks, []
        self._taken = self.ownership.received.next
        if chunks:
            before = self.sent.bytes
            self.sent.add(chunks)
            self._taken_bytes += self.sent.bytes - before
        now = trio.current_time()
        if chunks and self._gaps is not None:
            if self._gaps_here is None:  # from here on the provider is certain
                self._gaps_here = self._gaps.of(self.submission.provider)
            else:
                self._gaps_here.observe(now - self._piece_at)
            self._piece_at = now
        self.last_sent_at = now
        return chunks

    async def heard(self) -> None:
        """Wait for what Redis has to say of the limits of a caller who has some; a worker may have been faster."""
        terms = self.submission.terms
        with trio.move_on_after(HEARD_SECONDS):
            while terms is not None and terms.per_minute and self.left is None:
                await self.wait()

    async def wait(self) -> None:
        """Wait until something has happened since the last wait: chunks, acceptance, the end, a keep-alive that is due."""
        if self._news:
            self._news = False
            return
        self._parked = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
        self._news = False

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        self._news = True
        if self._parked is not None:
            parked, self._parked = self._parked, None
            trio.lowlevel.reschedule(parked)

    def receive(self, worker: str, attempt: int, seq: int, kind: int, payload: bytes) -> None:
        ownership = self.ownership
        was = ownership.attempt
        for kind, payload in ownership.frame(worker, attempt, seq, kind, payload):  # noqa: B020 - a frame leads to frames
            if kind == FrameKind.CHUNK:
                self._chunks.append(payload)
            elif kind == FrameKind.STARTED:
                self.started_at = trio.current_time()
                self.queue_span.end()
                self.admit()
            elif kind == FrameKind.ACCEPTED:
                self.accepted_at = trio.current_time()
                self.dropped = _accepted.decode(payload).dropped if payload else []
            elif kind == FrameKind.DONE:
                self.outcome = _outcome.decode(payload)
        if self._chunks and self.first_chunk_at is None:
            self.first_chunk_at = trio.current_time()
        self._after(was)

    def admit(self) -> None:
        """Redis has taken the job, or a worker speaks of it. Any number of times."""
        if not self.admitted:
            self.admitted = True
            self._jobs.admitted(self)

    def report(self, worker: str, attempt: int, next_seq: int) -> None:
        """The worker says how far it is with an attempt."""
        self.ownership.report(worker, attempt, next_seq)
        self._note_start()

    def lose_worker(self) -> None:
        """The worker that ran the attempt is gone: another attempt, or the end."""
        was = self.ownership.attempt
        self.ownership.worker_lost()
        self._after(was)

    def unlisted(self, worker: str) -> None:
        """The worker's report does not name this job."""
        was = self.ownership.attempt
        self.ownership.unlisted(worker)
        self._after(was)

    def unanswered(self) -> None:
        """Redis did not say whether it has queued the job: it is queued again once it answers."""
        if self.unanswered_since is None:
            self.unanswered_since = trio.current_time()
        was = self.ownership.attempt
        self.ownership.unanswered()
        self._after(was)

    def vanished(self) -> None:
        """The queue has lost the job: it is queued again, or there is no sense in it."""
        was = self.ownership.attempt
        self.ownership.vanished()
        self._after(was)

    def _after(self, was: int) -> None:
        self._note_start()
        if self.ownership.attempt != was:
            self._begin_again()
        elif self.ended:
            self._stop_clock()
        self.wake()

    def _note_start(self) -> None:
        if self.waits_since is not None and self.ownership.worker is not None:
            self.admit()
            self.let_in = self.had_turn = True
            self._stop_clock()

    def _stop_clock(self) -> None:
        self._waited_seconds = self.waited_seconds
        self.waits_since = None

    def _begin_again(self) -> None:
        """The next attempt starts from nothing; only an answer that nobody has seen may be thrown away."""
        self._chunks.clear()
        self._taken = self._taken_bytes = self.consumed = 0
        self.started_at = self.accepted_at = None
        self.dropped = []
        self.first_chunk_at = None
        self.queued = False
        if self._route != self.ownership.route:
            self._route = self.ownership.route
            self.submission = self.submission.moved_on()
            self.let_in = self.had_turn = False
            self._jobs.submit(self)

    def turned_away(self, failure: Failure) -> None:
        """The provider, or its queue, does not take the job: on to the next one, or the end."""
        if self.ownership.state is State.WAITING:
            was = self.ownership.attempt
            self._jobs.unqueue(self)
            self.ownership.turned_away(failure)
            self._after(was)

    def fail(self, failure: Failure) -> None:
        """End the job with an error that is the gateway's own finding."""
        if not self.ended:
            self._jobs.unqueue(self)
            self.ownership.fail(failure)
            self._stop_clock()
            self._jobs.send_orders(self)
            self.wake()

    def leave(self) -> None:
        """Nobody waits any more: take the entry off the queue, or have the worker close the upstream. Any number of times."""
        if not self.ended:
            self._jobs.unqueue(self)
            self.ownership.leave()
        self._jobs.send_orders(self)
        self._jobs.forget(self)
