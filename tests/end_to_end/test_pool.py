"""One pool of credentials for all worker processes, as the upstream sees it."""

from collections.abc import AsyncIterator

import httpx2
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, Process, gateway
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.slow

KEYS = ("sk-first-0123456789", "sk-second-0123456789", "sk-third-0123456789")


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAICompatible]:
    async with OpenAICompatible("openai", keys=set(KEYS)).running() as simulator:
        yield simulator


@pytest.fixture
async def house(redis_server: RedisServer, upstream: OpenAICompatible) -> AsyncIterator[Gateway]:
    """Two workers share three keys, each good for two calls at once."""
    with gateway(
        redis_server, OPENAI_API_KEY=",".join(KEYS), OPENAI_BASE_URL=upstream.base_url, OPENAI_CALLS_PER_CREDENTIAL="2"
    ) as running:
        running.frontend()
        running.worker("openai")
        running.worker("openai")
        await trio.to_thread.run_sync(running.wait_ready, "gpt-4o-mini")
        yield running


async def ask(house: Gateway, words: str) -> httpx2.Response:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": words}]}
    async with httpx2.AsyncClient(timeout=40, headers={"authorization": f"Bearer {API_KEY}"}) as client:
        return await client.post(f"{house.base_url}/chat/completions", json=body)


async def rush(house: Gateway, callers: int, words: str) -> list[int]:
    """That many callers at once; their statuses."""
    statuses: list[int] = []

    async def call() -> None:
        statuses.append((await ask(house, words)).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(call)
    return statuses


@pytest.mark.promise("P14")
async def test_no_key_serves_more_calls_than_it_may_however_many_workers(
    house: Gateway, upstream: OpenAICompatible
) -> None:
    with trio.fail_after(30):
        assert await rush(house, 30, "hello sim:delay=0.05") == [200] * 30
    assert {key: upstream.ledger.peak_by_key[key] for key in KEYS} == dict.fromkeys(KEYS, 2)
    assert min(len(upstream.ledger.by_key(key)) for key in KEYS) >= 5, "all take their share"


async def test_a_caller_that_leaves_frees_its_key_at_once(house: Gateway, upstream: OpenAICompatible) -> None:
    with trio.fail_after(30):
        with trio.move_on_after(0.5):
            await rush(house, 6, "hello sim:fault=hang_before_headers")
        await upstream.ledger.wait_until_idle()
        began = trio.current_time()
        assert await rush(house, 6, "hello") == [200] * 6
        assert trio.current_time() - began < 8, "a lease that nobody gives back ends after ten seconds"


async def test_a_stop_and_a_start_forget_nothing(house: Gateway, upstream: OpenAICompatible) -> None:
    with trio.fail_after(30):
        assert (await ask(house, "hello sim:status=429 sim:retry_after=50")).status_code == 429
        seen = upstream.ledger.calls_seen
        assert seen == len(KEYS), "each was tried"
        workers = [process for process in house.processes if process.name == "worker-openai"]
        for worker in workers:
            await trio.to_thread.run_sync(worker.stop)
        house.worker("openai")
        while (reply := await ask(house, "hello")).json()["error"]["code"] == "provider_unavailable":  # noqa: ASYNC110
            await trio.sleep(0.1)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "no_upstream_credential")
        assert upstream.ledger.calls_seen == seen
        assert 40 <= int(reply.headers["retry-after"]) <= 50


async def test_an_operator_has_the_keys_tested(house: Gateway, upstream: OpenAICompatible) -> None:
    upstream.gate.keys = set(KEYS[:2])
    command = house.start("test", "cli", "credentials", "test", "openai")
    with trio.fail_after(45):
        assert await trio.to_thread.run_sync(command.popen.wait) == 1, command.text()
    lines = [line.partition(": ")[2] for line in command.text().splitlines()]
    assert lines.count("the upstream accepts it") == 2 and len(lines) == 3, command.text()
    assert any(line.startswith("credential_invalid: ") for line in lines)
    assert not any(key in command.text() for key in KEYS)
    asked = upstream.ledger.calls_seen
    for _ in range(4):
        assert (await ask(house, "hello")).status_code == 200
    assert {call.key for call in upstream.ledger.calls[asked:]} == set(KEYS[:2]), "a refused one is set aside"


@pytest.mark.promise("P14")
async def test_a_killed_worker_holds_its_keys_for_ten_seconds_and_no_call_exceeds_them(
    house: Gateway, upstream: OpenAICompatible
) -> None:
    victim: Process = next(process for process in house.processes if process.name == "worker-openai")
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rush, house, 12, "hello sim:delay=1")
            await upstream.ledger.wait_for(lambda ledger: len(ledger.open_calls) == 6)
            victim.kill()
        await trio.sleep(10)
        assert await rush(house, 6, "hello sim:delay=0.1") == [200] * 6
    assert max(upstream.ledger.peak_by_key[key] for key in KEYS) == 2
