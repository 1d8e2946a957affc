"""D6 to D10 and D16: bodies and bytes that are meant to hurt: too large, too deep, senseless, or read differently by others."""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
import trio

from tests.faults.calling import ask, chat, connect, error, everything, post, request
from tests.faults.house import House
from tests.faults.standing import MODEL, Standing, bounded, standing_house
from tests.frontend.server.test_strictness import REFUSED, SMUGGLED
from tests.simulators.raw_client import receive_message, request_bytes

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    with standing_house() as made:
        yield made


@pytest.fixture
async def house(standing: Standing) -> AsyncIterator[House]:
    async with standing.visited() as made:
        with trio.fail_after(60):
            yield made


@pytest.mark.fault("D6", "S10")
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


@pytest.mark.fault("D7", "D8", "D16", "S10")
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


@pytest.mark.fault("D10", "S12")
async def test_no_other_protocol_is_spoken(house: House) -> None:
    """h2c by upgrade, WebSocket, TRACE, an absolute target."""
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    for protocol in ("h2c", "websocket", "TLS/1.2"):
        seen = await ask(house, request_bytes(path="/v1/models", method="GET", Upgrade=protocol, **upgrade))
        assert seen.status == 401
    assert (await ask(house, request_bytes(path="/v1/models", method="TRACE"))).status == 405
    assert (await ask(house, request_bytes(path="http://elsewhere/v1/models", method="GET"))).status == 401
