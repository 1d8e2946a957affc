"""DeepSeek: usage on the last chunk, null content while thinking, one error code for everything."""

from __future__ import annotations

from tests.simulators.dialects.openai import Delta, Dialect, Object, Refusal, recorded
from tests.simulators.speech import Speech, Usage


class DeepSeek(Dialect):
    """Usage on the chunk with the finish reason; while thinking, `content` is null and the other way round."""

    name = "deepseek"
    key_error = "deepseek_401"
    rate_error = "deepseek_429"
    concurrency_error = "deepseek_429"
    settings_prefix = "DEEPSEEK"
    models = ("deepseek-chat", "deepseek-reasoner")
    owner = "deepseek"
    base_path = ""
    usage_place = "finish"
    headers = (("x-ds-trace-id", "0123456789abcdef0123456789abcdef"), ("server", "cloudflare"))
    limit_headers = ()
    pretty = False
    obfuscates = False

    def id(self, number: int) -> str:
        return f"00000000-0000-4000-8000-{number:012x}"

    def answered_model(self, model: str) -> str:
        return model

    def tool_id(self, number: int) -> str:
        return f"call_00_{number:020}"

    def refusal(self, body: Object) -> Refusal | None:
        thinking = "reasoner" in str(body.get("model")) or body.get("thinking") == {"type": "enabled"}
        forced = body.get("tool_choice") not in (None, "auto", "none")
        return recorded("deepseek_400_tool_choice") if thinking and forced else None

    def chunk(self, speech: Speech, choices: list[Object], usage: Object | None) -> Object:
        chunk: Object = {
            "id": speech.id,
            "object": "chat.completion.chunk",
            "created": speech.created,
            "model": speech.model,
            "system_fingerprint": "fp_test_prod0820_fp8_kvcache",
            "choices": choices,
        }
        if usage:
            chunk["usage"] = usage
        return chunk

    def opening(self, speech: Speech) -> Delta:
        if speech.thoughts:
            return {"role": "assistant", "content": None, "reasoning_content": ""}
        return {"role": "assistant", "content": ""}

    def thought(self, piece: str) -> Delta | None:
        return {"content": None, "reasoning_content": piece}

    def text(self, piece: str, speech: Speech) -> Delta:
        return {"content": piece, "reasoning_content": None} if speech.thoughts else {"content": piece}

    def closing(self, speech: Speech) -> Delta:
        return self.text("", speech)

    def tool_delta(self, entry: Object, *, opens: bool) -> Delta:
        return {"role": "assistant", "content": "", "tool_calls": [entry]} if opens else {"tool_calls": [entry]}

    def usage(self, usage: Usage) -> Object:
        counted: Object = {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.total,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
        }
        if usage.reasoning:
            counted["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
        counted["prompt_cache_hit_tokens"] = usage.cached
        counted["prompt_cache_miss_tokens"] = usage.prompt - usage.cached
        return counted

    def message(self, text: str, speech: Speech) -> Object:
        message: Object = {"role": "assistant", "content": text}
        if speech.thoughts:
            message["reasoning_content"] = "".join(speech.thoughts)
        return message

    def completion(self, speech: Speech, choices: list[Object]) -> Object:
        return {
            "id": speech.id,
            "object": "chat.completion",
            "created": speech.created,
            "model": speech.model,
            "choices": choices,
            "usage": self.usage(speech.usage),
            "system_fingerprint": "fp_test_prod0820_fp8_kvcache",
        }

    def error(self, status: int, message: str) -> Object:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": "invalid_request_error"}}
