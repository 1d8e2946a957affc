"""What a worker counts for `/metrics`, and the one line in its log for each attempt: both once, when it ends. Only the gaps
between tokens are counted as they pass.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

import trio

from shared.errors import KINDS, Failure, GatewayError
from shared.measuring import Measures
from shared.metrics import OTHER
from shared.schema.job import Job, Outcome
from shared.tracing import NO_SPAN, NO_TRACER, Span, Tracer

_log = logging.getLogger("workers.attempt")

REQUEST_ID_HEADERS: Final = ("x-request-id", "request-id", "x-ds-trace-id")
"""Where upstreams tell by which name they know a call; the first that is there counts."""
LONGEST_ID: Final = 128


@dataclass(slots=True)
class Story:
    """What becomes of one attempt. Times are `trio.current_time()`; `outcome` is None unless it is done."""

    job: Job
    span: Span = NO_SPAN
    began: float = field(default_factory=trio.current_time)
    first_delta_at: float | None = None
    outcome: Outcome | None = None
    failure: Failure | None = None
    credential: str = ""
    calls: int = 0
    called_at: float = 0.0
    upstream_status: int | None = None
    upstream_request_id: str | None = None

    @property
    def end(self) -> str:
        return "done" if self.outcome else "failed" if self.failure else "cancelled"

    def log_fields(self) -> dict[str, object]:
        """What the log says of it. Nothing of what was asked or answered."""
        job = self.job
        fields: dict[str, object] = {
            "request_id": job.request_id,
            "provider": job.provider,
            "model": job.model,
            "attempt": job.attempt,
            "outcome": self.end,
            "total_ms": _milliseconds(self.began, trio.current_time()),
            "upstream_calls": self.calls,
        }
        if self.failure is not None and self.outcome is None:
            fields["error"] = self.failure.kind
        if self.credential:
            fields["credential"] = self.credential
        if self.upstream_status is not None:
            fields["upstream_status"] = self.upstream_status
        if self.upstream_request_id is not None:
            fields["upstream_request_id"] = self.upstream_request_id
        if self.first_delta_at is not None:
            fields["first_token_ms"] = _milliseconds(self.began, self.first_delta_at)
        if self.outcome is not None:
            fields["prompt_tokens"] = self.outcome.prompt_tokens
            fields["completion_tokens"] = self.outcome.completion_tokens
        return fields


class Observer:
    """The eyes of one worker."""

    def __init__(self, measures: Measures, provider: str, worker_id: str, tracer: Tracer = NO_TRACER) -> None:
        self.provider = provider
        self._tracer = tracer
        self._worker_id = worker_id
        self.open_calls = 0
        self.gaps = measures.histogram("sluice_upstream_token_gap_seconds").of(provider)
        self.calls_opened = measures.counter("sluice_upstream_calls_opened_total")
        self.calls_ended = measures.counter("sluice_upstream_calls_ended_total")
        self.heads = measures.histogram("sluice_upstream_head_seconds").of(provider)
        self._first_tokens = measures.histogram("sluice_upstream_first_token_seconds").of(provider)
        self._attempts = measures.counter("sluice_attempts_ended_total")
        measures.read("sluice_upstream_calls_open", lambda: {(provider,): self.open_calls})

    def begin(self, job: Job) -> Story:
        return Story(job, self._tracer.begin("attempt", "consumer", job.traceparent))

    def call(self, story: Story) -> "UpstreamCall":
        """A call to the upstream, from before it is made to its end."""
        return UpstreamCall(self, story)

    def attempt_ended(self, story: Story) -> None:
        """Told once for each attempt."""
        error = story.failure.kind if story.failure is not None and story.outcome is None else ""
        self._attempts.add(self.provider, story.end, error if error in KINDS or not error else OTHER)
        if story.first_delta_at is not None and story.calls:
            self._first_tokens.observe(story.first_delta_at - story.called_at)
        _log.info("attempt ended", extra=story.log_fields() | {"worker": self._worker_id})
        if story.span is not NO_SPAN:
            story.span.note(
                {
                    "sluice.request_id": story.job.request_id,
                    "sluice.attempt": story.job.attempt,
                    "sluice.worker": self._worker_id,
                    "sluice.credential": story.credential or None,
                    "gen_ai.provider.name": self.provider,
                    "gen_ai.request.model": story.job.model,
                }
            )
            story.span.end("cancelled" if story.end == "cancelled" else error)

    def attempt_began(self, job: Job) -> None:
        _log.debug(
            "attempt begins", extra={"request_id": job.request_id, "attempt": job.attempt, "worker": self._worker_id}
        )


class UpstreamCall:
    """One call as a context manager: counted when it is opened and when it ends, whichever way."""

    __slots__ = ("_observer", "_span", "_status", "_story")

    def __init__(self, observer: Observer, story: Story) -> None:
        self._observer = observer
        self._story = story
        self._status: int | None = None
        self._span = NO_SPAN

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of the answer has come."""
        self._observer.heads.observe(trio.current_time() - self._story.called_at)
        self._story.upstream_status = self._status = status
        found = next((headers[name] for name in REQUEST_ID_HEADERS if headers.get(name)), None)
        if found is not None and len(found) <= LONGEST_ID and found.isascii() and found.isprintable():
            self._story.upstream_request_id = found

    def __enter__(self) -> "UpstreamCall":
        self._observer.calls_opened.add(self._observer.provider)
        self._observer.open_calls += 1
        self._story.calls += 1
        self._story.called_at = trio.current_time()
        job = self._story.job
        self._span = self._story.span.begin(f"{job.endpoint} {job.model}", "client")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        observer, status = self._observer, self._status
        observer.open_calls -= 1
        if status is None and isinstance(error, GatewayError):
            status = error.failure.upstream_status
        if error is None:
            outcome = "complete"
        elif isinstance(error, trio.Cancelled):
            outcome = "cancelled"
        else:
            outcome = "broken" if status in (None, 200) else "refused"
        observer.calls_ended.add(observer.provider, outcome, "" if status is None else str(status))
        if self._span is not NO_SPAN:
            self._trace(outcome, status, error)

    def _trace(self, outcome: str, status: int | None, error: BaseException | None) -> None:
        story = self._story
        usage = story.outcome
        self._span.note(
            {
                "gen_ai.operation.name": story.job.endpoint,
                "gen_ai.provider.name": story.job.provider,
                "gen_ai.request.model": story.job.model,
                "gen_ai.usage.input_tokens": usage.prompt_tokens if usage else None,
                "gen_ai.usage.output_tokens": usage.completion_tokens if usage else None,
                "http.response.status_code": status,
                "sluice.upstream_request_id": story.upstream_request_id,
            }
        )
        kind = error.failure.kind if isinstance(error, GatewayError) else outcome
        self._span.end("" if outcome == "complete" else kind)


def _milliseconds(began: float, ended: float) -> float:
    return round((ended - began) * 1000, 1)
