"""The Hugging Face router: the dialect depends on the backend that the model name selects; errors are strings."""

from __future__ import annotations

import json

from tests.simulators.dialects.cerebras import Cerebras
from tests.simulators.dialects.openai import Delta, Dialect, Object, Refusal, recorded
from tests.simulators.recordings import recording
from tests.simulators.speech import Speech, Usage


class HuggingFace(Dialect):
    """The router with Fireworks behind it: `usage: null` until the end, the backend's own name for the model."""

    name = "huggingface"
    key_error = "hf_401"
    rate_error = "hf_429"
    concurrency_error = "hf_429"
    settings_prefix = "HF"
    key_setting = "HF_TOKEN"
    models = ("openai/gpt-oss-120b", "Qwen/Qwen3-32B")
    usage_place = "finish"
    headers = (("x-request-id", "Root=1-00000000-000000000000000000000001;00000000-0000-4000-8000-0000000000f1"),)
    limit_headers = ()
    pretty = False
    obfuscates = False
    reasoning_field = "reasoning_content"

    def for_model(self, model: str) -> Dialect:
        """The backend's dialect, by the suffix of the model name; without a suffix: Fireworks."""
        _, _, backend = model.partition(":")
        return {"cerebras": _ROUTED_CEREBRAS, "groq": _ALIAS, "novita": _ALIAS, "nscale": _WITHOUT_USAGE}.get(
            backend, self
        )

    def id(self, number: int) -> str:
        return f"00000000-0000-4000-8000-{number:012x}"

    def answered_model(self, model: str) -> str:
        return "accounts/fireworks/models/" + model.partition(":")[0].partition("/")[2]

    def refusal(self, body: Object) -> Refusal | None:
        return None if "/" in str(body.get("model")) else recorded("hf_400_model_not_supported")

    def chunk(self, speech: Speech, choices: list[Object], usage: Object | None) -> Object:
        return {
            "id": speech.id,
            "object": "chat.completion.chunk",
            "created": speech.created,
            "model": speech.model,
            "choices": choices,
            "usage": usage,
        }

    def choice(self, index: int, delta: Delta, finish: str | None = None, logprobs: Object | None = None) -> Object:
        return {"index": index, "delta": delta, "finish_reason": finish}

    def opening(self, speech: Speech) -> Delta:
        return {"role": "assistant"}

    def thought(self, piece: str) -> Delta | None:
        return {"reasoning_content": piece}

    def tool_delta(self, entry: Object, *, opens: bool) -> Delta:
        return {"role": "assistant", "tool_calls": [entry]} if opens else {"tool_calls": [entry]}

    def usage(self, usage: Usage) -> Object:
        return {
            "prompt_tokens": usage.prompt,
            "total_tokens": usage.total,
            "completion_tokens": usage.completion,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
        }

    def message(self, text: str, speech: Speech) -> Object:
        message: Object = {"role": "assistant", "content": text}
        if speech.thoughts:
            message[self.reasoning_field] = "".join(speech.thoughts)
        return message

    def whole_choice(self, index: int, message: Object, finish: str) -> Object:
        return {"index": index, "message": message, "finish_reason": finish}

    def completion(self, speech: Speech, choices: list[Object]) -> Object:
        return {**self.chunk(speech, choices, self.usage(speech.usage)), "object": "chat.completion"}

    def error(self, status: int, message: str) -> Object:
        return {"error": message}

    def model_list(self) -> Object:
        listed: Object = json.loads(recording("hf_models.json").body)
        return listed


class _HuggingFaceAlias(HuggingFace):
    """A backend that thinks in `reasoning`, sends `"content":""` beside it, and usage in a chunk of its own."""

    usage_place = "own"
    reasoning_field = "reasoning"

    def answered_model(self, model: str) -> str:
        return model.partition(":")[0]

    def opening(self, speech: Speech) -> Delta:
        return {"role": "assistant", "content": ""}

    def thought(self, piece: str) -> Delta | None:
        return {"content": "", "reasoning": piece}

    def closing(self, speech: Speech) -> Delta:
        return {"content": ""}


class _HuggingFaceWithoutUsage(_HuggingFaceAlias):
    """A backend that counts nothing."""

    usage_place = "none"


_ROUTED_CEREBRAS = Cerebras()
_ALIAS = _HuggingFaceAlias()
_WITHOUT_USAGE = _HuggingFaceWithoutUsage()
