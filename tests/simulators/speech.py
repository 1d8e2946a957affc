"""What a simulated model says, before a dialect gives it a vendor's shape: pieces, thinking, tool calls, usage."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Kind = Literal["comment", "open", "piece", "finish", "usage", "done", "error"]

_readable = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_escaped = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True)


class Frame(NamedTuple):
    """One event of a stream, framed and ready to send; the kind says what a fault does with it."""

    kind: Kind
    wire: bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as OpenAI counts them: completion tokens include reasoning."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call; `fragments` of the argument text, the first of which comes together with the name."""

    id: str
    name: str
    fragments: tuple[str, ...]

    @property
    def arguments(self) -> str:
        return "".join(self.fragments)


@dataclass(frozen=True, slots=True)
class Speech:
    """A whole answer: `choices` holds the pieces of each choice, `finishes` their finish reasons."""

    id: str
    model: str
    choices: tuple[tuple[str, ...], ...]
    finishes: tuple[str, ...]
    usage: Usage
    created: int = 1760000000
    thoughts: tuple[str, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    include_usage: bool = False
    usage_place: str | None = None
    obfuscate: bool = False
    logprobs: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


def encode(value: Any) -> bytes:
    """Compact JSON in UTF-8; lone surrogates as escapes, as no UTF-8 exists for them."""
    try:
        return _readable.encode(value).encode()
    except UnicodeEncodeError:
        return _escaped.encode(value).encode()


def encode_pretty(value: Any) -> bytes:
    """Indented JSON with a final line end, as OpenAI sends what is not streamed."""
    return json.dumps(value, indent=2).encode() + b"\n"


def token_logprobs(piece: str) -> dict[str, Any]:
    """OpenAI's `logprobs` object for one piece, taken as one token."""
    entry = {"token": piece, "logprob": -0.25, "bytes": list(piece.encode("utf-8", "replace"))}
    return {"content": [{**entry, "top_logprobs": [entry]}], "refusal": None}
