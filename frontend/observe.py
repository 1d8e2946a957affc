"""What a frontend counts for `/metrics`: each request and each job once, when it ends. Only the gaps between tokens are counted
as they pass.

A job is accepted when Redis has taken it or a worker speaks of it, whichever is first, and not if neither ever happens. So the
accepted ones are at any time those that are open and those that ended.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Final

import trio

from frontend.cache import HEADER
from frontend.catalog import Catalog
from frontend.edge import Visit
from frontend.jobs import Jobs
from frontend.open_job import OpenJob
from shared.errors import KINDS
from shared.measuring import Labels, Measures, Numbers
from shared.metrics import OTHER
from shared.redis import keys
from shared.redis.circuit import circuits
from shared.redis.failures import RedisError
from shared.redis.link import Link
from shared.sansio.job import State
from shared.tracing import NO_SPAN

_log = logging.getLogger(__name__)

_TRACED: Final = {
    "model": "gen_ai.request.model",
    "provider": "gen_ai.provider.name",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "attempts": "sluice.attempts",
    "stream": "gen_ai.request.stream",
}
"""What a request's span says of its facts, and under which name."""
SURVEY_SECONDS: Final = 1.0


class Observer:
    """The eyes of one frontend."""

    def __init__(self, measures: Measures, catalog: Catalog, jobs: Jobs) -> None:
        self._catalog = catalog
        self._requests = measures.counter("sluice_http_requests_total")
        self._refused = measures.counter("sluice_requests_refused_total")
        self._from_memory = measures.counter("sluice_answers_from_memory_total")
        self._accepted = measures.counter("sluice_jobs_accepted_total")
        self._ended = measures.counter("sluice_jobs_ended_total")
        self._starts = measures.counter("sluice_attempts_started_total")
        self._retries = measures.counter("sluice_retries_total")
        self._tokens = measures.counter("sluice_tokens_total")
        self._queue_wait = measures.histogram("sluice_queue_wait_seconds")
        self._first_token = measures.histogram("sluice_first_token_seconds")
        self._seconds = measures.histogram("sluice_job_seconds")
        jobs.gaps = measures.histogram("sluice_token_gap_seconds")
        jobs.on_admitted = self.job_admitted
        _read(measures, catalog, jobs)

    def visit_ended(self, visit: Visit) -> None:
        """A request is over, however that came about."""
        if visit.span is not NO_SPAN:
            _trace(visit)
        self._requests.add(visit.endpoint, str(visit.status or 499))
        if HEADER in visit.headers:
            self._from_memory.add(visit.headers[HEADER])
        if visit.refusal and "attempts" not in visit.facts:
            self._refused.add(visit.refusal)

    def job_admitted(self, job: OpenJob) -> None:
        """Redis has taken the job, or a worker has it: told once. Its caller may have left before."""
        wanted = job.submission
        _log.debug("job accepted", extra={"request_id": wanted.request_id, "provider": wanted.provider})
        self._accepted.add(wanted.endpoint, wanted.provider)
        if job.noted:
            self._ended.add(wanted.endpoint, wanted.provider, "cancelled", "")

    def job_ended(self, job: OpenJob) -> None:
        """Told once for each job that was opened, when its request is over."""
        wanted, ownership, now = job.submission, job.ownership, trio.current_time()
        provider, failure = wanted.provider, job.failure
        job.noted = True
        job.queue_span.end(failure.kind if failure is not None else "cancelled")
        if not job.admitted:
            if failure is not None:
                self._refused.add(_known(failure.kind))
            return
        outcome = "done" if job.outcome else "failed" if failure else "cancelled"
        self._ended.add(wanted.endpoint, provider, outcome, _known(failure.kind) if failure and not job.outcome else "")
        self._seconds.of(provider, outcome).observe(now - job.opened_at)
        self._starts.add(provider, by=ownership.starts)
        for setback in ownership.setbacks:
            self._retries.add(provider, _known(setback))
        if job.started_at is not None:
            self._queue_wait.of(provider).observe(job.started_at - job.queued_at)
        if wanted.stream and job.first_chunk_at is not None:
            self._first_token.of(provider).observe(job.first_chunk_at - job.opened_at)
        if job.outcome is not None:
            model = wanted.model if self._catalog.lists(provider, wanted.model) else OTHER
            self._tokens.add(provider, model, "prompt", by=job.outcome.prompt_tokens)
            self._tokens.add(provider, model, "completion", by=job.outcome.completion_tokens)


def _trace(visit: Visit) -> None:
    """The span of a request, as OpenTelemetry's conventions for HTTP and for language models name things."""
    facts = visit.facts
    visit.span.note(
        {
            "http.request.method": visit.method,
            "http.route": visit.endpoint,
            "http.response.status_code": visit.status or 499,
            "sluice.request_id": visit.request_id,
            **{name: fact for key, name in _TRACED.items() if isinstance(fact := facts.get(key), str | int | float)},
        },
        name=f"{visit.method} {visit.endpoint}",
    )
    error = facts.get("error")
    visit.span.end(str(error) if error else "" if visit.complete else "cancelled")


def _known(kind: str) -> str:
    """A failure comes from a worker, which may be newer than we are."""
    return kind if kind in KINDS or kind in ("vanished", "unanswered") else OTHER


def _read(measures: Measures, catalog: Catalog, jobs: Jobs) -> None:
    """What is told as it is at the moment of the scrape."""
    measures.read("sluice_jobs_open", lambda: _by_state(jobs.all()))
    measures.read("sluice_streams_open", lambda: _streams(jobs.all()))
    measures.read("sluice_workers", lambda: Counter((worker.provider,) for worker in catalog.workers))
    for name, count in {
        "sluice_jobs_resubmitted_total": "resubmitted",
        "sluice_parcels_received_total": "parcels",
        "sluice_parcels_refused_total": "refused_parcels",
        "sluice_frames_received_total": "frames",
        "sluice_resends_asked_total": "resends",
    }.items():
        measures.read(name, lambda count=count: jobs.counts[count])  # type: ignore[misc]
    survey = Survey(jobs.link, catalog)
    measures.before.append(survey.look)
    measures.read("sluice_queue_depth", lambda: survey.depths)
    measures.read("sluice_circuits", lambda: survey.circuits)


def _by_state(jobs: Iterable[OpenJob]) -> Numbers:
    return Counter(
        (job.submission.provider, "running" if job.ownership.state is State.RUNNING else "waiting")
        for job in jobs
        if job.admitted
    )


def _streams(jobs: Iterable[OpenJob]) -> Numbers:
    return Counter((job.submission.provider,) for job in jobs if job.submission.stream and not job.ended)


class Survey:
    """What Redis knows of all live providers: how many jobs wait, over all frontends, and whose circuits are not closed."""

    def __init__(self, link: Link, catalog: Catalog) -> None:
        self.depths: dict[Labels, float] = {}
        self.circuits: dict[Labels, float] = {}
        self._link = link
        self._catalog = catalog

    async def look(self) -> None:
        """Ask Redis; without an answer nothing is told."""
        self.depths, self.circuits = {}, {}
        with trio.move_on_after(SURVEY_SECONDS), contextlib.suppress(RedisError):
            for provider in sorted({worker.provider for worker in self._catalog.workers}):
                counter, normal, low, *_ = keys.queue(provider)
                lengths = await self._link.many([(b"XLEN", counter), (b"ZCARD", normal), (b"ZCARD", low)])
                states = [bool(circuit.probe) for circuit in (await circuits(self._link, provider)).values()]
                self.depths[provider,] = sum(lengths)
                self.circuits[provider, "half_open"] = states.count(True)
                self.circuits[provider, "open"] = states.count(False)
