"""What a request may cost its caller: the estimate that is reserved, and what the door says about limits, in OpenAI's words."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from frontend.requests import ChatRequest, CompletionRequest, Request
from shared.errors import Failure
from shared.redis.submission.limits import Left
from shared.redis.submission.script import Refusal
from shared.sansio.completion import BYTES_PER_TOKEN

CAUTIOUS_BYTES_PER_TOKEN: Final = 3
"""Before the fact, estimates are rather too high."""
TOKENS_PER_MESSAGE: Final = 4
TOKENS_PER_ATTACHMENT: Final = 1000
"""An image, a recording, a file: what they cost depends on the model, and their bytes say nothing about it."""
BOLD_BYTES_PER_TOKEN: Final = 8
"""So many bytes of a request's JSON, also where nothing in it looks like a text, are a token at least."""
FRAME_BYTES: Final = 512
"""Of which so many may be names, numbers and brackets."""
LONGEST_WORD: Final = 4096
"""Beside attachments: what is longer and holds no space is one of them."""
USUAL_ANSWER_TOKENS: Final = 1024
ENVELOPE_BYTES: Final = 1024
"""What a chunk of a stream holds beside its text at most."""


@dataclass(frozen=True)
class Estimate:
    """Tokens: of the prompt, of the answer as long as it may become, and how many of the latter must be free at least."""

    prompt: int = 0
    answer: int = 0
    least: int = 0


NO_ESTIMATE: Final = Estimate()


class _Extras(msgspec.Struct):
    """What a model reads beside the messages."""

    tools: msgspec.Raw = msgspec.Raw(b"")
    response_format: msgspec.Raw = msgspec.Raw(b"")


_extras = msgspec.json.Decoder(_Extras).decode


def estimate(asked: Request, body: bytes) -> Estimate:
    """What the request may take, before anybody has counted it. `body`: the request as it came.

    Models read more than we look at (old ways to name functions, thoughts of earlier turns, parts of unknown kinds), so the
    size of the whole says how little it can be.
    """
    if isinstance(asked, ChatRequest):
        prompt, attachments = _chat_tokens(asked)
        if asked.tools or asked.response_format:
            extras = _extras(body)
            prompt += _cautiously(len(bytes(extras.tools)) + len(bytes(extras.response_format)))
        # Which of the two an upstream obeys is its own affair.
        said = max(asked.max_completion_tokens or 0, asked.max_tokens or 0)
        return _with_answer(max(prompt, _least(body, attachments)), said, asked.n or 1)
    if isinstance(asked, CompletionRequest):
        prompt = max(_text_tokens([asked.prompt, asked.suffix]), _least(body))
        choices = _prompts(asked.prompt) * max(asked.n or 1, asked.best_of or 1)
        return _with_answer(prompt, asked.max_tokens or 0, choices)
    return Estimate(max(_text_tokens([asked.input]), _least(body)))


def _with_answer(prompt: int, said: int, choices: int) -> Estimate:
    """A caller who does not say how long the answer may be, or says what cannot be meant, reserves the usual, or what is left
    to him."""
    if said <= 0:
        return Estimate(prompt, USUAL_ANSWER_TOKENS * choices, 1)
    answer = said * choices
    return Estimate(prompt, answer, answer)


def _prompts(prompt: Any) -> int:
    """How many prompts a completion is asked for: one, unless it is a list of more than tokens."""
    several = isinstance(prompt, list) and not all(isinstance(one, int) for one in prompt)
    return len(prompt) if several else 1


def _least(body: bytes, attachments: int = 0) -> int:
    """Tokens that are read at least, as the size of the request tells."""
    if not attachments:
        size = len(body)
    else:
        size = sum(len(piece) for piece in body.split(b'"') if len(piece) < LONGEST_WORD or b" " in piece)
    return max(0, size - FRAME_BYTES) // BOLD_BYTES_PER_TOKEN


def _chat_tokens(asked: ChatRequest) -> tuple[int, int]:
    """And how many attachments there are among them."""
    texts: list[Any] = []
    attachments = 0
    for message in asked.messages:
        if isinstance(message.content, str):
            texts.append(message.content)
        elif message.content:
            texts += [part.text for part in message.content]
            attachments += sum(part.type in ATTACHMENTS for part in message.content)
        if message.tool_calls:
            texts += [str(call) for call in message.tool_calls]
    tokens = _text_tokens(texts) + TOKENS_PER_MESSAGE * len(asked.messages) + TOKENS_PER_ATTACHMENT * attachments
    return tokens, attachments


ATTACHMENTS: Final = ("image_url", "input_audio", "file", "video_url", "input_image", "video")


def _text_tokens(texts: Iterable[Any]) -> int:
    """Of texts, of lists of texts, and of tokens that are numbers already."""
    size = numbers = 0
    for text in texts:
        if isinstance(text, str):
            size += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        elif isinstance(text, list):
            numbers += _text_tokens(text)
        elif text is not None:
            numbers += 1
    return numbers + _cautiously(size)


def _cautiously(size: int) -> int:
    return -(-size // CAUTIOUS_BYTES_PER_TOKEN)


class Sent:
    """What a caller was sent of a stream: enough to estimate its tokens should it end early, at no cost for each chunk.

    Chunks of one stream differ by their text, and by little else; the smallest shows what all of them consist of beside it,
    unless there are but a few, and large.
    """

    __slots__ = ("bytes", "chunks", "smallest")

    def __init__(self) -> None:
        self.chunks = self.bytes = self.smallest = 0

    def add(self, chunks: Sequence[bytes]) -> None:
        """`chunks`: at least one."""
        sizes = [len(chunk) for chunk in chunks]
        smallest = min(sizes)
        self.smallest = min(self.smallest or smallest, smallest)
        self.chunks += len(sizes)
        self.bytes += sum(sizes)

    @property
    def tokens(self) -> int:
        text = self.bytes - self.chunks * min(max(0, self.smallest - 1), ENVELOPE_BYTES)
        return -(-text // BYTES_PER_TOKEN)


_NAMES: Final = {"requests": "requests per minute", "tokens": "tokens per minute"}


def limit_failure(refusal: Refusal) -> Failure | None:
    """A refusal for the sake of the caller's limits, in words; None for any other."""
    kind, wait = refusal.kind, refusal.retry_after_seconds
    size, used, wanted = refusal.size, refusal.used, refusal.wanted
    if kind == "outdated_key":
        return Failure(kind, "The key was changed at this very moment; try again.")
    if kind == "concurrency_limit":
        message = f"This key may have {size} requests at once, and {used} are running. Try again when one has ended."
        return Failure(kind, message, retry_after_seconds=wait)
    if kind == "request_over_limit":
        message = f"The request may take {wanted} tokens, and the limit of this key is {size} tokens per minute."
        return Failure(kind, message)
    if kind == "insufficient_quota" and wait is not None:
        span = "a day" if refusal.limit == "daily" else "a month"
        opens = datetime.fromtimestamp(round((time.time() + wait) / 60) * 60, UTC)
        message = (
            f"This key may use {size} tokens {span}: {used} are used or reserved, and the request may take {wanted}."
            f" The quota opens again at {opens:%Y-%m-%dT%H:%MZ}."
        )
        return Failure(kind, message)
    if kind == "rate_limit" and refusal.limit is not None and wait is not None:
        asked = "" if refusal.limit == "requests" else f", requested {wanted}"
        message = (
            f"Rate limit reached for this key: {size} {_NAMES[refusal.limit]}, used {used}{asked}."
            f" Please try again in {duration(wait * 1000)}."
        )
        return Failure(kind, message, retry_after_seconds=wait, type=refusal.limit)
    return None


def limit_headers(left: Left) -> dict[str, str]:
    """`x-ratelimit-…` as OpenAI sends them, for those limits that there are."""
    headers = {}
    for name, limit, remaining, reset in (
        ("requests", left.requests, left.requests_left, left.requests_reset_ms),
        ("tokens", left.tokens, left.tokens_left, left.tokens_reset_ms),
    ):
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(remaining)
            headers[f"x-ratelimit-reset-{name}"] = duration(reset)
    return headers


def duration(milliseconds: float) -> str:
    """As OpenAI writes it: `20ms`, `1.5s`, `6m0s`; never shorter than it is."""
    whole = math.ceil(milliseconds)
    if whole == 0:
        return "0s"
    if whole < 1000:
        return f"{whole}ms"
    minutes, rest = divmod(whole, 60_000)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
