"""From a request to what it asks for: who asks, what, for which model, within which limits; for all endpoints of models."""

import contextlib
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
import trio
from quart import Response, request

from frontend.admission import Caller
from frontend.api.answering import answer
from frontend.api.bodies import identify, json_body, visit
from frontend.budget import estimate, limit_headers
from frontend.catalog import Route
from frontend.open_job import Submission
from frontend.requests import EmbeddingRequest, Request, parse
from frontend.services import Services
from frontend.waiting import patience, priority
from shared.errors import GatewayError, fail
from shared.redis.failures import RedisError
from shared.redis.submission.limits import Terms, what_is_left

R = TypeVar("R", bound=Request)

LIMITS_SECONDS: Final = 0.5


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
    return await answer(services, _submission(services, endpoint, asked, served, caller, body), caller.key)


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
