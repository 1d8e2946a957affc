"""The road breaks: workers and frontends die, Redis forgets, connections are cut. No caller gets a false answer."""

import time
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

    def worker_of_call(self) -> Process:
        """The worker that holds the only open upstream call: the one with a connection to the simulator."""
        port = self.upstream.base_url.split(":")[2].partition("/")[0]
        for worker in self.workers:
            if worker.popen.poll() is None and f":{int(port):04X} 01" in _established(worker.popen.pid):
                return worker
        raise AssertionError("no worker is connected to the upstream")


def _established(pid: int) -> str:
    """`address:port state` of the remote ends of the process's established TCP connections."""
    import psutil  # noqa: PLC0415 - only here

    ports = [connection.raddr.port for connection in psutil.Process(pid).net_connections("tcp4") if connection.raddr]
    return " ".join(f":{port:04X} 01" for port in ports)


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


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_worker_lost_before_the_first_token_costs_only_time(road: Road, how: str) -> None:
    """A killed worker is missed sooner than one that hangs. The bounds leave room for a busy machine."""
    answers: list[str] = []

    async def ask() -> None:
        answers.append(await text_of(await road.stream("one two sim:fault=hang_before_headers sim:times=1")))

    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await road.upstream.ledger.wait_for_call()
            lost_at = time.monotonic()
            getattr(road.worker_of_call(), how)()
    took = time.monotonic() - lost_at
    assert answers == ["one two"]
    assert road.upstream.ledger.calls_seen == 2
    assert took < (2.9 if how == "kill" else 4.9)


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_worker_lost_after_the_first_token_is_an_error(road: Road, how: str) -> None:
    pieces = []
    with trio.fail_after(15), pytest.raises(openai.APIError) as broken:
        async for chunk in await road.stream("go sim:fault=endless sim:gap=0.02"):
            pieces.append(chunk.choices[0].delta.content)
            if len(pieces) == 5:
                worker = road.worker_of_call()
                getattr(worker, how)()
    assert broken.value.code == "worker_lost"
    assert road.upstream.ledger.calls_seen == 1
    if how == "freeze":
        worker.thaw()
    with trio.fail_after(5):
        await road.upstream.ledger.wait_until_idle()


async def test_a_killed_frontend_leaves_no_upstream_call(road: Road) -> None:
    async def read() -> None:
        with pytest.raises(openai.APIError):
            await text_of(await road.stream("go sim:fault=endless sim:gap=0.05"))

    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(read)
            await road.upstream.ledger.wait_for(lambda ledger: len(ledger.open_calls) == 5)
            road.frontend.kill()
            killed_at = trio.current_time()
            await road.upstream.ledger.wait_until_idle()
    assert trio.current_time() - killed_at < 4.5


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


async def test_a_worker_that_is_asked_to_stop_finishes_its_streams(road: Road) -> None:
    with trio.fail_after(15):
        stream = await road.stream("go sim:chunks=40 sim:gap=0.02")
        pieces = []
        async for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
            if len(pieces) == 3:
                worker = road.worker_of_call()
                worker.popen.terminate()
    assert "".join(pieces) == road.upstream.ledger.calls[0].text
    assert await trio.to_thread.run_sync(worker.popen.wait, 5) == 0


async def test_a_frontend_that_is_asked_to_stop_finishes_its_streams(road: Road) -> None:
    with trio.fail_after(15):
        stream = await road.stream("go sim:chunks=40 sim:gap=0.02")
        pieces = []
        async for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
            if len(pieces) == 3:
                road.frontend.popen.terminate()
    assert "".join(pieces) == road.upstream.ledger.calls[0].text
    assert await trio.to_thread.run_sync(road.frontend.popen.wait, 5) == 0
