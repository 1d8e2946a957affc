"""The outermost layer of the application: one `Visit` per request, with its id, its headers and its log line.

It is an ASGI middleware and not a Quart hook, because only here a `finally` is certain to run: a caller may leave between the
handler's return and the first byte, and then nothing of the response ever starts.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import trio

from frontend.request_id import new_request_id
from shared.metrics import OTHER
from shared.tracing import NO_SPAN, NO_TRACER, Span, Tracer

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_access = logging.getLogger("sluice.access")

VISIT: Final = "sluice.visit"
TRACED: Final = "/v1/"
LOOKS: Final = ("/health", "/metrics")
EXPOSED: Final = (
    b"x-request-id, openai-processing-ms, retry-after, retry-after-ms, x-should-retry, x-sluice-provider,"
    b" x-sluice-attempts, x-sluice-queue-ms, x-sluice-dropped-parameters, x-sluice-cache, age, x-ratelimit-limit-requests,"
    b" x-ratelimit-limit-tokens,"
    b" x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, x-ratelimit-reset-requests,"
    b" x-ratelimit-reset-tokens"
)
PREFLIGHT_SECONDS: Final = b"600"


@dataclass
class Visit:
    """One request from its first byte to its last. `facts`: what the endpoints add to the log line, `headers`: to its answer,
    whatever that is. `endpoint`: the route that it took; `refusal`: the kind of the error that it was answered with."""

    method: str
    path: str
    request_id: str = field(default_factory=new_request_id)
    began: float = field(default_factory=trio.current_time)
    status: int = 0
    first_byte_at: float | None = None
    complete: bool = False
    endpoint: str = OTHER
    refusal: str = ""
    span: Span = NO_SPAN
    facts: dict[str, object] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_a_look(self) -> bool:
        """Whether something that watches came by and found nothing wrong: many times a minute, and worth no line."""
        return self.status == HTTPStatus.OK and self.path.startswith(LOOKS)

    def log_line(self) -> dict[str, object]:
        now = trio.current_time()
        line: dict[str, object] = {
            "time": round(time.time(), 3),
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": self.status or 499,
            "complete": self.complete,
            "total_ms": round((now - self.began) * 1000, 1),
        }
        if self.first_byte_at is not None:
            line["first_byte_ms"] = round((self.first_byte_at - self.began) * 1000, 1)
        return line | self.facts


class Cors:
    """Which web pages may call us. `origins` are exact; `*` means every page, and then credentials are not allowed."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = "*" in origins
        self._origins = {origin.encode() for origin in origins}

    def headers(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        if origin is None or not (self._any or origin in self._origins):
            return []
        allowed = b"*" if self._any else origin
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", EXPOSED),
            (b"vary", b"origin"),
        ]

    def preflight(self, origin: bytes | None, asked_headers: bytes) -> list[tuple[bytes, bytes]]:
        headers = self.headers(origin)
        if headers:
            headers += [
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"access-control-allow-headers", asked_headers or b"authorization, content-type"),
                (b"access-control-max-age", PREFLIGHT_SECONDS),
            ]
        return headers


class Edge:
    """Wraps the Quart application. `ended`: told of every request that is over. `tracer`: of those under `/v1/`."""

    def __init__(
        self, app: App, cors: Cors, ended: Sequence[Callable[[Visit], object]] = (), tracer: Tracer = NO_TRACER
    ) -> None:
        self._tracer = tracer
        self._app = app
        self._cors = cors
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = scope[VISIT] = Visit(scope["method"], scope["path"][:512])
        sent = {
            name: value for name, value in scope["headers"] if name == b"origin" or name.startswith(b"access-control-")
        }
        if self._tracer is not NO_TRACER and visit.path.startswith(TRACED):
            traceparent = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
            visit.span = self._tracer.begin(visit.method, "server", traceparent.decode("latin-1"))
        origin = sent.get(b"origin")
        extra = [(b"x-request-id", visit.request_id.encode()), *self._cors.headers(origin)]

        async def send_visit(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                visit.first_byte_at = trio.current_time()
                elapsed = b"%d" % ((visit.first_byte_at - visit.began) * 1000)
                told = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in visit.headers.items()]
                message["headers"] = [*message.get("headers", ()), *told, *extra, (b"openai-processing-ms", elapsed)]
            elif not message.get("more_body"):
                visit.complete = True
            await send(message)

        try:
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in sent:
                extra = extra[:1] + self._cors.preflight(origin, sent.get(b"access-control-request-headers", b""))
                await send_visit({"type": "http.response.start", "status": 204, "headers": []})
                await send_visit({"type": "http.response.body", "body": b""})
            else:
                await self._app(scope, receive, send_visit)
        finally:
            _access.log(logging.DEBUG if visit.is_a_look else logging.INFO, visit.log_line())
            for tell in self._ended:
                tell(visit)
