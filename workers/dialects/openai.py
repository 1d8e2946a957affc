"""OpenAI's chat dialect, as six vendors and their imitators speak it: event-stream payloads (or one whole answer) to events.

What they do differently, and what becomes of it:

* usage on the last chunk, on a chunk of its own, inside a choice, null, twice, or not at all: the last one counts;
* `reasoning` for `reasoning_content`; null or empty fields beside the one that matters: renamed, dropped;
* finish reasons of their own: mapped; an interrupted inference (`insufficient_system_resource`) is a failure, not an end;
* errors inside a 200, nested, flat, as a string, with or without `event: error`: `Failed`;
* an answer that is not a stream at all: the same events, all at once;
* garbage between good chunks: dropped and counted (`malformed`), half characters mended, bad UTF-8 replaced.
"""

import json
from typing import Any, Final

import msgspec

from shared.errors import KINDS, Failure
from shared.sansio.sse import ServerSentEvent
from shared.schema.events import Complete, Delta, Event, Failed, Finish, Meta, Usage
from workers.dialects.reading import JsonReader
from workers.dialects.refusal_rules import OPENAI, Rules
from workers.dialects.refusals import reported, understood

FINISH_REASONS: Final = {
    **{reason: reason for reason in ("stop", "length", "tool_calls", "content_filter", "function_call")},
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "max_tokens": "length",
}
"""OpenAI's name for each finish reason that is known."""

_INTERRUPTIONS: Final = {
    "insufficient_system_resource": Failure("overloaded", "The upstream broke off for lack of resources."),
    "error": Failure("upstream_error", "The upstream broke off."),
}
_NOTHING: Final = {b"null", b'""', b"[]", b"{}"}
_NULL: Final = msgspec.Raw(b"null")

MOST_CHOICES: Final = 4096
"""An index from here on is none, nor is a negative one: no request asks for so many choices."""

MOST_TOKENS: Final = 2**53
"""No count that an upstream may sensibly give is larger; a number that is no count is no usage."""


class _Choice(msgspec.Struct):
    # `Any` where nonsense in one field must not cost the others; a `Raw` is a view of the chunk, so nothing is copied.
    index: Any = 0
    delta: dict[str, msgspec.Raw] | None = None
    finish_reason: Any = None
    logprobs: msgspec.Raw = _NULL
    usage: Any = None
    message: dict[str, msgspec.Raw] | None = None  # of an answer that is no stream
    text: msgspec.Raw = _NULL  # of a legacy completion


class _Chunk(msgspec.Struct):
    choices: list[_Choice | None] | None = None
    usage: Any = None
    error: Any = None


class _FirstChunk(_Chunk):
    id: Any = None
    created: Any = None
    system_fingerprint: Any = None
    service_tier: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_first = msgspec.json.Decoder(_FirstChunk).decode


class ChatDecoder:
    """The decoder of one call. `malformed`: how many events made no sense; `odd_finish_reasons`: those that we had to guess."""

    def __init__(self, rules: Rules = OPENAI) -> None:
        self.odd_finish_reasons: list[str] = []
        self._rules = rules
        self._over = False
        self._reader: JsonReader[_Chunk] = JsonReader(_decode_first)
        self._read = self._reader.read

    @property
    def malformed(self) -> int:
        return self._reader.malformed

    def feed(self, frame: ServerSentEvent | bytes) -> list[Event]:
        """The events of one frame; `bytes` are a whole body that was no event stream."""
        if self._over:
            return []
        if isinstance(frame, bytes):
            return self._body(frame)
        chunk = self._read(frame.data)
        if chunk is None:
            return self._no_chunk(frame)
        if not (chunk.choices or chunk.usage) or chunk.error:
            return self._perhaps_an_error(frame.data, frame.status, named=frame.event == "error")
        return self._events(chunk)

    def end(self) -> list[Event]:
        """Nothing is held back that could still complete the answer: whether it is complete shows in the finish reasons."""
        return []

    def _no_chunk(self, frame: ServerSentEvent) -> list[Event]:
        if frame.data.strip().startswith(b"[DONE]"):
            return self._complete()
        if frame.event == "error":
            return self._fail(reported(None, self._rules, frame.status))
        self._reader.malformed += 1
        return []

    def _body(self, body: bytes) -> list[Event]:
        """An answer, or an error, that came as one JSON object although a stream was asked for."""
        chunk = self._read(body)
        if chunk is not None and chunk.choices and not chunk.error:
            return [*self._events(chunk), *self._complete()]
        failed = self._perhaps_an_error(body)
        return failed or self._fail(Failure("protocol_error", KINDS["protocol_error"].meaning))

    def _complete(self) -> list[Event]:
        if self._over:  # the last event was a failure
            return []
        self._over = True
        return [Complete()]

    def _fail(self, failure: Failure) -> list[Event]:
        self._over = True
        return [Failed(failure)]

    def _perhaps_an_error(self, data: bytes, status: int | None = None, *, named: bool = False) -> list[Event]:
        """A payload without choices: an error in some shape, or something that does not concern the caller."""
        said = _json(data)
        error = understood(said)
        enveloped = isinstance(said, dict) and said.get("error")
        if named or enveloped or (error is not None and error.message):
            return self._fail(reported(said, self._rules, status))
        return []

    def _events(self, chunk: _Chunk) -> list[Event]:
        events: list[Event] = []
        if type(chunk) is _FirstChunk:
            self._reader.decode = _decode_chunk
            events.append(_meta(chunk))
        usage = chunk.usage
        ends: list[tuple[int, str]] = []
        for choice in chunk.choices or ():
            if choice is None:
                continue
            index = choice.index if type(choice.index) is int else 0
            if not 0 <= index < MOST_CHOICES:
                self._reader.malformed += 1
                continue
            fields = _fields(choice)
            logprobs = choice.logprobs if len(choice.logprobs) > 4 else None  # longer than `null`
            if fields or logprobs is not None:
                events.append(Delta(fields, index, logprobs))
            if choice.usage:
                usage = choice.usage
            if choice.finish_reason and isinstance(choice.finish_reason, str):
                ends.append((index, choice.finish_reason))
        if usage and (counts := usage_of(usage)):
            events.append(counts)
        for index, reason in ends:
            events += self._end_of_choice(index, reason)
        return events

    def _end_of_choice(self, index: int, reason: str) -> list[Event]:
        if reason == "null":  # a text that means null
            return []
        if reason in _INTERRUPTIONS:
            return self._fail(_INTERRUPTIONS[reason])
        if reason not in FINISH_REASONS:
            self.odd_finish_reasons.append(reason)
        orphans = self._reader.orphans("choices", index, "delta")
        last_words = self._events(orphans) if orphans else []
        return [*last_words, Finish(FINISH_REASONS.get(reason, "stop"), index)]


def _fields(choice: _Choice) -> dict[str, Any]:
    """What is new in a choice, under OpenAI's names; a fresh dictionary."""
    delta = choice.delta or choice.message
    if not delta:
        return {"content": choice.text} if bytes(choice.text) not in _NOTHING else {}
    if len(delta) == 1:
        content = delta.get("content")
        if content is not None and len(content) > 4:  # longer than any nothing
            return delta
    fields: dict[str, Any] = {
        name: value for name, value in delta.items() if name != "role" and bytes(value) not in _NOTHING
    }
    if "reasoning" in fields and bytes(fields["reasoning"]).startswith(b'"'):
        alias = fields.pop("reasoning")
        fields.setdefault("reasoning_content", alias)
    return fields


def _meta(chunk: _FirstChunk) -> Meta:
    return Meta(
        chunk.id if isinstance(chunk.id, str) else "",
        int(chunk.created) if isinstance(chunk.created, int | float) else 0,
        chunk.system_fingerprint if isinstance(chunk.system_fingerprint, str) else None,
        chunk.service_tier if isinstance(chunk.service_tier, str) else None,
    )


def usage_of(said: Any) -> Usage | None:
    """OpenAI's counts from a vendor's `usage` object; None if it holds none.

    DeepSeek counts cached tokens as `prompt_cache_hit_tokens`, Kimi as `cached_tokens` beside the other counts.
    """
    if not isinstance(said, dict):
        return None
    counts = _counts(said)
    prompt, answer = counts.get("prompt_tokens", 0), counts.get("completion_tokens", 0)
    total = counts.get("total_tokens", prompt + answer)
    if not total:
        return None
    details, answer_details = _counts(said.get("prompt_tokens_details")), _counts(said.get("completion_tokens_details"))
    cached = counts.get("prompt_cache_hit_tokens", counts.get("cached_tokens"))
    if cached is not None and "cached_tokens" not in details:
        details = {**details, "cached_tokens": cached}
    return Usage(prompt, answer, total, details or None, answer_details or None)


def _counts(details: Any) -> dict[str, int]:
    if not isinstance(details, dict):
        return {}
    return {name: value for name, value in details.items() if type(value) is int and 0 <= value < MOST_TOKENS}


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
