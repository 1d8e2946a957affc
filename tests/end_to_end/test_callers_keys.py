"""Callers that bring their own upstream key: it reaches the upstream, of this caller's calls only, and nobody else ever."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
import trio

from tests.eavesdropper import Eavesdropper, everything_in
from tests.end_to_end.gateway import API_KEY, Gateway, free_port, gateway, until
from tests.redis_server import RedisServer
from tests.simulators.dashscope_native import DashScopeNative

pytestmark = pytest.mark.slow

THEIRS = [f"sk-callers-own-{number:02}-0123456789abcdef" for number in range(24)]
OURS = "sk-the-gateways-own-0123456789"
WRONG = "sk-nobodys-0123456789abcdef"


@contextlib.contextmanager
def running(redis: RedisServer, port: int, **environment: str) -> Iterator[Gateway]:
    settings = {
        "DASHSCOPE_NATIVE_BASE_URL": f"http://127.0.0.1:{port}",
        "DASHSCOPE_NATIVE_CALLER_KEYS": "on",
        "SLUICE_LOG_LEVEL": "debug",
    }
    with gateway(redis, **(settings | environment)) as house:
        house.frontend()
        house.worker("dashscope-native")
        house.wait_ready("farui-plus")
        yield house


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with contextlib.closing(RedisServer()) as server:
        yield server


@pytest.fixture(scope="module")
def house(redis: RedisServer, port: int) -> Iterator[Gateway]:
    """A gateway without any key: a public pass-through."""
    with running(redis, port, SLUICE_API_KEY="") as house:
        yield house


@pytest.fixture
async def upstream(port: int) -> AsyncIterator[DashScopeNative]:
    async with DashScopeNative(keys={*THEIRS, OURS}).running(port) as simulator:
        yield simulator


async def ask(house: Gateway, key: str | None, words: str, **fields: Any) -> httpx2.Response:
    body = {"model": "farui-plus", "messages": [{"role": "user", "content": words}], **fields}
    headers = {"authorization": f"Bearer {key}"} if key is not None else {}
    async with httpx2.AsyncClient(timeout=20, headers=headers) as client:
        return await client.post(f"{house.base_url}/chat/completions", json=body)


def text_of(reply: httpx2.Response) -> str:
    """What a stream said."""
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line.startswith("data: {")]
    chunks = [json.loads(event) for event in events]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def test_a_public_pass_through_needs_no_key_of_its_own(house: Gateway, upstream: DashScopeNative) -> None:
    whole = await ask(house, THEIRS[0], "one two three")
    assert whole.json()["choices"][0]["message"]["content"] == "one two three"
    assert whole.json()["usage"]["total_tokens"] > 0 and "estimated" not in whole.json()["usage"]
    streamed = await ask(house, THEIRS[1], "four five", stream=True)
    assert text_of(streamed) == "four five" and streamed.text.endswith("data: [DONE]\n\n")
    assert [call.key for call in upstream.ledger.calls] == THEIRS[:2]
    asked = upstream.ledger.calls[0].json()
    assert asked["parameters"] == {"result_format": "message", "incremental_output": True}


@pytest.mark.fault("S18")
async def test_keys_of_concurrent_callers_are_never_mixed(house: Gateway, upstream: DashScopeNative) -> None:
    replies: dict[str, str] = {}

    async def call(key: str, stream: bool) -> None:
        words = f"the words of {key[:17]} and again sim:gap=0.01"
        reply = await ask(house, key, words, stream=stream)
        replies[key] = text_of(reply) if stream else reply.json()["choices"][0]["message"]["content"]

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number, key in enumerate(THEIRS):
                nursery.start_soon(call, key, number % 2 == 0)
    for key in THEIRS:
        (made,) = upstream.ledger.by_key(key)
        assert key[:17] in made.json()["input"]["messages"][0]["content"]
        assert replies[key] == made.text and key[:17] in replies[key]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("key", "words", "status", "code"),
    [
        (WRONG, "hello", 401, "invalid_api_key"),
        (THEIRS[0], "hello sim:error=dashscope_native_401 sim:fault=error_200_event", 401, "invalid_api_key"),
        (THEIRS[0], "hello sim:error=dashscope_native_400_arrearage", 429, "insufficient_quota"),
        (THEIRS[0], "hello sim:error=dashscope_native_429_rate", 429, "rate_limit_exceeded"),
        (THEIRS[0], "hello sim:error=dashscope_native_400_length", 400, "context_length_exceeded"),
        (THEIRS[0], "hello sim:error=dashscope_native_403_unpurchased", 403, "permission_denied"),
        (THEIRS[0], "hello sim:fault=error_200 sim:error=dashscope_native_200_business", 400, "content_filter"),
    ],
)
@pytest.mark.fault("C18")
async def test_what_the_upstream_says_of_the_key_is_the_callers_business(
    house: Gateway, upstream: DashScopeNative, key: str, words: str, status: int, code: str, stream: bool
) -> None:
    reply = await ask(house, key, words, stream=stream)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert key not in reply.text
    assert [call.key for call in upstream.ledger.calls] == [key], "asked once, with this key"


async def test_no_key_is_no_call(house: Gateway, upstream: DashScopeNative) -> None:
    for headers in ({}, {"authorization": "Bearer two words"}, {"authorization": THEIRS[0]}):
        async with httpx2.AsyncClient(timeout=20) as client:
            body = {"model": "farui-plus", "messages": [{"role": "user", "content": "hello"}]}
            reply = await client.post(f"{house.base_url}/chat/completions", json=body, headers=headers)
            listed = await client.get(f"{house.base_url}/models", headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert listed.status_code == 401
    assert upstream.ledger.calls_seen == 0
    async with httpx2.AsyncClient(timeout=20) as client:
        assert (await client.get(f"{house.origin}/health")).json()["status"] == "healthy"


async def test_parameters_that_do_not_exist_there_are_refused(house: Gateway, upstream: DashScopeNative) -> None:
    reply = await ask(house, THEIRS[0], "hello", frequency_penalty=0.5)
    assert reply.status_code == 400
    assert (reply.json()["error"]["code"], reply.json()["error"]["param"]) == (
        "unsupported_parameter",
        "frequency_penalty",
    )
    assert upstream.ledger.calls_seen == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_or_left_out_and_named_if_the_settings_say_so(
    redis_server: RedisServer, upstream: DashScopeNative, port: int, stream: bool
) -> None:
    with running(redis_server, port, SLUICE_UNSUPPORTED_PARAMETERS="drop") as house:
        reply = await ask(house, THEIRS[0], "hello", frequency_penalty=0.5, logit_bias={"5": 1}, top_k=3, stream=stream)
        assert reply.status_code == 200
        assert reply.headers["x-sluice-dropped-parameters"] == "frequency_penalty, logit_bias"
        assert upstream.ledger.calls[0].json()["parameters"].keys() == {"result_format", "incremental_output", "top_k"}
        plain = await ask(house, THEIRS[0], "hello", stream=stream)
        assert "x-sluice-dropped-parameters" not in plain.headers


async def test_holders_of_a_gateway_key_use_the_gateways_own(
    redis_server: RedisServer, upstream: DashScopeNative, port: int
) -> None:
    with running(redis_server, port, DASHSCOPE_NATIVE_API_KEY=OURS) as house:
        assert (await ask(house, API_KEY, "hello")).status_code == 200
        assert (await ask(house, THEIRS[0], "hello")).status_code == 200
        assert [call.key for call in upstream.ledger.calls] == [OURS, THEIRS[0]]


async def test_without_the_setting_a_foreign_key_opens_nothing(
    redis_server: RedisServer, upstream: DashScopeNative, port: int
) -> None:
    with running(redis_server, port, DASHSCOPE_NATIVE_API_KEY=OURS, DASHSCOPE_NATIVE_CALLER_KEYS="off") as house:
        assert (await ask(house, THEIRS[0], "hello")).status_code == 401
        assert upstream.ledger.calls_seen == 0


@pytest.mark.fault("S5")
async def test_the_key_is_readable_nowhere(house: Gateway, upstream: DashScopeNative, redis: RedisServer) -> None:
    """Not in what passes through Redis, not in what rests there while a job waits, not in logs, not in errors."""
    key, words = THEIRS[0], "the secret words"
    worker = next(process for process in house.processes if process.name.startswith("worker"))
    with contextlib.closing(Eavesdropper(redis)) as spy, trio.fail_after(20):
        replies = [await ask(house, key, f"{words} {script}", stream=True) for script in ("", "sim:fault=drop_mid")]
        replies.append(await ask(house, WRONG, words))
        worker.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, house, key, words)
            await until(lambda: redis.client.xlen("sluice:jobs:{dashscope-native}"))
            at_rest = everything_in(redis)
            worker.thaw()
        assert upstream.ledger.calls[-1].key == key
        await until(lambda: b"PUBLISH" in spy.heard)
        heard = spy.heard
    logs = "\n".join(process.text() for process in house.processes)
    assert b"XADD" in heard and "sluice:jobs" in at_rest.decode("latin-1") and "farui-plus" in logs
    for secret in (key, WRONG, words):
        for place in (heard, at_rest, logs.encode()):
            assert secret.encode() not in place
        assert secret == words or not any(secret in reply.text for reply in replies)
