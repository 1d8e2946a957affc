"""DashScope's own API for text generation, which some models (`farui-plus`) speak only.

It differs from OpenAI's in nearly everything: parameters in an object of their own, streaming switched on by headers, events
without a space after the colons and sometimes without blank lines, the text `"null"` for no finish reason, a running total of
tokens with every event, no end marker, errors as events inside a 200. Answers come in increments if that is asked for; models
that do not know how repeat everything so far, and what is new is the rest: which of the two is known from the settings, never
guessed from the texts, since a model may repeat itself.

Callers may bring their own key; then it is the one that is used, for this call only.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from shared.errors import KINDS, Failure, GatewayError, fail
from shared.sansio.sse import ServerSentEvent
from shared.schema.advertisement import Model
from shared.schema.events import Complete, Delta, Event, Failed, Finish, Usage
from workers.dialects import refusals
from workers.dialects.messages import Message, history, text_of, unsupported
from workers.dialects.openai import FINISH_REASONS, MOST_CHOICES, usage_of
from workers.dialects.parameters import OPENAI, left_out
from workers.dialects.reading import JsonReader
from workers.dialects.refusal_rules import DASHSCOPE
from workers.exchange import HttpReply, HttpRequest
from workers.provider import Call, Credential, Factory, HttpStream, Plan, Timeouts, Upstream

TEXT_PATH: Final = "/services/aigc/text-generation/generation"
MULTIMODAL_PATH: Final = "/services/aigc/multimodal-generation/generation"

_SAME: Final = (
    *("temperature", "top_p", "max_tokens", "stop", "seed", "presence_penalty", "n", "tools", "tool_choice"),
    *("parallel_tool_calls", "response_format", "logprobs", "top_logprobs"),
)
"""Parameters that have the same name and meaning here."""

_HONOURED: Final = frozenset({*_SAME, "max_completion_tokens"})
_OPEN_ENDS: Final = {"temperature": 2, "top_p": 0}
"""Values that OpenAI's ranges include and this upstream's do not."""
_OURS: Final = frozenset({"result_format", "incremental_output"})

_encode = msgspec.json.Encoder().encode


class DashScopeNative:
    """The provider."""

    name = "dashscope-native"
    endpoints: Sequence[str] = ("chat",)
    accepts_any_model = True

    def __init__(self, upstream: Upstream) -> None:
        options = upstream.options
        self.timeouts: Timeouts = upstream.timeouts
        self.credentials: Sequence[Credential] = upstream.credentials
        self.caller_credentials = upstream.takes_callers_keys
        self.models: Sequence[Model] = [Model(name, owned_by="alibaba") for name in upstream.models]
        self._spelled = upstream.spelled
        self._base_url = upstream.base_url
        self._drops_unsupported = upstream.drops_unsupported
        self._cumulative: Sequence[str] = options.get("cumulative_models", ())
        self._multimodal: Sequence[str] = options.get("multimodal_models", ())
        self._headers = (
            ("content-type", "application/json"),
            ("accept", "text/event-stream"),
            ("x-dashscope-sse", "enable"),
            ("accept-encoding", "identity"),
            ("user-agent", upstream.user_agent),
        )

    def plan(self, call: Call) -> Plan:
        yield from ()
        if call.credential is None:
            raise fail("no_credential", "There is no key for this upstream.")
        model = self._spelled.get(call.model, call.model)
        cumulative, multimodal = _among(self._cumulative, model), _among(self._multimodal, model)
        # What OpenAI does not know either goes on to the upstream, which says no to what it does not know.
        honoured = (_HONOURED | call.body.keys() - OPENAI) - ({"tools"} if cumulative else set())
        honoured -= _beyond_the_ends(call.body, drops=self._drops_unsupported)
        dropped = left_out(call.body, honoured, drops=self._drops_unsupported)
        messages = [_message(message, position, multimodal) for position, message in enumerate(history(call.body))]
        parameters = _parameters({name: value for name, value in call.body.items() if name in honoured})
        body = {
            "model": model,
            "input": {"messages": messages},
            "parameters": {"result_format": "message", "incremental_output": not cumulative, **parameters},
        }
        request = HttpRequest(
            method="POST",
            url=self._base_url + (MULTIMODAL_PATH if multimodal else TEXT_PATH),
            headers=(("authorization", f"Bearer {call.credential.secret}"), *self._headers),
            body=_encode(body),
        )
        return HttpStream(request, NativeDecoder(cumulative=cumulative), "sse-tolerant", dropped=dropped)

    def refusal(self, reply: HttpReply) -> Failure:
        return refusals.refusal(reply, DASHSCOPE)


PROVIDERS: Final[dict[str, Factory]] = {"dashscope-native": DashScopeNative}


def _among(patterns: Sequence[str], model: str) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)


# The request


def _parameters(fields: Mapping[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """The caller's parameters under the names that they have here, values as they came; nulls are left out."""
    said = {name: value for name, value in fields.items() if name not in _OURS and bytes(value) != b"null"}
    newer_name = said.pop("max_completion_tokens", None)
    if newer_name is not None:
        said.setdefault("max_tokens", newer_name)
    return said


def _beyond_the_ends(fields: Mapping[str, msgspec.Raw], *, drops: bool) -> set[str]:
    """Parameters at the end of OpenAI's range, which is no value here. Raises `unsupported_parameter`, unless `drops`."""
    names = {name for name, end in _OPEN_ENDS.items() if _number(fields.get(name)) == end}
    for name in sorted(names) if not drops else ():
        raise fail(
            "unsupported_parameter",
            f"Unsupported value: '{name}' does not support {_OPEN_ENDS[name]} with this model.",
            param=name,
        )
    return names


def _number(value: msgspec.Raw | None) -> float | None:
    try:
        return msgspec.json.decode(value, type=float) if value is not None else None
    except msgspec.MsgspecError:
        return None


def _message(message: Message, position: int, multimodal: bool) -> Message:
    """A message of the history: its content as a text, or as a list of parts where the path wants that; other fields stay."""
    said = {name: value for name, value in message.items() if value is not None}
    if said.get("role") == "developer":
        said["role"] = "system"
    content = said.get("content")
    if not multimodal:
        said["content"] = text_of(message, position)
    elif isinstance(content, list):
        said["content"] = [_part(part, position) for part in content]
    else:
        said["content"] = [{"text": content}] if content else []
    return said


def _part(part: Any, position: int) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"text": text}
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return {"image": url}
        case {"type": "video_url", "video_url": {"url": str(url)}}:
            return {"video": url}
    kind = part.get("type") if isinstance(part, dict) else None
    raise unsupported(position, "content", f"parts of type '{str(kind)[:50]}' are")


# The answer


class _Choice(msgspec.Struct):
    message: dict[str, Any] | None = None
    finish_reason: Any = None
    index: Any = 0
    logprobs: Any = None


class _Output(msgspec.Struct):
    choices: list[_Choice | None] | None = None
    text: Any = None
    finish_reason: Any = None
    search_info: Any = None


class _Payload(msgspec.Struct):
    output: _Output | None = None
    usage: Any = None
    code: Any = None
    message: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Payload).decode


class NativeDecoder:
    """The decoder of one call. `cumulative`: each event repeats the texts so far.

    `malformed`: how many events made no sense; `odd_finish_reasons`: those that we had to guess.
    """

    def __init__(self, *, cumulative: bool = False) -> None:
        self.odd_finish_reasons: list[str] = []
        self._cumulative = cumulative
        self._reader = JsonReader(_decode, joins=not cumulative)
        self._so_far: dict[tuple[int, str], str] = {}
        self._over = False

    @property
    def malformed(self) -> int:
        return self._reader.malformed

    def feed(self, frame: ServerSentEvent | bytes) -> list[Event]:
        """The events of one frame; `bytes` are a whole body that was no event stream."""
        if self._over:
            return []
        if isinstance(frame, bytes):
            events = self._events(ServerSentEvent(frame))
            senseless = Failed(Failure("protocol_error", KINDS["protocol_error"].meaning))
            return events if self._over else [*events, *self._end(Complete() if events else senseless)]
        return self._events(frame)

    def end(self) -> list[Event]:
        """There is no end marker: whether the answer is complete shows in the finish reasons."""
        return []

    def _events(self, event: ServerSentEvent) -> list[Event]:
        payload = self._reader.read(event.data)
        try:
            if payload is None or payload.output is None or payload.code or payload.error or _says_no(event):
                return self._no_output(event, payload)
            return self._output(payload.output, payload.usage)
        except GatewayError as error:
            return self._end(Failed(error.failure))

    def _no_output(self, event: ServerSentEvent, payload: _Payload | None) -> list[Event]:
        """An error in one of its shapes, or garbage."""
        if event.data.strip().startswith(b"[DONE]"):
            return self._end(Complete())
        if payload is None and not _says_no(event):
            self._reader.malformed += 1
            return []
        said = msgspec.to_builtins(payload) if payload is not None else None
        if not _says_no(event) and not (payload and (payload.code or payload.error or payload.message)):
            return []
        return self._end(Failed(refusals.reported(said, DASHSCOPE, event.status)))

    def _end(self, last: Failed | Complete) -> list[Event]:
        self._over = True
        return [last]

    def _output(self, output: _Output, usage: Any) -> list[Event]:
        choices = output.choices
        if choices is None:  # `result_format` text
            choices = [_Choice({"content": output.text}, output.finish_reason)]
        events: list[Event] = []
        ends: list[Event] = []
        for position, choice in enumerate(choices):
            if choice is None:
                continue
            index = choice.index if type(choice.index) is int else position
            if not 0 <= index < MOST_CHOICES:
                self._reader.malformed += 1
                continue
            fields = self._fields(choice.message or {}, index)
            if output.search_info and position == 0:
                fields["search_info"] = output.search_info
            logprobs = msgspec.Raw(_encode(choice.logprobs)) if choice.logprobs else None
            if fields or logprobs is not None:
                events.append(Delta(fields, index, logprobs))
            ends += self._finish(choice.finish_reason, index)
        return [*events, *self._usage(usage), *ends]

    def _fields(self, message: Mapping[str, Any], index: int) -> dict[str, Any]:
        """What is new in a choice, under OpenAI's names."""
        fields: dict[str, Any] = {}
        for name in ("reasoning_content", "content"):
            text = _text(message.get(name))
            if self._cumulative:
                text = self._news((index, name), text)
            if text:
                fields[name] = text
        if calls := message.get("tool_calls"):
            fields["tool_calls"] = msgspec.Raw(_encode(calls))
        return fields

    def _news(self, place: tuple[int, str], text: str) -> str:
        """What a text has more than it had before. Raises `protocol_error` if it is another text."""
        before = self._so_far.get(place, "")
        if not text.startswith(before):
            raise fail("protocol_error", "The upstream took back what it had said.")
        self._so_far[place] = text
        return text[len(before) :]

    def _finish(self, reason: Any, index: int) -> list[Event]:
        if not reason or not isinstance(reason, str) or reason == "null":
            return []
        if reason not in FINISH_REASONS:
            self.odd_finish_reasons.append(reason)
        orphans = self._reader.orphans("output")
        last_words = self._output(orphans.output, None) if orphans and orphans.output else []
        return [*last_words, Finish(FINISH_REASONS.get(reason, "stop"), index)]

    def _usage(self, said: Any) -> list[Usage]:
        if not isinstance(said, dict):
            return []
        usage = usage_of(
            {
                **said,
                "prompt_tokens": said.get("input_tokens"),
                "completion_tokens": said.get("output_tokens"),
                "completion_tokens_details": said.get("output_tokens_details"),
            }
        )
        return [usage] if usage else []


def _says_no(event: ServerSentEvent) -> bool:
    return event.event == "error" or (event.status or 0) >= 400


def _text(content: Any) -> str:
    """The text of a message's content, which is a list of parts on the multimodal path."""
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""
