"""Traces, if they are wanted: one from the caller's HTTP request through the queue and the worker to the upstream call.

    HTTP request (frontend) ── queue (frontend) ── attempt (worker) ── upstream call (worker)

The context crosses Redis in `Job.traceparent`, as W3C's header writes it: https://www.w3.org/TR/trace-context/. This module is
the little that the rest knows of tracing. What sends spans (`shared.otel`, with the OpenTelemetry SDK) is only loaded when it
is switched on; otherwise every span is `NO_SPAN`, which does nothing.
"""

import importlib
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["server", "producer", "consumer", "client"]
Fact = str | bool | int | float


class Span(Protocol):
    """A piece of the way. `traceparent`: what whoever goes on with it elsewhere is told; None without tracing."""

    traceparent: str | None

    def begin(self, name: str, kind: Kind) -> "Span":
        """A piece within this one."""
        ...

    def note(self, facts: "Mapping[str, Fact | None]", *, name: str = "") -> None:
        """Facts about it, by the names of OpenTelemetry's conventions; None is left out. `name`: a better one than before."""
        ...

    def end(self, error: str = "") -> None:
        """It is over. `error`: the kind of failure, if it was one. Any number of times; the first one counts."""
        ...


class Tracer(Protocol):
    """What makes spans."""

    def begin(self, name: str, kind: Kind, traceparent: str | None) -> Span:
        """A span of this process; `traceparent`: what it continues, if that is known and makes sense."""
        ...

    def close(self) -> None:
        """The process ends: send what was not sent yet, for a moment. Blocks."""
        ...


class TracingUnavailable(Exception):
    """Traces are wanted, and what sends them is not installed."""


class _NoSpan:
    traceparent: str | None = None

    def begin(self, name: str, kind: Kind) -> Span:
        return self

    def note(self, facts: "Mapping[str, Fact | None]", *, name: str = "") -> None:
        pass

    def end(self, error: str = "") -> None:
        pass


NO_SPAN: Final[Span] = _NoSpan()


class _NoTracer:
    def begin(self, name: str, kind: Kind, traceparent: str | None) -> Span:
        return NO_SPAN

    def close(self) -> None:
        pass


NO_TRACER: Final[Tracer] = _NoTracer()


def open_tracer(wanted: bool, service: str, version: str) -> Tracer:
    """The tracer of this process. `service`: `frontend` or `worker-NAME`.

    Raises `TracingUnavailable`, with a sentence for a person.
    """
    if not wanted:
        return NO_TRACER
    try:
        otel = importlib.import_module("shared.otel")
    except ImportError as problem:
        raise TracingUnavailable(
            "SLUICE_OTEL is on, but OpenTelemetry is not installed: pip install 'sluice[otel]'"
            f" (or --require-hashes -r requirements-otel.lock); {problem}"
        ) from None
    tracer: Tracer = otel.OpenTelemetryTracer(service, version)
    return tracer
