"""FlowGPT through the whole gateway: two tokens, each with its device, signed calls, and answers without their preambles."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, free_port, gateway, until
from tests.redis_server import RedisServer
from tests.simulators.flowgpt import FlowGPT

TOKENS = {"token-one-0123456789": "DEVICE-ONE", "token-two-0123456789": "DEVICE-TWO"}
TEMPLATE = "{timestamp}:{nonce}:{device_id}"
PROMPTS = frozenset({"PROMPT-1", "PROMPT-2"})


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def house(port: int) -> Iterator[Gateway]:
    settings = {
        "FLOWGPT_BASE_URL": f"http://127.0.0.1:{port}",
        "FLOWGPT_BEARER_TOKEN": ",".join(TOKENS),
        "FLOWGPT_DEVICE_ID": ",".join(TOKENS.values()),
        "FLOWGPT_MODELS": "gpt-4-free=PROMPT-1,other=PROMPT-2,gone=PROMPT-3",
        "FLOWGPT_SIGNATURE_TEMPLATE": TEMPLATE,
    }
    with contextlib.closing(RedisServer()) as redis, gateway(redis, **settings) as running:
        running.frontend()
        running.worker("flowgpt")
        running.wait_ready("gpt-4-free")
        yield running


@pytest.fixture
async def upstream(port: int) -> AsyncIterator[FlowGPT]:
    async with FlowGPT(tokens=TOKENS, prompt_ids=PROMPTS, template=TEMPLATE).running(port) as simulator:
        yield simulator


@pytest.fixture
async def sdk(house: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=house.base_url, api_key=API_KEY, max_retries=0, timeout=20) as client:
        yield client


async def ask(sdk: openai.AsyncOpenAI, words: str, *, model: str = "gpt-4-free", stream: bool = True) -> str:
    history = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": words}]},
    ]
    answer = await sdk.chat.completions.create(model=model, messages=history, stream=stream, temperature=0.2)
    if not stream:
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.model_extra["estimated"] is True
        return answer.choices[0].message.content
    return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    "script", ["", "sim:preamble=1", "sim:late=1", "sim:junk=1", "sim:no_event=1", "sim:open_end=1"]
)
async def test_an_answer_is_what_a_reader_is_meant_to_see(
    sdk: openai.AsyncOpenAI, upstream: FlowGPT, script: str, stream: bool
) -> None:
    told = await ask(sdk, f"one two three {script}", stream=stream)
    create, chat = upstream.ledger.calls
    assert told == chat.text and "three" in told
    assert [message["role"] for message in create.json()["messages"]] == ["system", "user"]
    assert (create.json()["promptId"], chat.json()["temperature"]) == ("PROMPT-1", 0.2)
    assert not [call for call in upstream.ledger.calls if "refused" in call.notes]


async def test_garbage_between_good_lines_is_counted_in_the_log(
    house: Gateway, sdk: openai.AsyncOpenAI, upstream: FlowGPT
) -> None:
    assert await ask(sdk, "one two three sim:junk=1") == upstream.ledger.calls[-1].text
    with trio.fail_after(5):
        await until(lambda: "flowgpt sent" in house.processes[-1].text())


async def test_both_tokens_share_the_load_and_no_preamble_meets_another(
    sdk: openai.AsyncOpenAI, upstream: FlowGPT
) -> None:
    told: dict[int, str] = {}

    async def call(number: int) -> None:
        told[number] = await ask(sdk, f"answer number {number} sim:preamble=1 sim:gap=0.01", stream=number % 2 == 0)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(call, number)
    chats = upstream.ledger.by_path("/v3/chat")
    assert min(len([chat for chat in chats if chat.key == token]) for token in TOKENS) >= 8
    assert not [call for call in upstream.ledger.calls if "refused" in call.notes], "each token goes with its device"
    assert len({chat.header("x-nonce") for chat in chats}) == 20
    for number, text in told.items():
        assert f"number {number} " in f"{text} " and "Response:**" not in text


async def test_a_token_that_is_refused_gives_way_to_the_other(sdk: openai.AsyncOpenAI, upstream: FlowGPT) -> None:
    first, second = TOKENS
    upstream.control.for_key(first, error="flowgpt_429")
    assert {await ask(sdk, f"hello {number}") for number in range(4)} == {f"hello {number}" for number in range(4)}
    chats = upstream.ledger.by_path("/v3/chat")
    assert [chat.status for chat in chats if chat.key == first] == [429], "then it rests"
    assert [chat.status for chat in chats if chat.key == second] == [200] * 4


@pytest.mark.parametrize(
    ("words", "model", "status", "code"),
    [
        ("hello", "unheard-of", 404, "model_not_found"),
        ("hello", "gone", 404, "model_not_found"),
        ("hello sim:error=flowgpt_403_signature", "other", 502, "upstream_misconfigured"),
        ("hello sim:status=500", "other", 502, "upstream_error"),
        ("hello sim:fault=error_mid sim:at=0", "other", 502, "upstream_error"),
    ],
)
async def test_errors(
    sdk: openai.AsyncOpenAI, upstream: FlowGPT, words: str, model: str, status: int, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await ask(sdk, words, model=model, stream=False)
    assert (refused.value.status_code, refused.value.code) == (status, code)


async def test_a_cut_body_is_no_end(sdk: openai.AsyncOpenAI, upstream: FlowGPT) -> None:
    with pytest.raises(openai.APIError) as cut:
        await ask(sdk, "go sim:size=600 sim:chunks=9 sim:at=6 sim:fault=drop_mid")
    assert cut.value.code == "upstream_disconnected"


async def test_parameters_without_a_counterpart_are_refused(sdk: openai.AsyncOpenAI, upstream: FlowGPT) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(
            model="gpt-4-free", messages=[{"role": "user", "content": "hello"}], max_tokens=5
        )
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "max_tokens")
    assert upstream.ledger.calls_seen == 0
