"""Reading a request: the caller behind it, its JSON body, and the visit that it belongs to."""

from collections.abc import Callable

from quart import request

from frontend.admission import Admission, Caller
from frontend.edge import VISIT, Visit
from frontend.server.on_leave import SCOPE_KEY as ON_LEAVE
from shared.errors import fail


def visit() -> Visit:
    """The visit of the current request."""
    found: Visit = request.scope[VISIT]  # type: ignore[typeddict-item]
    return found


def on_leave(function: Callable[[], object]) -> None:
    """Have `function` called when the current request is over, however that comes about; last in, first out."""
    request.scope[ON_LEAVE].append(function)  # type: ignore[literal-required]


async def identify(admission: Admission) -> Caller:
    """The caller of the current request; whether the key is ours is for the endpoint to require.

    Raises `GatewayError` `queue_unavailable` if only Redis could tell, and it is away.
    """
    caller = await admission.identify(request.headers.getlist("authorization"))
    visit().facts["key"] = caller.fingerprint
    return caller


async def json_body(*, optional: bool = False) -> bytes:
    """The body as bytes; to have none is an error, unless it is `optional`.

    Raises `GatewayError`, also for another media type; too large and too slow are Quart's to refuse.
    """
    if any(coding.strip().lower() != "identity" for coding in request.headers.getlist("content-encoding")):
        raise fail("unsupported_media_type", "Compressed request bodies are not accepted; send plain JSON.")
    media_type = request.mimetype
    if media_type and media_type != "application/json" and not media_type.endswith("+json"):
        raise fail(
            "unsupported_media_type", f"Send JSON with `Content-Type: application/json`, not `{media_type[:100]}`."
        )
    body = await request.get_data(cache=False)
    assert isinstance(body, bytes)
    if body and not media_type and "origin" in request.headers:
        # A web page may send what has no type to any address without asking first, also to an open door on this machine.
        raise fail("unsupported_media_type", "Send JSON with `Content-Type: application/json`.")
    if not body and not optional:
        raise fail("invalid_request", "The request has no body; send a JSON object.")
    return body
