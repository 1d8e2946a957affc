"""The provider that needs neither key nor network: it answers with your own words, or fails on command.

    echo              the words of the last user message, token by token
    echo-slow         the same at 20 tokens a second
    echo-think        reasoning first, then the words
    echo-tool         calls the first tool of the request with the words as its argument
    echo-cut          ends in the middle, as a broken connection does
    echo-break        an error in the middle, as an upstream in trouble sends it
    echo-stall        says two words and then nothing more
    echo-error-429    refuses with that HTTP status; any from 400 to 599

It scripts the events that an upstream would send and has them decoded by the dialect that decodes real ones.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from shared.errors import Failure, GatewayError
from shared.sansio.sse import ServerSentEvent
from shared.schema.advertisement import Model
from workers.dialects import refusals
from workers.dialects.openai import ChatDecoder
from workers.dialects.refusal_rules import OPENAI
from workers.exchange import HttpReply
from workers.provider import Call, Credential, Factory, Plan, ScriptedStream, Step, Timeouts

SLOW_SECONDS: Final = 0.05
STALL_SECONDS: Final = 24 * 3600.0
STATUSES: Final = (400, 401, 402, 403, 404, 408, 413, 429, 500, 502, 503, 504)
RETRY_AFTER_SECONDS: Final = 7

_MODELS: Final = ("echo", "echo-slow", "echo-think", "echo-tool", "echo-cut", "echo-break", "echo-stall")
_CREATED: Final = 1_760_000_000
_TOKEN: Final = re.compile(r"\s*\S+|\s+\Z")


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[_Part] | None = None


_decode_messages = msgspec.json.Decoder(list[_Message]).decode


class Echo:
    """The provider."""

    name = "echo"
    endpoints: Sequence[str] = ("chat",)
    credentials: Sequence[Credential] = ()
    accepts_any_model = False
    caller_credentials = False

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        names = (*_MODELS, *(f"echo-error-{status}" for status in STATUSES))
        self.models: Sequence[Model] = [Model(name, _CREATED, "sluice") for name in names]

    def plan(self, call: Call) -> Plan:
        yield from ()
        if match := re.fullmatch(r"echo-error-([45]\d\d)", call.model):
            raise GatewayError(self.refusal(_refused(int(match[1]))))
        return ScriptedStream(list(_script(call)), ChatDecoder())

    def refusal(self, reply: HttpReply) -> Failure:
        return refusals.refusal(reply, OPENAI)


PROVIDERS: Final[dict[str, Factory]] = {"echo": lambda upstream: Echo(upstream.timeouts)}


def _script(call: Call) -> Iterator[Step]:
    words = _words(call)
    tokens = _TOKEN.findall(words)
    half = tokens[: max(1, len(tokens) // 2)]
    match call.model:
        case "echo-think":
            yield _said(call, {"reasoning_content": "The caller said: "})
            yield _said(call, {"reasoning_content": words})
            yield from _told(call, tokens)
            yield from _ending(call, "stop", len(tokens))
        case "echo-tool" if name := _first_tool(call):
            yield from _tool_call(call, name, words)
            yield from _ending(call, "tool_calls", len(tokens))
        case "echo-cut":
            yield from _told(call, half)
        case "echo-break":
            yield from _told(call, half)
            yield Step(0.0, ServerSentEvent(_refused(500).body))
        case "echo-stall":
            yield from _told(call, tokens[:2])
            yield Step(STALL_SECONDS, ServerSentEvent(b"[DONE]"))
        case model:
            yield from _told(call, tokens, SLOW_SECONDS if model == "echo-slow" else 0.0)
            yield from _ending(call, "stop", len(tokens))


def _told(call: Call, tokens: Sequence[str], pause: float = 0.0) -> Iterator[Step]:
    for position, token in enumerate(tokens):
        yield _said(call, {"content": token}, pause if position else 0.0)


def _tool_call(call: Call, name: str, words: str) -> Iterator[Step]:
    function = {"name": name, "arguments": ""}
    first = {"index": 0, "id": f"call_{call.nonce[:24]}", "type": "function", "function": function}
    yield _said(call, {"tool_calls": [first]})
    for piece in _TOKEN.findall(msgspec.json.encode({"words": words}).decode()):
        yield _said(call, {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})


def _ending(call: Call, reason: str, tokens: int) -> Iterator[Step]:
    prompt = len(re.findall(rb"\w+", bytes(call.body.get("messages", msgspec.Raw(b"")))))
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
    yield _event(_chunk(call, [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}]))
    yield _event(_chunk(call, []) | {"usage": usage})
    yield Step(0.0, ServerSentEvent(b"[DONE]"))


def _said(call: Call, delta: dict[str, Any], pause: float = 0.0) -> Step:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return _event(_chunk(call, [choice]), pause)


def _chunk(call: Call, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{call.nonce}",
        "object": "chat.completion.chunk",
        "created": int(call.now),
        "model": call.model,
        "choices": choices,
    }


def _event(payload: dict[str, Any], pause: float = 0.0) -> Step:
    return Step(pause, ServerSentEvent(msgspec.json.encode(payload)))


def _words(call: Call) -> str:
    """The text of the last user message; whatever makes no sense has no words."""
    try:
        messages = _decode_messages(call.body.get("messages", msgspec.Raw(b"[]")))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
    content = next((message.content for message in reversed(messages) if message.role == "user"), None)
    if isinstance(content, list):
        return "\n".join(part.text for part in content if part.type == "text")
    return content or ""


def _first_tool(call: Call) -> str | None:
    try:
        tools = msgspec.json.decode(call.body.get("tools", msgspec.Raw(b"[]")))
        name = tools[0]["function"]["name"]
    except (msgspec.DecodeError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return name if isinstance(name, str) else None


def _refused(status: int) -> HttpReply:
    """What an upstream that refuses with `status` sends."""
    said = {"message": f"This is the error {status} that you asked for.", "type": None, "param": None, "code": None}
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}
    return HttpReply(status=status, headers=headers, body=msgspec.json.encode({"error": said}))
