"""DashScope's compatible mode: other key order, nulls everywhere, empty ids on continued tool calls."""

from __future__ import annotations

from tests.simulators.dialects.openai import Delta, Dialect, Object, Refusal
from tests.simulators.speech import Speech, ToolCall, Usage, encode


class DashScopeCompatible(Dialect):
    """Other key order, `usage: null` on every chunk, empty ids on continued tool calls, gzip on streams."""

    name = "dashscope_compatible"
    key_error = "dashscope_compat_401"
    rate_error = "dashscope_compat_429_burst"
    concurrency_error = "dashscope_compat_429_burst"
    settings_prefix = "DASHSCOPE"
    models = ("qwen-plus", "qwen-max", "qwen-turbo", "qwen3-235b-a22b-thinking-2507")
    base_path = "/compatible-mode/v1"
    event_stream = "text/event-stream;charset=UTF-8"
    headers = ()
    limit_headers = ()
    gzip_if_offered = True
    pretty = False
    obfuscates = False

    def id(self, number: int) -> str:
        return f"chatcmpl-test-dc{number:02}"

    def answered_model(self, model: str) -> str:
        return model

    def refusal(self, body: Object) -> Refusal | None:
        if not str(body.get("model")).startswith("qwen3") or body.get("stream"):
            return None
        if body.get("enable_thinking") is not True:
            return None
        why = "parameter.enable_thinking must be set to false for non-streaming calls"
        return 400, encode(self.error(400, why))

    def chunk(self, speech: Speech, choices: list[Object], usage: Object | None) -> Object:
        return self._object(speech, choices, usage, "chat.completion.chunk")

    def completion(self, speech: Speech, choices: list[Object]) -> Object:
        return self._object(speech, choices, self.usage(speech.usage), "chat.completion")

    def _object(self, speech: Speech, choices: list[Object], usage: Object | None, kind: str) -> Object:
        return {
            "choices": choices,
            "object": kind,
            "usage": usage,
            "created": speech.created,
            "system_fingerprint": None,
            "model": speech.model,
            "id": speech.id,
        }

    def choice(self, index: int, delta: Delta, finish: str | None = None, logprobs: Object | None = None) -> Object:
        return {"delta": delta, "finish_reason": finish, "index": index, "logprobs": logprobs}

    def opening(self, speech: Speech) -> Delta:
        if speech.thoughts:
            return {"content": None, "role": "assistant", "reasoning_content": ""}
        return {"content": "", "role": "assistant"}

    def thought(self, piece: str) -> Delta | None:
        return {"content": None, "reasoning_content": piece}

    def text(self, piece: str, speech: Speech) -> Delta:
        return {"content": piece, "reasoning_content": None} if speech.thoughts else {"content": piece}

    def closing(self, speech: Speech) -> Delta:
        return self.text("", speech)

    def tool_delta(self, entry: Object, *, opens: bool) -> Delta:
        if "id" not in entry:
            function = entry.pop("function")
            entry.update({"id": "", "type": "function", "function": function})
        role = {"role": "assistant"} if opens else {}
        return {"content": None, **role, "tool_calls": [entry]}

    def tweak_tool_choice(self, choice: Object, call: ToolCall, position: int) -> None:
        if position > 1 and position == len(call.fragments) - 1:
            del choice["finish_reason"]

    def usage(self, usage: Usage) -> Object:
        counted: Object = {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.total,
        }
        if usage.reasoning:
            counted["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
        counted["prompt_tokens_details"] = {"cached_tokens": usage.cached}
        return counted

    def message(self, text: str, speech: Speech) -> Object:
        message: Object = {"role": "assistant", "content": text}
        if speech.thoughts:
            message["reasoning_content"] = "".join(speech.thoughts)
        return message

    def whole_choice(self, index: int, message: Object, finish: str) -> Object:
        return {"message": message, "finish_reason": finish, "index": index, "logprobs": None}

    def error(self, status: int, message: str) -> Object:
        return {**super().error(status, message), "request_id": "00000000-0000-9000-8000-0000000000a1"}
