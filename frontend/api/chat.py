"""`POST /v1/chat/completions`, and what all endpoints that models answer have in common."""

import contextlib
from collections.abc import Sequence
from typing import Final, TypeVar
from urllib.parse import quote

import msgspec
import trio
from quart import Blueprint, Response, request

from frontend.admission import Caller
from frontend.answer import EventStream, head, whole
from frontend.api.bodies import identify, json_body, on_leave, visit
from frontend.budget import estimate, limit_headers
from frontend.catalog import Route
from frontend.edge import Visit
from frontend.open_job import OpenJob, Submission
from frontend.requests import ChatRequest, EmbeddingRequest, Request, parse
from frontend.server import StreamBody
from frontend.services import Services
from frontend.waiting import patience, priority
from shared.errors import GatewayError, fail
from shared.redis.failures import RedisError
from shared.redis.submission.limits import Terms, what_is_left

_request = msgspec.json.Decoder(ChatRequest)
LIMITS_SECONDS: Final = 0.5
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
    try:
        return await _serve(services, endpoint, decoder, caller)
    except GatewayError:
        await _tell_limits(services, caller)
        raise


async def _tell_limits(services: Services, caller: Caller) -> None:
    """Callers with limits read in every answer what is left to them; this one never came to the door."""
    terms, headers = terms_of(caller), visit().headers
    if terms is None or not terms.per_minute or "x-sluice-provider" in headers:
        return
    with trio.move_on_after(LIMITS_SECONDS), contextlib.suppress(RedisError):
        left = await what_is_left(services.jobs.link, terms, caller.key.id)
        if left is not None:
            headers |= limit_headers(left)


async def _serve(services: Services, endpoint: str, decoder: "msgspec.json.Decoder[R]", caller: Caller) -> Response:
    """If Redis knows another version of the caller's key than we do, it is all decided once more."""
    if not (caller.presented and services.catalog.takes_callers_keys):
        services.admission.require(caller)
    body = await json_body()
    asked = parse(decoder, body)
    try:
        return await _route(services, endpoint, asked, caller, body)
    except GatewayError as error:
        if error.failure.kind != "outdated_key":
            raise
    return await _route(services, endpoint, asked, await services.admission.renew(caller), body)


async def _route(services: Services, endpoint: str, asked: Request, caller: Caller, body: bytes) -> Response:
    """Whether this caller may ask for this model here, and then the job."""
    routes = _open_to(caller, services.catalog.routes(asked.model, allow=lambda route: may_use(caller, route)))
    if not (caller.presented and routes[0].caller_credentials):
        services.admission.require(caller)
    served = [route for route in routes if endpoint in route.endpoints]
    if not served:
        raise fail(
            "invalid_request", f"The model `{routes[0].asked_model[:128]}` is not served by this endpoint.",
            param="model", code="unsupported_value",
        )  # fmt: skip
    return await answer(services, services.jobs.new(_submission(services, endpoint, asked, served, caller, body)))


def may_use(caller: Caller, route: Route) -> bool:
    """Whether the caller's key allows this route, by the name that was asked for or by the provider's own."""
    return caller.allows(route.asked_model, route.provider) or caller.allows(route.model, route.provider)


def _open_to(caller: Caller, routes: list[Route]) -> list[Route]:
    """Nobody's own upstream key goes to another upstream than it was meant for: with such a key there is one route."""
    if caller.presented:
        for route in routes[:1] if caller.known else routes:
            if route.caller_credentials:
                return [route]
    return routes


def terms_of(caller: Caller) -> Terms | None:
    """The limits of a key that was created; others have none."""
    return Terms.of(caller.key) if caller.proof is not None else None


def _submission(
    services: Services, endpoint: str, asked: Request, routes: Sequence[Route], caller: Caller, body: bytes
) -> Submission:
    may_stream = None if isinstance(asked, EmbeddingRequest) else asked
    options = may_stream and may_stream.stream_options
    route = routes[0]
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
        caller=caller.key.id,
        estimate=estimate(asked, body),
        terms=terms_of(caller),
        fair_to=caller.fingerprint,
        priority=priority(request.headers.get, caller.key.priority),
        patience_seconds=patience(request.headers.get, services.settings.queue_seconds),
        further=tuple(routes[1:]),
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
            await job.heard()
            return Response(StreamBody(EventStream(job)), headers=_STREAM_HEADERS)
        body = await whole(job)
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
