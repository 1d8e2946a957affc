"""Kimi: usage inside the choice with the finish reason, errors without a code."""

from __future__ import annotations

from tests.simulators.dialects.openai import Delta, Dialect, Object, Refusal, recorded
from tests.simulators.speech import Speech, Usage


class Kimi(Dialect):
    """Usage inside the choice with the finish reason, asked for or not, and once more in a chunk of its own if asked."""

    name = "kimi"
    key_error = "kimi_401"
    rate_error = "kimi_429_rpm"
    concurrency_error = "kimi_429_concurrency"
    settings_prefix = "KIMI"
    models = ("moonshot-v1-8k", "moonshot-v1-32k", "kimi-k2-thinking", "kimi-k2.6")
    owner = "moonshot"
    usage_place = "choice"
    headers = ()
    limit_headers = ()
    pretty = False
    obfuscates = False

    def id(self, number: int) -> str:
        return f"cmpl-test-km{number:02}"

    def answered_model(self, model: str) -> str:
        return model

    def refusal(self, body: Object) -> Refusal | None:
        temperature = body.get("temperature")
        return recorded("kimi_400_invalid") if isinstance(temperature, int | float) and temperature > 1 else None

    def chunk(self, speech: Speech, choices: list[Object], usage: Object | None) -> Object:
        chunk: Object = {
            "id": speech.id,
            "object": "chat.completion.chunk",
            "created": speech.created,
            "model": speech.model,
            "choices": choices,
            "system_fingerprint": "fpv0_test01",
        }
        if usage:
            chunk["usage"] = usage
        return chunk

    def choice(self, index: int, delta: Delta, finish: str | None = None, logprobs: Object | None = None) -> Object:
        return {"index": index, "delta": delta, "finish_reason": finish}

    def opening(self, speech: Speech) -> Delta:
        return {"role": "assistant", "content": ""}

    def thought(self, piece: str) -> Delta | None:
        return {"reasoning_content": piece}

    def tool_delta(self, entry: Object, *, opens: bool) -> Delta:
        return {"role": "assistant", "content": "", "tool_calls": [entry]} if opens else {"tool_calls": [entry]}

    def usage(self, usage: Usage) -> Object:
        counted = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "total_tokens": usage.total}
        return {**counted, "cached_tokens": usage.cached} if usage.cached else counted

    def message(self, text: str, speech: Speech) -> Object:
        message: Object = {"role": "assistant", "content": text}
        if speech.thoughts:
            message["reasoning_content"] = "".join(speech.thoughts)
        return message

    def whole_choice(self, index: int, message: Object, finish: str) -> Object:
        return {"index": index, "message": message, "finish_reason": finish}

    def completion(self, speech: Speech, choices: list[Object]) -> Object:
        return {
            "id": speech.id,
            "object": "chat.completion",
            "created": speech.created,
            "model": speech.model,
            "choices": choices,
            "usage": self.usage(speech.usage),
        }

    def error(self, status: int, message: str) -> Object:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"type": kind, "message": message}}
