"""Identical requests answered from memory, for callers who asked for that: their key says so, or the header `x-sluice-cache`.

Identical means: the same caller, endpoint and model name, and the same fields with the same values, in any order; streamed and
not streamed are two. Only complete answers are kept, and they are sent again exactly as they were. One caller never
sees what was kept for another.
"""

import hashlib
import hmac
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from shared.errors import fail
from shared.redis.answers import Answers, KeptAnswer
from shared.redis.failures import RedisError
from shared.schema.caller import FOREIGN, CallerKey
from shared.schema.job import Outcome

_log = logging.getLogger(__name__)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

HEADER: Final = "x-sluice-cache"
LONGEST_SECONDS: Final = 86_400.0
MOST_ANSWER_BYTES: Final = 1024 * 1024
FIND_SECONDS: Final = 0.25
"""A memory that takes longer than that is slower than it is worth."""


@dataclass(frozen=True)
class Question:
    """What makes two requests the same, apart from who asks."""

    endpoint: str
    model: str
    streaming: bool
    body: bytes


class AnswerCache:
    """`answers`: where they are kept, or None if nothing is; `pepper` keys the names, which Redis can read."""

    def __init__(self, answers: Answers | None, pepper: bytes) -> None:
        self._answers = answers
        self._pepper = pepper

    def look_up(self, question: Question, key: CallerKey, header: str | None) -> "Memory | None":
        """The memory of this request, or None where nobody asked for one. Raises `GatewayError` for a senseless header."""
        seconds = key.cache_seconds if header is None else _seconds(header)
        if self._answers is None or seconds <= 0 or key.id == FOREIGN:
            return None
        digest = _digest(question, key.id)
        name = hmac.digest(self._pepper, b"answer" + digest, "sha256")[:16].hex()
        return Memory(self._answers, name, digest, seconds)


class Memory:
    """What is, or may become, the kept answer to one request."""

    def __init__(self, answers: Answers, name: str, digest: bytes, seconds: float) -> None:
        self._answers = answers
        self._name = name
        self._digest = digest
        self._seconds = seconds
        self._chunks: list[bytes] = []
        self._bytes = 0

    async def find(self) -> tuple[KeptAnswer, float] | None:
        """The kept answer and its age in seconds; None also while Redis is away or slow."""
        with trio.move_on_after(FIND_SECONDS):
            try:
                return await self._answers.find(self._name, self._digest)
            except RedisError as problem:
                _log.warning("cannot look for a kept answer: %s", problem)
        return None

    def add(self, chunks: Sequence[bytes]) -> None:
        """The caller was sent these chunks."""
        self._bytes += sum(map(len, chunks))
        if self._bytes <= MOST_ANSWER_BYTES:
            self._chunks.extend(chunks)
        else:
            self._chunks.clear()

    def keep(self, provider: str, outcome: Outcome) -> None:
        """The answer is complete."""
        if self._chunks:
            self._answers.keep(self._name, KeptAnswer(self._digest, provider, self._chunks, outcome, self._seconds))


def _seconds(header: str) -> float:
    text = header.strip().lower()
    if text in ("off", "no-store"):
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= LONGEST_SECONDS:
        raise fail(
            "invalid_request",
            f"Send `{HEADER}: <seconds>` with 0 to {LONGEST_SECONDS:.0f} (how long the answer may serve), or `{HEADER}: off`.",
            param=HEADER,
            code="invalid_header",
        )
    return seconds


def _digest(question: Question, caller_id: str) -> bytes:
    """Every part with its length in front, so that no two requests can look alike."""
    asked = hashlib.sha256()
    fields = sorted((name.encode(), bytes(value)) for name, value in _fields.decode(question.body).items())
    head = (caller_id.encode(), question.endpoint.encode(), question.model.encode(), b"%d" % question.streaming)
    for part in (*head, *(part for field in fields for part in field)):
        asked.update(b"%d:" % len(part))
        asked.update(part)
    return asked.digest()
