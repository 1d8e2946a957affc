"""The outermost layer, spoken to in ASGI: ids, CORS and one log line for each request, however it ends."""

import json
import logging
import re

import pytest
import trio

from frontend.edge import VISIT, Cors, Edge
from shared.telemetry import AccessLines

PAGE = b"https://page.example"


class Caller:
    """One request, what was sent in answer to it, and what was logged about it."""

    def __init__(self, method="GET", path="/v1/models", headers=(), kind="http"):
        self.scope = {"type": kind, "method": method, "path": path, "headers": list(headers)}
        self.sent = []

    async def receive(self):
        return {"type": "http.request"}

    async def send(self, message):
        await trio.lowlevel.checkpoint()
        self.sent.append(message)

    async def asks(self, app, *origins):
        await Edge(app, Cors(origins))(self.scope, self.receive, self.send)
        return self

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        names = [name for name, _ in self.sent[0]["headers"]]
        assert len(names) == len(set(names)), "a header twice"
        return dict(self.sent[0]["headers"])


def answering(status=200, headers=((b"content-type", b"text/plain"),), pieces=(b"hello",)):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


async def never(scope, receive, send):
    raise AssertionError("the application was asked")


@pytest.fixture
def lines(caplog, monkeypatch):
    """The access log so far, one dict per request."""
    caplog.set_level(logging.INFO, "sluice.access")
    monkeypatch.setattr(logging.getLogger("sluice.access"), "propagate", True)

    def read():
        return [record.msg for record in caplog.records if record.name == "sluice.access"]

    return read


# --- ids and times


async def test_every_answer_has_an_id_and_says_how_long_it_took(autojump_clock, lines):
    async def slow(scope, receive, send):
        await trio.sleep(0.25)
        await answering()(scope, receive, send)

    caller = await Caller().asks(slow)
    assert re.fullmatch(rb"req_[0-9a-f]{32}", caller.headers[b"x-request-id"])
    assert caller.headers[b"openai-processing-ms"] == b"250"
    assert caller.headers[b"content-type"] == b"text/plain"
    assert lines()[0]["request_id"].encode() == caller.headers[b"x-request-id"]


async def test_ids_are_not_the_callers_to_choose():
    headers = [(b"x-request-id", b"mine")]
    one, two = [await Caller(headers=headers).asks(answering()) for _ in range(2)]
    assert b"mine" != one.headers[b"x-request-id"] != two.headers[b"x-request-id"]


async def test_an_answer_without_headers_gets_ours():
    async def bare(scope, receive, send):
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    assert b"x-request-id" in (await Caller().asks(bare)).headers


async def test_the_application_finds_its_visit():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope[VISIT])
        await answering()(scope, receive, send)

    caller = await Caller("POST", "/v1/chat/completions").asks(app)
    assert (seen[0].method, seen[0].path) == ("POST", "/v1/chat/completions")
    assert seen[0].request_id.encode() == caller.headers[b"x-request-id"]


async def test_what_is_not_http_passes_untouched(lines):
    async def app(scope, receive, send):
        assert VISIT not in scope
        await send({"type": "lifespan.startup.complete"})

    caller = await Caller(kind="lifespan").asks(app)
    assert caller.sent == [{"type": "lifespan.startup.complete"}]
    assert lines() == []


# --- CORS


@pytest.mark.parametrize("status", [200, 401, 429, 500])
async def test_an_allowed_page_may_read_every_answer_and_error(status):
    caller = await Caller(headers=[(b"origin", PAGE)]).asks(answering(status), PAGE.decode(), "https://other.example")
    assert caller.headers[b"access-control-allow-origin"] == PAGE
    assert caller.headers[b"vary"] == b"origin"
    exposed = caller.headers[b"access-control-expose-headers"].split(b", ")
    assert {b"x-request-id", b"retry-after", b"x-should-retry"} <= set(exposed)
    assert b"access-control-allow-credentials" not in caller.headers


@pytest.mark.parametrize(
    ("origins", "origin"),
    [
        ([], PAGE),
        (["https://other.example"], PAGE),
        ([PAGE.decode()], b"https://page.example.evil.example"),
        ([PAGE.decode()], b"http://page.example"),
        ([PAGE.decode()], b"null"),
        ([PAGE.decode()], None),
        (["*"], None),
    ],
)
async def test_nobody_else_is_told_anything(origins, origin):
    headers = [] if origin is None else [(b"origin", origin)]
    caller = await Caller(headers=headers).asks(answering(), *origins)
    assert caller.status == 200, "a page that is not allowed cannot read it, but other programs have no pages"
    assert not [name for name in caller.headers if name.startswith(b"access-control-")]


async def test_every_page_may_be_allowed():
    caller = await Caller(headers=[(b"origin", PAGE)]).asks(answering(), "*")
    assert caller.headers[b"access-control-allow-origin"] == b"*"
    assert b"access-control-allow-credentials" not in caller.headers


PREFLIGHT = [
    (b"origin", PAGE),
    (b"access-control-request-method", b"POST"),
    (b"access-control-request-headers", b"authorization,content-type,x-stainless-lang"),
]


async def test_a_preflight_is_answered_here(lines):
    caller = await Caller("OPTIONS", "/v1/chat/completions", PREFLIGHT).asks(never, PAGE.decode())
    assert caller.status == 204
    assert caller.headers[b"access-control-allow-origin"] == PAGE
    assert caller.headers[b"access-control-allow-methods"] == b"GET, POST, OPTIONS"
    assert caller.headers[b"access-control-allow-headers"] == b"authorization,content-type,x-stainless-lang"
    assert int(caller.headers[b"access-control-max-age"]) > 0
    assert b"x-request-id" in caller.headers
    assert caller.sent[1:] == [{"type": "http.response.body", "body": b""}]
    assert lines()[0] | {"method": "OPTIONS", "status": 204, "complete": True} == lines()[0]


async def test_a_preflight_that_names_no_headers():
    caller = await Caller("OPTIONS", headers=PREFLIGHT[:2]).asks(never, "*")
    assert caller.headers[b"access-control-allow-headers"] == b"authorization, content-type"


async def test_a_preflight_of_a_page_that_is_not_allowed_allows_nothing():
    caller = await Caller("OPTIONS", headers=PREFLIGHT).asks(never, "https://other.example")
    assert caller.status == 204
    assert not [name for name in caller.headers if name.startswith(b"access-control-")]


async def test_other_options_requests_are_the_applications():
    caller = await Caller("OPTIONS", headers=[(b"origin", PAGE)]).asks(answering(405), PAGE.decode())
    assert caller.status == 405


# --- the log line


async def test_the_line_of_a_good_request(autojump_clock, lines):
    async def app(scope, receive, send):
        scope[VISIT].facts |= {"model": "m", "stream": True}
        await trio.sleep(0.1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await trio.sleep(0.4)
        await send({"type": "http.response.body", "body": b"x"})

    await Caller("POST", "/v1/chat/completions").asks(app)
    (line,) = lines()
    assert line["time"] > 1_700_000_000
    del line["time"], line["request_id"]
    assert line == {
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "complete": True,
        "total_ms": 500.0,
        "first_byte_ms": 100.0,
        "model": "m",
        "stream": True,
    }


async def test_the_line_holds_no_query_no_header_and_no_endless_path(lines):
    await Caller(path="/" + "x" * 5000, headers=[(b"authorization", b"Bearer canary")]).asks(answering(404))
    (line,) = lines()
    assert len(line["path"]) == 512
    assert "canary" not in json.dumps(line)


async def test_the_line_of_a_path_with_line_ends(caplog, lines):
    await Caller(path='/a\r\n{"fake": "line"}\u2028').asks(answering(404))
    (record,) = caplog.records
    text = AccessLines().format(record)
    assert not {"\r", "\n"} & set(text)
    assert json.loads(text) == lines()[0]


async def breaks_before_the_answer(scope, receive, send):
    raise ZeroDivisionError


async def breaks_in_the_answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    raise ZeroDivisionError


@pytest.mark.parametrize(("app", "status"), [(breaks_before_the_answer, 499), (breaks_in_the_answer, 200)])
async def test_a_defect_is_logged_as_incomplete_and_goes_on_its_way(app, status, lines):
    with pytest.raises(ZeroDivisionError):
        await Caller().asks(app)
    (line,) = lines()
    assert (line["status"], line["complete"]) == (status, False)
    assert ("first_byte_ms" in line) == (status == 200)


@pytest.mark.parametrize("sends", [0, 1, 2])
async def test_a_caller_that_leaves_is_logged_once(sends, lines):
    """The server cancels the application's task; at any point of the answer."""

    async def app(scope, receive, send):
        if sends:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(sends - 1):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        scope["stuck"].set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        caller = Caller()
        caller.scope["stuck"] = trio.Event()
        nursery.start_soon(caller.asks, app)
        await caller.scope["stuck"].wait()
        nursery.cancel_scope.cancel()
    (line,) = lines()
    assert (line["status"], line["complete"]) == (200 if sends else 499, False)


async def test_a_send_that_is_cut_off_is_logged_once(lines):
    class Stuck(Caller):
        async def send(self, message):
            await super().send(message)
            if message["type"] == "http.response.body":
                raise trio.BrokenResourceError

    with pytest.raises(trio.BrokenResourceError):
        await Stuck().asks(answering())
    (line,) = lines()
    assert (line["status"], line["complete"]) == (200, False)
