"""Events: what a provider's decoder makes of an upstream's bytes, whatever the upstream.

They carry OpenAI's chat semantics without its envelope: `shared.sansio.completion` renders them as chunks or as one answer.
Text comes as differences, usage as the last total. `Delta.fields` holds JSON values by their name in OpenAI's `delta` object;
a `msgspec.Raw` is copied to the caller byte for byte.
"""

from typing import Any

import msgspec

from shared.errors import Failure


class Meta(msgspec.Struct, frozen=True, gc=False):
    """What the upstream says about the whole answer; at most once, before the first delta. Empty strings and 0: not said."""

    id: str = ""
    created: int = 0
    system_fingerprint: str | None = None
    service_tier: str | None = None


class Delta(msgspec.Struct, frozen=True):
    """More of one choice. `logprobs` is the raw JSON of the choice's `logprobs` object, if it has one."""

    fields: dict[str, Any]
    choice: int = 0
    logprobs: msgspec.Raw | None = None


class Finish(msgspec.Struct, frozen=True, gc=False):
    """One choice is complete; the reason is one of OpenAI's (`stop`, `length`, `tool_calls`, `content_filter`, …)."""

    reason: str
    choice: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Token counts under OpenAI's names; the last one wins. `estimated`: counted by us, the upstream gave none."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None
    estimated: bool = False


class Failed(msgspec.Struct, frozen=True):
    """The upstream reported an error inside its stream. Nothing follows."""

    failure: Failure


class Complete(msgspec.Struct, frozen=True, gc=False):
    """The upstream said that its answer is over (`[DONE]`, an end marker). Whatever follows is ignored."""


class Whole(msgspec.Struct, frozen=True, gc=False):
    """The answer itself, a JSON object, for endpoints that answer in one piece."""

    body: bytes


Event = Meta | Delta | Finish | Usage | Failed | Complete | Whole
