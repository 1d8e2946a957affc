"""The road breaks: Redis forgets and stalls, connections are cut. No caller gets a false answer."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, Process, gateway, until
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible


@dataclass
class Road:
    house: Gateway
    upstream: OpenAICompatible
    frontend: Process
    workers: list[Process]
    sdk: openai.AsyncOpenAI

    async def stream(self, words: str) -> openai.AsyncStream[openai.types.chat.ChatCompletionChunk]:
        return await self.sdk.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": words}], stream=True
        )


@pytest.fixture
async def road(redis_server: RedisServer) -> AsyncIterator[Road]:
    """One frontend, two workers of one upstream."""
    with gateway(redis_server) as house:
        async with OpenAICompatible("openai").running() as upstream:
            house.environment |= {"OPENAI_API_KEY": "sk-one-0123456789", "OPENAI_BASE_URL": upstream.base_url}
            frontend = house.frontend()
            workers = [house.worker("openai"), house.worker("openai")]
            await trio.to_thread.run_sync(house.wait_ready, "gpt-4o-mini")
            await until(lambda: house.redis.client.scard("sluice:alive") == 3)
            sdk = openai.AsyncOpenAI(base_url=house.base_url, api_key=API_KEY, max_retries=0, timeout=30)
            yield Road(house, upstream, frontend, workers, sdk)
            await sdk.close()


async def text_of(stream: openai.AsyncStream[openai.types.chat.ChatCompletionChunk]) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def test_subscribers_that_are_cut_off_lose_nothing(road: Road) -> None:
    """CLIENT KILL TYPE pubsub five times a second under twenty streams: every text is exact."""
    texts: dict[int, str] = {}

    async def ask(number: int) -> None:
        texts[number] = await text_of(await road.stream(f"caller{number} sim:chunks=100 sim:gap=0.02"))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as callers:
                nursery.start_soon(_cut, road, "pubsub")
                for number in range(20):
                    callers.start_soon(ask, number)
            nursery.cancel_scope.cancel()
    sent = {call.text.partition(".")[0]: call.text for call in road.upstream.ledger.calls}
    assert texts == {number: sent[f"caller{number}"] for number in range(20)}
    assert road.upstream.ledger.calls_seen == 20


async def test_command_connections_that_are_cut_off_lose_nothing(road: Road) -> None:
    texts: list[str] = []

    async def ask(number: int) -> None:
        texts.append(await text_of(await road.stream(f"caller{number} sim:chunks=100 sim:gap=0.02")))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as callers:
                for number in range(20):
                    callers.start_soon(ask, number)
                await road.upstream.ledger.wait_for(lambda ledger: len(ledger.open_calls) == 20)
                nursery.start_soon(_cut, road, "normal")
            nursery.cancel_scope.cancel()
    assert sorted(texts) == sorted(call.text for call in road.upstream.ledger.calls)


async def _cut(road: Road, kind: str) -> None:
    while True:
        road.house.redis.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        await trio.sleep(0.2)


@pytest.mark.parametrize("fault", ["restart", "pause"])
async def test_a_redis_that_forgets_or_stalls_costs_a_pause(road: Road, fault: str) -> None:
    with trio.fail_after(30):
        stream = await road.stream("go sim:chunks=60 sim:gap=0.02")
        pieces = []
        async for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
            if len(pieces) == 10:
                if fault == "restart":
                    await trio.to_thread.run_sync(road.house.redis.restart)
                else:
                    road.house.redis.pause()
                    await trio.sleep(1.5)
                    road.house.redis.resume()
    assert "".join(pieces) == road.upstream.ledger.calls[0].text
    assert road.upstream.ledger.calls_seen == 1


async def test_a_queue_that_is_lost_is_filled_again(road: Road) -> None:
    """Jobs wait because nobody claims; Redis restarts empty; a new worker answers them all, each once."""
    for worker in road.workers:
        worker.stop()
    answers: list[str] = []

    async def ask(number: int) -> None:
        answers.append(await text_of(await road.stream(f"n{number}")))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            road.workers.append(road.house.worker("openai"))
            await until(lambda: road.house.redis.client.scard("sluice:alive") == 2)
            await trio.to_thread.run_sync(road.house.wait_ready, "gpt-4o-mini")
            road.workers[-1].freeze()
            for number in range(5):
                nursery.start_soon(ask, number)
            await until(lambda: road.house.redis.client.xlen("sluice:jobs:{openai}") >= 4)
            await trio.to_thread.run_sync(road.house.redis.restart)
            road.workers[-1].thaw()
    assert sorted(answers) == [f"n{number}" for number in range(5)]
