"""Every job of this frontend: submitted, followed, cancelled on the way out. This process owns their outcomes.

1. `open` puts a job on its provider's queue and returns the `OpenJob` that the caller's request waits on.
2. Parcels from workers arrive in `deliver`, synchronously, and wake whoever waits.
3. `frontend.watch` looks after all jobs a few times a second: deadlines, lost entries, dead workers, long silences.
4. `OpenJob.leave` ends it from anywhere, at once and without waiting; every way out of a request calls it.
"""

import logging
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from frontend.budget import limit_failure
from frontend.open_job import OpenJob, Submission
from frontend.settling import Settling
from shared.errors import Failure, fail
from shared.measuring import Histogram
from shared.redis import keys
from shared.redis.failures import LinkDown, RefusalKind, Refused
from shared.redis.link import Link
from shared.redis.submission.queue import withdraw
from shared.redis.submission.script import Ask, Queued, Refusal, answer_to, submission
from shared.redis.usage import row_name
from shared.sansio.job import State
from shared.sansio.liveness import Liveness
from shared.schema.job import PROTOCOL, Job, Order, OrderKind, Orders, Parcel, Running
from shared.sealing import Seal, SealBroken

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_parcel = msgspec.msgpack.Decoder(Parcel)
COMING_BACK_SECONDS: Final = 0.25
PROVIDER_IS_FULL: Final = ("queue_full", "circuit_open")
"""The door's refusals that are about the provider; the others are about the caller."""
PASSING: Final = (RefusalKind.TRANSIENT, RefusalKind.WRONG_NODE)
URGENT: Final = (OrderKind.CANCEL, OrderKind.RESEND)
"""Orders that somebody waits for; the others only free memory and travel with them, or a little later."""
_COUNTED: Final = ("opened", "parcels", "frames", "refused_parcels", "resubmitted", "resends")


class Jobs:
    """All open jobs, by id, and the two roads: the queue and the workers' channels."""

    def __init__(self, frontend_id: str, link: Link, seal: Seal, *, queue_limit: int, max_starts: int) -> None:
        self.id = frontend_id
        self.link = link
        self.liveness = Liveness()
        self.settling = Settling(link)
        self._seal = seal
        self._queue_limit = queue_limit
        self._max_starts = max_starts
        self._open: dict[bytes, OpenJob] = {}
        self._orders: dict[str, list[Order]] = {}
        self._urgent = False
        self.gaps: Histogram | None = None
        self.on_admitted: Callable[[OpenJob], object] | None = None
        self.counts = dict.fromkeys(_COUNTED, 0)

    def __len__(self) -> int:
        return len(self._open)

    def all(self) -> list[OpenJob]:
        return list(self._open.values())

    async def reachable(self) -> None:
        """Give a queue that was lost a moment ago that moment to come back; if it does not, `open` refuses."""
        down_since = self.link.down_since
        if down_since is not None and trio.current_time() - down_since < COMING_BACK_SECONDS:
            with trio.move_on_at(down_since + COMING_BACK_SECONDS):
                await self.link.wait_up()

    def open(self, job: OpenJob) -> None:
        """Queue the job. What Redis says to that comes later, as the failure of the job.

        Raises `GatewayError` `queue_unavailable`.
        """
        self.counts["opened"] += 1
        self._open[job.ownership.id] = job
        if not self.link.up:
            job.leave()
            raise fail("queue_unavailable", "The job queue is not reachable right now; try again in a few seconds.")
        self.submit(job)

    def new(self, submission: Submission) -> OpenJob:
        return OpenJob(submission, self, self._max_starts, self.gaps)

    def admitted(self, job: OpenJob) -> None:
        if self.on_admitted is not None:
            self.on_admitted(job)

    def submit(self, job: OpenJob) -> None:
        """Put the job's current attempt on the queue."""
        wanted, ownership = job.submission, job.ownership
        ownership.resubmit = False
        job.queued_at = job.looked_at = trio.current_time()
        if job.waits_since is None:
            job.waits_since = job.queued_at
        job.missed_looks = 0
        job.queue_span.end("vanished")
        job.queue_span = wanted.trace.begin("queue", "producer")
        job.at_door = True
        message = Job(
            protocol=PROTOCOL,
            id=ownership.id,
            attempt=ownership.attempt,
            owner=self.id,
            endpoint=wanted.endpoint,
            provider=wanted.provider,
            model=wanted.model,
            asked_model=wanted.asked_model,
            stream=wanted.stream,
            include_usage=wanted.include_usage,
            budget_seconds=wanted.budget_seconds - (job.queued_at - job.opened_at),
            body=wanted.body,
            request_id=wanted.request_id,
            credential=wanted.credential,
            caller=wanted.caller,
            traceparent=job.queue_span.traceparent,
        )
        provider, attempt = wanted.provider, ownership.attempt
        sealed = self._seal.seal(_encode(message), keys.jobs(provider))
        self.link.post_script(
            *submission(provider, self._ask(job), sealed),
            on_reply=lambda reply: self._submitted(job, provider, attempt, reply),
        )

    def _ask(self, job: OpenJob) -> Ask:
        wanted, ownership, tokens = job.submission, job.ownership, job.submission.estimate
        return Ask(
            job=ownership.id.hex(),
            name=job.name,
            caller=wanted.caller,
            whose=wanted.fair_to or wanted.caller,
            model=wanted.model,
            again=job.admitted,
            returns=job.let_in,
            ahead=job.had_turn,
            low=wanted.priority == "low",
            patience_ms=max(0.0, wanted.patience_seconds - job.waited_seconds) * 1000,
            most_waiting=self._queue_limit,
            terms=wanted.terms,
            row=row_name(wanted.caller, wanted.provider, wanted.model),
            prompt_tokens=tokens.prompt,
            estimated_tokens=tokens.prompt + tokens.answer,
            at_least_tokens=tokens.prompt + tokens.least,
        )

    def _submitted(self, job: OpenJob, provider: str, attempt: int, reply: object) -> None:
        current = not job.ended and job.ownership.attempt == attempt
        answer = answer_to(reply) if isinstance(reply, bytes) else None
        if answer is not None and answer.limits is not None:
            job.left = answer.limits
            job.wake()
        if isinstance(answer, Refusal):
            job.at_door = job.admitted or job.unanswered_since is not None
        if isinstance(answer, Queued):
            job.admit()
            job.unanswered_since = None
            if not current:
                # It ended while Redis was asked; a worker that was faster is told to cancel when it speaks.
                self.link.post_script(*withdraw(provider, f"{job.ownership.id.hex()}.{attempt}"))
            else:
                job.queued = job.let_in = True
        elif not current or job.ownership.state is not State.WAITING:
            pass  # whatever became of this submission, the job has gone on: a worker was faster than the reply
        elif isinstance(answer, Refusal):
            (job.turned_away if answer.kind in PROVIDER_IS_FULL else job.fail)(_refused(answer))
        elif isinstance(reply, Refused) and reply.kind is RefusalKind.CAPACITY:
            job.fail(Failure("queue_full", "The job queue is full; try again in a few seconds."))
        elif isinstance(reply, LinkDown) or (isinstance(reply, Refused) and reply.kind in PASSING):
            # It may even have been executed. So it is another attempt that the watch submits once Redis answers again.
            job.unanswered()
        else:
            _log.warning("a job could not be queued: %s", reply, extra={"request_id": job.submission.request_id})
            job.fail(
                Failure("queue_unavailable", "The job queue is not reachable right now; try again in a few seconds.")
            )

    def unqueue(self, job: OpenJob) -> None:
        """Take a job that still waits out of the queue."""
        if job.queued and job.ownership.state is State.WAITING:
            self.link.post_script(*withdraw(job.submission.provider, job.name))

    def forget(self, job: OpenJob) -> None:
        if self._open.pop(job.ownership.id, None) is not None:
            self.settling.close(job)

    def deliver(self, channel: bytes, message: bytes) -> None:
        """A parcel on this frontend's channel. Foreign or damaged ones are counted and dropped."""
        try:
            parcel = _parcel.decode(self._seal.open(message, channel))
        except (SealBroken, msgspec.DecodeError, UnicodeDecodeError) as problem:
            self.counts["refused_parcels"] += 1
            _log.error("refused a message on the frontend's channel: %s", problem)
            return
        worker = parcel.worker
        self.liveness.heard(worker, trio.current_time())
        self.counts["parcels"] += 1
        self.counts["frames"] += len(parcel.frames)
        for job_id, attempt, seq, kind, payload in parcel.frames:
            job = self._open.get(job_id)
            if job is None:
                self._order(worker, (OrderKind.CANCEL, job_id, attempt, 0))
                continue
            job.receive(worker, attempt, seq, kind, payload)
            if job.ownership.orders:
                self._collect(job)
        if parcel.running is not None:
            self._report(worker, parcel.running)
        if self._urgent:
            self.flush_orders()

    def _report(self, worker: str, running: list[Running]) -> None:
        """The worker's second: how far it is with each attempt for us. What it does not name, it has given up."""
        for job_id, attempt, next_seq in running:
            self._reported(worker, job_id, attempt, next_seq)
        named = {(job_id, attempt) for job_id, attempt, _ in running}
        for job in self.all():
            if job.ownership.worker == worker and (job.ownership.id, job.ownership.attempt) not in named:
                job.unlisted(worker)

    def _reported(self, worker: str, job_id: bytes, attempt: int, next_seq: int) -> None:
        job = self._open.get(job_id)
        if job is None:
            self._order(worker, (OrderKind.CANCEL, job_id, attempt, 0))
            return
        job.report(worker, attempt, next_seq)
        self._collect(job)
        if worker == job.ownership.worker and job.ownership.state is State.RUNNING:
            # Also with nothing new to say: it is how the worker knows that we live.
            self._order(worker, (OrderKind.CONSUMED, job_id, attempt, job.consumed))

    def order(self, job: OpenJob, kind: int, seq: int) -> None:
        ownership = job.ownership
        if ownership.worker is not None:
            self._order(ownership.worker, (kind, ownership.id, ownership.attempt, seq))
            self.flush_orders()

    def send_orders(self, job: OpenJob) -> None:
        self._collect(job)
        if self._urgent:
            self.flush_orders()

    def _collect(self, job: OpenJob) -> None:
        for worker, order in job.ownership.orders:
            self._order(worker, order)
        job.ownership.orders.clear()

    def _order(self, worker: str, order: Order) -> None:
        self._orders.setdefault(worker, []).append(order)
        self.counts["resends"] += order[0] == OrderKind.RESEND
        self._urgent = self._urgent or order[0] in URGENT

    def flush_orders(self) -> None:
        """Send what waits: at once with an order that is urgent, otherwise when the watch comes round."""
        orders, self._orders = self._orders, {}
        self._urgent = False
        for worker, batch in orders.items():
            channel = keys.worker_channel(worker)
            self.link.post(b"PUBLISH", channel, self._seal.seal(_encode(Orders(self.id, batch)), channel))


def _refused(refusal: Refusal) -> Failure:
    """What the door says, in words for the caller."""
    if (failure := limit_failure(refusal)) is not None:
        return failure
    if refusal.kind == "circuit_open":
        message = "The upstream failed too often lately and is left alone for a while."
    elif refusal.own:
        message = f"{refusal.own} of your requests wait for this provider already; try again in a few seconds."
    elif refusal.retry_after_seconds is not None:
        message = (
            f"The wait for this provider is about {refusal.retry_after_seconds:.0f} s, longer than you would wait."
        )
    else:
        message = f"{refusal.waiting} jobs wait for this provider already; try again in a few seconds."
    return Failure(refusal.kind, message, retry_after_seconds=refusal.retry_after_seconds)
