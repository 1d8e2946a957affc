"""From what is asked for to the HTTP response: by a job, or from memory; and what the headers and the log say of it."""

from urllib.parse import quote

import trio
from quart import Response, request

from frontend.answer import DONE, EventStream, events, head, whole
from frontend.api.bodies import on_leave, visit
from frontend.budget import limit_headers
from frontend.cache import HEADER, Memory, Question
from frontend.edge import Visit
from frontend.open_job import OpenJob, Submission
from frontend.server import StreamBody
from frontend.services import Services
from shared.errors import GatewayError
from shared.redis.answers import KeptAnswer
from shared.schema.caller import CallerKey


async def answer(services: Services, wanted: Submission, key: CallerKey) -> Response:
    """Answer from memory, if the caller wants that and there is something, else by a job."""
    visit().facts |= {"model": wanted.asked_model, "provider": wanted.provider, "stream": wanted.stream}
    question = Question(wanted.endpoint, wanted.asked_model, wanted.stream, wanted.body)
    memory = services.cache.look_up(question, key, request.headers.get(HEADER))
    if wanted.credential is not None:  # what somebody's own upstream account has answered is for nobody else
        memory = None
    if memory is None:
        return await _run(services, services.jobs.new(wanted), None)
    if (found := await memory.find()) is not None:
        return _again(*found, streaming=wanted.stream)
    visit().headers[HEADER] = "miss"
    return await _run(services, services.jobs.new(wanted), memory)


def _again(kept: KeptAnswer, age_seconds: float, *, streaming: bool) -> Response:
    """What was answered before, to the byte."""
    this_visit = visit()
    this_visit.facts |= {"provider": kept.provider, "cached": True}
    this_visit.headers |= {
        HEADER: "hit", "age": str(int(age_seconds)), "x-sluice-provider": kept.provider, "x-sluice-attempts": "0"
    }  # fmt: skip
    if streaming:
        return Response(events(kept.chunks) + DONE, headers=_STREAM_HEADERS)
    return Response(kept.chunks[0], content_type="application/json")


async def _run(services: Services, job: OpenJob, memory: Memory | None) -> Response:
    """Run the job to its answer. However the request ends, the visit leaves the job."""
    this_visit, wanted = visit(), job.submission
    on_leave(lambda: services.observer.job_ended(job))
    on_leave(lambda: _note(job, this_visit))
    on_leave(job.leave)
    try:
        await services.jobs.reachable()
        services.jobs.open(job)
        if wanted.stream:
            await head(job)
            await job.heard()
            return Response(StreamBody(EventStream(job, memory)), headers=_STREAM_HEADERS)
        body = await whole(job, memory)
        await job.heard()
        return Response(body, content_type="application/json")
    except GatewayError as error:
        error.starts = job.ownership.starts
        raise
    finally:
        this_visit.headers |= _headers(job)


def _headers(job: OpenJob) -> dict[str, str]:
    """What is told of the job, with its answer or with the error in its place."""
    headers = {
        "x-sluice-provider": job.submission.provider,
        "x-sluice-attempts": str(job.ownership.starts),
        "x-sluice-queue-ms": str(round(job.waited_seconds * 1000)),
    }
    if job.left is not None:
        headers |= limit_headers(job.left)
    if job.dropped:
        # A caller may have made up these names, and a header holds neither commas in one nor line ends.
        headers["x-sluice-dropped-parameters"] = ", ".join(quote(name) for name in job.dropped)
    return headers


_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def _note(job: OpenJob, this_visit: Visit) -> None:
    """What the access log says about the job."""
    facts = this_visit.facts
    facts["provider"] = job.submission.provider
    facts["attempts"] = job.ownership.starts
    facts["queue_ms"] = round(job.waited_seconds * 1000, 1)
    if job.ownership.worker is not None:
        facts["worker"] = job.ownership.worker
    if job.ownership.setbacks:
        facts["setbacks"] = job.ownership.setbacks
    if job.first_chunk_at is not None:
        facts["first_token_ms"] = round((job.first_chunk_at - job.opened_at) * 1000, 1)
    if job.outcome is not None:
        facts["prompt_tokens"] = job.outcome.prompt_tokens
        facts["completion_tokens"] = job.outcome.completion_tokens
        if job.outcome.upstream_request_id is not None:
            facts["upstream_request_id"] = job.outcome.upstream_request_id
    if job.failure is not None:
        facts["error"] = job.failure.code or job.failure.row.code or job.failure.kind
    facts["job_ms"] = round((trio.current_time() - job.opened_at) * 1000, 1)
