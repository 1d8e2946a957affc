"""Cerebras: a missing key instead of a null finish reason, flat errors, windows in the names of rate-limit headers."""

from __future__ import annotations

from tests.simulators.dialects.openai import Delta, Dialect, Object, Refusal, recorded
from tests.simulators.speech import Speech, Usage, encode


class Cerebras(Dialect):
    """No `finish_reason` key before the last chunk, thinking in `reasoning`, flat errors, `time_info`."""

    name = "cerebras"
    key_error = "cerebras_401"
    rate_error = "cerebras_429_requests"
    concurrency_error = "cerebras_429_requests"
    settings_prefix = "CEREBRAS"
    models = ("llama-3.3-70b", "gpt-oss-120b", "zai-glm-4.7")
    owner = "Cerebras"
    usage_place = "finish"
    headers = (("x-request-id", "test-cerebras-0001"),)
    limit_headers = (
        ("x-ratelimit-limit-requests-day", "14400"),
        ("x-ratelimit-limit-tokens-minute", "60000"),
        ("x-ratelimit-remaining-requests-day", "{remaining}"),
        ("x-ratelimit-remaining-tokens-minute", "59960"),
        ("x-ratelimit-reset-requests-day", "33011.382867"),
        ("x-ratelimit-reset-tokens-minute", "{reset:.6f}"),
    )
    pretty = False
    obfuscates = False

    def id(self, number: int) -> str:
        return f"chatcmpl-test-cb{number:02}"

    def answered_model(self, model: str) -> str:
        return model

    def refusal(self, body: Object) -> Refusal | None:
        messages = body.get("messages") or []
        foreign = any("reasoning_content" in message for message in messages if isinstance(message, dict))
        return recorded("cerebras_400_param") if foreign else None

    def chunk(self, speech: Speech, choices: list[Object], usage: Object | None) -> Object:
        return self._object(speech, choices, usage, "chat.completion.chunk")

    def completion(self, speech: Speech, choices: list[Object]) -> Object:
        return self._object(speech, choices, self.usage(speech.usage), "chat.completion")

    def _object(self, speech: Speech, choices: list[Object], usage: Object | None, kind: str) -> Object:
        whole: Object = {
            "id": speech.id,
            "choices": choices,
            "created": speech.created,
            "model": speech.model,
            "system_fingerprint": "fp_test_cb",
            "object": kind,
        }
        if usage:
            whole["usage"] = usage
            whole["time_info"] = {
                "queue_time": 0.000104,
                "prompt_time": 0.002142,
                "completion_time": 0.011953,
                "total_time": 0.015924,
                "created": speech.created + 0.123,
            }
        return whole

    def choice(self, index: int, delta: Delta, finish: str | None = None, logprobs: Object | None = None) -> Object:
        choice: Object = {"delta": delta}
        if finish is not None:
            choice["finish_reason"] = finish
        if logprobs is not None:
            choice["logprobs"] = logprobs
        return {**choice, "index": index}

    def opening(self, speech: Speech) -> Delta:
        return {"role": "assistant"}

    def thought(self, piece: str) -> Delta | None:
        return {"reasoning": piece}

    def tool_delta(self, entry: Object, *, opens: bool) -> Delta:
        return {"role": "assistant", "tool_calls": [entry]} if opens else {"tool_calls": [entry]}

    def usage(self, usage: Usage) -> Object:
        counted: Object = {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.total,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
        }
        if usage.reasoning:
            counted["completion_tokens_details"] = {
                "reasoning_tokens": usage.reasoning,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            }
        return counted

    def message(self, text: str, speech: Speech) -> Object:
        message: Object = {"content": text, "role": "assistant"}
        if speech.thoughts:
            message["reasoning"] = "".join(speech.thoughts)
        return message

    def whole_choice(self, index: int, message: Object, finish: str) -> Object:
        return {"finish_reason": finish, "index": index, "message": message}

    def error(self, status: int, message: str) -> Object:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return {"message": message, "type": kind, "param": "", "code": ""}

    def error_event(self, status: int, error: Object, number: int) -> bytes:
        nested = {"error": {"id": "", **error.get("error", error)}, "status_code": status}
        return b"event: error\ndata: " + encode(nested) + b"\n\n"
