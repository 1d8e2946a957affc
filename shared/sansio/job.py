"""The owner's view of one job: which worker it listens to, what the caller gets, when another attempt may start.

    WAITING --frame or report of the current attempt--> RUNNING --DONE or final FAILED--> ENDED
       ^                                                   |
       +--- retryable failure or lost worker, nothing -----+       leave() ends it from anywhere
            seen by the caller, starts left

The owner locks on the first worker incarnation (a random id) that speaks for the current attempt. Whoever else speaks for the
job is told to cancel: a second worker that got the same entry, a worker of an earlier attempt, one that was stopped and
woke up. That one rule makes late, doubled and orphaned attempts stop; a counter alone would not, since a Redis that was
rewound can repeat numbers.

It works the other way round too: a worker's report names everything that it still answers for. If it does not name a job that
we believe to run there, the worker has given it up, and waiting for it would last until the deadline.

The machine does no I/O. It collects orders for workers in `orders`, which its shell takes and sends, and raises `resubmit`
when the shell must put the next attempt on the queue. A frame's payload is opaque, except a failure's.
"""

from enum import Enum
from typing import Final

import msgspec

from shared.errors import ELSEWHERE, UNSPENT, Failure
from shared.sansio.sequence import Receiver
from shared.schema.job import FrameKind, Order, OrderKind

_failure = msgspec.msgpack.Decoder(Failure)

UNLISTED_REPORTS: Final = 2
"""So many reports in a row must leave a job out, since one may have overtaken the frame that says that the job has begun."""

MOST_VANISHED: Final = 5
"""Losses of the queue that one job survives. Only a broken queue, or one that somebody empties, loses the same job so often."""


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class Ownership:
    """One job. `starts` counts attempts that a worker began; one that is handed back by a worker that shuts down does not
    count, unless the upstream had accepted it. `setbacks`: why there were further attempts.

    `routes`: how many providers the job may be sent to, one after the other; `route` says which of them it is now. At most
    `max_starts` attempts, over all routes, may have cost an upstream something: a refusal that did not is free if another
    route follows.

    `commits_on_chunk`: a chunk goes to the caller as it comes (streaming), so that no new attempt may follow; otherwise the
    caller sees nothing before the end.
    """

    def __init__(self, job_id: bytes, *, max_starts: int, commits_on_chunk: bool, routes: int = 1) -> None:
        self.id = job_id
        self.state = State.WAITING
        self.attempt = 1
        self.starts = 0
        self.route = 0
        self.worker: str | None = None
        self.failure: Failure | None = None
        self.committed = False
        self.resubmit = False
        self.setbacks: list[str] = []
        self.orders: list[tuple[str, Order]] = []
        self.received: Receiver[tuple[int, bytes]] = Receiver()
        self._unlisted = 0
        self._vanished = 0
        self._unspent = 0
        self._routes = routes
        self._max_starts = max_starts
        self._commits_on_chunk = commits_on_chunk

    def __repr__(self) -> str:
        return f"<Ownership {self.id.hex()[:8]} {self.state.value} attempt={self.attempt} next={self.received.next}>"

    @property
    def may_begin_again(self) -> bool:
        """Whether another attempt may follow this one: the caller has seen nothing of it, and starts are left."""
        return not self.committed and self.starts - self._unspent < self._max_starts

    def frame(self, worker: str, attempt: int, seq: int, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        """A frame arrived: the `(kind, payload)` pairs that are due, in order. The last is DONE or FAILED when it is over.

        A failure that leads to another attempt is not handed out; `resubmit` is set instead, and what was handed out of this
        attempt so far is void.
        """
        if not self._listens_to(worker, attempt):
            return []
        due = self.received.accept(seq, (kind, payload))
        if self.received.has_hole:
            self._ask(worker, self.received.question())
        for count, (due_kind, due_payload) in enumerate(due, 1):
            if due_kind == FrameKind.CHUNK:
                self.committed = self._commits_on_chunk
            elif due_kind == FrameKind.DONE:
                self._order(worker, OrderKind.FINISHED)
                self.state = State.ENDED
                return due[:count]
            elif due_kind == FrameKind.FAILED:
                self._order(worker, OrderKind.FINISHED)
                return due[:count] if self._failed(_failure.decode(due_payload)) else []
        return due

    def report(self, worker: str, attempt: int, next_seq: int) -> None:
        """The worker says once a second that it runs the attempt and has sent `next_seq` frames."""
        if self._listens_to(worker, attempt):
            self._unlisted = 0
            self._ask(worker, self.received.reported(next_seq))

    def unlisted(self, worker: str) -> None:
        """A report of this worker, which ought to name all its attempts for us, does not name the one we follow."""
        if self.state is State.RUNNING and worker == self.worker:
            self._unlisted += 1
            if self._unlisted == UNLISTED_REPORTS:
                self.worker_lost()

    def nudge(self) -> None:
        """Messages may have been lost on our side: ask for whatever follows what we have."""
        if self.state is State.RUNNING and self.worker is not None:
            self._ask(self.worker, self.received.next)

    def worker_lost(self) -> None:
        """The worker that ran the attempt is gone."""
        if self.state is State.RUNNING:
            self._failed(Failure("worker_lost", "The worker that ran this request was lost."))

    def vanished(self) -> None:
        """The queue lost the job before anybody started: the next attempt costs no start, but there is an end to it."""
        if self.state is not State.WAITING:
            return
        self._vanished += 1
        if self._vanished > MOST_VANISHED:
            self.fail(Failure("queue_unavailable", "The job queue lost this request again and again."))
        else:
            self._next_attempt("vanished")

    def unanswered(self) -> None:
        """Nobody said whether the queue has the job: it is queued again, under another number in case it has."""
        if self.state is State.WAITING:
            self._next_attempt("unanswered")

    def turned_away(self, failure: Failure) -> None:
        """The route does not take the job: on to the next, or the end. What stands in the queue is the shell's to withdraw."""
        if self.state is State.WAITING and not self._moves_on(failure):
            self.fail(failure)

    def fail(self, failure: Failure) -> None:
        """The owner itself ends the job: a deadline, a broken road."""
        if self.state is not State.ENDED:
            self.leave()
            self.failure = failure

    def leave(self) -> None:
        """Nobody wants the answer any more. A waiting job's entry is the shell's to delete."""
        if self.state is State.RUNNING and self.worker is not None:
            self._order(self.worker, OrderKind.CANCEL)
        self.state = State.ENDED
        self.resubmit = False

    def _listens_to(self, worker: str, attempt: int) -> bool:
        if worker == self.worker and attempt == self.attempt and self.state is State.RUNNING:
            return True
        if self.state is State.WAITING and attempt == self.attempt:
            self.worker = worker
            self.starts += 1
            self.state = State.RUNNING
            return True
        self.orders.append((worker, (OrderKind.CANCEL, self.id, attempt, 0)))
        return False

    def _failed(self, failure: Failure) -> bool:
        """Whether the failure is final."""
        if failure.kind == "shutting_down" and self.received.next == 2:  # nothing between STARTED and FAILED
            self.starts -= 1
        if self._moves_on(failure):
            return False
        if failure.row.again and self.may_begin_again:
            self._next_attempt(failure.kind)
            return False
        self.failure = failure
        self.state = State.ENDED
        return True

    def _moves_on(self, failure: Failure) -> bool:
        """Whether the next attempt is with another provider."""
        if failure.kind not in ELSEWHERE or self.committed or self.route + 1 >= self._routes:
            return False
        if self.state is State.RUNNING and failure.kind in UNSPENT:
            self._unspent += 1
        if not self.may_begin_again:
            return False
        self.route += 1
        self._next_attempt(failure.kind)
        return True

    def _next_attempt(self, setback: str) -> None:
        self.setbacks.append(setback)
        self.attempt += 1
        self.worker = None
        self._unlisted = 0
        self.state = State.WAITING
        self.received = Receiver()
        self.resubmit = True

    def _ask(self, worker: str, seq: int | None) -> None:
        if seq is not None:
            self._order(worker, OrderKind.RESEND, seq)

    def _order(self, worker: str, kind: int, seq: int = 0) -> None:
        self.orders.append((worker, (kind, self.id, self.attempt, seq)))
