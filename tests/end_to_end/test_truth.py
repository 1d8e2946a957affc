"""Promise 1: a stream is complete, or it ends with an explicit error; a refusal before the first byte has its real status."""

import json

import httpx2
import openai
import pytest

from tests.end_to_end.gateway import API_KEY, Gateway
from tests.simulators.openai_compatible import OpenAICompatible


def said(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}]


async def ask(sdk: openai.AsyncOpenAI, words: str, *, stream: bool = True) -> str:
    answer = await sdk.chat.completions.create(model="gpt-4o-mini", messages=said(words), stream=stream)
    if not stream:
        return answer.choices[0].message.content or ""
    return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])


@pytest.mark.parametrize("fault", ["no_done", "after_done"])
async def test_complete_without_the_usual_end(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible, fault: str) -> None:
    assert await ask(sdk, f"one two three sim:fault={fault}") == "one two three"


async def test_an_answer_without_done_still_ends_with_done_here(house: Gateway, upstream: OpenAICompatible) -> None:
    body = await raw_stream(house, "one two sim:fault=no_done")
    assert body.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("truncate", "upstream_stream_truncated"),
        ("no_finish", "upstream_stream_truncated"),
        ("drop_mid", "upstream_disconnected"),
        ("reset_mid_chunk", "upstream_disconnected"),
        ("error_mid", "upstream_error"),
    ],
)
async def test_a_broken_stream_is_an_error(
    sdk: openai.AsyncOpenAI, upstream: OpenAICompatible, fault: str, code: str
) -> None:
    pieces = []
    stream = await sdk.chat.completions.create(
        model="gpt-4o-mini", messages=said(f"go sim:chunks=6 sim:gap=0.02 sim:at=3 sim:fault={fault}"), stream=True
    )
    with pytest.raises(openai.APIError) as broken:
        async for chunk in stream:
            pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            assert not any(choice.finish_reason for choice in chunk.choices)
    assert broken.value.code == code
    assert "".join(pieces) and upstream.ledger.calls[0].text.startswith("".join(pieces))


async def test_a_broken_stream_ends_with_one_error_event(house: Gateway, upstream: OpenAICompatible) -> None:
    text = await raw_stream(house, "go sim:chunks=6 sim:gap=0.02 sim:at=3 sim:fault=drop_mid")
    events = text.strip().split("\n\n")
    assert "[DONE]" not in "".join(events)
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "server_error"
    assert all('"error"' not in event for event in events[:-1])


async def test_a_whole_answer_from_a_broken_stream_is_tried_again(
    sdk: openai.AsyncOpenAI, upstream: OpenAICompatible
) -> None:
    words = "go sim:chunks=4 sim:fault=drop_mid sim:times=1"
    assert await ask(sdk, words, stream=False) == upstream.ledger.calls[0].text
    assert upstream.ledger.calls_seen == 2


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("script", "status", "code", "calls"),
    [
        ("sim:error=openai_400_context_length", 400, "context_length_exceeded", 1),
        ("sim:error=openai_400_unsupported_parameter", 400, "unsupported_parameter", 1),
        ("sim:error=openai_404_model_not_found", 404, "model_not_found", 1),
        ("sim:error=openai_500_server_error", 502, "upstream_error", 2),
        ("sim:error=openai_503_overloaded", 503, "upstream_overloaded", 2),
        ("sim:fault=html", 502, "upstream_error", 2),
        ("sim:fault=error_200", 502, "upstream_error", 2),
        ("sim:fault=close_before_headers", 502, "upstream_disconnected", 2),
        ("sim:fault=reset_after_headers", 502, "upstream_disconnected", 2),
        ("sim:fault=redirect", 502, None, None),
    ],
)
async def test_refusals_have_their_status(
    house: Gateway,
    upstream: OpenAICompatible,
    script: str,
    status: int,
    code: str | None,
    calls: int | None,
    stream: bool,
) -> None:
    reply = await post(house, {"model": "gpt-4o", "messages": said(f"go {script}"), "stream": stream})
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
    if calls is not None:
        assert upstream.ledger.calls_seen == calls
        assert (reply.headers.get("x-should-retry") == "false") == (calls > 1)
    assert "sk-" not in reply.text


@pytest.mark.parametrize(
    "text", ["nul", "lone_surrogate", "split_surrogate", "line_separators", "sse_lookalike", "emoji"]
)
async def test_difficult_text_arrives(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible, text: str) -> None:
    wanted = {
        "lone_surrogate": "a\ufffdb",
        "split_surrogate": "a 😀 b",
    }
    streamed = await ask(sdk, f"go sim:text={text}")
    sent = upstream.ledger.calls[0].text
    assert streamed == wanted.get(text, sent)
    assert await ask(sdk, f"go sim:text={text}", stream=False) == streamed


@pytest.mark.parametrize(
    "odd", ["not_json", "array", "null", "empty_object", "null_choices", "null_delta", "unknown_fields"]
)
async def test_an_odd_event_in_a_good_stream_is_dropped(
    sdk: openai.AsyncOpenAI, upstream: OpenAICompatible, odd: str
) -> None:
    assert await ask(sdk, f"one two three four sim:insert={odd}") == "one two three four"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_megabyte_each_way(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible, stream: bool) -> None:
    long_prompt = "x" * 1_000_000
    answer = await sdk.chat.completions.create(
        model="gpt-4o-mini", messages=[*said(long_prompt), *said("sim:size=1000000")], stream=stream
    )
    text = (
        "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
        if stream
        else answer.choices[0].message.content
    )
    call = upstream.ledger.calls[0]
    assert text == call.text and len(text.encode()) == 1_000_000
    assert call.json()["messages"][0]["content"] == long_prompt


async def post(house: Gateway, body: object) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=20, headers={"authorization": f"Bearer {API_KEY}"}) as client:
        return await client.post(f"{house.base_url}/chat/completions", json=body)


async def raw_stream(house: Gateway, words: str) -> str:
    return (await post(house, {"model": "gpt-4o-mini", "messages": said(words), "stream": True})).text
