"""Deadlines for the first token, silence and the whole; callers that stop reading; comments that keep proxies quiet."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, free_port, gateway
from tests.end_to_end.test_leaving import connect, request
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def upstream_port() -> int:
    return free_port()


@pytest.fixture
async def upstream(upstream_port: int) -> AsyncIterator[OpenAICompatible]:
    async with OpenAICompatible("openai").running(upstream_port) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def house(upstream_port: int) -> Iterator[Gateway]:
    """A gateway in a hurry: every deadline is about a second."""
    with contextlib.closing(RedisServer()) as redis, gateway(redis) as running:
        running.environment |= {
            "OPENAI_API_KEY": "sk-one-0123456789",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1",
            "SLUICE_FIRST_TOKEN_SECONDS": "1",
            "SLUICE_SILENCE_SECONDS": "0.8",
            "SLUICE_TOTAL_SECONDS": "3",
            "SLUICE_STALL_SECONDS": "1",
            "SLUICE_KEEPALIVE_COMMENT_SECONDS": "0.3",
        }
        running.frontend()
        running.worker("openai")
        running.wait_ready("gpt-4o-mini")
        yield running


@pytest.fixture
async def sdk(house: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=house.base_url, api_key=API_KEY, max_retries=0, timeout=20) as client:
        yield client


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("fault", "code", "at_most"),
    [
        ("sim:fault=hang_before_headers", "upstream_timeout", 2.5),
        ("sim:fault=hang_after_headers", "upstream_timeout", 2.5),
        ("sim:fault=comments sim:gap=0.1", "upstream_timeout", 2.5),
        ("sim:chunks=9 sim:gap=0.01 sim:at=3 sim:fault=hang_mid", "upstream_timeout", 2.5),
        ("sim:fault=endless sim:gap=0.05", "deadline_exceeded", 4.5),
    ],
)
async def test_an_upstream_that_takes_too_long_is_an_error(
    sdk: openai.AsyncOpenAI, upstream: OpenAICompatible, fault: str, code: str, at_most: float, stream: bool
) -> None:
    began = trio.current_time()
    with pytest.raises(openai.APIError) as late:
        answer = await sdk.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": f"go {fault}"}], stream=stream
        )
        async for _ in answer:
            pass
    assert late.value.code == code
    assert trio.current_time() - began < at_most
    with trio.fail_after(1):
        await upstream.ledger.wait_until_idle()
    assert upstream.ledger.calls_seen == 1
    if not stream:
        assert isinstance(late.value, openai.APIStatusError) and late.value.status_code == 504


async def test_comments_keep_a_silent_stream_open(house: Gateway, upstream: OpenAICompatible) -> None:
    caller = await connect(house)
    await caller.send_all(request("slow sim:chunks=2 sim:gap=0.7", stream=True))
    text = b""
    with trio.fail_after(5):
        while b"[DONE]" not in text:
            text += await caller.receive_some(4096)
    assert b": keep-alive\n\n" in text
    events = [line for line in text.split(b"\n") if line.startswith(b"data: {")]
    assert all("error" not in json.loads(event[6:]) for event in events)
    await caller.aclose()


async def test_a_caller_that_stops_reading_is_dropped(house: Gateway, upstream: OpenAICompatible) -> None:
    """Its upstream is slowed down first, by the window, and closed after the stall limit; nothing piles up meanwhile."""
    caller = await connect(house)
    await caller.send_all(request("go sim:fault=endless sim:gap=0 sim:burst=64", stream=True))
    with trio.fail_after(20):
        call = await upstream.ledger.wait_for_call()
        await upstream.ledger.wait_closed(call)
    assert call.closed_by == "client"
    assert call.bytes_sent < 64 * 1024 * 1024
    await caller.aclose()
