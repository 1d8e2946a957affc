"""Every dialect, given what a recording says, writes that recording byte for byte."""

from __future__ import annotations

import json

import pytest

from tests.simulators.dialects import DIALECTS
from tests.simulators.recordings import recording
from tests.simulators.speech import Speech, ToolCall, Usage

OPENAI_MODEL = "gpt-4o-mini-2024-07-18"

STREAMS: dict[str, tuple[str, Speech]] = {
    "openai_stream.sse": (
        "openai",
        Speech("chatcmpl-test0001", OPENAI_MODEL, (("Hello", "!", " Grüße", " 你好 👋"),), ("stop",), Usage(19, 4)),
    ),
    "openai_tools_stream.sse": (
        "openai",
        Speech(
            "chatcmpl-test0003",
            OPENAI_MODEL,
            ((),),
            ("tool_calls",),
            Usage(85, 38),
            tool_calls=(
                ToolCall("call_test_a", "get_weather", ("", '{"ci', 'ty":"Paris"}')),
                ToolCall("call_test_b", "get_weather", ("", '{"city":', '"Oslo"}')),
            ),
            include_usage=True,
        ),
    ),
    "deepseek_chat_stream.sse": (
        "deepseek",
        Speech("00000000-0000-4000-8000-0000000000d1", "deepseek-chat", (("Hello", "!"),), ("stop",), Usage(14, 4)),
    ),
    "deepseek_insufficient_resource_stream.sse": (
        "deepseek",
        Speech(
            "00000000-0000-4000-8000-0000000000d1",
            "deepseek-chat",
            (("Partial",),),
            ("insufficient_system_resource",),
            Usage(14, 1),
        ),
    ),
    "deepseek_reasoner_stream.sse": (
        "deepseek",
        Speech(
            "00000000-0000-4000-8000-0000000000d2",
            "deepseek-reasoner",
            (("9.8", " is larger."),),
            ("stop",),
            Usage(160, 31, cached=128, reasoning=24),
            thoughts=("The user", " asks 9.11", " vs 9.8."),
        ),
    ),
    "cerebras_stream.sse": (
        "cerebras",
        Speech("chatcmpl-test-cb01", "llama-3.3-70b", (("Hello", " from a", " wafer."),), ("stop",), Usage(38, 6)),
    ),
    "cerebras_reasoning_stream.sse": (
        "cerebras",
        Speech(
            "chatcmpl-test-cb02",
            "gpt-oss-120b",
            (("Hi", "!"),),
            ("stop",),
            Usage(70, 21, reasoning=12),
            thoughts=("User greets.", " Greet back."),
        ),
    ),
    "kimi_stream.sse": (
        "kimi",
        Speech("cmpl-test-km01", "moonshot-v1-8k", (("你好", "，世", "界。"),), ("stop",), Usage(19, 5)),
    ),
    "kimi_stream_include_usage.sse": (
        "kimi",
        Speech(
            "cmpl-test-km01",
            "moonshot-v1-8k",
            (("Hi", "."),),
            ("stop",),
            Usage(19, 5, cached=16),
            include_usage=True,
        ),
    ),
    "kimi_thinking_stream.sse": (
        "kimi",
        Speech(
            "chatcmpl-test-km02",
            "kimi-k2-thinking",
            (("The answer", " is 4."),),
            ("stop",),
            Usage(21, 40),
            thoughts=("Two plus", " two."),
        ),
    ),
    "dashscope_compat_stream.sse": (
        "dashscope_compatible",
        Speech(
            "chatcmpl-test-dc01",
            "qwen-plus",
            (("我是", "通义千问"),),
            ("stop",),
            Usage(26, 5),
            include_usage=True,
        ),
    ),
    "dashscope_compat_reasoning_stream.sse": (
        "dashscope_compatible",
        Speech(
            "chatcmpl-test-dc02",
            "qwen3-235b-a22b-thinking-2507",
            (("Done", "."),),
            ("stop",),
            Usage(12, 30, reasoning=22),
            thoughts=("Think", "ing."),
            include_usage=True,
        ),
    ),
    "dashscope_compat_tools_stream.sse": (
        "dashscope_compatible",
        Speech(
            "chatcmpl-test-dc03",
            "qwen-plus",
            ((),),
            ("tool_calls",),
            Usage(250, 37),
            tool_calls=(
                ToolCall("call_test_dc_a", "get_weather", ("", '{"city":', ' "Hangzhou"}')),
                ToolCall("call_test_dc_b", "get_weather", ('{"ci', 'ty": "Shanghai"}')),
            ),
            include_usage=True,
        ),
    ),
    "hf_stream.sse": (
        "huggingface",
        Speech(
            "00000000-0000-4000-8000-0000000000f2",
            "accounts/fireworks/models/gpt-oss-120b",
            (("Hello", "!"),),
            ("stop",),
            Usage(72, 26, cached=64),
            thoughts=("Greet", " the user."),
        ),
    ),
    "hf_stream_reasoning_alias.sse": (
        "huggingface:groq",
        Speech(
            "00000000-0000-4000-8000-0000000000f2",
            "openai/gpt-oss-120b",
            (("Hi.",),),
            ("stop",),
            Usage(72, 26, cached=64),
            thoughts=("Greet.",),
        ),
    ),
}

BODIES: dict[str, tuple[str, Speech]] = {
    "openai_chat.json": (
        "openai",
        Speech("chatcmpl-test0010", OPENAI_MODEL, (("Hello!", " How can I help?"),), ("stop",), Usage(19, 7)),
    ),
    "deepseek_chat.json": (
        "deepseek",
        Speech(
            "00000000-0000-4000-8000-0000000000d2",
            "deepseek-reasoner",
            (("9.8", " is larger."),),
            ("stop",),
            Usage(160, 31, cached=128, reasoning=24),
            thoughts=("The user asks 9.11 vs 9.8.",),
        ),
    ),
    "cerebras_chat.json": (
        "cerebras",
        Speech("chatcmpl-test-cb03", "llama-3.3-70b", (("Hello from a wafer.",),), ("stop",), Usage(38, 6)),
    ),
    "kimi_chat.json": (
        "kimi",
        Speech("cmpl-test-km03", "moonshot-v1-8k", (("Hi.",),), ("stop",), Usage(19, 5, cached=16)),
    ),
    "dashscope_compat_chat.json": (
        "dashscope_compatible",
        Speech("chatcmpl-test-dc04", "qwen-plus", (("我是通义千问",),), ("stop",), Usage(26, 5)),
    ),
    "hf_chat.json": (
        "huggingface",
        Speech(
            "00000000-0000-4000-8000-0000000000f3",
            "accounts/fireworks/models/gpt-oss-120b",
            (("Hello!",),),
            ("stop",),
            Usage(72, 26, cached=64),
            thoughts=("Greet the user.",),
        ),
    ),
}


def _dialect(name: str):
    vendor, _, backend = name.partition(":")
    return DIALECTS[vendor].for_model(f"some/model:{backend}")


def _without_comments(wire: bytes) -> bytes:
    return wire.replace(b": keep-alive\n\n", b"")


@pytest.mark.parametrize("file", STREAMS)
def test_a_stream_is_written_as_it_was_recorded(file):
    name, speech = STREAMS[file]

    written = b"".join(frame.wire for frame in _dialect(name).frames(speech))

    assert written.decode() == _without_comments(recording(file).body).decode()


@pytest.mark.parametrize("file", BODIES)
def test_a_whole_answer_is_written_as_it_was_recorded(file):
    name, speech = BODIES[file]

    assert _dialect(name).body(speech).decode() == recording(file).body.decode()


def test_cerebras_writes_the_recorded_error_in_mid_stream():
    recorded = recording("cerebras_midstream_error.sse").body
    nested = json.loads(recorded.rpartition(b"data: ")[2])
    flat = {name: value for name, value in nested["error"].items() if name != "id"}

    assert recorded.endswith(DIALECTS["cerebras"].error_event(500, flat, 3))


def test_openai_writes_the_recorded_error_in_mid_stream():
    recorded = recording("openai_midstream_error.sse").body

    event = DIALECTS["openai"].error_event(500, json.loads(recording("errors/openai_500_server_error.json").body), 3)

    assert recorded.endswith(event)


@pytest.mark.parametrize("name", DIALECTS)
def test_the_kinds_of_frames_tell_pieces_from_what_ends_the_answer(name):
    speech = Speech("id", "model", (("a", "b"), ("c",)), ("stop", "length"), Usage(1, 3), include_usage=True)

    frames = list(DIALECTS[name].frames(speech))

    kinds = [frame.kind for frame in frames]
    assert kinds.count("open") == 2 and kinds.count("piece") == 3 and kinds.count("finish") == 2
    assert kinds[-1] == "done"
    assert [json.loads(frame.wire[6:])["choices"][0]["index"] for frame in frames if frame.kind == "piece"] == [
        0,
        1,
        0,
    ]
