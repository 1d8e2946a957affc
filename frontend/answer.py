"""From a job's frames to what the caller reads: one JSON body, an event stream, or an OpenAI error.

The head of a streaming answer is held until the upstream has accepted the call, and then for the first chunk or one second,
whichever is first: a refusal gets its real status, and a long think does not delay the headers.
"""

import logging
from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from frontend.cache import Memory
from frontend.open_job import OpenJob
from shared.errors import Failure, GatewayError, fail

_log = logging.getLogger(__name__)

HOLD_ACCEPTED_SECONDS: Final = 1.0
HOLD_LONGEST_SECONDS: Final = 15.0
KEEPALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"


async def head(job: OpenJob) -> None:
    """Wait for what decides the status of a streaming answer. Raises `GatewayError` when it is an error."""
    with trio.move_on_after(HOLD_LONGEST_SECONDS) as hold:
        while not (job.has_chunks or job.ended):
            if job.accepted_at is not None:
                hold.deadline = min(hold.deadline, job.accepted_at + HOLD_ACCEPTED_SECONDS)
            job.keepalive_due = False
            await job.wait()
    if job.failure is not None and not job.has_chunks:
        raise GatewayError(job.failure)


async def whole(job: OpenJob, memory: Memory | None = None) -> bytes:
    """The JSON body of an answer that is not streamed; `memory`: where to keep it. Raises `GatewayError`."""
    while not job.ended:
        await job.wait()
    if job.failure is not None:
        raise GatewayError(job.failure)
    chunks = job.take()
    if job.outcome is None or len(chunks) != 1:
        raise fail("internal", "The answer is incomplete.")
    if memory is not None:
        memory.add(chunks)
        memory.keep(job.submission.provider, job.outcome)
    return chunks[0]


class EventStream:
    """The body of a streaming answer, written as far as it is there: one piece for everything that waits.

    It ends with `[DONE]` after a complete answer and with one error event after anything else, also a defect of ours: the
    status has been said, so this is the boundary of the request. Should even that fail, iteration raises and the server cuts
    the body: a clean end always means a complete answer or an error event.
    """

    def __init__(self, job: OpenJob, memory: Memory | None = None) -> None:
        """`memory`: where to keep a complete answer."""
        self._job = job
        self._memory = memory
        self._over = False

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        try:
            return await self._next()
        except Exception:  # noqa: BLE001 - the boundary of a request: one defect ends one stream, and says so
            self._over = True
            _log.exception("a stream failed", extra={"request_id": self._job.submission.request_id})
            self._job.leave()
            return error_event(Failure("internal", "The gateway failed to process this request."))

    async def _next(self) -> bytes:
        job = self._job
        while True:
            chunks = job.take()
            if chunks:
                if self._memory is not None:
                    self._memory.add(chunks)
                return events(chunks) + self._last_words() if job.ended else events(chunks)
            if job.ended:
                return self._last_words()
            if job.keepalive_due:
                job.keepalive_due = False
                return KEEPALIVE
            await job.wait()

    def _last_words(self) -> bytes:
        self._over = True
        if self._job.outcome is not None:
            if self._memory is not None:
                self._memory.keep(self._job.submission.provider, self._job.outcome)
            return DONE
        if self._job.failure is None:
            raise RuntimeError("the job was left while its caller was reading")
        return error_event(self._job.failure)


def events(chunks: Sequence[bytes]) -> bytes:
    """Chunks, of which there is one at least, as events."""
    return b"data: " + b"\n\ndata: ".join(chunks) + b"\n\n"


def error_event(failure: Failure) -> bytes:
    """The one form in which OpenAI's clients raise an error from a stream."""
    return b"data: " + msgspec.json.encode(failure.envelope()) + b"\n\n"
