"""The Quart application: routes and error handlers, nothing else."""

import logging
import re
from functools import partial

import msgspec
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from frontend.api import (
    admin,
    admin_usage,
    chat,
    completions,
    dashboard,
    embeddings,
    health,
    metrics,
    models,
    pages,
    reference,
)
from frontend.api.bodies import visit
from frontend.edge import App, Cors, Edge
from frontend.server import prepare
from frontend.services import Services
from shared.errors import Failure, GatewayError, fail
from shared.settings.kinds import is_loopback

_log = logging.getLogger(__name__)

STATUS_KINDS = {
    400: "invalid_request",
    404: "unknown_url",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
}

ADMINISTRATION = (admin, admin_usage, dashboard)
"""What is not there at all with `SLUICE_ADMIN=off`."""


def create_app(services: Services) -> App:
    """The ASGI application of one frontend process."""
    app = QuartTrio("sluice")
    app.url_map.merge_slashes = False  # else `//v1/models` is a redirect to wherever the Host header says
    prepare(app, services.server, max_body_bytes=services.settings.body_limit_bytes)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    administration = ADMINISTRATION if services.settings.admin else ()
    for module in (chat, completions, embeddings, models, health, reference, metrics, pages, *administration):
        app.register_blueprint(module.blueprint(services))
    app.before_request(_name_endpoint)
    if services.settings.auth == "off":
        app.before_request(partial(_require_own_name, services.settings.host))
    app.register_error_handler(GatewayError, _gateway_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _defect)
    ended = [services.statistics.ended, services.observer.visit_ended]
    return Edge(app, Cors(services.settings.cors_origins), ended, services.tracer)  # type: ignore[arg-type]


async def _name_endpoint() -> None:
    if request.url_rule is not None:
        visit().endpoint = request.url_rule.rule


async def _require_own_name(host: str) -> None:
    """Behind an open door: a web page may make its own name lead to this machine, and would then be let in as if it were here.

    Raises `GatewayError` `permission`.
    """
    asked = request.host.rpartition(":")[0] if re.search(r":\d*$", request.host) else request.host
    if asked and asked != host and not is_loopback(asked):
        raise fail(
            "permission", "Without keys (SLUICE_AUTH=off) only this machine's own names are answered: use 127.0.0.1."
        )


def error_response(failure: Failure, *, starts: int = 1) -> Response:
    """OpenAI's error envelope with the headers that its clients read; the request's log line names the error."""
    this_visit = visit()
    this_visit.refusal = failure.kind
    this_visit.facts.setdefault("error", failure.code or failure.row.code or failure.kind)
    return Response(
        msgspec.json.encode(failure.envelope()),
        status=failure.row.status,
        headers=failure.headers(starts=starts),
        content_type="application/json",
    )


async def _gateway_error(error: GatewayError) -> Response:
    return error_response(error.failure, starts=error.starts)


async def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    kind = STATUS_KINDS.get(status, "invalid_request" if status < 500 else "internal")
    messages = {
        404: f"Invalid URL ({request.method} {request.path[:200]})",
        405: f"Not allowed to {request.method} on {request.path[:200]}.",
        408: "The request body did not arrive in time.",
        413: "The request body is larger than this gateway accepts.",
    }
    response = error_response(Failure(kind, messages.get(status, error.description or error.name)))
    response.status_code = status
    if status == 405 and error.get_headers():
        response.headers.update({name: value for name, value in error.get_headers() if name.lower() == "allow"})
    return response


async def _defect(error: Exception) -> Response:
    """The boundary of a request: one defect answers one request with 500, and its traceback goes to the log alone."""
    _log.error("request failed", exc_info=error, extra={"request_id": visit().request_id})
    return error_response(Failure("internal", "The gateway failed to process this request."))
