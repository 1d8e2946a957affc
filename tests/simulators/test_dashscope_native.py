"""The simulator of DashScope's own API writes the recordings byte for byte and plays its own kinds of failure."""

from __future__ import annotations

import gzip
import json

import pytest
import trio

from tests.simulators.dashscope_native import MULTIMODAL_PATH, PATH, DashScopeNative
from tests.simulators.native_events import Said, event_frames, native_error_event, native_events, whole_answer
from tests.simulators.raw_client import ask
from tests.simulators.recordings import recording

RECORDED_ID = "00000000-0000-9000-8000-0000000000a1"
LAW = ("根据", "《民法典》", "第五百八十七条", "。")
LAWFUL = Said(LAW, RECORDED_ID, 22, output_tokens=(1, 5, 12, 13, 13))
SSE = {"X_DashScope_SSE": "enable"}
INCREMENTS = {"result_format": "message", "incremental_output": True}


@pytest.fixture
async def upstream():
    with trio.fail_after(10):
        async with DashScopeNative().running() as simulator:
            yield simulator


def request(words, *, model="farui-plus", **parameters):
    return {"model": model, "input": {"messages": [{"role": "user", "content": words}]}, "parameters": parameters}


async def generate(upstream, body, *, path=PATH, **headers):
    return await ask(upstream, body, path="/api/v1" + path, **headers)


def outputs(body):
    events = [json.loads(line[5:]) for line in body.split(b"\n") if line.startswith(b"data:")]
    return [event.get("output") for event in events]


def contents(body):
    return [output["choices"][0]["message"]["content"] for output in outputs(body)]


RECORDED = {
    "dashscope_native_stream.sse": (LAWFUL, {"incremental": True, "message_format": True, "own_end": True}),
    "dashscope_native_cumulative.sse": (
        Said(("根据", "《民法典》", "第五百八十七条", "。"), RECORDED_ID, 22, output_tokens=(1, 5, 12, 13)),
        {"incremental": False, "message_format": True, "own_end": False},
    ),
    "dashscope_native_reasoning.sse": (
        Said(
            ("1+1", " = 2"),
            RECORDED_ID,
            16,
            thoughts=("One", " plus one."),
            output_tokens=(3, 5, 8, 11, 11),
            reasoning_tokens=(1, 3),
        ),
        {"incremental": True, "message_format": True, "own_end": True},
    ),
    "dashscope_native_text_format.sse": (
        Said(("1+", "1=2"), RECORDED_ID, 16, output_tokens=(2, 4, 4)),
        {"incremental": True, "message_format": False, "own_end": True},
    ),
}


@pytest.mark.parametrize("file", RECORDED)
def test_a_stream_is_written_as_it_was_recorded(file):
    said, shape = RECORDED[file]

    frames = event_frames(native_events(said, **shape), own_end=shape["own_end"])

    assert b"".join(frame.wire for frame in frames).decode() == recording(file).body.decode()


def test_a_whole_answer_and_an_error_event_are_written_as_they_were_recorded():
    whole = Said(LAW, RECORDED_ID, 22, output_tokens=(1, 5, 12, 13))
    error = json.loads(recording("errors/dashscope_native_400_parameter.json").body)

    assert whole_answer(whole, message_format=True) == recording("dashscope_native_chat.json").body
    assert native_error_event(400, error, 1) == recording("dashscope_native_error.sse").body


async def test_streaming_only_if_a_header_asks(upstream):
    body = request("one two", **INCREMENTS)

    by_own_header = await generate(upstream, body, **SSE)
    by_accept = await generate(upstream, body, accept="text/event-stream")
    whole = await generate(upstream, {**body, "stream": True}, accept="*/*")

    assert contents(by_own_header.body) == contents(by_accept.body) == ["one", " two", ""]
    assert by_own_header.headers["content-type"] == "text/event-stream;charset=UTF-8"
    assert json.loads(whole.body)["output"]["choices"][0]["message"]["content"] == "one two"


async def test_increments_or_everything_so_far(upstream):
    cumulative = await generate(upstream, request("one two", result_format="message"), **SSE)
    text_format = await generate(upstream, request("one two", incremental_output=True), **SSE)

    assert contents(cumulative.body) == ["one", "one two"]
    assert [output["choices"][0]["finish_reason"] for output in outputs(cumulative.body)] == ["null", "stop"]
    assert [output["text"] for output in outputs(text_format.body)] == ["one", " two", ""]
    assert [output["finish_reason"] for output in outputs(text_format.body)] == ["null", "null", "stop"]


async def test_where_the_end_is_told_can_be_chosen(upstream):
    last = await generate(upstream, request("one two sim:end=last", **INCREMENTS), **SSE)
    own = await generate(upstream, request("one two sim:end=own", result_format="message"), **SSE)

    assert contents(last.body) == ["one", " two"]
    assert contents(own.body) == ["one", "one two", "one two"]


async def test_thinking_limits_and_lists(upstream):
    thinking = await generate(upstream, request("hi sim:think=2", **INCREMENTS), **SSE)
    short = await generate(upstream, request("a b c", max_tokens=2, **INCREMENTS), **SSE)
    listed_body = request("", **INCREMENTS)
    listed_body["input"]["messages"][0]["content"] = [{"text": "look here"}]
    listed = await generate(upstream, listed_body, path=MULTIMODAL_PATH, **SSE)

    messages = [output["choices"][0]["message"] for output in outputs(thinking.body)]
    assert [message["reasoning_content"] for message in messages] == ["One", " plus", "", ""]
    assert outputs(short.body)[-1]["choices"][0]["finish_reason"] == "length"
    assert contents(listed.body) == [[{"text": "look"}], [{"text": " here"}], []]


async def test_tool_calls_end_with_the_last_fragment(upstream):
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"properties": {"city": {}}}}}]

    seen = await generate(upstream, request("Bern sim:tools=2", tools=tools, **INCREMENTS), **SSE)
    whole = await generate(upstream, request("Bern sim:tools=2", tools=tools, **INCREMENTS))

    arguments = {}
    for output in outputs(seen.body):
        call = output["choices"][0]["message"]["tool_calls"][0]
        assert bool(call["id"]) == ("name" in call["function"])
        arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
    assert [json.loads(text) for text in arguments.values()] == [{"city": "Bern"}, {"city": "Bern (2)"}]
    assert outputs(seen.body)[-1]["choices"][0]["finish_reason"] == "tool_calls"
    message = json.loads(whole.body)["output"]["choices"][0]["message"]
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == list(arguments.values())


async def test_errors_come_plain_or_as_events_with_status_200(upstream):
    plain = await generate(upstream, request("x sim:error=dashscope_native_500"), **SSE)
    first = await generate(
        upstream, request("x sim:fault=error_200_event sim:error=dashscope_native_400_parameter"), **SSE
    )
    later = await generate(
        upstream,
        request("a b c d sim:fault=error_mid sim:error=dashscope_native_400_inspection", **INCREMENTS),
        **SSE,
    )
    business = await generate(upstream, request("x sim:fault=error_200 sim:error=dashscope_native_200_business"), **SSE)

    assert plain.status == 500 and json.loads(plain.body)["code"] == "InternalError"
    assert first.status == 200 and first.body == recording("dashscope_native_error.sse").body
    assert b"id:3\nevent:error\n:HTTP_STATUS/400\ndata:" in later.body and contents_before_error(later.body) == [
        "a",
        " b",
    ]
    assert business.status == 200 and "output" not in json.loads(business.body)


def contents_before_error(body):
    return [output["choices"][0]["message"]["content"] for output in outputs(body) if output]


async def test_truncation_and_no_blank_lines(upstream):
    cut = await generate(upstream, request("a b c d sim:fault=truncate", **INCREMENTS), **SSE)
    unfinished = await generate(upstream, request("a b sim:fault=no_finish", **INCREMENTS), **SSE)
    dense = await generate(upstream, request("a b sim:blank=0", **INCREMENTS), **SSE)

    for seen in (cut, unfinished):
        assert (seen.ended, {output["choices"][0]["finish_reason"] for output in outputs(seen.body)}) == (
            "complete",
            {"null"},
        )
    assert b"\n\n" not in dense.body and contents(dense.body) == ["a", " b", ""]


async def test_gzip_if_offered_flushes_every_event(upstream):
    async def flushed():
        return await generate(upstream, request("a b sim:gap=0.001", **INCREMENTS), **SSE, accept_encoding="gzip")

    seen = await flushed()
    plain = await generate(upstream, request("a b sim:gzip=0", **INCREMENTS), **SSE, accept_encoding="gzip")

    assert seen.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert contents(gzip.decompress(seen.body)) == ["a", " b", ""]


REFUSED = {
    "temperature": (request("x", temperature=2.0), "400_parameter"),
    "top_p": (request("x", top_p=0), "400_parameter"),
    "thinking": (request("x", enable_thinking=True), "400_parameter"),
    "empty": (request(""), "400_parameter"),
    "long": (request("x" * 12_001), "400_length"),
    "name": (request("x", model="qwen-3-32b"), "404_model"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_the_service_refuses_is_refused(upstream, name):
    body, error = REFUSED[name]

    seen = await generate(upstream, body, **SSE)

    assert seen.body == recording(f"errors/dashscope_native_{error}.json").body


async def test_keys_are_recorded_per_request_and_checked():
    async with DashScopeNative(keys={"sk-a", "sk-b"}, requests_per_minute=2).running() as upstream:
        statuses = [
            (await generate(upstream, request(f"caller {key}"), authorization=f"Bearer {key}")).status
            for key in ("sk-a", "sk-b", "sk-c", "sk-a", "sk-a")
        ]

        assert statuses == [200, 200, 401, 200, 429]
        assert [call.key for call in upstream.ledger.calls] == ["sk-a", "sk-b", "sk-c", "sk-a", "sk-a"]
        assert upstream.ledger.by_key("sk-b")[0].text == "caller sk-b"


async def test_the_wrong_path_is_told(upstream):
    seen = await generate(upstream, request("x"), path="/services/aigc/nothing")

    assert (seen.status, json.loads(seen.body)["code"]) == (400, "InvalidURL")
