"""What the server says when it refuses a client by itself: HTTP, with OpenAI's error object as the body."""

from http import HTTPStatus

import msgspec

from frontend.request_id import new_request_id
from frontend.server.settings import Headers
from shared.errors import Failure

_KINDS = {405: "method_not_allowed", 408: "request_timeout", 429: "rate_limit", 503: "queue_full"}


def refusal(status: int, message: str) -> tuple[Headers, bytes]:
    """Headers and body of a response that ends its connection."""
    body = msgspec.json.encode(Failure(_KINDS.get(status, "invalid_request"), message).envelope())
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", new_request_id().encode()),
    ]
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers.append((b"retry-after", b"1"))
    return headers, body


def refusal_bytes(status: int, message: str) -> bytes:
    """The same as it goes over the wire, for clients that are refused unheard."""
    headers, body = refusal(status, message)
    lines = [b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%b: %b" % header for header in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
