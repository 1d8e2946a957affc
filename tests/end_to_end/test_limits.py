"""Limits are one, whichever frontend a caller comes to, and what has been used is counted once: with real processes."""

import contextlib
from collections import Counter
from collections.abc import Iterator

import httpx2
import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, until
from tests.end_to_end.limited import Caller, a_caller, all_at_once, error_of, http, start, usage
from tests.redis_server import RedisServer

__all__ = ["http"]

FRONTENDS = 3
HEADERS = [f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")]


@pytest.fixture(scope="module")
def three() -> Iterator[Gateway]:
    """Three frontends and a worker, for tests that leave them as they are."""
    with contextlib.closing(RedisServer()) as redis, start(redis, FRONTENDS) as house:
        yield house


@pytest.mark.promise("P13")
@pytest.mark.fault("D17")
@pytest.mark.promise("P13")
async def test_requests_per_minute_are_exact_over_three_frontends(three: Gateway, http: httpx2.AsyncClient) -> None:
    caller = await a_caller(three, http, requests_per_minute=20)
    answers = await all_at_once([lambda i=i: caller.ask(frontend=i) for i in range(90)])
    accepted = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(accepted), len(refused)) == (20, 70), "a drift of 0"
    assert sorted(int(answer.headers["x-ratelimit-remaining-requests"]) for answer in accepted) == list(range(20))
    for answer in refused:
        assert answer.headers["x-ratelimit-limit-requests"] == "20"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert 50_000 < int(answer.headers["retry-after-ms"]) <= 60_000
        assert "x-ratelimit-limit-tokens" not in answer.headers
        assert error_of(answer)["type"] == "requests"
        assert error_of(answer)["code"] == "rate_limit_exceeded"
    with trio.fail_after(5):
        await until(lambda: caller.counted() == {"done": 20})


@pytest.mark.promise("P13")
async def test_who_asks_one_thing_after_the_other_is_never_refused(three: Gateway, http: httpx2.AsyncClient) -> None:
    """Each answer gives its slot, and the tokens that it did not need, back before the next question can come."""
    caller = await a_caller(three, http, concurrent_requests=1, tokens_per_minute=2000)
    statuses = [(await caller.ask(f"question {number}")).status_code for number in range(15)]
    for number in range(15):
        async with caller.stream(f"question {number}", model="echo") as response:
            assert (await response.aread()).endswith(b"data: [DONE]\n\n")
            statuses.append(response.status_code)
    assert statuses == [200] * 30


@pytest.mark.promise("P13")
@pytest.mark.fault("D17")
@pytest.mark.promise("P13")
async def test_tokens_per_minute_are_exact_over_three_frontends(three: Gateway, http: httpx2.AsyncClient) -> None:
    """Five tokens of prompt and 95 of answer each: ten fit into a thousand, as long as none of them has ended."""
    caller = await a_caller(three, http, tokens_per_minute=1000)
    async with trio.open_nursery() as nursery:
        heads: list[httpx2.Response] = []

        async def hold(frontend: int) -> None:
            async with caller.stream("hi", frontend=frontend, max_tokens=95) as response:
                heads.append(response)
                await trio.sleep_forever()

        for frontend in range(30):
            nursery.start_soon(hold, frontend)
        with trio.fail_after(10):
            await until(lambda: len(heads) == 30)
        accepted = [head for head in heads if head.status_code == 200]
        assert len(accepted) == 10
        assert sorted(int(head.headers["x-ratelimit-remaining-tokens"]) for head in accepted) == list(
            range(0, 1000, 100)
        )
        refused = await caller.ask(max_tokens=95)
        assert error_of(refused)["type"] == "tokens"
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        await until(lambda: caller.counted() == {"cancelled": 10})
    used = sum(row.prompt_tokens + row.completion_tokens for row in caller.usage())
    after = await caller.ask(max_tokens=95)
    assert after.status_code == 200, "what was not used came back"
    assert int(after.headers["x-ratelimit-remaining-tokens"]) == 1000 - used - 100


@pytest.mark.promise("P13")
@pytest.mark.fault("D17")
@pytest.mark.promise("P13")
async def test_concurrent_requests_are_exact_over_three_frontends(three: Gateway, http: httpx2.AsyncClient) -> None:
    caller = await a_caller(three, http, concurrent_requests=4)
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            statuses: list[int] = []

            async def hold(frontend: int, statuses: list[int] = statuses) -> None:
                async with caller.stream("hi there", frontend=frontend) as response:
                    statuses.append(response.status_code)
                    if response.status_code == 200:
                        await trio.sleep_forever()

            for frontend in range(24):
                nursery.start_soon(hold, frontend)
            with trio.fail_after(10):
                await until(lambda statuses=statuses: len(statuses) == 24)
            assert Counter(statuses) == {200: 4, 429: 20}
            refused = await caller.ask(frontend=1)
            assert error_of(refused)["code"] == "concurrency_limit_exceeded"
            assert refused.headers["retry-after-ms"] == "500"
            nursery.cancel_scope.cancel()
        with trio.fail_after(3):
            await until(lambda: caller.slots() == 0)


async def test_openais_own_retry_waits_for_a_slot(three: Gateway, http: httpx2.AsyncClient) -> None:
    caller = await a_caller(three, http, concurrent_requests=1)
    client = openai.AsyncOpenAI(base_url=three.base_url, api_key=str(caller.record["key"]), max_retries=5, timeout=20)
    async with client, trio.open_nursery() as nursery:
        left = trio.Event()

        async def hold() -> None:
            async with caller.stream("a b c d e f g h i j", model="echo-slow") as response:
                async for _ in response.aiter_bytes():
                    left.set()

        nursery.start_soon(hold)
        await left.wait()
        answer = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "hi"


async def test_the_answers_tokens_replace_the_estimate(three: Gateway, http: httpx2.AsyncClient) -> None:
    caller = await a_caller(three, http, tokens_per_minute=10_000, requests_per_minute=100)
    first = await caller.ask(max_tokens=5000)
    used = first.json()["usage"]["total_tokens"]
    assert int(first.headers["x-ratelimit-remaining-tokens"]) == 10_000 - 5005
    with trio.fail_after(5):
        await until(lambda: caller.counted() == {"done": 1})
    (row,) = caller.usage()
    assert row.prompt_tokens + row.completion_tokens == used
    second = await caller.ask(max_tokens=10, frontend=1)
    assert int(second.headers["x-ratelimit-remaining-tokens"]) == 10_000 - used - 15


async def test_every_answer_of_a_model_endpoint_tells_what_is_left(three: Gateway, http: httpx2.AsyncClient) -> None:
    caller = await a_caller(three, http, requests_per_minute=10, tokens_per_minute=100_000)
    answers = [
        await caller.ask(),
        await caller.ask(stream=True),
        await caller.ask(model="echo-error-500"),
        await caller.ask(model="no-such-model"),
        await caller.ask(temperature="hot"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 502, 404, 400]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["9", "8", "7", "7", "7"]
    for answer in answers:
        assert all(name in answer.headers for name in HEADERS)
    master = await http.post(
        f"{three.base_url}/chat/completions", headers={"authorization": f"Bearer {API_KEY}"},
        json={"model": "echo", "messages": [{"role": "user", "content": "hi"}]},
    )  # fmt: skip
    assert not any(name in master.headers for name in HEADERS)


async def test_a_quota_that_is_used_up_is_not_tried_again(three: Gateway, http: httpx2.AsyncClient) -> None:
    caller = await a_caller(three, http, daily_tokens=100)
    assert (await caller.ask("word " * 10)).status_code == 200
    with trio.fail_after(5):
        await until(lambda: caller.counted() == {"done": 1})
    client = openai.AsyncOpenAI(base_url=three.base_url, api_key=str(caller.record["key"]), max_retries=3, timeout=20)
    async with client:
        with trio.fail_after(2), pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "hi"}], max_tokens=100
            )
    assert refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert "100 tokens a day" in refused.value.message
    assert (await caller.ask(max_tokens=3)).status_code == 200, "what fits is let in"


async def test_a_changed_limit_holds_at_once_everywhere(three: Gateway, http: httpx2.AsyncClient) -> None:
    caller = await a_caller(three, http, requests_per_minute=50)
    for frontend in range(FRONTENDS):
        assert (await caller.ask(frontend=frontend)).status_code == 200
    admin = {"authorization": f"Bearer {API_KEY}"}
    key = f"{three.origin}/admin/keys/{caller.id}"
    assert (await http.patch(key, headers=admin, json={"requests_per_minute": 5})).status_code == 200
    answers = await all_at_once([lambda i=i: caller.ask(frontend=i) for i in range(12)])
    assert Counter(answer.status_code for answer in answers) == {200: 2, 429: 10}
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"5"}
    assert (await http.delete(key, headers=admin)).status_code in (200, 204)
    answers = await all_at_once([lambda i=i: caller.ask(frontend=i) for i in range(6)])
    assert {answer.status_code for answer in answers} == {401}


async def test_all_outcomes_are_counted(three: Gateway, http: httpx2.AsyncClient) -> None:
    caller = await a_caller(three, http)
    await caller.ask("one two three")
    await caller.ask(model="echo-error-500")
    async with caller.stream("one two three four five six", model="echo-break") as response:
        assert "error" in (await response.aread()).decode()
    async with caller.stream("one two three four five six") as response:
        async for piece in response.aiter_bytes():
            if b"two" in piece:
                break
    refused = await caller.ask(temperature="hot")
    assert refused.status_code == 400
    with trio.fail_after(5):
        await until(lambda: sum(caller.counted().values()) == 4)
    by_model = {row.model: row for row in caller.usage()}
    assert (by_model["echo"].done, by_model["echo"].estimated) == (1, 0)
    assert (by_model["echo-error-500"].failed, by_model["echo-error-500"].prompt_tokens) == (1, 0)
    broken, left = by_model["echo-break"], by_model["echo-stall"]
    assert (broken.failed, broken.estimated) == (1, 1)
    assert broken.prompt_tokens and broken.completion_tokens
    assert (left.cancelled, left.estimated) == (1, 1)
    assert left.prompt_tokens and left.completion_tokens


async def test_master_keys_have_no_limits_but_are_counted(three: Gateway, http: httpx2.AsyncClient) -> None:
    before = sum(row.done for row in usage(three) if row.caller == "master")
    master = Caller(three, http, {"id": "master", "key": API_KEY})
    answers = await all_at_once([lambda i=i: master.ask(frontend=i) for i in range(30)])
    assert {answer.status_code for answer in answers} == {200}
    with trio.fail_after(5):
        await until(lambda: sum(row.done for row in usage(three) if row.caller == "master") == before + 30)
