"""Looks after all open jobs a few times a second, so that no job needs a timer of its own.

* A waiting job that is gone from the queue, seen twice in a row, was lost with Redis or with a worker that died between
  reading and starting: it is submitted again.
* A running job whose worker is silent is lost when nobody listens on the worker's channel either, and in any case after
  `DEAD_SECONDS`. Silence counts only while we hear ourselves (`frontend.own_voice`, `shared.sansio.liveness`).
* A worker that is our neighbour can be asked past Redis (`shared.neighbours`). One whose process is gone is lost at once. One
  that lives and is not heard was cut off: jobs that may start again do so elsewhere, streams wait for it to come back.
* Deadlines: in the queue, in total. A caller that gets nothing for a while is due a keep-alive comment.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from frontend.catalog import Catalog
from frontend.jobs import Jobs
from frontend.open_job import OpenJob
from frontend.own_voice import OwnVoice
from shared.errors import Failure
from shared.neighbours import Neighbours, Sign
from shared.redis import keys
from shared.redis.dead_jobs import DeadJob, bury
from shared.redis.submission.queue import withdraw
from shared.sansio.job import State

_log = logging.getLogger(__name__)

WATCH_SECONDS: Final = 0.2
LOOK_SECONDS: Final = 0.5
LOOKS: Final = 2
LOOK_AT_ONCE: Final = 500
SUSPECT_SECONDS: Final = 1.1
DEAD_SECONDS: Final = 3.0
REDIS_AWAY_SECONDS: Final = 10.0
CUT_OFF_SECONDS: Final = REDIS_AWAY_SECONDS + 1.5
"""A worker that was cut off gives up after `REDIS_AWAY_SECONDS`, and may need a moment to come back before."""
ASK_SECONDS: Final = 0.3
"""How long a neighbour may be silent before it is asked. A report is due every second, so most are asked; it costs little."""
NO_WORKER_SECONDS: Final = 3.0
POISON_DEATHS: Final = 2
"""So many workers that are lost with the same job are no accident."""


@dataclass(frozen=True)
class Patience:
    """Seconds: in the queue, and of silence before a keep-alive comment."""

    queue: float
    keepalive: float


class Watch:
    """The watch over one frontend's jobs."""

    def __init__(
        self, jobs: Jobs, catalog: Catalog, voice: OwnVoice, neighbours: Neighbours, patience: Patience
    ) -> None:
        self._jobs = jobs
        self._catalog = catalog
        self._voice = voice
        self._neighbours = neighbours
        self._patience = patience
        self._unheard: dict[str, int] = {}
        self._nudged: set[str] = set()

    async def run(self) -> None:
        while True:
            await trio.sleep(WATCH_SECONDS)
            now = trio.current_time()
            jobs = self._jobs.all()
            self._voice.speak(now)
            self._ears(jobs, now)
            for job in jobs:
                if not job.ended:
                    self._look_after(job, now)
            if self._jobs.link.up:
                self._look_for_waiting(jobs, now)
            self._jobs.flush_orders()
            self._jobs.settling.tick(jobs, now)

    def resubscribed(self) -> None:
        """Messages may have been lost: silence proves nothing, and every worker is asked for what we do not have."""
        self._jobs.liveness.start_again(trio.current_time())
        for job in self._jobs.all():
            job.ownership.nudge()
            self._jobs.send_orders(job)

    def _look_after(self, job: OpenJob, now: float) -> None:
        down_since = self._jobs.link.down_since
        if now - job.opened_at > job.submission.budget_seconds:
            job.fail(Failure("deadline", f"The answer took longer than {job.submission.budget_seconds:g} s."))
        elif down_since is not None:
            if now - down_since > REDIS_AWAY_SECONDS:
                job.fail(Failure("queue_unavailable", "The job queue was unreachable for too long."))
        elif job.ownership.resubmit:
            self._submit_again(job, now)
        elif job.ownership.state is State.WAITING:
            self._look_after_waiting(job, now)
        if job.submission.stream and now - job.last_sent_at > self._patience.keepalive and not job.keepalive_due:
            job.keepalive_due = True
            job.wake()

    def _submit_again(self, job: OpenJob, now: float) -> None:
        if job.unanswered_since is not None and now - job.unanswered_since > REDIS_AWAY_SECONDS:
            job.fail(Failure("queue_unavailable", "The job queue gave no answer for too long."))
            return
        self._jobs.counts["resubmitted"] += 1
        self._jobs.submit(job)

    def _look_after_waiting(self, job: OpenJob, now: float) -> None:
        waited = now - (job.queued_at if job.waits_since is None else job.waits_since)
        patience = min(self._patience.queue, job.submission.patience_seconds)
        if waited > patience:
            job.fail(Failure("queue_timeout", f"No worker took the request within {patience:g} s."))
        elif waited > NO_WORKER_SECONDS and not self._catalog.alive(job.submission.provider):
            job.turned_away(Failure("provider_unavailable", "No worker of this provider is running."))

    def _look_for_waiting(self, jobs: list[OpenJob], now: float) -> None:
        """Ask the queues, now and then, whether the jobs that wait are still in there."""
        due: dict[str, list[OpenJob]] = {}
        for job in jobs:
            if job.queued and job.ownership.state is State.WAITING and now - job.looked_at > LOOK_SECONDS:
                job.looked_at = now
                due.setdefault(job.submission.provider, []).append(job)
        for provider, waiting in due.items():
            for first in range(0, len(waiting), LOOK_AT_ONCE):
                self._look_for(provider, waiting[first : first + LOOK_AT_ONCE])

    def _look_for(self, provider: str, waiting: list[OpenJob]) -> None:
        attempts = [(job, job.ownership.attempt) for job in waiting]

        def seen(reply: object) -> None:
            if isinstance(reply, list):
                for (job, attempt), place in zip(attempts, reply, strict=True):
                    if place is None:
                        self._missed(job, attempt)
                    elif b":" not in place:
                        self._look_for_entry(job, attempt, place)

        self._jobs.link.post(b"HMGET", keys.places(provider), *(job.name for job in waiting), on_reply=seen)

    def _look_for_entry(self, job: OpenJob, attempt: int, entry: bytes) -> None:
        """The job is said to be in the stream. Somebody may have deleted it there, by hand."""

        def seen(reply: object) -> None:
            if reply == []:
                self._missed(job, attempt)

        self._jobs.link.post(b"XRANGE", keys.jobs(job.submission.provider), entry, entry, on_reply=seen)

    def _missed(self, job: OpenJob, attempt: int) -> None:
        if job.ownership.state is not State.WAITING or job.ownership.attempt != attempt:
            return
        job.missed_looks += 1
        if job.missed_looks >= LOOKS:
            _log.warning(
                "a job vanished from the queue, submitting it again", extra={"request_id": job.submission.request_id}
            )
            self._jobs.link.post_script(*withdraw(job.submission.provider, job.name))  # what may be left of it
            job.vanished()

    def _ears(self, jobs: list[OpenJob], now: float) -> None:
        liveness = self._jobs.liveness
        running = {job.ownership.worker or "" for job in jobs if job.ownership.state is State.RUNNING}
        for worker in liveness.peers():
            if worker not in running:
                liveness.forget(worker)
                self._unheard.pop(worker, None)
                self._nudged.discard(worker)
        suspects = []
        for worker in running:
            silent = liveness.silent_seconds(worker)
            sign = self._neighbours.ask(worker, now) if silent > ASK_SECONDS else Sign.UNKNOWN
            if sign is Sign.GONE or silent > CUT_OFF_SECONDS:
                self._lost(worker)
            elif silent > DEAD_SECONDS:
                self._unheard_of(worker, sign)
            elif silent > SUSPECT_SECONDS:
                suspects.append((worker, sign))
            else:
                self._unheard.pop(worker, None)
                self._nudged.discard(worker)
        if suspects:
            self._ask_who_listens(suspects)

    def _ask_who_listens(self, suspects: Sequence[tuple[str, Sign]]) -> None:
        channels = {keys.worker_channel(worker): (worker, sign) for worker, sign in suspects}

        def answered(reply: object) -> None:
            if not isinstance(reply, list):
                return
            for channel, listeners in zip(reply[::2], reply[1::2], strict=True):
                worker, sign = channels[channel]
                self._unheard[worker] = 0 if listeners else self._unheard.get(worker, 0) + 1
                if self._unheard[worker] >= LOOKS:
                    self._unheard_of(worker, sign)
                elif listeners and worker not in self._nudged:
                    self._nudge(worker)

        self._jobs.link.post(b"PUBSUB", b"NUMSUB", *channels, on_reply=answered)

    def _nudge(self, worker: str) -> None:
        """It listens and says nothing: it may have given us up while we could not be reached. Asked again, it says so."""
        self._nudged.add(worker)
        for job in self._running_on(worker):
            job.ownership.nudge()
            self._jobs.send_orders(job)

    def _unheard_of(self, worker: str, sign: Sign) -> None:
        """Silent for too long. Does its process answer, then streams that cannot be begun anew wait for its return."""
        if sign is not Sign.ANSWERS:
            self._lost(worker)
            return
        movable = [job for job in self._running_on(worker) if job.ownership.may_begin_again]
        if movable:
            _log.warning("worker %s is cut off from Redis, %d of its jobs begin again elsewhere", worker, len(movable))
        for job in movable:
            job.lose_worker()

    def _lost(self, worker: str) -> None:
        self._unheard.pop(worker, None)
        self._jobs.liveness.forget(worker)
        mine = self._running_on(worker)
        _log.warning("worker %s is lost with %d jobs", worker, len(mine))
        for job in mine:
            job.workers_lost.append(worker)
            job.lose_worker()
            if job.ended and len(job.workers_lost) >= POISON_DEATHS:
                _log.error("two workers died of one job", extra={"request_id": job.submission.request_id})
                bury(self._jobs.link, _dead(job))

    def _running_on(self, worker: str) -> list[OpenJob]:
        return [job for job in self._jobs.all() if job.ownership.worker == worker and not job.ended]


def _dead(job: OpenJob) -> DeadJob:
    wanted = job.submission
    return DeadJob(
        time=time.time(),
        request_id=wanted.request_id,
        provider=wanted.provider,
        model=wanted.model,
        endpoint=wanted.endpoint,
        caller=wanted.caller,
        stream=wanted.stream,
        body_bytes=len(wanted.body),
        workers=job.workers_lost,
    )
