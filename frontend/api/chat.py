"""`POST /v1/chat/completions`, and what all endpoints that models answer have in common."""

from typing import TypeVar
from urllib.parse import quote

import msgspec
import trio
from quart import Blueprint, Response

from frontend.admission import Caller
from frontend.answer import EventStream, head, whole
from frontend.api.bodies import identify, json_body, on_leave, visit
from frontend.catalog import Route
from frontend.edge import Visit
from frontend.open_job import OpenJob, Submission
from frontend.requests import ChatRequest, EmbeddingRequest, Request, parse
from frontend.server import StreamBody
from frontend.services import Services
from shared.errors import GatewayError, fail

_request = msgspec.json.Decoder(ChatRequest)
R = TypeVar("R", bound=Request)


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("chat", "sluice.chat")

    @routes.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        return await serve(services, "chat", _request)

    return routes


async def serve(services: Services, endpoint: str, decoder: "msgspec.json.Decoder[R]") -> Response:
    """Answer the current request through a worker: who asks, what, for which model, then the job."""
    caller = await identify(services.admission)
    if not (caller.presented and services.catalog.takes_callers_keys):
        services.admission.require(caller)
    body = await json_body()
    asked = parse(decoder, body)
    route = services.catalog.resolve(asked.model)
    if not (caller.presented and route.caller_credentials):
        services.admission.require(caller)
    if endpoint not in route.endpoints:
        raise fail(
            "invalid_request", f"The model `{route.asked_model[:128]}` is not served by this endpoint.",
            param="model", code="unsupported_value",
        )  # fmt: skip
    return await answer(services, services.jobs.new(_submission(services, endpoint, asked, route, caller, body)))


def _submission(
    services: Services, endpoint: str, asked: Request, route: Route, caller: Caller, body: bytes
) -> Submission:
    may_stream = None if isinstance(asked, EmbeddingRequest) else asked
    options = may_stream and may_stream.stream_options
    return Submission(
        endpoint=endpoint,
        provider=route.provider,
        model=route.model,
        asked_model=route.asked_model,
        stream=bool(may_stream and may_stream.stream),
        include_usage=bool(options and options.include_usage),
        body=body,
        request_id=visit().request_id,
        budget_seconds=services.settings.total_seconds or route.total_seconds,
        credential=caller.presented or None if route.caller_credentials else None,
        trace=visit().span,
    )


async def answer(services: Services, job: OpenJob) -> Response:
    """Run the job to its answer. However the request ends, the visit leaves the job."""
    this_visit = visit()
    wanted = job.submission
    this_visit.facts |= {"model": wanted.asked_model, "provider": wanted.provider, "stream": wanted.stream}
    on_leave(lambda: services.observer.job_ended(job))
    on_leave(lambda: _note(job, this_visit))
    on_leave(job.leave)
    try:
        services.jobs.open(job)
        if wanted.stream:
            await head(job)
            return Response(StreamBody(EventStream(job)), headers=_headers(job) | _STREAM_HEADERS)
        return Response(await whole(job), headers=_headers(job), content_type="application/json")
    except GatewayError as error:
        error.starts = job.ownership.starts
        raise


def _headers(job: OpenJob) -> dict[str, str]:
    headers = {"x-sluice-provider": job.submission.provider, "x-sluice-attempts": str(max(1, job.ownership.starts))}
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
    facts["attempts"] = job.ownership.starts
    if job.ownership.worker is not None:
        facts["worker"] = job.ownership.worker
    if job.ownership.setbacks:
        facts["setbacks"] = job.ownership.setbacks
    if job.started_at is not None:
        facts["queue_ms"] = round((job.started_at - job.queued_at) * 1000, 1)
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
