"""Slots come back, and every job is settled exactly once, while processes die and connections are cut."""

import contextlib
import random

import httpx2
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, Process, until
from tests.end_to_end.limited import Caller, a_caller, http, start
from tests.redis_server import RedisServer

pytestmark = pytest.mark.slow

__all__ = ["http"]

LEASE_SECONDS = 10.0


def processes(house: Gateway, name: str) -> list[Process]:
    return [process for process in house.processes if process.name == name]


async def stream_until(caller: Caller, word: bytes, frontend: int, reached: trio.Event) -> None:
    with contextlib.suppress(httpx2.HTTPError):
        async with caller.stream("one two three", frontend=frontend) as response:
            async for piece in response.aiter_bytes():
                if word in piece:
                    reached.set()


@pytest.mark.promise("P13")
@pytest.mark.parametrize("victim", ["frontend", "worker-echo"])
async def test_a_killed_process_gives_its_slots_back(
    redis_server: RedisServer, http: httpx2.AsyncClient, victim: str
) -> None:
    with start(redis_server, frontends=2) as house:
        caller = await a_caller(house, http, concurrent_requests=1)
        async with trio.open_nursery() as nursery:
            reached = trio.Event()
            nursery.start_soon(stream_until, caller, b"two", 1, reached)
            with trio.fail_after(10):
                await reached.wait()
            assert (await caller.ask()).status_code == 429
            processes(house, victim)[-1].kill()
            with trio.fail_after(LEASE_SECONDS):
                await until(lambda: caller.slots() == 0)
            nursery.cancel_scope.cancel()
        (row,) = caller.usage()
        assert row.requests == row.estimated == 1
        assert (row.cancelled, row.failed) == ((1, 0) if victim == "frontend" else (0, 1))
        assert row.prompt_tokens and row.completion_tokens


@pytest.mark.promise("P13")
async def test_what_nobody_can_settle_any_more_is_settled_at_its_estimate(
    redis_server: RedisServer, http: httpx2.AsyncClient
) -> None:
    with start(redis_server, frontends=2) as house:
        caller = await a_caller(house, http, concurrent_requests=1, tokens_per_minute=1000)
        async with trio.open_nursery() as nursery:
            reached = trio.Event()
            nursery.start_soon(stream_until, caller, b"two", 1, reached)
            with trio.fail_after(10):
                await reached.wait()
            processes(house, "frontend")[-1].kill()
            processes(house, "worker-echo")[0].kill()
            with trio.fail_after(LEASE_SECONDS + 3):
                await until(lambda: caller.slots() == 0)
            nursery.cancel_scope.cancel()
        assert caller.counted() == {"unsettled": 1}


@pytest.mark.promise("P13")
async def test_settled_exactly_once_while_connections_are_cut(
    redis_server: RedisServer, http: httpx2.AsyncClient
) -> None:
    """What callers were told of is what is counted: each answer once, and nothing that was not asked."""
    chance = random.Random(7)
    with start(redis_server, frontends=2) as house:
        caller = await a_caller(house, http, requests_per_minute=100_000, concurrent_requests=1000)
        answers: list[httpx2.Response] = []
        over = False

        async def asks(frontend: int) -> None:
            while not over:
                answers.append(await caller.ask(frontend=frontend, model="echo"))

        async with trio.open_nursery() as nursery:
            for i in range(6):
                nursery.start_soon(asks, i)
            for _ in range(12):
                await trio.sleep(0.15)
                victims = [
                    client["id"]
                    for client in house.redis.client.client_list()
                    if client["name"] == "sluice-frontend" and chance.random() < 0.7
                ]
                for victim in victims:
                    house.redis.client.client_kill_filter(_id=victim)
            over = True
        done = sum(answer.status_code == 200 for answer in answers)
        assert done > 50
        with trio.fail_after(5):
            await until(lambda: caller.slots() == 0)
            await until(lambda: caller.counted().get("done", 0) == done)
        requests = sum(caller.counted().values())
        assert done <= requests <= len(answers)
        window = house.redis.client.hgetall(f"sluice:caller:{{{caller.id}}}:window")
        assert int(window[b"requests"]) == requests, "charged as often as counted"
        tokens = sum(row.prompt_tokens + row.completion_tokens for row in caller.usage())
        assert int(window[b"tokens"]) == tokens


async def test_a_frontend_that_leaves_owes_nothing(redis_server: RedisServer, http: httpx2.AsyncClient) -> None:
    with start(redis_server, frontends=2) as house:
        caller = await a_caller(house, http)
        async with trio.open_nursery() as nursery:
            reached = trio.Event()
            nursery.start_soon(stream_until, caller, b"two", 1, reached)
            with trio.fail_after(10):
                await reached.wait()
            assert await trio.to_thread.run_sync(processes(house, "frontend")[-1].stop) == 0
        assert caller.counted() == {"failed": 1}
        assert caller.slots() == 0


async def test_a_redis_that_comes_back_empty_costs_no_usage(
    redis_server: RedisServer, http: httpx2.AsyncClient
) -> None:
    with start(redis_server, frontends=1) as house:
        master = Caller(house, http, {"id": "master", "key": API_KEY})
        told = bytearray()
        async with master.stream(" ".join(f"word{i}" for i in range(60)), model="echo-slow") as response:
            async for piece in response.aiter_bytes():
                if not told:
                    redis_server.restart()
                told += piece
        assert told.endswith(b"data: [DONE]\n\n")
        with trio.fail_after(5):
            await until(lambda: master.counted() == {"done": 1})
        assert master.usage()[0].completion_tokens == 60
