"""Embeddings and legacy completions, with OpenAI's own client: the same road, the same promises."""

import httpx2
import openai
import pytest

from tests.end_to_end.gateway import API_KEY, Gateway
from tests.simulators.compose import embedding
from tests.simulators.openai_compatible import OpenAICompatible


async def test_embeddings_as_the_client_asks_for_them(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    made = await sdk.embeddings.create(model="fast", input=["one", "two"], dimensions=16)
    assert [entry.embedding for entry in made.data] == [embedding("one", 16), embedding("two", 16)]
    assert made.model == "fast" and made.usage.total_tokens > 0
    (call,) = upstream.ledger.calls
    assert call.path == "/v1/embeddings"
    assert call.json() == {
        "model": "gpt-4o-mini", "input": ["one", "two"], "dimensions": 16, "encoding_format": "base64",
    }  # fmt: skip


async def test_embeddings_as_numbers(house: Gateway, upstream: OpenAICompatible) -> None:
    reply = await post(house, "embeddings", {"model": "fast", "input": "one"})
    assert reply.json()["data"][0]["embedding"] == embedding("one", 8)


async def test_a_text_goes_on(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    whole = await sdk.completions.create(model="fast", prompt="one two three", max_tokens=50)
    assert whole.object == "text_completion" and whole.model == "fast"
    assert whole.choices[0].text == upstream.ledger.calls[0].text
    stream = await sdk.completions.create(
        model="fast", prompt="one two three", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == upstream.ledger.calls[1].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["stop"]
    assert chunks[-1].usage.total_tokens > 0
    assert {call.path for call in upstream.ledger.calls} == {"/v1/completions"}


async def test_the_best_of_several_comes_whole(sdk: openai.AsyncOpenAI, upstream: OpenAICompatible) -> None:
    answer = await sdk.completions.create(model="fast", prompt="one two", best_of=2)
    assert answer.choices[0].text == upstream.ledger.calls[0].text
    assert "stream" not in upstream.ledger.calls[0].json()


@pytest.mark.parametrize("endpoint", ["embeddings", "completions"])
@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ("sim:error=openai_400_context_length", 400, "context_length_exceeded"),
        ("sim:error=openai_404_model_not_found", 404, "model_not_found"),
        ("sim:fault=error_200", 502, "upstream_error"),
        ("sim:fault=html", 502, "upstream_error"),
        ("sim:fault=close_before_headers", 502, "upstream_disconnected"),
    ],
)
async def test_refusals(
    house: Gateway, upstream: OpenAICompatible, endpoint: str, script: str, status: int, code: str
) -> None:
    text = {"embeddings": "input", "completions": "prompt"}[endpoint]
    reply = await post(house, endpoint, {"model": "fast", text: f"hello {script}"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        ("embeddings", {"model": "fast"}, "input"),
        ("embeddings", {"model": "fast", "input": 5}, "input"),
        ("embeddings", {"model": "fast", "input": "x", "encoding_format": "hex"}, "encoding_format"),
        ("completions", {"model": "fast", "prompt": {}}, "prompt"),
        ("embeddings", {"model": "echo", "input": "x"}, "model"),
        ("completions", {"model": "echo", "prompt": "x"}, "model"),
    ],
)
async def test_requests_that_make_no_sense(
    house: Gateway, upstream: OpenAICompatible, endpoint: str, body: dict[str, object], param: str
) -> None:
    reply = await post(house, endpoint, body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert upstream.ledger.calls_seen == 0


async def post(house: Gateway, endpoint: str, body: object) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=20, headers={"authorization": f"Bearer {API_KEY}"}) as client:
        return await client.post(f"{house.base_url}/{endpoint}", json=body)
