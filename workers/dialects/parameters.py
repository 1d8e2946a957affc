"""Parameters of OpenAI's that an upstream knows nothing like: a request that asks for one is refused, or goes on without it and
its caller is told which were left out. Never in silence.

A value that asks for nothing (null, one choice, no penalty) needs no counterpart, and neither does what only concerns the
account at OpenAI.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from shared.errors import fail

OPENAI: Final = frozenset(
    {
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
        "max_tokens", "messages", "metadata", "modalities", "model", "moderation", "n", "parallel_tool_calls", "prediction",
        "presence_penalty", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "response_format",
        "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options", "temperature",
        "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
    }
)  # fmt: skip
"""The parameters of OpenAI's chat endpoint. Other names belong to other vendors."""

_ENVELOPE: Final = frozenset({"messages", "model", "stream", "stream_options"})
_ACCOUNT: Final = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "store", "user"}
)
_PREDICTION: Final = frozenset({"prediction"})  # makes the same answer come faster

_ASKS_FOR_NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (False, True),  # about tools, which are refused themselves
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "stop": ([], ""),
    "temperature": (1,),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_p": (1,),
    "verbosity": ("medium",),
}


def left_out(fields: Mapping[str, msgspec.Raw], honoured: Collection[str], *, drops: bool) -> tuple[str, ...]:
    """The parameters that ask for something and are not `honoured`, in alphabetical order.

    Raises `GatewayError` `unsupported_parameter` that names the first of them, unless `drops`.
    """
    ignored = _ENVELOPE | _ACCOUNT | _PREDICTION
    names = sorted(
        name
        for name, value in fields.items()
        if name not in honoured and name not in ignored and not _asks_for_nothing(name, value)
    )
    if names and not drops:
        raise fail(
            "unsupported_parameter",
            f"Unsupported parameter: '{names[0][:100]}' is not supported with this model.",
            param=names[0][:100],
        )
    return tuple(names)


def _asks_for_nothing(name: str, value: msgspec.Raw) -> bool:
    try:
        asked = msgspec.json.decode(value)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return asked is None or any(
        asked == nothing and type(asked) in (type(nothing), float) for nothing in _ASKS_FOR_NOTHING.get(name, ())
    )
