"""One trace from the caller's request to the upstream's answer, across processes, as a real collector receives it."""

import contextlib
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from shared.settings import EXIT_SETTINGS
from tests.end_to_end.conftest import UPSTREAM_KEY
from tests.end_to_end.gateway import API_KEY, SECRET_KEY, Gateway, free_port, gateway
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.slow

TRACE = "ab" * 16
SECOND_TRACE = "ba" * 16
CALLERS_SPAN = "cd" * 8
EXIT_SECONDS = 8.0
"""Draining an idle process, two seconds for spans that nobody takes, and a machine that is busy."""


@dataclass
class Collector:
    """An OTLP receiver; what it got, by the name of the span."""

    port: int
    spans: list[tuple[str, Span]] = field(default_factory=list)

    def of_trace(self, trace: str) -> list[tuple[str, Span]]:
        return [(service, span) for service, span in self.spans if span.trace_id.hex() == trace]

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        for resource in request.resource_spans:
            service = next(one.value.string_value for one in resource.resource.attributes if one.key == "service.name")
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    collector = Collector(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def traced(collector_port: int, upstream_port: int) -> Iterator[Gateway]:
    with contextlib.closing(RedisServer()) as redis, gateway(redis) as running:
        running.environment |= {
            "SLUICE_OTEL": "on",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector_port}",
            "OPENAI_API_KEY": UPSTREAM_KEY,
            "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1",
            "OPENAI_MODELS": "gpt-4o",
        }
        running.frontend()
        running.worker("openai")
        running.wait_ready("gpt-4o")
        yield running


def facts(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


async def test_both_processes_tell_one_story() -> None:
    upstream_port = free_port()
    async with OpenAICompatible("openai", keys={UPSTREAM_KEY}).running(upstream_port) as upstream:
        with collecting() as collector, traced(collector.port, upstream_port) as running:
            client = openai.AsyncOpenAI(base_url=running.base_url, api_key=API_KEY)
            async with client:
                for words, trace in (("hello there", TRACE), ("again sim:status=503 sim:times=1", SECOND_TRACE)):
                    await client.chat.completions.create(
                        model="gpt-4o",
                        messages=[{"role": "user", "content": words}],
                        extra_headers={"traceparent": f"00-{trace}-{CALLERS_SPAN}-01"},
                    )
                assert all("traceparent" not in dict(call.headers) for call in upstream.ledger.calls)
            # What ran has ended, and with that has sent its last spans.

    told = {span.name: (service, span) for service, span in collector.of_trace(TRACE)}
    assert set(told) == {"POST /v1/chat/completions", "queue", "attempt", "chat gpt-4o"}
    parents = [CALLERS_SPAN]
    for name, service, kind in (
        ("POST /v1/chat/completions", "sluice-frontend", Span.SPAN_KIND_SERVER),
        ("queue", "sluice-frontend", Span.SPAN_KIND_PRODUCER),
        ("attempt", "sluice-worker-openai", Span.SPAN_KIND_CONSUMER),
        ("chat gpt-4o", "sluice-worker-openai", Span.SPAN_KIND_CLIENT),
    ):
        found, span = told[name]
        assert (found, span.kind) == (service, kind), name
        assert span.parent_span_id.hex() == parents[-1], name
        assert span.status.code == Status.STATUS_CODE_UNSET, name
        parents.append(span.span_id.hex())
    request, call = told["POST /v1/chat/completions"][1], told["chat gpt-4o"][1]
    assert request.start_time_unix_nano <= call.start_time_unix_nano < call.end_time_unix_nano
    assert facts(call)["http.response.status_code"] == 200
    assert facts(call)["sluice.upstream_request_id"] == "req_test0001"
    assert facts(call)["gen_ai.usage.output_tokens"] == facts(request)["gen_ai.usage.output_tokens"]
    assert facts(request)["http.route"] == "/v1/chat/completions"
    attempt = told["attempt"][1]
    assert facts(attempt)["sluice.request_id"] == facts(request)["sluice.request_id"]

    # The second request took two attempts: each has its own way through the queue.
    second = [span for _, span in collector.of_trace(SECOND_TRACE)]
    by_id = {span.span_id: span for span in second}
    attempts = sorted((span for span in second if span.name == "attempt"), key=lambda span: span.start_time_unix_nano)
    assert [facts(span).get("error.type") for span in attempts] == ["overloaded", None]
    assert [span.status.code for span in attempts] == [Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET]
    queues = [by_id[span.parent_span_id] for span in attempts]
    assert [span.name for span in queues] == ["queue", "queue"]
    assert queues[0].span_id != queues[1].span_id
    assert {by_id[span.parent_span_id].name for span in queues} == {"POST /v1/chat/completions"}


def test_a_collector_that_hangs_delays_no_answer_and_hardly_the_end() -> None:
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(contextlib.closing(socket.socket()))
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(64)
        running = stack.enter_context(traced(deaf.getsockname()[1], free_port()))
        began = time.monotonic()
        with running.client() as client:
            for _ in range(20):
                client.models.list()
        assert time.monotonic() - began < EXIT_SECONDS
        for process in running.processes:
            began = time.monotonic()
            assert process.stop(EXIT_SECONDS * 2) == 0
            assert time.monotonic() - began < EXIT_SECONDS


WITHOUT_THE_EXTRA = """
import sys
sys.modules["opentelemetry.sdk"] = None  # as if it were not installed
import {module}.__main__ as process
print([name for name in sys.modules if name.startswith("opentelemetry.") and sys.modules[name]])
sys.argv = ["process", *{arguments}]
sys.exit(process.main())
"""


@pytest.mark.parametrize(("module", "arguments"), [("frontend", []), ("workers", ["echo"])])
def test_it_is_loaded_only_when_it_is_wanted_and_then_missed_in_words(
    module: str, arguments: list[str], tmp_path: Path
) -> None:
    environment = {"PATH": "", "PYTHONPATH": ".", "SLUICE_OTEL": "on", "SLUICE_API_KEY": API_KEY}
    environment |= {"SLUICE_STATE_DIR": str(tmp_path), "SLUICE_SECRET_KEY": SECRET_KEY}
    script = WITHOUT_THE_EXTRA.format(module=module, arguments=arguments)
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=30)
    assert found.stdout == "[]\n", "an installation without traces does not pay for them"
    assert found.returncode == EXIT_SETTINGS
    assert "SLUICE_OTEL is on, but OpenTelemetry is not installed: pip install 'sluice[otel]'" in found.stderr
    assert "Traceback" not in found.stderr
