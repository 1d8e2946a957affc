"""D: what callers can do wrong or on purpose, over sockets of their own, and exactly what they are told."""

import contextlib
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
import trio

from tests.end_to_end.gateway import API_KEY
from tests.faults.house import House
from tests.faults.standing import MODEL, Standing, bounded, standing_house
from tests.faults.streams import raw
from tests.frontend.server.test_strictness import REFUSED, SMUGGLED
from tests.simulators.raw_client import Seen, receive_message, request_bytes
from tests.waiting import until

MIB = 1024 * 1024
LEAVE_SECONDS = 0.25
"""P7: from the caller's departure to the end of the upstream's call."""


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    with standing_house(SLUICE_STALL_SECONDS="1.5", SLUICE_QUEUE_SECONDS="20") as made:
        yield made


@pytest.fixture
async def house(standing: Standing) -> AsyncIterator[House]:
    async with standing.visited() as made:
        with trio.fail_after(60):
            yield made


async def connect(house: House, **options: int) -> trio.SocketStream:
    sock = trio.socket.socket()
    for name, value in options.items():
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    await sock.connect(("127.0.0.1", house.gateway.ports[0]))
    return trio.SocketStream(sock)


def chat(words: str = "hello", *, stream: bool = True, **fields: object) -> dict[str, object]:
    return {"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": words}], **fields}


def request(body: object, **headers: str) -> bytes:
    return request_bytes(
        body, **{"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"} | headers
    )  # fmt: skip


async def ask(house: House, payload: bytes) -> Seen:
    async with await connect(house) as stream:
        with trio.fail_after(20):
            await stream.send_all(payload)
            return await receive_message(stream)


async def post(house: House, body: object, **headers: str) -> Seen:
    return await ask(house, request(body, **headers))


def error(seen: Seen) -> dict[str, object]:
    found: dict[str, object] = json.loads(seen.body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


async def quiet(house: House) -> None:
    """Until no process has anything to do."""
    for process in house.processes:
        while (await house.held(process)).jobs:  # noqa: ASYNC110
            await trio.sleep(0.01)


# ---- D1, D2, D3: leaving, and not reading


async def leave(stream: trio.SocketStream, how: str) -> None:
    if how == "half-close":
        await stream.send_eof()
        return
    if how == "reset":
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


HANG, TALK = "sim:fault=hang_before_headers", "go sim:fault=endless sim:gap=0.02"
POINTS = {
    "in the head": (None, 30, ""),
    "before the body": (None, -60, ""),
    "in the body": (None, -10, ""),
    "at once": (chat(HANG), 0, ""),
    "while it is a whole answer's turn": (chat(HANG, stream=False), 0, "called"),
    "before the first token": (chat(HANG), 0, "called"),
    "at the first token": (chat(TALK), 0, "begun"),
    "between tokens": (chat(TALK), 0, "told"),
    "while a whole answer gathers": (chat(TALK, stream=False), 0, "begun"),
    "in a silence": (chat("sim:chunks=9 sim:at=3 sim:fault=hang_mid"), 0, "told"),
    "before it has read the end": (chat("one two"), 0, "finished"),
    "after the end": (chat("one two"), 0, "read"),
}
"""What is asked, how much of it is sent (0: all), and what has happened when the caller leaves."""


async def reach(house: House, stream: trio.SocketStream, point: str) -> None:
    calls = house.ledger.calls
    if point in ("called", "begun", "finished"):
        await house.ledger.wait_for(lambda ledger: bool(ledger.calls))
    if point == "begun":
        await house.ledger.wait_for(lambda _: calls[0].frames_sent >= 2)
    if point in ("told", "read"):
        heard = b""
        while (b"[DONE]" if point == "read" else b'"content"') not in heard:
            heard += await stream.receive_some(65536)
    if point == "finished":
        await house.ledger.wait_closed(calls[0])


@pytest.mark.fault("D1")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("how", ["fin", "reset", "half-close"])
async def test_leaving_at_any_point_closes_the_upstream_call(house: House, how: str) -> None:
    """A caller leaves at twelve points of its request, by FIN, by RST, by closing its sending side."""
    took: dict[str, float] = {}
    for name, (body, cut, point) in POINTS.items():
        house.ledger.begin_again()
        payload = request(body or chat("never"))
        stream = await connect(house)
        with trio.fail_after(10):
            await stream.send_all(payload[:cut] if cut else payload)
            await reach(house, stream, point)
            left_at = trio.current_time()
            await leave(stream, how)
            if point in ("called", "begun", "told"):
                await house.ledger.wait_until_idle()
                took[name] = trio.current_time() - left_at
                assert [call.closed_by for call in house.ledger.calls] == ["client"], name
            elif cut:
                assert how == "half-close" or not house.ledger.calls
            await quiet(house)
        await trio.aclose_forcefully(stream)
    assert sorted(took.values())[len(took) // 2] < LEAVE_SECONDS, took
    assert max(took.values()) < 4 * LEAVE_SECONDS, took  # on a machine that has other things to do


@pytest.mark.fault("D1")
async def test_leaving_the_queue_before_anybody_claims_the_job(house: House) -> None:
    """A caller leaves while no worker is awake: the job is gone from the queue when one wakes up."""
    worker, redis = house.workers[0], house.redis.client
    worker.freeze()
    try:
        async with await connect(house) as stream:
            await stream.send_all(request(chat("never")))
            await until(lambda: redis.xlen("sluice:jobs:{openai}"))
        await until(lambda: not redis.xlen("sluice:jobs:{openai}"))
    finally:
        worker.thaw()
    assert house.ledger.calls_seen == 0


@pytest.mark.fault("D3")
@pytest.mark.parametrize("reads", [0, 10])
async def test_who_does_not_read_is_dropped(house: House, reads: int) -> None:
    """A caller reads nothing, or ten bytes every half second, of an answer without end."""
    async with await connect(house, SO_RCVBUF=4096) as stream:
        await stream.send_all(request(chat("go sim:fault=endless sim:burst=64")))
        with trio.fail_after(20):
            call = await house.ledger.wait_for_call()
            while call.open:
                if reads:
                    await stream.receive_some(reads)
                await trio.sleep(0.5)
    assert call.closed_by == "client" and call.bytes_sent < 64 * MIB
    assert "dropped a client that stopped reading" in house.frontend.text()


# ---- D6, D7, D8, D16: bodies


@pytest.mark.fault("D6")
async def test_bodies_that_are_too_large_or_packed(house: House) -> None:
    """10 MiB and one byte by length and in chunks; gzip; gzip behind another Content-Encoding."""
    head = request(b"").partition(b"Content-Length: 0\r\n")
    length = b"Content-Length: %d\r\n" % (10 * MIB + 1)
    for framing, payload in (
        (length, b""),
        (b"Transfer-Encoding: chunked\r\n", chunks(b"x" * MIB, 10) + b"1\r\nx\r\n"),
    ):
        async with await connect(house) as stream:
            with trio.fail_after(20):
                await stream.send_all(head[0] + framing + head[2])
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_what_is_taken, stream, payload)
                    seen = await receive_message(stream)
                    nursery.cancel_scope.cancel()
                assert (seen.status, error(seen)["code"]) == (413, "request_too_large")
                assert await ended(stream)
    for coding in ({"Content-Encoding": "gzip"}, {"Content-Encoding": "identity", "content_encoding": "gzip"}):
        assert (await post(house, chat(), **coding)).status == 415
    assert house.ledger.calls_seen == 0
    await bounded(house, 48 * MIB)


def chunks(piece: bytes, count: int) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) * count


async def send_what_is_taken(stream: trio.SocketStream, payload: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(payload)


async def ended(stream: trio.SocketStream) -> bool:
    """Whether the server closes the connection, whatever else it still says."""
    await everything(stream)
    return True


def with_field(text: str) -> bytes:
    return json.dumps(chat(stream=False)).encode()[:-1] + b',"x":' + text.encode() + b"}"


MESSAGE = '{"role":"user","content":"x"}'
BODIES = {
    "five levels": (with_field("[[[[[1]]]]]"), 200),
    "a thousand levels": (with_field("[" * 1000 + "]" * 1000), 400),
    "a million levels": (with_field("[" * 1_000_000 + "]" * 1_000_000), 400),
    "objects a million deep": (with_field('{"a":' * 1_000_000 + "1" + "}" * 1_000_000), 400),
    "300,000 messages": (f'{{"model":"{MODEL}","messages":[{",".join([MESSAGE] * 300_000)}]}}'.encode(), 400),
    "5 MB of {}": (f'{{"model":"{MODEL}","messages":[{",".join(["{}"] * 1_700_000)}]}}'.encode(), 400),
    "100,000 tools": (json.dumps(chat(tools=[{"type": "function"}] * 100_000)).encode(), 400),
    "an integer of 4,000 digits": (json.dumps(chat())[:-1].encode() + b',"seed":1' + b"0" * 4000 + b"}", 400),
    "a number beyond floats": (json.dumps(chat())[:-1].encode() + b',"temperature":1e999}', 400),
    "NaN": (with_field("NaN"), 400),
    "n=128": (json.dumps(chat(n=128)).encode(), 400),
    "a billion tokens": (json.dumps(chat(max_tokens=10**9)).encode(), 400),
    "a billion tokens of completion": (json.dumps(chat(max_completion_tokens=10**9)).encode(), 400),
    "bad UTF-8 in a field that we do not know": (with_field('"?"').replace(b"?", b"\xff"), 400),
    "bad UTF-8 in a name": (with_field('{"?":1}').replace(b"?", b"\xc3\x28"), 400),
    "half a surrogate pair": (with_field(r'"\ud83d"'), 400),
}  # fmt: skip


@pytest.mark.fault("D7", "D8", "D16")
@pytest.mark.promise("P16")
async def test_bodies_that_are_meant_to_hurt(house: House) -> None:
    """Deep, wide, huge, senseless: refused for a price of some milliseconds each."""
    process = psutil.Process(house.frontend.pid)
    dear: dict[str, float] = {}
    for name, (body, status) in [*BODIES.items(), *BODIES.items()]:
        before = process.cpu_times().user
        seen = await post(house, body)
        dear[name] = process.cpu_times().user - before
        assert seen.status == status, (name, seen.raw[:500])
        assert status == 200 or error(seen)["type"] == "invalid_request_error"
    assert max(dear.values()) < 0.5, dear  # seconds of processor, reading up to 10 MB from the socket included
    assert house.ledger.calls_seen == 2
    await bounded(house, 48 * MIB)


@pytest.mark.fault("D8")
async def test_difficult_text_makes_the_round_trip(house: House) -> None:
    """NUL, line separators, 1 MB of emoji: they come back as they were sent; of two members of one name the last counts."""
    text, long = "a\x00b\u2028c\u2029d\u0085e\x7f", "👩‍👩‍👧‍👦" * 40_000
    for ascii_only in (True, False):
        asked = chat(stream=False) | {"messages": [{"role": "user", "content": each} for each in (long, text)]}
        seen = await post(house, json.dumps(asked, ensure_ascii=ascii_only).encode())
        assert json.loads(seen.body)["choices"][0]["message"]["content"] == text
        assert house.ledger.calls[-1].json()["messages"] == asked["messages"]
    doubled = json.dumps(chat("first", stream=False)).encode()[:-1] + b',"user":"a","user":"b"}'
    assert (await post(house, doubled)).status == 200
    assert house.ledger.calls[-1].body.count(b'"user":') == 1 and house.ledger.calls[-1].json()["user"] == "b"
    await bounded(house, 32 * MIB)


# ---- D9, D10: HTTP that two parsers could read in two ways, and other protocols


@pytest.mark.fault("D9", "D10", "S12")
async def test_nothing_is_smuggled_behind_a_request(house: House) -> None:
    """Some forty requests whose end is a matter of opinion, each with another one behind it: one refusal, then the end."""
    ours = request(b"").partition(b"Content-Length: 0\r\n")[0]
    wrong: dict[str, bytes] = {}
    for name, (status, payload) in REFUSED.items():
        payload = payload.replace(b"POST /echo HTTP/1.1\r\nHost: test\r\n", ours)
        async with await connect(house) as stream:
            with trio.fail_after(10):
                await send_what_is_taken(stream, payload + SMUGGLED)
                heard = await everything(stream)
        if len(re.findall(rb"HTTP/1\.1 \d{3} ", heard)) != 1 or not heard.startswith(b"HTTP/1.1 %d " % status):
            wrong[name] = heard[:300]
    assert wrong == {}


async def everything(stream: trio.SocketStream) -> bytes:
    heard = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while piece := await stream.receive_some(65536):
            heard += piece
    return heard


@pytest.mark.fault("D10")
async def test_no_other_protocol_is_spoken(house: House) -> None:
    """h2c by upgrade, WebSocket, TRACE, an absolute target."""
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    for protocol in ("h2c", "websocket", "TLS/1.2"):
        seen = await ask(house, request_bytes(path="/v1/models", method="GET", Upgrade=protocol, **upgrade))
        assert seen.status == 401
    assert (await ask(house, request_bytes(path="/v1/models", method="TRACE"))).status == 405
    assert (await ask(house, request_bytes(path="http://elsewhere/v1/models", method="GET"))).status == 401


# ---- D11, D13, D14, D15, D18, D19: keys, names, addresses, headers


@pytest.mark.fault("D11", "S3")
async def test_a_key_that_is_none_is_always_refused_alike(house: House) -> None:
    """Wrong, missing, doubled, endless, with NUL, half of one, in the wrong scheme: one answer, and nothing of it in Redis."""
    keys = [
        [], [""], ["Bearer"], ["Bearer wrong"], [f"Basic {API_KEY}"], [API_KEY], [f"Bearer {API_KEY}x"],
        [f"Bearer {API_KEY[:-1]}"], [f"Bearer {API_KEY}", f"Bearer {API_KEY}"], ["Bearer " + "k" * 8192],
        [f"Bearer {API_KEY}, Bearer {API_KEY}"], ["Bearer \xff\xfe"], [f"Bearer {API_KEY} x"],
    ]  # fmt: skip
    names = set(house.redis.client.keys("*"))
    answers = set()
    for values in keys:
        lines = "".join(f"Authorization: {value}\r\n" for value in values)
        seen = await ask(house, f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode("latin-1"))
        answers.add((seen.status, seen.body))
    ((status, body),) = answers
    assert status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key"
    seen = await ask(house, f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\0\r\n\r\n".encode())
    assert seen.status == 400, "NUL is no part of a header"
    assert set(house.redis.client.keys("*")) <= names | {name for name in names if b"alive" in name}


@pytest.mark.fault("D13", "S8")
async def test_no_field_becomes_a_header(house: House) -> None:
    """Line ends and addresses in every text field of a request."""
    evil = "x\r\nX-Evil: 1\r\n\r\nHTTP/1.1 200 OK\r\n"
    refused = await post(house, chat(model=evil))
    assert (refused.status, error(refused)["code"]) == (404, "model_not_found")
    assert "x-evil" not in refused.headers
    seen = await post(
        house, chat(stream=False, user=evil, metadata={evil: evil}, service_tier=evil, tool_choice=evil),
        X_Request_Id="req_theirs", X_Client_Request_Id="theirs",
    )  # fmt: skip
    assert seen.status == 200 and "x-evil" not in seen.headers
    (call,) = house.ledger.calls
    assert not any("evil" in f"{name}{value}".lower() for name, value in call.headers)
    assert call.json()["user"] == evil


@pytest.mark.fault("D14")
async def test_a_models_name_is_a_name_and_nothing_else(house: House) -> None:
    """Paths, addresses, other providers, a megabyte, as the name of a model."""
    for name in (
        "../../x",
        "openai/../../x\\",
        "http://127.0.0.1:1/",
        "flowgpt/x",
        "echo",
        "sluice:jobs:{openai}",
        "%2e",
    ):
        seen = await post(house, chat(model=name))
        if name.startswith("openai/"):  # its upstream may know more names than we do, and is asked
            assert house.ledger.calls[-1].path.endswith("/chat/completions")
            continue
        assert (seen.status, error(seen)["code"]) == (404, "model_not_found"), name
    seen = await post(house, chat(model="m" * MIB))
    assert (seen.status, error(seen)["param"]) == (400, "model")


@pytest.mark.fault("D15", "S8")
async def test_what_a_request_points_at_is_never_fetched_by_us(house: House) -> None:
    """Addresses of pictures and files inside messages: passed on as they are; nobody connects there."""
    with socket.create_server(("127.0.0.1", 0)) as inner:
        inner.setblocking(False)
        url = f"http://127.0.0.1:{inner.getsockname()[1]}/latest/meta-data"
        parts = [
            {"type": "text", "text": "what is this"},
            *(
                {"type": "image_url", "image_url": {"url": each}}
                for each in (url, "file:///etc/passwd", "//x", "gopher://x")
            ),
            {"type": "file", "file": {"file_id": url, "filename": "../x"}},
        ]
        body = chat(stream=False) | {"messages": [{"role": "user", "content": parts}]}
        assert (await post(house, body)).status == 200
        assert house.ledger.calls[0].json()["messages"][0]["content"] == parts
        with pytest.raises(BlockingIOError):
            inner.accept()


@pytest.mark.fault("D18", "S9", "S22")
async def test_what_callers_say_of_themselves_is_not_believed(house: House) -> None:
    """Request ids, forwarded addresses, clients' own headers: ours are our own, and the upstream sees none of theirs."""
    lies = {
        "X-Request-Id": "req_theirs", "X-Forwarded-For": "203.0.113.77", "Forwarded": "for=203.0.113.77", "Cookie": "a=b",
        "X-Forwarded-Host": "evil.example", "X-Stainless-Read-Timeout": "1e99", "X-Stainless-Timeout": "-1",
        "X-Real-Ip": "203.0.113.77", "OpenAI-Organization": "org-theirs", "Traceparent": "nonsense",
    }  # fmt: skip
    seen = await post(house, chat("hello", stream=False), **lies)
    assert seen.status == 200
    assert seen.headers["x-request-id"].startswith("req_") and "theirs" not in seen.headers["x-request-id"]
    assert {"server", "x-powered-by"}.isdisjoint(seen.headers)
    (call,) = house.ledger.calls
    names = {name.lower() for name, _ in call.headers}
    assert call.header("x-client-request-id") == seen.headers["x-request-id"]
    assert names - {"traceparent", "x-client-request-id"} == {
        "host", "authorization", "content-type", "accept", "accept-encoding", "user-agent", "content-length",
    }  # fmt: skip
    assert "203.0.113.77" not in house.frontend.text() and "req_theirs" not in house.frontend.text()


HEADERS = {
    "chat": {"content-type", "content-length", "x-sluice-provider", "x-sluice-attempts", "x-sluice-queue-ms"},
    "models": {"content-type", "content-length"},
    "refusal": {"content-type", "content-length"},
}
ALWAYS = {"date", "x-request-id", "openai-processing-ms"}
MAY = {"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", "x-sluice-cache",
       "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "connection"}  # fmt: skip


@pytest.mark.fault("S22")
async def test_answers_carry_the_headers_that_they_need_and_no_others(house: House) -> None:
    """Every header of a few answers."""
    seen = {
        "chat": await post(house, chat(stream=False)),
        "models": await ask(house, request(b"", ).replace(b"POST /v1/chat/completions", b"GET /v1/models")),
        "refusal": await post(house, chat(model="nobody")),
    }  # fmt: skip
    for name, answer in seen.items():
        assert answer.headers.keys() - MAY == HEADERS[name] | ALWAYS, name


@pytest.mark.fault("D19", "S14")
async def test_no_web_page_may_call_unless_it_is_named(house: House) -> None:
    """A preflight and a request of a foreign origin."""
    origin = b"Host: x\r\nOrigin: https://evil.example\r\nConnection: close\r\n"
    asks = b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
    for payload in (
        b"OPTIONS /v1/chat/completions HTTP/1.1\r\n" + origin + asks,
        b"GET /health HTTP/1.1\r\n" + origin + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + origin + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + origin + b"Content-Length: x\r\n\r\n",
    ):
        async with await connect(house) as stream:
            await stream.send_all(payload)
            heard = await everything(stream)
        assert heard.startswith(b"HTTP/1.1 ") and b"access-control-allow" not in heard.lower()


# ---- D20


@pytest.mark.fault("D20")
@pytest.mark.promise("P7")
async def test_a_thousand_departures(house: House) -> None:
    """One key asks and leaves a thousand times, fifty at a time, each at another moment."""
    payload = request(chat("go sim:fault=endless sim:gap=0.05"))

    async def come_and_go(first: int) -> None:
        for number in range(first, first + 10):
            stream = await connect(house)
            await stream.send_all(payload)
            await trio.sleep(number % 10 * 0.01)
            await leave(stream, "fin" if number % 2 else "reset")
            await trio.aclose_forcefully(stream)

    for first in (0, 500):
        async with trio.open_nursery() as nursery:
            for number in range(first, first + 500, 10):
                nursery.start_soon(come_and_go, number)
        with trio.fail_after(10):
            await house.ledger.wait_until_idle()
    await bounded(house, 48 * MIB)
    assert (await raw(house, "still here")).text == "still here"
