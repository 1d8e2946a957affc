"""OpenAI's dialect, and what every dialect must say: key order, null habits, the place of usage, error shapes.

A dialect turns a `Speech` into the frames of an event stream or into a JSON body. The rendering is pure, and the tests
compare it byte for byte with the recordings.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from tests.simulators.recordings import error_recording
from tests.simulators.speech import Frame, Speech, ToolCall, Usage, encode, encode_pretty, token_logprobs

Delta = dict[str, Any]
Object = dict[str, Any]
Refusal = tuple[int, bytes]
"""Status and body."""


def recorded(name: str) -> Refusal:
    """The refusal recorded in that error file."""
    found = error_recording(name)
    return found.status, found.body


class Dialect:
    """OpenAI's own shape; the other vendors say only where they differ."""

    name = "openai"
    key_error = "openai_401_invalid_api_key"
    rate_error = "openai_429_rate_limit"
    concurrency_error = "openai_429_rate_limit"
    base_path = "/v1"
    settings_prefix = "OPENAI"
    models: tuple[str, ...] = ("gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-3.5-turbo")
    owner = "system"
    usage_place = "asked"
    """`asked`: in a chunk of its own if `include_usage` is set; else as the script's option `usage` names it."""
    event_stream = "text/event-stream; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = (
        ("x-request-id", "req_test0001"),
        ("openai-version", "2020-10-01"),
        ("openai-processing-ms", "143"),
    )
    limit_headers: tuple[tuple[str, str], ...] = (
        ("x-ratelimit-limit-requests", "{limit}"),
        ("x-ratelimit-limit-tokens", "200000"),
        ("x-ratelimit-remaining-requests", "{remaining}"),
        ("x-ratelimit-remaining-tokens", "199978"),
        ("x-ratelimit-reset-requests", "{reset:.2f}s"),
        ("x-ratelimit-reset-tokens", "6ms"),
    )
    gzip_if_offered = False
    obfuscates = True
    """Pads events against traffic analysis when `stream_options` are given, unless they forbid it."""
    pretty = True

    @property
    def key_setting(self) -> str:
        return f"{self.settings_prefix}_API_KEY"

    def for_model(self, model: str) -> Dialect:
        """The dialect that answers for this model: a router speaks several."""
        return self

    def id(self, number: int) -> str:
        return f"chatcmpl-test{number:04}"

    def answered_model(self, model: str) -> str:
        """The name the answer carries."""
        return {"gpt-4o-mini": "gpt-4o-mini-2024-07-18", "gpt-4o": "gpt-4o-2024-11-20"}.get(model, model)

    def tool_id(self, number: int) -> str:
        return f"call_test_{number}"

    def refusal(self, body: Object) -> Refusal | None:
        """The answer to a request this vendor would refuse; None if it would not."""
        thinking = str(body.get("model", "")).startswith(("o1", "o3", "o4", "gpt-5"))
        if thinking and ("temperature" in body or "top_p" in body):
            return recorded("openai_400_unsupported_parameter")
        return None

    # Streaming

    def frames(self, speech: Speech) -> Iterator[Frame]:
        """The events of the whole stream, `[DONE]` included."""
        place = speech.usage_place or self.usage_place
        yield from self._opening(speech)
        for thought in speech.thoughts:
            if (delta := self.thought(thought)) is not None:
                yield self._frame("piece", speech, self.choice(0, delta))
        if speech.tool_calls:
            yield from self._tool_frames(speech)
        else:
            yield from self._text_frames(speech)
        last = len(speech.finishes) - 1
        for index, finish in enumerate(speech.finishes):
            choice = self.choice(index, self.closing(speech), finish)
            usage = self.usage(speech.usage) if index == last and place == "finish" else None
            if index == last and place == "choice":
                choice["usage"] = self.usage(speech.usage)
            yield self._frame("finish", speech, choice, usage)
        if place == "own" or (speech.include_usage and place in ("asked", "choice")):
            yield self._frame("usage", speech, None, self.usage(speech.usage))
        yield Frame("done", b"data: [DONE]\n\n")

    def _opening(self, speech: Speech) -> Iterator[Frame]:
        if speech.tool_calls:
            return  # the first call comes with the role
        for index in range(len(speech.finishes)):
            yield self._frame("open", speech, self.choice(index, self.opening(speech)))

    def _text_frames(self, speech: Speech) -> Iterator[Frame]:
        for turn in zip_longest(*speech.choices):
            for index, piece in enumerate(turn):
                if piece is not None:
                    logprobs = token_logprobs(piece) if speech.logprobs else None
                    choice = self.choice(index, self.text(piece, speech), logprobs=logprobs)
                    yield self._frame("piece", speech, choice)

    def _tool_frames(self, speech: Speech) -> Iterator[Frame]:
        for index, call in enumerate(speech.tool_calls):
            for position, fragment in enumerate(call.fragments):
                function = {"name": call.name, "arguments": fragment} if position == 0 else {"arguments": fragment}
                entry: Object = {"index": index, "function": function}
                if position == 0:
                    entry = {"index": index, "id": call.id, "type": "function", "function": function}
                first = index == 0 and position == 0
                choice = self.choice(0, self.tool_delta(entry, opens=first))
                self.tweak_tool_choice(choice, call, position)
                yield self._frame("piece", speech, choice)

    def _frame(self, kind: Any, speech: Speech, choice: Object | None, usage: Object | None = None) -> Frame:
        chunk = self.chunk(speech, [] if choice is None else [choice], usage)
        if speech.obfuscate:
            chunk["obfuscation"] = "x" * (len(str(choice)) % 7 + 1)
        return Frame(kind, b"data: " + encode(chunk) + b"\n\n")

    def chunk(self, speech: Speech, choices: list[Object], usage: Object | None) -> Object:
        chunk: Object = {
            "id": speech.id,
            "object": "chat.completion.chunk",
            "created": speech.created,
            "model": speech.model,
            "service_tier": "default",
            "system_fingerprint": "fp_test000001",
            "choices": choices,
        }
        if speech.include_usage or usage:
            chunk["usage"] = usage
        return chunk

    def choice(self, index: int, delta: Delta, finish: str | None = None, logprobs: Object | None = None) -> Object:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def opening(self, speech: Speech) -> Delta:
        return {"role": "assistant", "content": "", "refusal": None}

    def thought(self, piece: str) -> Delta | None:
        """None: this vendor thinks in secret."""
        return None

    def text(self, piece: str, speech: Speech) -> Delta:
        return {"content": piece}

    def closing(self, speech: Speech) -> Delta:
        return {}

    def tool_delta(self, entry: Object, *, opens: bool) -> Delta:
        if opens:
            return {"role": "assistant", "content": None, "tool_calls": [entry], "refusal": None}
        return {"tool_calls": [entry]}

    def tweak_tool_choice(self, choice: Object, call: ToolCall, position: int) -> None:
        """Spoil a choice with a tool fragment the way this vendor does."""

    def usage(self, usage: Usage) -> Object:
        return {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.total,
            "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": usage.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    # Whole answers

    def body(self, speech: Speech) -> bytes:
        """The JSON body of an answer without streaming."""
        choices = []
        for index, finish in enumerate(speech.finishes):
            message = self.message("".join(speech.choices[index]), speech)
            if speech.tool_calls:
                message["content"] = None
                message["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                    for call in speech.tool_calls
                ]
            choices.append(self.whole_choice(index, message, finish))
            if speech.logprobs:
                entries = [token_logprobs(piece)["content"][0] for piece in speech.choices[index]]
                choices[index]["logprobs"] = {"content": entries, "refusal": None}
        return self.dump(self.completion(speech, choices))

    def dump(self, value: Any) -> bytes:
        return encode_pretty(value) if self.pretty else encode(value)

    def message(self, text: str, speech: Speech) -> Object:
        return {"role": "assistant", "content": text, "refusal": None, "annotations": []}

    def whole_choice(self, index: int, message: Object, finish: str) -> Object:
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def completion(self, speech: Speech, choices: list[Object]) -> Object:
        return {
            "id": speech.id,
            "object": "chat.completion",
            "created": speech.created,
            "model": speech.model,
            "choices": choices,
            "usage": self.usage(speech.usage),
            "service_tier": "default",
            "system_fingerprint": "fp_test000001",
        }

    # Errors

    def error(self, status: int, message: str) -> Object:
        """The vendor's error object for a status without a recording."""
        kind = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}

    def error_body(self, status: int) -> bytes:
        """The same as a body."""
        return self.dump(self.error(status, f"simulated error {status}"))

    def error_event(self, status: int, error: Object, number: int) -> bytes:
        """An error body as event `number` of a stream."""
        return b"data: " + encode(error) + b"\n\n"

    def model_list(self) -> Object:
        return {"object": "list", "data": [self.model_entry(model) for model in self.models]}

    def model_entry(self, model: str) -> Object:
        return {"id": model, "object": "model", "created": 1715367049, "owned_by": self.owner}
