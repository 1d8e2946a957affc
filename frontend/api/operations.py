"""Every endpoint of this gateway as a row: `/openapi.json` and the page `/docs` are made of this table, and a test compares it
with the routes. Paths are written as OpenAPI writes them."""

from typing import Any, Final, Literal

import msgspec

from frontend.key_requests import KeyRequest, RotateRequest
from frontend.overview import Overview
from frontend.requests import ChatRequest, CompletionRequest, EmbeddingRequest

Access = Literal["key", "master", "open"]
"""Whose key an endpoint takes: any caller's, a master key, or none."""

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"


class Parameter(msgspec.Struct, frozen=True):
    """A part of the path or of the query."""

    name: str
    where: Literal["path", "query"]
    meaning: str
    example: str


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path.

    `summary`: a sentence; `detail`: more. `asks`: the type of the body, `example` one of them. `answers`: what comes back, of
    these media `types`; `shape`: its type, where it is ours to define; `example_answer` one of them, text if it is no JSON.
    `sdk`: how OpenAI's clients call it.
    """

    method: Literal["get", "post", "patch", "delete"]
    path: str
    group: str
    summary: str
    detail: str = ""
    access: Access = "key"
    parameters: tuple[Parameter, ...] = ()
    asks: type[msgspec.Struct] | None = None
    body_optional: bool = False
    example: Any = None
    answers: str
    types: tuple[str, ...] = (JSON,)
    shape: type[msgspec.Struct] | None = None
    example_answer: Any = None
    sdk: str = ""


_HELLO: Final = [{"role": "user", "content": "Say hello!"}]
_CHAT: Final = "Models"
_STATE: Final = "State of the gateway"
_KEYS: Final = "Callers' keys"
_WATCH: Final = "Watching"
_KEY_ID: Final = Parameter("key_id", "path", "The eight hex digits of the key that are no secret.", "1f2e3d4c")
_KEY: Final = {
    "object": "caller_key", "id": "1f2e3d4c", "name": "search team", "status": "active", "revision": 1,
    "created_at": 1760000000, "expires_at": None, "revoked_at": None, "models": ["gpt-4o*"], "providers": [],
    "requests_per_minute": 60, "tokens_per_minute": 100000, "concurrent_requests": 8, "daily_tokens": None,
    "monthly_tokens": 50000000, "priority": "normal", "cache_seconds": 0.0,
}  # fmt: skip
_USAGE: Final = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="post", path="/v1/chat/completions", group=_CHAT, summary="Answer a chat, whole or as a stream of chunks.",
        detail="What is not in the table below goes to the upstream as it is. With `stream` the answer is a stream of events "
        "that ends with `[DONE]` after a complete answer, and with one event `{\"error\": …}` after anything else.",
        asks=ChatRequest, example={"model": "gpt-4o-mini", "messages": _HELLO, "stream": True},
        answers="A `chat.completion`, or with `stream` events of `chat.completion.chunk`.", types=(JSON, EVENTS),
        example_answer='data: {"id":"chatcmpl-…","object":"chat.completion.chunk","created":1760000000,'
        '"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"role":"assistant","content":"Hello"},'
        '"finish_reason":null}]}\n\ndata: {"id":"chatcmpl-…","object":"chat.completion.chunk","created":1760000000,'
        '"model":"gpt-4o-mini","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]',
        sdk="chat.completions.create",
    ),
    Operation(
        method="post", path="/v1/completions", group=_CHAT, summary="Continue a text, whole or as a stream of chunks.",
        detail="OpenAI's older endpoint, where the provider has it.",
        asks=CompletionRequest, example={"model": "gpt-4o-mini", "prompt": "Once upon a time", "max_tokens": 20},
        answers="A `text_completion`, or with `stream` events of these.", types=(JSON, EVENTS),
        example_answer={
            "id": "cmpl-…", "object": "text_completion", "created": 1760000000, "model": "gpt-4o-mini",
            "choices": [{"index": 0, "text": ", there was a", "logprobs": None, "finish_reason": "length"}], "usage": _USAGE,
        },
        sdk="completions.create",
    ),
    Operation(
        method="post", path="/v1/embeddings", group=_CHAT, summary="Make vectors of texts.",
        detail="Where the provider has it.",
        asks=EmbeddingRequest, example={"model": "text-embedding-3-small", "input": ["one text", "another"]},
        answers="A list of `embedding`, in the order of the texts.",
        example_answer={
            "object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.0023, -0.0093]}],
            "model": "text-embedding-3-small", "usage": {"prompt_tokens": 4, "total_tokens": 4},
        },
        sdk="embeddings.create",
    ),
    Operation(
        method="get", path="/v1/models", group=_CHAT, summary="The models that live workers serve and the key may use.",
        answers="A list of `model`.",
        example_answer={
            "object": "list",
            "data": [{"id": "gpt-4o-mini", "object": "model", "created": 1760000000, "owned_by": "openai"}],
        },
        sdk="models.list",
    ),
    Operation(
        method="get", path="/v1/models/{id}", group=_CHAT, summary="One model; the id may contain `/` and `:`.",
        parameters=(Parameter("id", "path", "Name of the model, or an alias.", "gpt-4o-mini"),),
        answers="A `model`.",
        example_answer={"id": "gpt-4o-mini", "object": "model", "created": 1760000000, "owned_by": "openai"},
        sdk="models.retrieve",
    ),
    Operation(
        method="post", path="/admin/keys", group=_KEYS, summary="Make a key for a caller.", access="master",
        detail="The answer holds the key itself, as `key`; it is shown this once and kept nowhere. What is not named is not "
        "limited.",
        asks=KeyRequest, example={"name": "search team", "models": ["gpt-4o*"], "requests_per_minute": 60},
        answers="The new key's record, with `key`.", example_answer=_KEY | {"key": "sk-sluice-1f2e3d4c-…"},
    ),
    Operation(
        method="get", path="/admin/keys", group=_KEYS, summary="All callers' keys.", access="master",
        answers="A list of records, without the keys themselves.", example_answer={"object": "list", "data": [_KEY]},
    ),
    Operation(
        method="get", path="/admin/keys/{key_id}", group=_KEYS, summary="One key's record.", access="master",
        parameters=(_KEY_ID,), answers="The record.", example_answer=_KEY,
    ),
    Operation(
        method="patch", path="/admin/keys/{key_id}", group=_KEYS, summary="Change what a key may do.", access="master",
        detail="What is not named stays as it is; `null` lifts a limit. It counts at once, on every frontend.",
        parameters=(_KEY_ID,), asks=KeyRequest, example={"requests_per_minute": 120, "monthly_tokens": None},
        answers="The record as it is now.", example_answer=_KEY | {"revision": 2, "requests_per_minute": 120},
    ),
    Operation(
        method="delete", path="/admin/keys/{key_id}", group=_KEYS, summary="Revoke a key.", access="master",
        detail="It is refused from now on, on every frontend; what is being answered goes on to its end.",
        parameters=(_KEY_ID,), answers="The record as it is now.", example_answer=_KEY | {"status": "revoked"},
    ),
    Operation(
        method="post", path="/admin/keys/{key_id}/rotate", group=_KEYS, summary="Replace a key, with the same rights.",
        access="master", detail="The answer holds the new key, as `key`, this once.",
        parameters=(_KEY_ID,), asks=RotateRequest, body_optional=True, example={"grace_seconds": 3600},
        answers="The record, with the new `key`.", example_answer=_KEY | {"revision": 2, "key": "sk-sluice-5a6b7c8d-…"},
    ),
    Operation(
        method="get", path="/admin/usage", group=_WATCH, summary="What each key has used of each model on each day.",
        access="master", detail="Days are days of UTC; today's numbers move. A request counts when it has ended.",
        parameters=(
            Parameter("from", "query", "First day: `2030-01-31`, ISO 8601 or Unix seconds. Else 30 days.", "2030-01-01"),
            Parameter("to", "query", "Last day. Else today.", "2030-01-31"),
            Parameter("key", "query", "Only the key with this id; `master` for those of the settings.", ""),
            Parameter("model", "query", "Only this model.", ""),
            Parameter("provider", "query", "Only this provider.", ""),
            Parameter("format", "query", "`json` or `csv`.", ""),
        ),
        answers="Rows, one for each key, model and day, and their `total`; or a table of them.", types=("text/csv", JSON),
        example_answer={
            "object": "list", "from": "2030-01-01", "to": "2030-01-31",
            "data": [{
                "day": "2030-01-07", "key": "1f2e3d4c", "name": "search team", "provider": "openai", "model": "gpt-4o-mini",
                "requests": 120, "done": 117, "failed": 1, "cancelled": 2, "unsettled": 0, "prompt_tokens": 20480,
                "completion_tokens": 9216, "estimated": 2, "total_tokens": 29696,
            }],
            "total": {"requests": 120, "total_tokens": 29696},
        },
    ),
    Operation(
        method="get", path="/admin/overview", group=_WATCH, summary="What the whole installation is doing.",
        access="master", detail="Any frontend tells about all processes. The dashboard shows this.",
        answers="An `Overview`.", shape=Overview,
    ),
    Operation(
        method="get", path="/admin/live", group=_WATCH, summary="The same as events, one a second.", access="master",
        detail="An event `overview` holds an `Overview`; an event `problem` says in `message` why there is none now.",
        answers="Events, until you close the connection or the frontend leaves.", types=(EVENTS,),
        example_answer='event: overview\ndata: {"time":1760000000.5,"told_by":"f-…","providers":[…],…}',
    ),
    Operation(
        method="get", path="/metrics", group=_WATCH, summary="What this process counts, for Prometheus.", access="master",
        detail="Where metrics have a port of their own, they are there instead, without a key.",
        answers="Prometheus' text format.", types=("text/plain",),
    ),
    Operation(
        method="get", path="/health", group=_STATE, summary="State of the gateway, for people.", access="open",
        answers="What there is, and what is wrong.",
        example_answer={"status": "healthy", "service": "sluice", "problems": [], "workers": 3, "models": 12},
    ),
    Operation(
        method="get", path="/health/live", group=_STATE, summary="Whether the process runs.", access="open",
        answers="Always the same.", example_answer={"status": "ok"},
    ),
    Operation(
        method="get", path="/health/ready", group=_STATE,
        summary="200 when requests can be served, 503 with the reasons otherwise.", access="open",
        answers="The reasons, if there are any.", example_answer={"status": "ready", "problems": []},
    ),
    Operation(
        method="get", path="/", group=_STATE, summary="What this is.", access="open", answers="Name, version, endpoints.",
        example_answer={"service": "sluice", "api": "/v1"},
    ),
    Operation(
        method="get", path="/openapi.json", group=_STATE, summary="This reference for programs.", access="open",
        answers="An OpenAPI 3.1 document.",
    ),
)  # fmt: skip
