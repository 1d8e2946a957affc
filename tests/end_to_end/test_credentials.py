"""Keys that the upstream refuses: another one is tried, and a caller is never blamed for ours."""

from collections.abc import AsyncIterator

import httpx2
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, gateway
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.slow

GOOD, BAD = "sk-good-0123456789", "sk-bad-0123456789"


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAICompatible]:
    async with OpenAICompatible("openai", keys={GOOD}).running() as simulator:
        yield simulator


@pytest.fixture
async def house(
    redis_server: RedisServer, upstream: OpenAICompatible, request: pytest.FixtureRequest
) -> AsyncIterator[Gateway]:
    with gateway(redis_server, OPENAI_API_KEY=request.param, OPENAI_BASE_URL=upstream.base_url) as running:
        running.frontend()
        running.worker("openai")
        await trio.to_thread.run_sync(running.wait_ready, "gpt-4o-mini")
        yield running


async def ask(house: Gateway, words: str) -> httpx2.Response:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": words}], "stream": True}
    async with httpx2.AsyncClient(timeout=20, headers={"authorization": f"Bearer {API_KEY}"}) as client:
        return await client.post(f"{house.base_url}/chat/completions", json=body)


@pytest.mark.parametrize("house", [f"{BAD},{GOOD}"], indirect=True)
@pytest.mark.fault("C18")
async def test_a_refused_key_gives_way_to_the_next(house: Gateway, upstream: OpenAICompatible) -> None:
    for _ in range(6):
        assert (await ask(house, "hello")).status_code == 200
    assert len(upstream.ledger.by_key(BAD)) <= 1
    assert len(upstream.ledger.by_key(GOOD)) == 6


@pytest.mark.parametrize("house", [BAD], indirect=True)
@pytest.mark.fault("C18")
async def test_no_good_key_is_the_gateways_trouble_not_the_callers(house: Gateway, upstream: OpenAICompatible) -> None:
    for _ in range(2):
        reply = await ask(house, "hello")
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "no_upstream_credential"
        assert BAD not in reply.text
    assert upstream.ledger.calls_seen == 1


@pytest.mark.parametrize("house", [GOOD], indirect=True)
@pytest.mark.fault("C19")
async def test_a_rate_limit_reaches_the_caller_with_its_wait(house: Gateway, upstream: OpenAICompatible) -> None:
    reply = await ask(house, "hello sim:error=openai_429_rate_limit")
    assert reply.status_code == 429
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert upstream.ledger.calls_seen == 1
