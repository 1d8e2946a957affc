"""D: what callers can do wrong or on purpose, over sockets of their own, and exactly what they are told."""

import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from tests.end_to_end.gateway import API_KEY
from tests.faults.calling import ask, chat, connect, error, everything, post, request
from tests.faults.house import House
from tests.faults.standing import Standing, bounded, standing_house
from tests.faults.streams import raw
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
