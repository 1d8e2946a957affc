"""Identical requests answered from memory: only for those who ask, only what is complete, never across callers."""

from typing import Any

import httpx2
import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway
from tests.simulators.openai_compatible import OpenAICompatible

Json = dict[str, Any]


def request(text: str, **more: Any) -> Json:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **more}


async def post(house: Gateway, body: Json, cache: str | None, key: str = API_KEY) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"} | ({} if cache is None else {"x-sluice-cache": cache})
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        return await client.post(f"{house.base_url}/chat/completions", json=body, headers=headers)


async def make_key(house: Gateway, **terms: Any) -> str:
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        made = await client.post(
            f"{house.origin}/admin/keys", json={"name": "test", **terms}, headers={"authorization": f"Bearer {API_KEY}"}
        )
    assert made.status_code == 200, made.text
    key: str = made.json()["key"]
    return key


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
async def test_the_second_of_two_identical_requests_is_answered_from_memory(
    house: Gateway, upstream: OpenAICompatible, streaming: bool
) -> None:
    body = request(f"twice, streaming={streaming}", stream=streaming)
    first = await post(house, body, "60")
    second = await post(house, dict(reversed(body.items())), "60")
    assert first.status_code == second.status_code == 200
    assert first.headers["x-sluice-cache"] == "miss"
    assert second.headers["x-sluice-cache"] == "hit"
    assert 0 <= int(second.headers["age"]) < 60
    assert second.headers["x-sluice-provider"] == "openai"
    assert second.headers["x-sluice-attempts"] == "0"
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.content == first.content
    assert len(upstream.ledger.calls) == 1


async def test_openai_s_client_reads_a_kept_stream(
    house: Gateway, upstream: OpenAICompatible, sdk: openai.AsyncOpenAI
) -> None:
    texts = []
    for _ in range(2):
        stream = await sdk.chat.completions.create(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": "a stream that is kept"}],
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-sluice-cache": "60"},
        )
        texts.append([chunk.model_dump_json() async for chunk in stream])
    assert texts[0] == texts[1]
    assert len(upstream.ledger.calls) == 1


async def test_what_differs_is_asked_again(house: Gateway, upstream: OpenAICompatible) -> None:
    bodies = [
        request("differs"),
        request("differs", temperature=0.5),
        request("differs", temperature=0.50),
        request("differs", stream=True),
        request("differs") | {"model": "gpt-4o"},
    ]
    replies = [await post(house, body, "60") for body in bodies]
    assert [reply.headers["x-sluice-cache"] for reply in replies] == ["miss", "miss", "hit", "miss", "miss"]
    assert len(upstream.ledger.calls) == 4


async def test_nobody_who_did_not_ask_gets_or_leaves_anything(house: Gateway, upstream: OpenAICompatible) -> None:
    body = request("not asked for")
    for cache in (None, "0", "off"):
        reply = await post(house, body, cache)
        assert "x-sluice-cache" not in reply.headers
    assert (await post(house, body, "60")).headers["x-sluice-cache"] == "miss"
    assert "x-sluice-cache" not in (await post(house, body, None)).headers
    assert len(upstream.ledger.calls) == 5


async def test_a_key_may_ask_for_all_its_requests(house: Gateway, upstream: OpenAICompatible) -> None:
    key = await make_key(house, cache_seconds=60)
    body = request("a key that remembers")
    replies = [await post(house, body, cache, key) for cache in (None, None, "off")]
    assert [reply.headers.get("x-sluice-cache") for reply in replies] == ["miss", "hit", None]
    assert len(upstream.ledger.calls) == 2


@pytest.mark.fault("S18")
async def test_no_caller_sees_what_another_one_asked(house: Gateway, upstream: OpenAICompatible) -> None:
    body = request("between you and me")
    for key in (await make_key(house), await make_key(house), API_KEY):
        assert (await post(house, body, "60", key)).headers["x-sluice-cache"] == "miss"
    assert len(upstream.ledger.calls) == 3


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
async def test_only_complete_answers_are_kept(house: Gateway, upstream: OpenAICompatible, streaming: bool) -> None:
    body = request("sim:fault=drop_mid an answer that breaks off", stream=streaming)
    for _ in range(2):
        reply = await post(house, body, "60")
        assert reply.headers.get("x-sluice-cache", "miss") == "miss"
        assert "error" in reply.text
    assert len(upstream.ledger.calls) >= 2


async def test_a_stream_that_its_caller_left_is_not_kept(
    house: Gateway, upstream: OpenAICompatible, sdk: openai.AsyncOpenAI
) -> None:
    words = {"role": "user", "content": "sim:gap=0.02 a stream that is left"}
    asked: Json = {"model": "gpt-4o-mini", "messages": [words], "extra_headers": {"x-sluice-cache": "60"}}
    async with await sdk.chat.completions.create(**asked, stream=True) as stream:
        async for _ in stream:
            break
    with trio.fail_after(5):
        await upstream.ledger.wait_until_idle()
    reply = await post(house, {name: asked[name] for name in ("model", "messages")} | {"stream": True}, "60")
    assert reply.headers["x-sluice-cache"] == "miss"
    assert reply.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("header", ["a minute", "-1", "nan", "1e9", ""])
async def test_a_senseless_wish_is_refused(house: Gateway, upstream: OpenAICompatible, header: str) -> None:
    reply = await post(house, request("x"), header)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "x-sluice-cache"
    assert upstream.ledger.calls == []
