"""Promise 2: a caller that leaves closes the upstream call, whatever it was waiting for."""

import json
import socket
import struct
from collections.abc import AsyncIterator

import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, gateway, until
from tests.redis_server import RedisServer
from tests.simulators.ledger import Call
from tests.simulators.openai_compatible import OpenAICompatible

MOST_SECONDS = 0.25
"""From the caller's departure to the upstream's end of the connection."""


def request(words: str, *, stream: bool, model: str = "gpt-4o-mini") -> bytes:
    body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": words}]}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {API_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def connect(house: Gateway) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", house.ports[0])


async def leave(stream: trio.SocketStream, how: str) -> float:
    """Go; the time of it."""
    if how == "reset":
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()
    return trio.current_time()


async def closed_after(upstream: OpenAICompatible, call: Call, left_at: float) -> float:
    with trio.fail_after(5):
        await upstream.ledger.wait_closed(call)
    assert call.closed_by == "client"
    assert call.closed_at is not None
    return call.closed_at - left_at


@pytest.mark.promise("P7")
@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("after", ["request", "pieces"])
async def test_leaving_closes_the_upstream_call(
    house: Gateway, upstream: OpenAICompatible, how: str, stream: bool, after: str
) -> None:
    words = "sim:fault=hang_before_headers" if after == "request" else "go sim:fault=endless sim:gap=0.01"
    caller = await connect(house)
    await caller.send_all(request(words, stream=stream))
    with trio.fail_after(5):
        call = await upstream.ledger.wait_for_call()
        if after == "pieces":
            await upstream.ledger.wait_for(lambda _: call.frames_sent >= 5)
        if after == "pieces" and stream:
            assert b"200" in await caller.receive_some(4096)
    assert await closed_after(upstream, call, await leave(caller, how)) < MOST_SECONDS


@pytest.mark.parametrize("extra", [b"\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["stray", "pipelined"])
@pytest.mark.fault("D2")
async def test_bytes_after_the_request_do_not_hide_the_departure(
    house: Gateway, upstream: OpenAICompatible, extra: bytes
) -> None:
    caller = await connect(house)
    await caller.send_all(request("go sim:fault=endless sim:gap=0.01", stream=True) + extra)
    with trio.fail_after(5):
        call = await upstream.ledger.wait_for_call()
        await caller.receive_some(4096)
    assert await closed_after(upstream, call, await leave(caller, "fin")) < MOST_SECONDS


@pytest.mark.promise("P7")
@pytest.mark.fault("D1")
async def test_forty_callers_leave_at_once(house: Gateway, upstream: OpenAICompatible) -> None:
    callers = [await connect(house) for _ in range(40)]
    for number, caller in enumerate(callers):
        await caller.send_all(request(f"caller{number} sim:fault=endless sim:gap=0.05", stream=True))
    with trio.fail_after(10):
        await upstream.ledger.wait_for(lambda ledger: len(ledger.open_calls) == 40)
        for number, caller in enumerate(callers):
            await leave(caller, "fin" if number % 2 else "reset")
        await upstream.ledger.wait_until_idle()
    assert {call.closed_by for call in upstream.ledger.calls} == {"client"}


@pytest.mark.promise("P7")
async def test_the_sdk_aborts_a_stream(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    stream = await sdk.chat.completions.create(
        model="gpt-4o-mini", stream=True, messages=[{"role": "user", "content": "go sim:fault=endless sim:gap=0.01"}]
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    call = upstream.ledger.calls[0]
    await stream.close()
    assert await closed_after(upstream, call, trio.current_time()) < MOST_SECONDS


@pytest.fixture
async def busy_house(redis_server: RedisServer, upstream_port: int) -> AsyncIterator[tuple[Gateway, OpenAICompatible]]:
    """A gateway whose only worker takes one job at a time."""
    with gateway(redis_server) as running:
        async with OpenAICompatible("openai").running() as simulator:
            running.environment |= {"OPENAI_API_KEY": "sk-one", "OPENAI_BASE_URL": simulator.base_url}
            running.frontend()
            running.worker("openai", SLUICE_WORKER_CONCURRENCY="1")
            await trio.to_thread.run_sync(running.wait_ready, "gpt-4o-mini")
            yield running, simulator


@pytest.mark.promise("P7")
async def test_leaving_the_queue_takes_the_job_off_it(busy_house: tuple[Gateway, OpenAICompatible]) -> None:
    house, upstream = busy_house
    first, second = await connect(house), await connect(house)
    await first.send_all(request("go sim:fault=endless sim:gap=0.01", stream=True))
    with trio.fail_after(5):
        running = await upstream.ledger.wait_for_call()
        await second.send_all(request("never", stream=True))
        waiting = "sluice:jobs:{openai}"
        await until(lambda: house.redis.client.xlen(waiting) == 1)
        await leave(second, "fin")
        await until(lambda: house.redis.client.xlen(waiting) == 0)
        await leave(first, "fin")
        await upstream.ledger.wait_closed(running)
    assert upstream.ledger.calls_seen == 1
