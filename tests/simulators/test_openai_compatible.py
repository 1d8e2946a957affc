"""The official OpenAI client, synchronous in a thread and asynchronous on trio, against every dialect."""

from __future__ import annotations

import base64
import json
import struct
from contextlib import asynccontextmanager

import openai
import pytest
import trio

from tests.simulators.compose import embedding
from tests.simulators.dialects import DIALECTS
from tests.simulators.openai_compatible import OpenAICompatible
from tests.simulators.raw_client import ask, chat, events


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(10):
        yield


WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {}}}},
}


@asynccontextmanager
async def client_of(upstream, key="sk-test"):
    plain = openai.DefaultAsyncHttpxClient(verify=False)  # loading certificates costs more than a test
    async with openai.AsyncOpenAI(
        base_url=upstream.base_url, api_key=key, max_retries=0, timeout=5, http_client=plain
    ) as client:
        yield client


@asynccontextmanager
async def running(*arguments, **options):
    with trio.fail_after(10):
        async with OpenAICompatible(*arguments, **options).running() as upstream, client_of(upstream) as client:
            yield upstream, client


def user(words):
    return [{"role": "user", "content": words}]


@pytest.mark.parametrize("name", DIALECTS)
async def test_the_client_reads_every_dialect(name):
    async with running(name) as (upstream, client):
        model = upstream.dialect.models[0]

        stream = await client.chat.completions.create(
            model=model, messages=user("ein schöner Tag"), stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        whole = await client.chat.completions.create(model=model, messages=user("ein schöner Tag"))

        choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
        assert "".join(choice.delta.content or "" for choice in choices) == "ein schöner Tag"
        assert choices[-1].finish_reason == "stop"
        assert whole.choices[0].message.content == "ein schöner Tag"
        assert whole.usage.completion_tokens == 3
        assert {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}


async def test_the_synchronous_client_in_a_thread():
    def talk(base_url):
        client = openai.OpenAI(base_url=base_url, api_key="sk-test", max_retries=0, timeout=5)
        stream = client.chat.completions.create(model="gpt-4o", messages=user("one two"), stream=True)
        return [chunk.choices[0].delta.content for chunk in stream]

    with trio.fail_after(10):
        async with OpenAICompatible().running() as upstream:
            assert await trio.to_thread.run_sync(talk, upstream.base_url) == ["", "one", " two", None]


async def test_concurrent_answers_are_not_crossed():
    async with running() as (upstream, client):
        heard = {}

        async def talk(number):
            message = f"caller {number} sim:chunks=20 sim:gap=0.001"
            stream = await client.chat.completions.create(model="gpt-4o", messages=user(message), stream=True)
            heard[number] = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(talk, number)

        assert all(f" {number}.19" in text and f" {number}.1" in text for number, text in heard.items())
        assert len(set(heard.values())) == 20 == len(upstream.ledger.calls)
        assert {call.text for call in upstream.ledger.calls} == set(heard.values())


@pytest.mark.parametrize("name", DIALECTS)
async def test_tool_calls(name):
    async with running(name) as (upstream, client):
        ask_for = {"model": upstream.dialect.models[0], "tools": [WEATHER], "messages": user("Bern sim:tools=2")}

        stream = await client.chat.completions.create(**ask_for, stream=True)
        calls: dict[int, list[str]] = {}
        finish = None
        async for chunk in stream:
            if chunk.choices:
                finish = chunk.choices[0].finish_reason or finish
                for call in chunk.choices[0].delta.tool_calls or ():
                    calls.setdefault(call.index, []).append(call.function.arguments)
        whole = await client.chat.completions.create(**ask_for)

        assert finish == whole.choices[0].finish_reason == "tool_calls"
        arguments = [json.loads("".join(fragments)) for _, fragments in sorted(calls.items())]
        assert arguments == [{"city": "Bern"}, {"city": "Bern (2)"}]
        assert [json.loads(call.function.arguments) for call in whole.choices[0].message.tool_calls] == arguments


async def test_a_demanded_tool_is_called():
    async with running() as (_, client):
        whole = await client.chat.completions.create(
            model="gpt-4o", messages=user("Bern"), tools=[WEATHER], tool_choice="required"
        )

        assert whole.choices[0].message.tool_calls[0].function.name == "get_weather"


THINKING = {
    "deepseek": "reasoning_content",
    "cerebras": "reasoning",
    "kimi": "reasoning_content",
    "dashscope_compatible": "reasoning_content",
    "huggingface": "reasoning_content",
}


@pytest.mark.parametrize("name", THINKING)
async def test_thinking_is_in_the_vendors_field(name):
    async with running(name) as (upstream, client):
        model = upstream.dialect.models[0]

        stream = await client.chat.completions.create(model=model, messages=user("hi sim:think=4"), stream=True)
        chunks = [chunk async for chunk in stream]

        thoughts = [getattr(chunk.choices[0].delta, THINKING[name], None) for chunk in chunks if chunk.choices]
        assert "".join(thought or "" for thought in thoughts) == "Thinking about it step by step."


async def test_choices_lengths_and_probabilities():
    async with running() as (_, client):
        whole = await client.chat.completions.create(
            model="gpt-4o", messages=user("a b c d"), n=2, max_tokens=3, logprobs=True
        )

        assert [choice.message.content for choice in whole.choices] == ["a b c", "a b c (2)"]
        assert [choice.finish_reason for choice in whole.choices] == ["length", "length"]
        assert [entry.token for entry in whole.choices[0].logprobs.content] == ["a", " b", " c"]


async def test_usage_can_be_put_anywhere():
    async with OpenAICompatible().running() as upstream:
        places = {}
        for place in ("finish", "choice", "own", "none"):
            seen = await ask(upstream, chat(f"hi sim:usage={place}"))
            chunks = [json.loads(payload) for payload in events(seen.body)[:-1]]
            places[place] = [
                bool(chunk.get("usage")) or "usage" in (chunk["choices"] or [{}])[0] for chunk in chunks
            ].count(True)

        assert places == {"finish": 1, "choice": 1, "own": 1, "none": 0}


async def test_legacy_completions():
    async with running() as (_, client):
        whole = await client.completions.create(model="gpt-3.5-turbo-instruct", prompt=["one two", "three"])
        stream = await client.completions.create(model="gpt-3.5-turbo-instruct", prompt="one two", stream=True)

        assert [choice.text for choice in whole.choices] == ["one two", "three"]
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "one two"


async def test_embeddings_as_floats_and_as_base64():
    async with running() as (upstream, client):
        by_client = await client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
        floats = {"model": "m", "input": "one", "encoding_format": "float"}
        plain = await ask(upstream, floats, path="/v1/embeddings")
        base64_form = await ask(upstream, {**floats, "encoding_format": "base64"}, path="/v1/embeddings")

        assert b'"base64"' in upstream.ledger.calls[0].body.replace(b" ", b"")
        assert by_client.data[0].embedding == embedding("one", 8) != by_client.data[1].embedding
        assert json.loads(plain.body)["data"][0]["embedding"] == embedding("one", 8)
        packed = json.loads(base64_form.body)["data"][0]["embedding"]
        assert struct.unpack("<8f", base64.b64decode(packed)) == tuple(embedding("one", 8))


async def test_models_can_be_listed_and_fetched_percent_encoded():
    async with running("huggingface") as (upstream, client):
        listed = [model.id async for model in await client.models.list()]
        one = await ask(upstream, path="/v1/models/openai%2Fgpt-oss-120b", method="GET")
        none = await ask(upstream, path="/v1/models/no/such", method="GET")

        assert listed == ["openai/gpt-oss-120b", "Qwen/Qwen3-32B"]
        assert json.loads(one.body)["id"] == "openai/gpt-oss-120b"
        assert none.status == 404


ERROR_BODIES = {
    "openai": lambda body: body["error"]["code"] == "invalid_api_key",
    "deepseek": lambda body: body["error"]["type"] == "authentication_error",
    "cerebras": lambda body: body["code"] == "wrong_api_key",
    "kimi": lambda body: "code" not in body["error"],
    "dashscope_compatible": lambda body: body["request_id"],
    "huggingface": lambda body: isinstance(body["error"], str),
}


@pytest.mark.parametrize("name", DIALECTS)
async def test_unknown_keys_are_refused_in_the_vendors_shape(name):
    async with OpenAICompatible(name, keys={"good"}).running() as upstream:
        model = upstream.dialect.models[0]

        good = await ask(upstream, chat("hi", model=model), authorization="Bearer good")
        bad = await ask(upstream, chat("hi", model=model), authorization="Bearer bad")
        none = await ask(upstream, chat("hi", model=model))

        assert (good.status, bad.status, none.status) == (200, 401, 401)
        assert ERROR_BODIES[name](json.loads(bad.body))
        assert [call.notes.get("refused") for call in upstream.ledger.calls] == [None, "key", "key"]


async def test_limits_per_key():
    async with OpenAICompatible("cerebras", requests_per_minute=2).running() as upstream:
        seen = [await ask(upstream, chat("hi"), authorization=f"Bearer {key}") for key in "aaab"]

        assert [answer.status for answer in seen] == [200, 200, 429, 200]
        assert json.loads(seen[2].body)["code"] == "request_quota_exceeded"
        assert seen[1].headers["x-ratelimit-remaining-requests-day"] == "0"
        assert float(seen[1].headers["x-ratelimit-reset-tokens-minute"]) == 30.0


async def test_concurrency_per_key_is_counted_and_limited():
    async with OpenAICompatible("kimi", concurrency=1).running() as upstream, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: ask(upstream, chat("hi sim:fault=hang_mid"), authorization="Bearer a"))
        await upstream.ledger.wait_for_call()

        second = await ask(upstream, chat("hi"), authorization="Bearer a")
        other = await ask(upstream, chat("hi"), authorization="Bearer b")

        assert (second.status, other.status) == (429, 200)
        assert "max concurrency" in json.loads(second.body)["error"]["message"]
        assert upstream.ledger.peak_by_key[["Bearer", "a"][1]] == 2
        nursery.cancel_scope.cancel()


REFUSED = {
    "openai": {"model": "gpt-5-mini", "temperature": 0.5},
    "deepseek": {"model": "deepseek-reasoner", "tool_choice": "required"},
    "cerebras": {"messages": [{"role": "assistant", "content": "x", "reasoning_content": "y"}]},
    "kimi": {"temperature": 1.5},
    "dashscope_compatible": {"model": "qwen3-32b", "enable_thinking": True, "stream": False},
    "huggingface": {"model": "gpt-4o"},
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_the_vendor_refuses_is_refused(name):
    async with OpenAICompatible(name).running() as upstream:
        seen = await ask(upstream, chat("hi", **REFUSED[name]))

        assert seen.status == 400
        assert upstream.ledger.calls[0].notes["refused"] == "parameters"


async def test_a_body_that_is_not_json_is_refused():
    async with OpenAICompatible().running() as upstream:
        for body in (b"{", b"[]", b'"x"', b""):
            assert (await ask(upstream, body)).status == 400
        assert (await ask(upstream, chat("hi"), path="/v1/nothing")).status == 404


async def test_the_client_raises_on_what_the_vendor_sends_in_mid_stream():
    async with running("cerebras") as (_, client):
        stream = await client.chat.completions.create(
            model="gpt-oss-120b", messages=user("a b c d sim:fault=error_mid"), stream=True
        )

        heard = []
        with pytest.raises(openai.APIError):
            async for chunk in stream:
                heard.append(chunk.choices[0].delta.content or "")
        assert "".join(heard) == "a b"


async def test_the_routers_backend_follows_from_the_model_name():
    async with OpenAICompatible("huggingface").running() as upstream:
        bodies = {
            backend: (await ask(upstream, chat("hi sim:think=1", model=f"openai/gpt-oss-120b:{backend}"))).body
            for backend in ("fireworks-ai", "groq", "cerebras", "nscale")
        }

        assert b"accounts/fireworks" in bodies["fireworks-ai"] and b"reasoning_content" in bodies["fireworks-ai"]
        assert b'"reasoning":' in bodies["groq"] and b'"choices":[],"usage":{' in bodies["groq"]
        assert b"time_info" in bodies["cerebras"]
        assert b"prompt_tokens" not in bodies["nscale"]
