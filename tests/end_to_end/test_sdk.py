"""What a developer does: OpenAI's SDK with another `base_url`."""

import openai
import pytest
import trio

from tests.end_to_end.gateway import Gateway
from tests.simulators.openai_compatible import OpenAICompatible

TELL = [{"role": "user", "content": "Tell me a story, please."}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def said(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}]


async def test_streams_text(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    chunks = [
        chunk async for chunk in await sdk.chat.completions.create(model="gpt-4o-mini", messages=TELL, stream=True)
    ]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Tell me a story, please."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.role for chunk in chunks[1:]] == [None] * (len(chunks) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk.model for chunk in chunks} == {"gpt-4o-mini"}
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_last_when_asked(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    stream = await sdk.chat.completions.create(
        model="gpt-4o-mini", messages=TELL, stream=True, stream_options={"include_usage": True}
    )
    *text, last = [chunk async for chunk in stream]
    assert last.choices == []
    assert last.usage is not None and last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in text)


async def test_answers_whole(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    answer = await sdk.chat.completions.create(model="gpt-4o-mini", messages=TELL)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "Tell me a story, please."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens > 0
    assert upstream.ledger.calls[0].json()["stream"] is True


def test_synchronous_client_against_the_keyless_provider(house: Gateway) -> None:
    with house.client() as client:
        stream = client.chat.completions.create(model="echo", messages=said("Hello from echo"), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello from echo"


async def test_raw_response_has_the_gateways_headers(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=TELL)
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-sluice-provider"] == "openai"
    assert raw.headers["x-sluice-attempts"] == "1"
    assert "server" not in raw.headers
    assert raw.parse().choices[0].message.content == "Tell me a story, please."


async def test_tools(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    stream = await sdk.chat.completions.create(
        model="gpt-4o-mini", messages=said("Oslo sim:tools=2"), tools=[TOOL], stream=True
    )
    calls: dict[int, str] = {}
    names: dict[int, list[str]] = {}
    reason = None
    async for chunk in stream:
        reason = chunk.choices[0].finish_reason or reason
        for call in chunk.choices[0].delta.tool_calls or []:
            calls[call.index] = calls.get(call.index, "") + (call.function.arguments or "")
            if call.function.name:
                names.setdefault(call.index, []).append(call.function.name)
    assert reason == "tool_calls"
    assert names == {0: ["weather"], 1: ["weather"]}
    whole = await sdk.chat.completions.create(model="gpt-4o-mini", messages=said("Oslo sim:tools=2"), tools=[TOOL])
    assembled = whole.choices[0].message.tool_calls
    assert assembled is not None
    assert {index: call.function.arguments for index, call in enumerate(assembled)} == calls
    assert whole.choices[0].finish_reason == "tool_calls"


async def test_several_choices(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    stream = await sdk.chat.completions.create(model="gpt-4o-mini", messages=TELL, n=2, stream=True)
    texts = {0: "", 1: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "Tell me a story, please.", 1: "Tell me a story, please. (2)"}
    whole = await sdk.chat.completions.create(model="gpt-4o-mini", messages=TELL, n=2)
    assert {choice.index: choice.message.content for choice in whole.choices} == texts


async def test_many_at_once_never_mix(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    texts: dict[int, str] = {}

    async def ask(number: int) -> None:
        stream = await sdk.chat.completions.create(
            model="gpt-4o-mini", messages=said(f"caller{number} sim:chunks=30 sim:gap=0.002"), stream=True
        )
        texts[number] = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(ask, number)
    by_caller = {call.text.partition(".")[0]: call.text for call in upstream.ledger.calls}
    assert texts == {number: by_caller[f"caller{number}"] for number in range(40)}


async def test_an_answer_that_ends_at_once_is_never_lost(sdk: openai.AsyncOpenAI, house: Gateway) -> None:
    for number in range(150):
        answer = await sdk.chat.completions.create(model="echo", messages=said(f"n{number}"), stream=number % 2 == 0)
        if number % 2 == 0:
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
        else:
            text = answer.choices[0].message.content
        assert text == f"n{number}"


async def test_models(sdk: openai.AsyncOpenAI) -> None:
    listed = {model.id: model async for model in await sdk.models.list()}
    assert {"gpt-4o-mini", "gpt-4o", "echo", "fast"} <= set(listed)
    assert listed["gpt-4o-mini"].owned_by == "openai"
    assert (await sdk.models.retrieve("fast")).id == "fast"
    with pytest.raises(openai.NotFoundError) as refused:
        await sdk.models.retrieve("org/unknown:fast")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("name", ["gpt-4o-mini", "fast", "openai/gpt-4o-mini"])
async def test_model_names(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible, name: str) -> None:
    answer = await sdk.chat.completions.create(model=name, messages=TELL)
    assert answer.model == name
    assert upstream.ledger.calls[0].json()["model"] == "gpt-4o-mini"


async def test_an_unlisted_model_of_a_provider_is_passed_on(
    sdk: openai.AsyncOpenAI, upstream: OpenAICompatible
) -> None:
    await sdk.chat.completions.create(model="openai/org/new-model:fast", messages=TELL)
    assert upstream.ledger.calls[0].json()["model"] == "org/new-model:fast"
