"""What a caller can do about each error, by the code that they are told; the pages show it."""

from typing import Final

from shared.errors import KINDS

ADVICE: Final = {
    "caller_too_slow": "Read the stream as it comes, or ask for less at once.",
    "concurrency_limit_exceeded": "Wait until one of your requests has ended, or ask the operator for a higher limit.",
    "content_filter": "Change the prompt; the same one will be refused again.",
    "context_length_exceeded": "Shorten the messages or lower `max_tokens`, or choose a model with a larger window.",
    "deadline_exceeded": "Ask for a shorter answer. The operator can allow more time with `SLUICE_TOTAL_SECONDS`.",
    "insufficient_quota": "Wait until the day or month is over, or ask the operator for a larger quota.",
    "internal_error": "Tell the operator the `x-request-id`; the log has the details under it.",
    "invalid_api_key": "Send `Authorization: Bearer <key>` with a key of this gateway. It may have expired or been revoked.",
    "invalid_request": "The message names the parameter; `param` does, too.",
    "key_changed": "Try again at once.",
    "key_not_found": "`GET /admin/keys` lists the ids that there are.",
    "method_not_allowed": "The header `allow` names the methods that exist.",
    "model_not_found": "`GET /v1/models` lists what there is, for your key.",
    "no_upstream_credential": "Nothing is wrong with your key. The operator sees the pool on the dashboard.",
    "permission_denied": "Use another model, or a key that may do this.",
    "provider_unavailable": "Try again in a few seconds. The operator starts a worker: `sluice worker NAME`.",
    "queue_timeout": "Try again later. The operator adds workers of this provider.",
    "queue_unavailable": "Try again in a few seconds; the gateway reconnects to Redis by itself.",
    "rate_limit_exceeded": "Wait for as long as `retry-after` says; without it, ask for less than the limit.",
    "request_timeout": "Send the body without pauses.",
    "request_too_large": "Send less. The operator can allow more with `SLUICE_BODY_LIMIT_BYTES`.",
    "server_is_overloaded": "Wait for as long as `retry-after` says. The operator adds workers of this provider.",
    "shutting_down": "Try again at once; another process answers.",
    "unknown_url": "See the endpoints on this page; `base_url` ends in `/v1`.",
    "unprocessable": "The upstream says in the message what it does not like.",
    "unsupported_media_type": "Send uncompressed JSON with `Content-Type: application/json`.",
    "unsupported_parameter": "Leave the parameter out, or have the operator set `SLUICE_UNSUPPORTED_PARAMETERS=drop`.",
    "upstream_disconnected": "Try again.",
    "upstream_error": "Try again; if it stays, the upstream has trouble.",
    "upstream_misconfigured": "The operator checks the provider's settings with `sluice doctor`.",
    "upstream_overloaded": "Try again in a while, or use another model.",
    "upstream_protocol_error": "Try again; if it stays, tell the operator the `x-request-id`.",
    "upstream_stream_truncated": "What has come is not the whole answer. Try again.",
    "upstream_timeout": "Try again, or use another model.",
    "upstream_unreachable": "Try again. The operator checks the network with `sluice doctor`.",
    "version_mismatch": "Try again in a while. The operator brings frontends and workers to the same version.",
    "worker_lost": "Try again; what was streamed so far is not the whole answer.",
}


def explained() -> dict[str, dict[str, str]]:
    """Every code with its meaning and what to do. A code that stands for several kinds has all of their meanings."""
    meanings: dict[str, list[str]] = {}
    for kind in KINDS.values():
        meanings.setdefault(kind.code or kind.name, []).append(kind.meaning)
    return {
        code: {"meaning": " Or: ".join(several), "advice": ADVICE.get(code, "")}
        for code, several in sorted(meanings.items())
    }
