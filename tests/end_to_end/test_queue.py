"""Waiting for a worker: who is served when, for how long one waits, and what the headers say. One worker, one job at a time."""

import itertools
import time
from collections.abc import AsyncIterator

import httpx2
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, gateway, until
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.slow

OTHER_KEY = "sk-another-caller-0123456789abcdef"
SLOW = "sim:delay=0.05"


class Office:
    """A gateway with one worker that takes one job at a time."""

    def __init__(self, house: Gateway, upstream: OpenAICompatible, client: httpx2.AsyncClient) -> None:
        self.house, self.upstream, self.client = house, upstream, client
        self.replies: dict[str, httpx2.Response] = {}
        self.seconds: dict[str, float] = {}

    async def ask(self, words: str, key: str = API_KEY, **headers: str) -> httpx2.Response:
        headers = {"authorization": f"Bearer {key}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        asked = words if "sim:" in words else f"{words} {SLOW}"
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": asked}]}
        began = time.monotonic()
        reply = await self.client.post(f"{self.house.base_url}/chat/completions", json=body, headers=headers)
        self.replies[words], self.seconds[words] = reply, time.monotonic() - began
        return reply

    @property
    def waiting(self) -> int:
        client = self.house.redis.client
        lines = ("sluice:waiting:{openai}", "sluice:waiting:{openai}:low")
        return client.xlen("sluice:jobs:{openai}") + sum(client.zcard(line) for line in lines)

    @property
    def served(self) -> list[str]:
        """What the upstream was asked, in order."""
        return [call.json()["messages"][0]["content"].removesuffix(f" {SLOW}") for call in self.upstream.ledger.calls]

    def error(self, words: str) -> tuple[int, str]:
        return self.replies[words].status_code, self.replies[words].json()["error"]["code"]


@pytest.fixture
async def office(redis_server: RedisServer) -> AsyncIterator[Office]:
    with gateway(redis_server, SLUICE_API_KEY=f"{API_KEY},{OTHER_KEY}") as house:
        async with OpenAICompatible("openai").running() as upstream:
            house.environment |= {"OPENAI_API_KEY": "sk-one", "OPENAI_BASE_URL": upstream.base_url}
            house.frontend(SLUICE_QUEUE_LIMIT="40", SLUICE_QUEUE_SECONDS="20")
            house.worker("openai", SLUICE_WORKER_CONCURRENCY="1")
            await trio.to_thread.run_sync(house.wait_ready, "gpt-4o-mini")
            limits = httpx2.Limits(max_connections=None)
            async with httpx2.AsyncClient(timeout=60, limits=limits) as client:
                yield Office(house, upstream, client)


async def test_many_of_one_caller_do_not_delay_anothers_one(office: Office) -> None:
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(office.ask, f"many {number}")
            await until(lambda: office.waiting >= 25)
            before = office.upstream.ledger.calls_seen
            await office.ask("one", OTHER_KEY)
            assert office.served.index("one") - before <= 7
            assert office.waiting >= 15
    reply = office.replies["one"]
    assert reply.status_code == 200
    assert 100 < int(reply.headers["x-sluice-queue-ms"]) <= office.seconds["one"] * 1000
    assert len(office.served) == 31 and {reply.status_code for reply in office.replies.values()} == {200}


async def test_low_waits_behind_normal_but_not_for_ever(office: Office) -> None:
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(lambda number=number: office.ask(f"low {number}", x_sluice_priority="low"))
            await until(lambda: office.waiting >= 10)
            for number in range(16):
                nursery.start_soon(lambda number=number: office.ask(f"normal {number}", x_sluice_priority="normal"))
            await until(lambda: office.waiting >= 20)
    after = office.served[office.served.index(next(words for words in office.served if words.startswith("normal"))) :]
    last_normal = max(place for place, words in enumerate(after) if words.startswith("normal"))
    lows = sum(words.startswith("low") for words in after[:last_normal])
    assert 1 <= lows <= 4, after
    assert len(office.served) == 28, [reply.text for reply in office.replies.values() if reply.status_code != 200]


async def test_a_caller_waits_as_long_as_it_says(office: Office) -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(office.ask, "long sim:delay=2")
            await office.upstream.ledger.wait_for_call()
            nursery.start_soon(lambda: office.ask("short", x_sluice_max_wait="0.5"))
            nursery.start_soon(lambda: office.ask("by the client", x_stainless_read_timeout="0.8"))
            nursery.start_soon(office.ask, "patient")
    assert office.error("short") == office.error("by the client") == (503, "queue_timeout")
    assert office.replies["patient"].status_code == 200
    assert 0.5 <= office.seconds["short"] < 1.5
    assert 500 <= int(office.replies["short"].headers["x-sluice-queue-ms"]) < 1500
    assert office.replies["short"].headers["retry-after"]
    assert int(office.replies["patient"].headers["x-sluice-queue-ms"]) > 500
    assert sorted(office.served) == ["long sim:delay=2", "patient"], "who gave up is never asked for"
    assert office.waiting == 0


async def test_a_wait_that_is_known_to_be_too_long_is_refused_at_once(office: Office) -> None:
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for number in range(31):
                nursery.start_soon(office.ask, f"many {number} sim:delay=0.2")
            await until(lambda: office.upstream.ledger.calls_seen >= 22)
            await office.ask("hurried", x_sluice_max_wait="0.3")
            nursery.start_soon(office.ask, "patient")
    assert office.error("hurried") == (503, "server_is_overloaded")
    assert office.seconds["hurried"] < 0.5
    assert office.replies["hurried"].headers["x-sluice-attempts"] == "0"
    assert office.replies["patient"].status_code == 200


async def test_a_full_queue_refuses_with_a_time_to_come_again(office: Office) -> None:
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(office.ask, f"many {number}")
    refused = [reply for reply in office.replies.values() if reply.status_code == 503]
    assert 10 <= len(refused) <= 25
    for reply in refused:
        assert reply.json()["error"]["code"] == "server_is_overloaded"
        assert reply.json()["error"]["type"] == "service_unavailable_error"
        assert reply.headers["retry-after"]
    assert office.upstream.ledger.calls_seen == 60 - len(refused)


@pytest.mark.parametrize(("name", "text"), [("x-sluice-max-wait", "soon"), ("x-sluice-priority", "high")])
async def test_headers_that_make_no_sense_are_refused(office: Office, name: str, text: str) -> None:
    reply = await office.ask("x", **{name: text})
    assert (reply.status_code, reply.json()["error"]["param"], reply.json()["error"]["code"]) == (
        400,
        name,
        "invalid_header",
    )


async def test_redis_restarts_empty_while_many_wait(office: Office) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(15):
                nursery.start_soon(office.ask, f"many {number}")
            await until(lambda: office.waiting >= 10)
            await trio.to_thread.run_sync(office.house.redis.restart)
    assert {reply.status_code for reply in office.replies.values()} == {200}
    assert sorted(office.served) == sorted(f"many {number}" for number in range(15)), "each of them once"
    assert list(itertools.chain(office.house.redis.client.scan_iter("sluice:waiting:*"))) == []
