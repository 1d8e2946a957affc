"""The shape of Hypercorn that the server is built on; if one of these fails after an upgrade, read its change log."""

import importlib.metadata
import inspect

import h11
import hypercorn
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext

from frontend.server import ServerSettings
from frontend.server.hypercorn_parts import end_keep_alive, make_config, make_protocol
from frontend.server.request_parser import RequestParser
from tests.frontend.server.wire import get, post


def finish(coroutine):
    """Run what must never wait: no event loop is here to wait in."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Recorded:
    """A protocol whose app is played by the test."""

    def __init__(self):
        self.asked = []
        self.delivered = []
        self.config, self.context = make_config(ServerSettings()), WorkerContext(None)
        self.parser = RequestParser(max_header_bytes=1000, max_headers=10)
        self.protocol = make_protocol(
            config=self.config,
            context=self.context,
            starter=self,
            parser=self.parser,
            client=("127.0.0.1", 1),
            server=("127.0.0.1", 2),
            send=self.send,
        )

    async def send(self, event):
        self.asked.append(event)

    async def deliver(self, message):
        self.delivered.append(message)

    async def spawn_app(self, app, config, scope, send):
        self.scope, self.app_send = scope, send
        return self.deliver

    def hear(self, data):
        finish(self.protocol.handle(RawData(data)))

    def say(self, *messages):
        for message in messages:
            finish(self.app_send(message))

    def said(self):
        return b"".join(event.data for event in self.asked if isinstance(event, RawData))


START = {"type": "http.response.start", "status": 200, "headers": []}
LAST = {"type": "http.response.body", "body": b"hello", "more_body": False}


def test_the_version_is_the_one_that_was_examined():
    assert importlib.metadata.version("hypercorn") == "0.18.0"


def test_signatures():
    assert list(inspect.signature(H11Protocol).parameters) == [
        "app", "config", "context", "task_group", "connection_state", "ssl", "client", "server", "send",
    ]  # fmt: skip
    assert list(inspect.signature(HTTPStream.app_send).parameters) == ["self", "message"]
    assert list(inspect.signature(Lifespan).parameters) == ["app", "config", "state"]
    for name in ("handle_lifespan", "wait_for_startup", "wait_for_shutdown"):
        assert inspect.iscoroutinefunction(getattr(Lifespan, name))
    config = hypercorn.Config()
    for name in vars(make_config(ServerSettings())):
        assert hasattr(config, name), name


def test_a_request_reaches_the_app_and_its_response_the_wire_without_waiting():
    seen = Recorded()
    seen.hear(post("/a?b=c", b"body"))
    assert (seen.scope["method"], seen.scope["path"], seen.scope["query_string"]) == ("POST", "/a", b"b=c")
    assert (seen.scope["http_version"], seen.scope["client"]) == ("1.1", ("127.0.0.1", 1))
    assert [m["type"] for m in seen.delivered] == ["http.request", "http.request"]
    assert seen.delivered[0]["body"] == b"body"
    seen.say(START, LAST, None)
    assert seen.said().startswith(b"HTTP/1.1 200")
    assert seen.said().endswith(b"5\r\nhello\r\n0\r\n\r\n")
    assert seen.delivered[-1] == {"type": "http.disconnect"}
    assert isinstance(seen.asked[-1], Updated)
    assert seen.asked[-1].idle
    assert seen.parser.their_state is h11.IDLE


def test_pieces_framed_by_us_fit_between_what_h11_frames():
    seen = Recorded()
    seen.hear(get())
    seen.say(START)
    assert b"transfer-encoding: chunked" in seen.said().lower()
    assert seen.parser.our_state is h11.SEND_BODY  # our pieces go past h11, which stays where it is
    seen.say({**LAST, "body": b""})
    assert seen.said().endswith(b"\r\n\r\n0\r\n\r\n")


def test_a_closed_connection_is_told_to_the_app_without_waiting():
    seen = Recorded()
    seen.hear(get())
    finish(seen.protocol.handle(Closed()))
    assert seen.delivered[-1] == {"type": "http.disconnect"}
    seen.say(None)
    assert seen.said() == b""


def test_an_app_that_ends_in_the_middle_closes_the_connection():
    seen = Recorded()
    seen.hear(get())
    seen.say(START, {**LAST, "more_body": True}, None)
    assert isinstance(seen.asked[-1], Closed)
    assert not seen.said().endswith(b"0\r\n\r\n")


def test_a_protocol_error_is_answered_and_closed_without_waiting():
    seen = Recorded()
    seen.hear(b"nonsense\r\n\r\n")
    assert seen.said().startswith(b"HTTP/1.1 400")
    assert isinstance(seen.asked[-1], Closed)


def test_the_end_of_keep_alive_is_said_and_done():
    seen = Recorded()
    finish(end_keep_alive(seen.config, seen.context))
    seen.hear(get())
    seen.say(START, LAST)
    assert b"connection: close" in seen.said().lower()
    assert isinstance(seen.asked[-1], Closed)
