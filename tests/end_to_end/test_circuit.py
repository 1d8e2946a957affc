"""An upstream that fails again and again is left alone, and asked again by exactly one request, whatever the processes."""

import time
from collections.abc import AsyncIterator

import httpx2
import pytest
import trio

from shared.redis.circuit import IN_A_ROW, JITTER, PAUSE_SECONDS
from tests.end_to_end.gateway import API_KEY, Gateway, gateway, until
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.slow

FRONTENDS = WORKERS = 2
SOON_SECONDS = 0.25
"""A refusal takes a few milliseconds; a busy machine may take longer."""


class Place:
    """Two frontends, two workers of each of two providers, and their upstreams."""

    def __init__(self, house: Gateway, upstream: OpenAICompatible, client: httpx2.AsyncClient) -> None:
        self.house, self.upstream, self.client = house, upstream, client
        self._turn = 0

    async def ask(self, model: str = "openai/m") -> httpx2.Response:
        self._turn += 1
        url = f"http://127.0.0.1:{self.house.ports[self._turn % FRONTENDS]}/v1/chat/completions"
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return await self.client.post(url, json=body, headers={"authorization": f"Bearer {API_KEY}"})

    async def open_circuit(self) -> None:
        self.upstream.control.always(status=500)
        while (await self.ask()).json()["error"]["code"] != "server_is_overloaded":
            pass
        assert self.upstream.ledger.calls_seen <= IN_A_ROW + WORKERS


@pytest.fixture
async def place(redis_server: RedisServer) -> AsyncIterator[Place]:
    async with OpenAICompatible("openai").running() as upstream, OpenAICompatible("openai").running() as spare:
        with gateway(redis_server, SLUICE_CIRCUIT="on") as house:
            house.environment |= {
                "OPENAI_API_KEY": "sk-one", "OPENAI_BASE_URL": upstream.base_url, "OPENAI_MODELS": "m",
                "SLUICE_PROVIDER_SPARE_API_KEY": "sk-two", "SLUICE_PROVIDER_SPARE_BASE_URL": spare.base_url,
                "SLUICE_PROVIDER_SPARE_MODELS": "m",
            }  # fmt: skip
            for _ in range(FRONTENDS):
                house.frontend()
            for _ in range(WORKERS):
                house.worker("openai")
                house.worker("spare")
            for port in house.ports:
                await trio.to_thread.run_sync(lambda port=port: house.wait_ready("m", port=port))
            with trio.fail_after(20):
                await until(lambda: house.redis.client.scard("sluice:alive") == FRONTENDS + 2 * WORKERS)
            async with httpx2.AsyncClient(timeout=20) as client:
                yield Place(house, upstream, client)


@pytest.mark.fault("C21")
async def test_an_open_circuit_refuses_at_once_and_lets_one_probe_through(place: Place) -> None:
    with trio.fail_after(40):
        await place.open_circuit()
        opened, calls = time.monotonic(), place.upstream.ledger.calls_seen
        fastest = SOON_SECONDS
        for _ in range(6):
            began = time.monotonic()
            reply = await place.ask()
            fastest = min(fastest, time.monotonic() - began)
            assert (reply.status_code, reply.headers["x-sluice-attempts"]) == (503, "0")
            assert 1 <= int(reply.headers["retry-after"]) <= PAUSE_SECONDS + 1
        assert fastest < SOON_SECONDS
        assert place.upstream.ledger.calls_seen == calls, "the upstream is left alone"
        assert (await place.ask("m")).headers["x-sluice-provider"] == "spare", "who may go elsewhere does"

        place.upstream.control.always(delay=1.0)  # well again, and slow enough to be asked by all at once
        await trio.sleep_until(trio.current_time() + PAUSE_SECONDS * (1 + JITTER) - (time.monotonic() - opened))
        replies: list[httpx2.Response] = []

        async def ask() -> None:
            replies.append(await place.ask())

        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(ask)
        assert sorted(reply.status_code for reply in replies) == [200] + [503] * 11
        assert place.upstream.ledger.calls_seen == calls + 1
        assert [(await place.ask()).status_code for _ in range(3)] == [200] * 3, "closed again"


async def test_callers_mistakes_open_nothing(place: Place) -> None:
    place.upstream.control.always(status=400)
    assert [(await place.ask()).status_code for _ in range(IN_A_ROW + 3)] == [400] * (IN_A_ROW + 3)
    place.upstream.control.always()
    assert (await place.ask()).status_code == 200
