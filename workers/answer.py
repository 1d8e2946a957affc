"""From an upstream's bytes to the caller's JSON: framing, decoder and rendering of one exchange, and nothing else."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from shared.errors import Failure, GatewayError, fail
from shared.sansio.completion import AnswerAssembler, ChunkRenderer, Completion
from shared.sansio.lines import LineSplitter
from shared.sansio.relay import BodyGatherer, Relay
from shared.sansio.sse import Splitter
from shared.sansio.text_completion import TextAssembler, TextRenderer
from shared.schema.events import Complete, Delta, Event, Usage
from shared.schema.job import Job
from workers.provider import Exchange, HttpStream

_encode = msgspec.json.Encoder().encode

ANSWER_BYTES: Final = 32 * 1024 * 1024
DELTA_BYTES: Final = 64
CALL_BYTES: Final = 512
"""What a delta costs beside its text, and one of a tool call: an answer of single letters takes many times their size."""


class Answer:
    """One exchange's answer. A streaming caller gets chunks as they come; another gets one body, at the end.

    `limit_bytes`: of an answer that is gathered here until its end; one that is streamed on is bounded by the outbox's window.
    `progressed` is raised by a delta. `over`: nothing more will be rendered.
    `failure`: how the answer ended instead; the chunks before it are good.
    """

    def __init__(self, job: Job, exchange: Exchange, prompt_bytes: int = 0, *, limit_bytes: int = ANSWER_BYTES) -> None:
        self.over = False
        self.failure: Failure | None = None  # not the exception: it would hold us, and what was gathered, in a circle
        self.progressed = False
        self._decoder = exchange.decoder
        self._splitter = _splitter(exchange, limit_bytes)
        self._gathers = not job.stream
        self._gathered_bytes = 0
        self._limit_bytes = limit_bytes
        self.rendering = _rendering(job, prompt_bytes)

    @property
    def usage_so_far(self) -> Usage | None:
        """What the answer has cost if it ends here; None: nobody knows."""
        rendering = self.rendering
        return rendering.usage_so_far if isinstance(rendering, Completion) else rendering.usage

    def feed(self, piece: bytes) -> list[bytes]:
        """What the caller gets because of these bytes."""
        return self._render(lambda: self._splitter.feed(piece))

    def play(self, *frames: Any) -> list[bytes]:
        """The same for frames that need no cutting."""
        return self._render(lambda: frames)

    def end(self) -> list[bytes]:
        """The upstream closed without saying that it was done: complete or a failure, never in between."""
        return self._render(self._splitter.end, last=True)

    def _render(self, frames: Callable[[], Sequence[Any]], *, last: bool = False) -> list[bytes]:
        chunks: list[bytes] = []
        try:
            for frame in frames():
                self._take(self._decoder.feed(frame), chunks)
                if self.over:
                    return chunks
            if last:
                self._take(self._decoder.end(), chunks)
                self._take((Complete(),), chunks)
        except GatewayError as error:
            self.over = True
            self.failure = error.failure
        return chunks

    def _take(self, events: Iterable[Event], chunks: list[bytes]) -> None:
        if self.over:
            return
        for event in events:
            chunks += self.rendering.feed(event)
            if type(event) is Delta:
                self.progressed = True
                if self._gathers:
                    self._weigh(event)
            elif type(event) is Complete:
                self.over = True
                return

    def _weigh(self, delta: Delta) -> None:
        """Raises `protocol_error` when the answer so far exceeds the limit."""
        self._gathered_bytes += CALL_BYTES if "tool_calls" in delta.fields else DELTA_BYTES
        self._gathered_bytes += len(delta.logprobs or b"") + sum(map(_size, delta.fields.values()))
        if self._gathered_bytes > self._limit_bytes:
            raise fail("protocol_error", f"The upstream sent an answer of more than {self._limit_bytes} bytes.")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, msgspec.Raw | str) else len(_encode(value))


def _rendering(job: Job, prompt_bytes: int) -> Completion | Relay:
    """What makes the caller's JSON, in the words of the endpoint that was asked."""
    if job.endpoint == "embeddings":
        return Relay(model=job.asked_model)
    legacy = job.endpoint == "completions"
    facts: dict[str, Any] = {
        "fallback_id": f"{'cmpl' if legacy else 'chatcmpl'}-{job.id.hex()}",
        "created": int(time.time()),
        "model": job.asked_model,
        "prompt_bytes": prompt_bytes,
    }
    if job.stream:
        return (TextRenderer if legacy else ChunkRenderer)(include_usage=job.include_usage, **facts)
    return (TextAssembler if legacy else AnswerAssembler)(**facts)


def _splitter(exchange: Exchange, limit_bytes: int) -> Splitter | LineSplitter | BodyGatherer:
    framing = exchange.framing if isinstance(exchange, HttpStream) else "sse"
    if framing == "lines":
        return LineSplitter()
    if framing == "json":
        return BodyGatherer(limit_bytes)
    return Splitter(tolerant=framing == "sse-tolerant")
