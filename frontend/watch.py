"""Looks after all open jobs a few times a second, so that no job needs a timer of its own.

* A waiting job whose entry is gone from the queue, twice in a row, was lost with Redis or with a worker that died between
  reading and starting: it is submitted again.
* A running job whose worker is silent is lost when nobody listens on the worker's channel either, and in any case after
  `DEAD_SECONDS`. Silence counts only while our own ear is proven to work (`shared.sansio.liveness`).
* Deadlines: in the queue, in total. A caller that gets nothing for a while is due a keep-alive comment.
"""

import logging
from dataclasses import dataclass
from typing import Final

import trio

from frontend.catalog import Catalog
from frontend.jobs import Jobs
from frontend.open_job import OpenJob
from shared.errors import Failure
from shared.redis import keys
from shared.redis.subscription import Subscription
from shared.sansio.job import State

_log = logging.getLogger(__name__)

WATCH_SECONDS: Final = 0.2
LOOK_SECONDS: Final = 0.5
LOOKS: Final = 2
SUSPECT_SECONDS: Final = 1.1
DEAD_SECONDS: Final = 3.0
REDIS_AWAY_SECONDS: Final = 10.0
NO_WORKER_SECONDS: Final = 3.0


@dataclass(frozen=True)
class Patience:
    """Seconds: in the queue, and of silence before a keep-alive comment."""

    queue: float
    keepalive: float


class Watch:
    """The watch over one frontend's jobs."""

    def __init__(self, jobs: Jobs, catalog: Catalog, subscription: Subscription, patience: Patience) -> None:
        self._jobs = jobs
        self._catalog = catalog
        self._subscription = subscription
        self._patience = patience
        self._unheard: dict[str, int] = {}

    async def run(self) -> None:
        while True:
            await trio.sleep(WATCH_SECONDS)
            now = trio.current_time()
            jobs = self._jobs.all()
            self._ears(jobs)
            for job in jobs:
                if not job.ended:
                    self._look_after(job, now)
            self._jobs.flush_orders()

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
            self._jobs.counts["resubmitted"] += 1
            self._jobs.submit(job)
        elif job.ownership.state is State.WAITING:
            self._look_for_entry(job, now)
        if job.submission.stream and now - job.last_sent_at > self._patience.keepalive and not job.keepalive_due:
            job.keepalive_due = True
            job.wake()

    def _look_for_entry(self, job: OpenJob, now: float) -> None:
        waited = now - job.queued_at
        if waited > self._patience.queue:
            job.fail(Failure("queue_timeout", f"No worker took the request within {self._patience.queue:g} s."))
        elif waited > NO_WORKER_SECONDS and not self._catalog.alive(job.submission.provider):
            job.fail(Failure("provider_unavailable", "No worker of this provider is running."))
        elif job.entry is not None and now - job.looked_at > LOOK_SECONDS:
            job.looked_at = now
            entry, attempt = job.entry, job.ownership.attempt

            def seen(reply: object) -> None:
                if job.ownership.state is State.WAITING and job.ownership.attempt == attempt and reply == []:
                    self._missed(job)

            self._jobs.link.post(b"XRANGE", keys.jobs(job.submission.provider), entry, entry, on_reply=seen)

    def _missed(self, job: OpenJob) -> None:
        job.missed_looks += 1
        if job.missed_looks >= LOOKS:
            _log.warning("job %s vanished from the queue, submitting it again", job.submission.request_id)
            job.entry = None
            job.ownership.vanished()

    def _ears(self, jobs: list[OpenJob]) -> None:
        liveness = self._jobs.liveness
        evidence = self._subscription.last_ping
        if evidence is not None:
            liveness.ping_answered(evidence.sent_at, evidence.answered_at)
        running = {job.ownership.worker or "" for job in jobs if job.ownership.state is State.RUNNING}
        for worker in liveness.peers():
            if worker not in running:
                liveness.forget(worker)
                self._unheard.pop(worker, None)
        suspects = []
        for worker in running:
            assert worker is not None
            silent = liveness.silent_seconds(worker)
            if silent > DEAD_SECONDS:
                self._lost(worker)
            elif silent > SUSPECT_SECONDS:
                suspects.append(worker)
            else:
                self._unheard.pop(worker, None)
        if suspects:
            self._ask_who_listens(suspects)

    def _ask_who_listens(self, suspects: list[str]) -> None:
        channels = {keys.worker_channel(worker): worker for worker in suspects}

        def answered(reply: object) -> None:
            if not isinstance(reply, list):
                return
            for channel, listeners in zip(reply[::2], reply[1::2], strict=True):
                worker = channels[channel]
                self._unheard[worker] = 0 if listeners else self._unheard.get(worker, 0) + 1
                if self._unheard[worker] >= LOOKS:
                    self._lost(worker)

        self._jobs.link.post(b"PUBSUB", b"NUMSUB", *channels, on_reply=answered)

    def _lost(self, worker: str) -> None:
        self._unheard.pop(worker, None)
        self._jobs.liveness.forget(worker)
        mine = [job for job in self._jobs.all() if job.ownership.worker == worker and not job.ended]
        _log.warning("worker %s is lost with %d jobs", worker, len(mine))
        for job in mine:
            job.lose_worker()
