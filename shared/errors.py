"""Every way to fail, as data: HTTP status, OpenAI type and code, and whether another try can help.

A `Kind` is a row of the table below; it never changes while the program runs. A `Failure` is one occurrence: a kind, a
text for the caller and what is known about the wait. Failures cross Redis (worker to frontend), so they are plain values;
`GatewayError` carries one through Python code. A failure's text is written for the caller: it holds no secret, no address
and no foreign text that was not scrubbed.
"""

import math
from typing import Final, Literal

import msgspec

Credential = Literal["keep", "retire", "suspend", "cool_down"]
"""What a failure says about the credential that was used: nothing, dead, unpaid, or asked to rest."""


class Kind(msgspec.Struct, frozen=True):
    """One way to fail.

    `again`: a new attempt may succeed as long as the caller has seen nothing of the answer.
    `sdk_retry`: what `x-should-retry` tells OpenAI's clients; None leaves them to their own rule (408, 409, 429, 5xx).
    """

    name: str
    status: int
    type: str
    code: str | None
    meaning: str
    again: bool = False
    sdk_retry: bool | None = None
    credential: Credential = "keep"


_INVALID = "invalid_request_error"
_SERVER = "server_error"
_BUSY = "service_unavailable_error"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        # The caller's request.
        Kind("invalid_request", 400, _INVALID, None, "The request is malformed or a value is not allowed."),
        Kind("unsupported_parameter", 400, _INVALID, "unsupported_parameter", "The model cannot honour a parameter."),
        Kind("context_length", 400, _INVALID, "context_length_exceeded", "Prompt and answer exceed the model's window."),
        Kind("content_filter", 400, _INVALID, "content_filter", "The upstream's content rules refused the request."),
        Kind("invalid_api_key", 401, _INVALID, "invalid_api_key", "The key is missing, malformed or unknown."),
        Kind("permission", 403, _INVALID, "permission_denied", "The key may not do this."),
        Kind("unknown_url", 404, _INVALID, "unknown_url", "No such endpoint."),
        Kind("key_not_found", 404, _INVALID, "key_not_found", "No caller's key has this id."),
        Kind("model_not_found", 404, _INVALID, "model_not_found", "No provider serves this model."),
        Kind("method_not_allowed", 405, _INVALID, "method_not_allowed", "The endpoint exists, the method does not."),
        Kind("request_timeout", 408, _INVALID, "request_timeout", "The request body did not arrive in time."),
        Kind("payload_too_large", 413, _INVALID, "request_too_large", "The request body exceeds the limit."),
        Kind("unsupported_media_type", 415, _INVALID, "unsupported_media_type", "The body is not plain JSON."),
        Kind("unprocessable", 422, _INVALID, None, "The request is well-formed but makes no sense."),
        # Limits.
        Kind("rate_limit", 429, "requests", "rate_limit_exceeded", "Too many requests or tokens.", credential="cool_down"),
        Kind("request_over_limit", 429, "tokens", "rate_limit_exceeded", "The request alone exceeds the limit of tokens.",
             sdk_retry=False),
        Kind("concurrency_limit", 429, "requests", "concurrency_limit_exceeded", "Too many requests at once."),
        Kind("outdated_key", 503, _SERVER, "key_changed", "The caller's key was changed at this very moment.",
             sdk_retry=True),
        Kind("insufficient_quota", 429, "insufficient_quota", "insufficient_quota", "The caller's quota is used up.",
             sdk_retry=False),
        Kind("queue_full", 503, _BUSY, "server_is_overloaded", "Too many jobs wait for this provider."),
        Kind("circuit_open", 503, _BUSY, "server_is_overloaded", "It failed too often and is left alone for a while."),
        Kind("queue_timeout", 503, _SERVER, "queue_timeout", "No worker took the job in time."),
        # The gateway's own parts.
        Kind("provider_unavailable", 503, _SERVER, "provider_unavailable", "No worker of the provider is alive."),
        Kind("queue_unavailable", 503, _SERVER, "queue_unavailable", "Redis does not answer."),
        Kind("shutting_down", 503, _SERVER, "shutting_down", "The process is going away.", True, True),
        Kind("worker_lost", 502, _SERVER, "worker_lost", "The worker that ran the call died.", True),
        Kind("version_mismatch", 502, _SERVER, "version_mismatch", "A worker of another version took the job.", True),
        Kind("caller_too_slow", 408, _SERVER, "caller_too_slow", "The caller stopped reading its answer."),
        Kind("deadline", 504, _SERVER, "deadline_exceeded", "The answer took longer than allowed in total.", False, False),
        Kind("internal", 500, _SERVER, "internal_error", "A defect of the gateway; the log has the details."),
        # The upstream.
        Kind("credential_invalid", 503, _SERVER, "no_upstream_credential", "The upstream refused our key.",
             sdk_retry=False, credential="retire"),
        Kind("billing", 503, _SERVER, "no_upstream_credential", "The upstream account is unpaid or used up.",
             sdk_retry=False, credential="suspend"),
        Kind("no_credential", 503, _SERVER, "no_upstream_credential", "No usable upstream credential is left."),
        Kind("overloaded", 503, _SERVER, "upstream_overloaded", "The upstream has no capacity now.", True),
        Kind("upstream_error", 502, _SERVER, "upstream_error", "The upstream failed.", True),
        Kind("blocked", 502, _SERVER, "upstream_error", "A firewall stands before the upstream.", credential="cool_down"),
        Kind("unreachable", 502, _SERVER, "upstream_unreachable", "No connection to the upstream.", True),
        Kind("disconnected", 502, _SERVER, "upstream_disconnected", "The upstream closed in the middle.", True),
        Kind("truncated", 502, _SERVER, "upstream_stream_truncated", "The upstream's answer ended early.", True),
        Kind("protocol_error", 502, _SERVER, "upstream_protocol_error", "The upstream's bytes make no sense.",
             sdk_retry=False),
        Kind("upstream_config", 502, _SERVER, "upstream_misconfigured", "Our settings for the upstream are wrong.",
             sdk_retry=False),
        Kind("timeout", 504, _SERVER, "upstream_timeout", "The upstream stayed silent too long."),
    )
}  # fmt: skip

UNSPENT: Final = frozenset({
    "rate_limit", "overloaded", "credential_invalid", "billing", "no_credential", "blocked", "unreachable", "upstream_config",
    "queue_full", "circuit_open", "provider_unavailable",
})  # fmt: skip
"""Kinds after which another provider of the model may do better, and the first has done nothing for the request."""
ELSEWHERE: Final = UNSPENT | {"upstream_error", "disconnected", "truncated"}
"""Kinds after which another provider of the model may do better."""
FAULTS: Final = frozenset(
    {"unreachable", "disconnected", "truncated", "upstream_error", "overloaded", "timeout", "protocol_error"}
)
"""Kinds that say that the upstream itself is in trouble, for the circuit."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """One failure. `retry_after_seconds` is a relative wait, `upstream_status` the upstream's HTTP status if it had one."""

    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_seconds: float | None = None
    upstream_status: int | None = None
    type: str | None = None

    @property
    def row(self) -> Kind:
        return KINDS.get(self.kind) or KINDS["internal"]

    def envelope(self) -> dict[str, object]:
        """OpenAI's error object; all four keys are always present."""
        row = self.row
        return {
            "error": {
                "message": self.message,
                "type": self.type or row.type,
                "param": self.param,
                "code": self.code or row.code,
            }
        }

    def headers(self, *, starts: int = 1) -> dict[str, str]:
        """`Retry-After`, `retry-after-ms`, `x-should-retry`. `starts`: upstream calls made already (no retry on retry)."""
        headers: dict[str, str] = {}
        if self.retry_after_seconds is not None:
            # openai-python gives up when told to wait more than two minutes, older ones ignore more than one.
            headers["retry-after"] = str(math.ceil(min(60.0, max(1.0, self.retry_after_seconds))))
            if self.row.status == 429:
                headers["retry-after-ms"] = str(math.ceil(1000 * min(60.0, max(0.001, self.retry_after_seconds))))
        elif self.row.status == 503 and self.row.sdk_retry is not False:
            headers["retry-after"] = "5"
        if starts > 1 and self.row.status >= 500:
            headers["x-should-retry"] = "false"
        elif self.row.sdk_retry is not None:
            headers["x-should-retry"] = "true" if self.row.sdk_retry else "false"
        return headers


class GatewayError(Exception):
    """A `Failure` on its way through Python code. `starts`: upstream calls that were made before it came to this."""

    def __init__(self, failure: Failure, *, starts: int = 1) -> None:
        super().__init__(f"{failure.kind}: {failure.message}")
        self.failure = failure
        self.starts = starts


def fail(
    kind: str,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after_seconds: float | None = None,
) -> GatewayError:
    """`raise fail("model_not_found", "…", param="model")`; an unknown kind is a programming error (KeyError)."""
    return GatewayError(Failure(KINDS[kind].name, message, param, code, retry_after_seconds))
