"""The events of DashScope's own API: running usage, the string `"null"`, increments or everything so far. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.simulators.speech import Frame, ToolCall, encode

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """A whole answer. `output_tokens` after each thought and piece; by default each counts one."""

    pieces: tuple[str, ...]
    request_id: str
    input_tokens: int
    thoughts: tuple[str, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"
    limit: int | None = None
    listed: bool = False
    """Content as a list of parts, as the multimodal path wants it."""
    output_tokens: tuple[int, ...] | None = None
    reasoning_tokens: tuple[int, ...] | None = None

    @property
    def spoken(self) -> tuple[str, ...]:
        """The pieces up to the limit of tokens."""
        return self.pieces if self.limit is None else self.pieces[: self.limit]

    @property
    def finish_reason(self) -> str:
        if self.finish == "null":
            return "null"
        if self.tool_calls:
            return "tool_calls"
        return "length" if len(self.spoken) < len(self.pieces) else self.finish

    def usage(self, position: int) -> Object:
        """The running total after that many thoughts and pieces."""
        output = self.output_tokens[position - 1] if self.output_tokens else position
        counted: Object = {
            "total_tokens": self.input_tokens + output,
            "input_tokens": self.input_tokens,
            "output_tokens": output,
        }
        if self.thoughts:
            thought = min(position, len(self.thoughts))
            reasoning = self.reasoning_tokens[thought - 1] if self.reasoning_tokens else thought
            counted["output_tokens_details"] = {"reasoning_tokens": reasoning}
        return counted

    def content(self, text: str) -> Any:
        if self.listed:
            return [{"text": text}] if text else []
        return text


def native_events(said: Said, *, incremental: bool, message_format: bool, own_end: bool) -> list[Object]:
    """The `data` of every event, in order."""
    if said.tool_calls:
        return _tool_events(said)
    events: list[Object] = []
    thought = text = ""
    for position, part in enumerate((*said.thoughts, *said.spoken), start=1):
        thinking = position <= len(said.thoughts)
        if incremental:
            thought, text = (part, "") if thinking else ("", part)
        else:
            thought, text = (thought + part, text) if thinking else (thought, text + part)
        last = position == len(said.thoughts) + len(said.spoken)
        finish = said.finish_reason if last and not own_end else "null"
        output = _output(said, text, thought, finish, message_format)
        events.append(_event(said, output, said.usage(position)))
    if own_end:
        thought, text = ("", "") if incremental else (thought, text)
        output = _output(said, text, thought, said.finish_reason, message_format)
        events.append(_event(said, output, said.usage(len(events))))
    return events


def _output(said: Said, text: str, thought: str, finish: str, message_format: bool) -> Object:
    if not message_format:
        return {"finish_reason": finish, "text": text}
    thoughts = {"reasoning_content": thought} if said.thoughts else {}
    message = {"content": said.content(text), **thoughts, "role": "assistant"}
    return {"choices": [{"message": message, "finish_reason": finish}]}


def _event(said: Said, output: Object, usage: Object) -> Object:
    return {"output": output, "usage": usage, "request_id": said.request_id}


def _tool_events(said: Said) -> list[Object]:
    """One event per fragment; the finish reason rides on the last one."""
    fragments = [
        (index, call, position, fragment)
        for index, call in enumerate(said.tool_calls)
        for position, fragment in enumerate(call.fragments)
    ]
    events = []
    for count, (index, call, position, fragment) in enumerate(fragments, start=1):
        function = {"name": call.name, "arguments": fragment} if position == 0 else {"arguments": fragment}
        entry = {"index": index, "id": call.id if position == 0 else "", "type": "function", "function": function}
        message = {"content": said.content(""), "tool_calls": [entry], "role": "assistant"}
        finish = said.finish_reason if count == len(fragments) else "null"
        usage = {**said.usage(count), "prompt_tokens_details": {"cached_tokens": 0}}
        output = {"choices": [{"message": message, "index": 0, "finish_reason": finish}]}
        events.append(_event(said, output, usage))
    return events


def event_frames(events: list[Object], *, own_end: bool) -> list[Frame]:
    """Framed as the service does: no space after the colons, the status in a comment."""
    last = len(events) if own_end else 0
    return [
        Frame(
            "finish" if number == last else "piece",
            b"id:%d\nevent:result\n:HTTP_STATUS/200\ndata:%b\n\n" % (number, encode(event)),
        )
        for number, event in enumerate(events, start=1)
    ]


def native_error_event(status: int, error: Object, number: int) -> bytes:
    """An error as event `number`; the status line of the response says 200 all the same."""
    return b"id:%d\nevent:error\n:HTTP_STATUS/%d\ndata:%b\n\n" % (number, status, encode(error))


def whole_answer(said: Said, *, message_format: bool) -> bytes:
    """The body of an answer that is not streamed."""
    text = "".join(said.spoken)
    output: Object = {"finish_reason": said.finish_reason, "text": text}
    if message_format:
        message: Object = {"role": "assistant", "content": said.content("" if said.tool_calls else text)}
        if said.thoughts:
            message["reasoning_content"] = "".join(said.thoughts)
        if said.tool_calls:
            message["tool_calls"] = [
                {
                    "index": index,
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for index, call in enumerate(said.tool_calls)
            ]
        output = {"choices": [{"finish_reason": said.finish_reason, "message": message}]}
    return encode(_event(said, output, said.usage(len(said.thoughts) + len(said.spoken))))
