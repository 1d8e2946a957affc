"""Events in, OpenAI's JSON out: chunk by chunk for a caller that streams, or one answer for a caller that does not.

Both machines take the same events and obey the same rules, so there is one path for both kinds of caller:

* The first chunk of a choice has the role, later ones do not; a choice begins with its first real delta, so that an upstream
  that says `role` and then fails has told the caller nothing yet.
* One chunk per choice has the finish reason; its `delta` is empty. What follows it in that choice is dropped.
* The answer is complete when every choice that has begun has finished, whatever else the upstream says or forgets to say;
  otherwise `end` raises `truncated`.
* Usage is the last that came, told once, in a last chunk with `choices: []`, if the caller asked. Where the upstream gave
  none it is estimated, and `"estimated": true` stands among its fields.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from shared.errors import GatewayError, fail
from shared.sansio.tool_calls import ToolCalls
from shared.schema.events import Complete, Delta, Event, Failed, Finish, Meta, Usage

BYTES_PER_TOKEN: Final = 4
"""Of JSON text, for estimates: about right for English, and for Chinese (three bytes a character) on the low side."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_decode_logprobs = msgspec.json.Decoder(dict[str, list[msgspec.Raw] | None]).decode


class Completion(ABC):
    """What both machines remember.

    `usage`: the upstream's, or after `end` perhaps our estimate. `finish_reasons`: by choice. `text_bytes`: how much JSON
    text the deltas held. `started`: a delta has come. `ended`: nothing more will be rendered.
    """

    def __init__(self, *, fallback_id: str, created: int, model: str, prompt_bytes: int = 0) -> None:
        self.usage: Usage | None = None
        self.finish_reasons: dict[int, str] = {}
        self.text_bytes = 0
        self.ended = False
        self._meta = Meta(fallback_id, created)
        self._model = model
        self._prompt_bytes = prompt_bytes
        self._tool_calls: dict[int, ToolCalls] = {}

    @property
    @abstractmethod
    def started(self) -> bool: ...

    def feed(self, event: Event) -> list[bytes]:
        """What the caller gets because of `event`. Raises the failure of a `Failed`, and on `Complete` what `end` raises."""
        if self.ended:
            return []
        if isinstance(event, Delta):
            return [] if event.choice in self.finish_reasons else self._delta(event)
        if isinstance(event, Finish):
            return [] if event.choice in self.finish_reasons else self._finish(event)
        if isinstance(event, Usage):
            self.usage = event
        elif isinstance(event, Meta):
            self._learn(event)
        elif isinstance(event, Failed):
            self.ended = True
            raise GatewayError(event.failure)
        elif isinstance(event, Complete):
            return self.end()
        return []

    def end(self) -> list[bytes]:
        """The upstream has nothing more to say. Raises `truncated` if that is too early."""
        if self.ended:
            return []
        self.ended = True
        if not self.finish_reasons or not self._all_finished():
            raise fail("truncated", "The upstream's answer ended before it was complete.")
        if self.usage is None:
            self.usage = self._estimate()
        return self._last()

    @abstractmethod
    def _delta(self, delta: Delta) -> list[bytes]: ...

    @abstractmethod
    def _finish(self, finish: Finish) -> list[bytes]: ...

    @abstractmethod
    def _all_finished(self) -> bool: ...

    @abstractmethod
    def _last(self) -> list[bytes]: ...

    def _learn(self, meta: Meta) -> None:
        if not self.started:
            self._meta = Meta(
                meta.id or self._meta.id,
                meta.created or self._meta.created,
                meta.system_fingerprint,
                meta.service_tier,
            )

    def _identity(self, kind: str) -> dict[str, Any]:
        return {"id": self._meta.id, "object": kind, "created": self._meta.created, "model": self._model}

    def _said(self) -> dict[str, str]:
        """What OpenAI tells of the answer as a whole, as far as the upstream told it."""
        said = {"service_tier": self._meta.service_tier, "system_fingerprint": self._meta.system_fingerprint}
        return {name: value for name, value in said.items() if value is not None}

    @property
    def usage_so_far(self) -> Usage:
        """The upstream's word, or an estimate of what has come."""
        return self.usage or self._estimate()

    def _estimate(self) -> Usage:
        text_bytes = self.text_bytes + sum(calls.text_bytes for calls in self._tool_calls.values())
        prompt, answer = -(-self._prompt_bytes // BYTES_PER_TOKEN), -(-text_bytes // BYTES_PER_TOKEN)
        return Usage(prompt, answer, prompt + answer, estimated=True)

    def _fragments(self, choice: int, value: Any) -> list[dict[str, Any]]:
        calls = self._tool_calls.get(choice)
        if calls is None:
            calls = self._tool_calls[choice] = ToolCalls()
        try:
            return calls.fragments(value)
        except msgspec.MsgspecError:
            raise fail("protocol_error", "The upstream sent tool calls that make no sense.") from None


class ChunkRenderer(Completion):
    """Renders `chat.completion.chunk` objects. `fallback_id` and `created` serve where the upstream has none; `model` is the
    name that the caller used; `include_usage` is what the caller asked for; `prompt_bytes` is for estimates."""

    def __init__(
        self, *, fallback_id: str, created: int, model: str, include_usage: bool = False, prompt_bytes: int = 0
    ) -> None:
        super().__init__(fallback_id=fallback_id, created=created, model=model, prompt_bytes=prompt_bytes)
        self._include_usage = include_usage
        self._tail = b',"finish_reason":null}],"usage":null}' if include_usage else b',"finish_reason":null}]}'
        self._text_tail = b'},"logprobs":null' + self._tail
        self._envelope = b""  # the JSON up to the choices
        self._heads: dict[int, bytes] = {}  # of the choices that have begun: the JSON up to the delta's fields
        self._labels: dict[str, bytes] = {}  # a field's name in JSON, with its colon

    @property
    def started(self) -> bool:
        return bool(self._heads)

    def feed(self, event: Event) -> list[bytes]:
        # The hot path: one more piece of text in a choice that has begun. Everything else takes the careful road.
        if type(event) is Delta and len(event.fields) == 1 and event.logprobs is None and not self.ended:
            ((name, value),) = event.fields.items()
            label = self._labels.get(name)
            head = self._heads.get(event.choice)
            if label and head and event.choice not in self.finish_reasons:
                text = value if type(value) is msgspec.Raw else _encode(value)
                self.text_bytes += len(text)
                return [b"".join((head, label, text, self._text_tail))]
        return super().feed(event)

    def _delta(self, delta: Delta) -> list[bytes]:
        head = self._heads.get(delta.choice)
        fields: Mapping[str, Any] = delta.fields
        if head is None:
            head = self._begin(delta.choice)
            fields = {"role": "assistant", "content": None, **fields}
        rendered = b",".join([self._field(delta.choice, name, value) for name, value in fields.items()])
        logprobs = b"null" if delta.logprobs is None else bytes(delta.logprobs)
        return [b"".join((head, rendered, b'},"logprobs":', logprobs, self._tail))]

    def _field(self, choice: int, name: str, value: Any) -> bytes:
        label = _encode(name) + b":"
        if name == "tool_calls":
            return label + _encode(self._fragments(choice, value))
        rendered = _encode(value)
        if name != "role" and value is not None:
            self._labels[name] = label
            self.text_bytes += len(rendered)
        return label + rendered

    def _finish(self, finish: Finish) -> list[bytes]:
        begin = [] if finish.choice in self._heads else self._delta(Delta({"content": ""}, finish.choice))
        self.finish_reasons[finish.choice] = finish.reason
        tail = b',"finish_reason":' + _encode(finish.reason) + self._tail.removeprefix(b',"finish_reason":null')
        return [*begin, self._heads[finish.choice] + b'},"logprobs":null' + tail]

    def _all_finished(self) -> bool:
        return self._heads.keys() <= self.finish_reasons.keys()

    def _last(self) -> list[bytes]:
        if not self._include_usage or self.usage is None:
            return []
        return [self._envelope + b'[],"usage":' + _encode(usage_fields(self.usage)) + b"}"]

    def _begin(self, choice: int) -> bytes:
        if not self._envelope:
            self._envelope = _encode(self._identity("chat.completion.chunk") | self._said())[:-1] + b',"choices":'
        head = self._envelope + b'[{"index":%d,"delta":{' % choice
        self._heads[choice] = head
        return head


class AnswerAssembler(Completion):
    """Assembles one `chat.completion` object; `feed` returns nothing, `end` the one body."""

    def __init__(self, *, fallback_id: str, created: int, model: str, prompt_bytes: int = 0) -> None:
        super().__init__(fallback_id=fallback_id, created=created, model=model, prompt_bytes=prompt_bytes)
        self._messages: dict[int, Message] = {}

    @property
    def started(self) -> bool:
        return bool(self._messages)

    def _delta(self, delta: Delta) -> list[bytes]:
        message = self._message(delta.choice)
        for name, value in delta.fields.items():
            if name == "tool_calls":
                message.add_calls(self._fragments(delta.choice, value))
            elif name != "role":
                self.text_bytes += message.add(name, value)
        if delta.logprobs is not None:
            message.add_logprobs(delta.logprobs)
        return []

    def _finish(self, finish: Finish) -> list[bytes]:
        self._message(finish.choice)
        self.finish_reasons[finish.choice] = finish.reason
        return []

    def _all_finished(self) -> bool:
        return self._messages.keys() <= self.finish_reasons.keys()

    def _last(self) -> list[bytes]:
        assert self.usage is not None
        answer = self._identity("chat.completion")
        answer["choices"] = [
            {
                "index": choice,
                "message": message.fields(),
                "logprobs": message.logprobs,
                "finish_reason": self.finish_reasons[choice],
            }
            for choice, message in sorted(self._messages.items())
        ]
        return [_encode(answer | {"usage": usage_fields(self.usage)} | self._said())]

    def _message(self, choice: int) -> "Message":
        message = self._messages.get(choice)
        if message is None:
            message = self._messages[choice] = Message()
        return message


class Message:
    """One choice's message in the making. Everything is kept as it came and put together once, at the end: in linear time."""

    __slots__ = ("_calls", "_pieces", "logprobs")

    def __init__(self) -> None:
        self._pieces: dict[str, list[bytes]] = {}  # JSON, by field
        self._calls: dict[int, list[dict[str, Any]]] = {}
        self.logprobs: dict[str, list[msgspec.Raw] | None] | None = None

    def add(self, name: str, value: Any) -> int:
        """More of a field; returns its size in bytes of JSON."""
        rendered = bytes(value) if type(value) is msgspec.Raw else _encode(value)
        if rendered != b"null":
            self._pieces.setdefault(name, []).append(rendered)
        return len(rendered)

    def add_calls(self, fragments: list[dict[str, Any]]) -> None:
        for fragment in fragments:
            self._calls.setdefault(fragment.pop("index"), []).append(fragment)

    def add_logprobs(self, logprobs: msgspec.Raw) -> None:
        if self.logprobs is None:
            self.logprobs = {}
        try:
            lists = _decode_logprobs(logprobs)
        except msgspec.MsgspecError:
            return  # nothing that a caller could use
        for name, more in lists.items():
            known = self.logprobs.get(name)
            if known is None:
                self.logprobs[name] = more
            else:
                known.extend(more or [])

    def fields(self) -> dict[str, Any]:
        """OpenAI's `message` object. Without a text, `content` is null if there is something in its place, else empty."""
        said = {name: _strung(pieces) for name, pieces in self._pieces.items()}
        instead = bool(self._calls) or any(
            name == "refusal" or type(value) is not msgspec.Raw for name, value in said.items()
        )
        fields: dict[str, Any] = {"role": "assistant", "content": None if instead else "", "refusal": None, **said}
        if self._calls:
            fields["tool_calls"] = [_joined(fragments) for _, fragments in sorted(self._calls.items())]
        return fields


def _strung(pieces: Sequence[bytes]) -> Any:
    """The value of which these are the differences, each in JSON. Texts join as they are."""
    if all(piece.startswith(b'"') for piece in pieces):
        return msgspec.Raw(b'"%s"' % b"".join([piece[1:-1] for piece in pieces]))
    return _joined([_decode(piece) for piece in pieces])


def _joined(values: Sequence[Any]) -> Any:
    """The differences of one value as one: texts and lists are strung together (texts among lists as parts of OpenAI's form),
    objects field by field; else the last wins."""
    values = [value for value in values if value is not None]
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return "".join(values)
    if kinds in ({list}, {list, str}):
        return [part for value in values for part in (value if isinstance(value, list) else _text_part(value))]
    if kinds == {dict}:
        fields: dict[str, list[Any]] = {}
        for value in values:
            for name, more in value.items():
                fields.setdefault(name, []).append(more)
        return {name: _joined(more) for name, more in fields.items()}
    return values[-1] if values else None


def _text_part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []


def usage_fields(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage` object. `estimated` is ours, and only there when it is true."""
    fields: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.prompt_tokens_details is not None:
        fields["prompt_tokens_details"] = usage.prompt_tokens_details
    if usage.completion_tokens_details is not None:
        fields["completion_tokens_details"] = usage.completion_tokens_details
    if usage.estimated:
        fields["estimated"] = True
    return fields
