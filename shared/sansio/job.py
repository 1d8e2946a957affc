"""The owner's view of one job: which worker it listens to, what the caller gets, when another attempt may start.

    WAITING --frame or report of the current attempt--> RUNNING --DONE or final FAILED--> ENDED
       ^                                                   |
       +--- retryable failure or lost worker, nothing ----+        leave() ends it from anywhere
            seen by the caller, starts left

The owner locks on the first worker incarnation (a random id) that speaks for the current attempt. Whoever else speaks for the
job is told to cancel: a second worker that got the same entry, a worker of an earlier attempt, one that was stopped and
woke up. That one rule makes late, doubled and orphaned attempts stop; a counter alone would not, since a Redis that was
rewound can repeat numbers.

The machine does no I/O. It collects orders for workers in `orders`, which its shell takes and sends, and raises `resubmit`
when the shell must put the next attempt on the queue. A frame's payload is opaque, except a failure's.
"""

from enum import Enum

import msgspec

from shared.errors import Failure
from shared.sansio.sequence import Receiver
from shared.schema.job import FrameKind, Order, OrderKind

_failure = msgspec.msgpack.Decoder(Failure)


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class Ownership:
    """One job. `starts` counts attempts that a worker began; at most `max_starts` of them.

    `commits_on_chunk`: a chunk goes to the caller as it comes (streaming), so that no new attempt may follow; otherwise the
    caller sees nothing before the end.
    """

    def __init__(self, job_id: bytes, *, max_starts: int, commits_on_chunk: bool) -> None:
        self.id = job_id
        self.state = State.WAITING
        self.attempt = 1
        self.starts = 0
        self.worker: str | None = None
        self.failure: Failure | None = None
        self.committed = False
        self.resubmit = False
        self.orders: list[tuple[str, Order]] = []
        self.received: Receiver[tuple[int, bytes]] = Receiver()
        self._max_starts = max_starts
        self._commits_on_chunk = commits_on_chunk

    def __repr__(self) -> str:
        return f"<Ownership {self.id.hex()[:8]} {self.state.value} attempt={self.attempt} next={self.received.next}>"

    def frame(self, worker: str, attempt: int, seq: int, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        """A frame arrived: the `(kind, payload)` pairs that are due, in order. The last is DONE or FAILED when it is over.

        A failure that leads to another attempt is not handed out; `resubmit` is set instead.
        """
        if not self._listens_to(worker, attempt):
            return []
        due = self.received.accept(seq, (kind, payload))
        if self.received.has_hole:
            self._ask(worker, self.received.question())
        if not due:
            return due
        last_kind, last_payload = due[-1]
        if self._commits_on_chunk and not self.committed:
            self.committed = any(kind == FrameKind.CHUNK for kind, _ in due)
        if last_kind == FrameKind.DONE:
            self._order(worker, OrderKind.FINISHED)
            self.state = State.ENDED
        elif last_kind == FrameKind.FAILED:
            self._order(worker, OrderKind.FINISHED)
            return self._failed(_failure.decode(last_payload), due)
        return due

    def report(self, worker: str, attempt: int, next_seq: int) -> None:
        """The worker says once a second that it runs the attempt and has sent `next_seq` frames."""
        if self._listens_to(worker, attempt):
            self._ask(worker, self.received.reported(next_seq))

    def nudge(self) -> None:
        """Messages may have been lost on our side: ask for whatever follows what we have."""
        if self.state is State.RUNNING and self.worker is not None:
            self._ask(self.worker, self.received.next)

    def worker_lost(self) -> None:
        """The worker that ran the attempt is gone."""
        if self.state is State.RUNNING:
            self._failed(Failure("worker_lost", "The worker that ran this request was lost."), [])

    def vanished(self) -> None:
        """The queue lost the entry before anybody started: the next attempt costs no start."""
        if self.state is State.WAITING:
            self._next_attempt()

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

    def _failed(self, failure: Failure, due: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        if failure.kind == "shutting_down":
            self.starts -= 1
        if failure.row.again and not self.committed and self.starts < self._max_starts:
            self._next_attempt()
            return []
        self.failure = failure
        self.state = State.ENDED
        return due

    def _next_attempt(self) -> None:
        self.attempt += 1
        self.worker = None
        self.state = State.WAITING
        self.received = Receiver()
        self.resubmit = True

    def _ask(self, worker: str, seq: int | None) -> None:
        if seq is not None:
            self._order(worker, OrderKind.RESEND, seq)

    def _order(self, worker: str, kind: int, seq: int = 0) -> None:
        self.orders.append((worker, (kind, self.id, self.attempt, seq)))
