"""Spans by the OpenTelemetry SDK, sent as OTLP over HTTP. Loaded only when traces are switched on (`shared.tracing`).

Where to, how much and with which headers is said by OpenTelemetry's own variables, which the SDK reads. Those that matter are
OTEL_EXPORTER_OTLP_ENDPOINT (http://localhost:4318 without it), OTEL_EXPORTER_OTLP_HEADERS and OTEL_TRACES_SAMPLER.

The SDK sends from a thread of its own, which never touches trio. It holds a bounded number of spans and forgets the rest. When
the process ends, after trio, it gets `CLOSE_SECONDS` and is then left behind: a collector that hangs delays nobody for longer.
"""

import threading
from collections.abc import Mapping
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.tracing import Fact, Kind

CLOSE_SECONDS: Final = 2.0
_KINDS: Final = {
    "server": SpanKind.SERVER,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
    "client": SpanKind.CLIENT,
}
_NAMELESS: Final = "unknown_service"
"""What the SDK calls a process when OTEL_SERVICE_NAME does not."""
_propagator = TraceContextTextMapPropagator()


class OpenTelemetrySpan:
    """A span of the SDK behind the few words of `shared.tracing.Span`."""

    __slots__ = ("_span", "_tracer", "traceparent")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        context = span.get_span_context()
        self.traceparent: str | None = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def begin(self, name: str, kind: Kind) -> "OpenTelemetrySpan":
        child = self._tracer.start_span(name, context=set_span_in_context(self._span), kind=_KINDS[kind])
        return OpenTelemetrySpan(self._tracer, child)

    def note(self, facts: Mapping[str, Fact | None], *, name: str = "") -> None:
        if self._span.is_recording():
            self._span.set_attributes({key: fact for key, fact in facts.items() if fact is not None})
            if name:
                self._span.update_name(name)

    def end(self, error: str = "") -> None:
        if self._span.is_recording():
            if error:
                self._span.set_attribute("error.type", error)
                self._span.set_status(Status(StatusCode.ERROR, error))
            self._span.end()


class OpenTelemetryTracer:
    """All spans of this process."""

    def __init__(self, service: str, version: str) -> None:
        resource = Resource.create({SERVICE_VERSION: version})
        if str(resource.attributes.get(SERVICE_NAME, _NAMELESS)).startswith(_NAMELESS):
            resource = resource.merge(Resource({SERVICE_NAME: f"sluice-{service}"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("sluice", version)

    def begin(self, name: str, kind: Kind, traceparent: str | None) -> OpenTelemetrySpan:
        context = _propagator.extract({"traceparent": traceparent} if traceparent else {})
        return OpenTelemetrySpan(self._tracer, self._tracer.start_span(name, context=context, kind=_KINDS[kind]))

    def close(self) -> None:
        # The SDK's own shutdown may take half a minute, and it cannot be told otherwise.
        closing = threading.Thread(target=self._provider.shutdown, name="close-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
