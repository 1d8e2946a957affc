"""The watchers' own port: small, patient for seconds, and deaf to everything else."""

import json

import pytest
import trio

from shared import exposition
from shared.exposition import MOST_CONNECTIONS, Exposition
from shared.measuring import Measures


class Port:
    def __init__(self, number, problems):
        self.number = number
        self.problems = problems

    async def connect(self):
        return await trio.open_tcp_stream("127.0.0.1", self.number)

    async def send(self, request):
        """Everything that comes back until the server closes."""
        stream = await self.connect()
        async with stream:
            await stream.send_all(request)
            return await read_all(stream)

    async def get(self, path, extra=b""):
        raw = await self.send(b"GET %b HTTP/1.1\r\nHost: watcher\r\n%b\r\n" % (path, extra))
        head, _, body = raw.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.lower(), body


async def read_all(stream):
    found = b""
    while piece := await stream.receive_some(1 << 16):
        found += piece
    return found


@pytest.fixture
async def port(nursery):
    problems = []
    measures = Measures("frontend", "1.2.3")
    number = await nursery.start(Exposition(measures, lambda: problems).serve, "127.0.0.1", 0)
    with trio.fail_after(10):
        yield Port(number, problems)


async def test_metrics(port):
    status, head, body = await port.get(b"/metrics")
    assert status == 200
    assert b"content-type: text/plain" in head
    assert b"connection: close" in head
    assert b'sluice_build_info{process="frontend",provider="",version="1.2.3"} 1.0' in body


async def test_metrics_in_the_form_that_is_asked_for(port):
    _, head, body = await port.get(b"/metrics", b"Accept: application/openmetrics-text; version=1.0.0\r\n")
    assert b"content-type: application/openmetrics-text" in head
    assert body.endswith(b"# EOF\n")


async def test_health(port):
    assert (await port.get(b"/health/live"))[::2] == (200, b'{"status":"ok"}')
    status, _, body = await port.get(b"/health/ready")
    assert (status, json.loads(body)) == (200, {"status": "ready", "problems": []})
    port.problems.append("Redis is not reachable")
    status, _, body = await port.get(b"/health/ready")
    assert (status, json.loads(body)["problems"]) == (503, ["Redis is not reachable"])


@pytest.mark.parametrize("path", [b"/", b"/metricsx", b"/v1/models", b"//metrics", b"/metrics/", b"/%6detrics"])
async def test_nothing_else_is_there(port, path):
    assert (await port.get(path))[0] == 404


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", 431),
    ],
)
async def test_other_words_are_refused(port, request_bytes, status):
    raw = await port.send(request_bytes)
    assert int(raw.split()[1]) == status


async def test_who_says_nothing_is_cut_off_and_does_not_keep_others_out(port, monkeypatch):
    monkeypatch.setattr(exposition, "CONNECTION_SECONDS", 0.3)
    silent = [await port.connect() for _ in range(MOST_CONNECTIONS)]
    await silent[0].send_all(b"GET /met")
    await trio.testing.wait_all_tasks_blocked()
    assert await port.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") == b"", "one too many is closed at once"
    for stream in silent:
        assert await read_all(stream) == b""
    assert (await port.get(b"/health/live"))[0] == 200


async def test_who_leaves_in_the_middle_harms_nobody(port):
    for _ in range(5):
        stream = await port.connect()
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.aclose_forcefully(stream)
    assert (await port.get(b"/health/live"))[0] == 200
