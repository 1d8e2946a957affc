"""DashScope's own API: OpenAI's request in its words, and its events in OpenAI's."""

import json
from typing import Any

import pytest
from msgspec import Raw

from shared.errors import GatewayError
from shared.sansio.sse import ServerSentEvent
from shared.schema.events import Delta, Failed, Finish, Usage
from tests.workers.recordings import told
from workers.provider import Call, Credential, HttpStream, Upstream
from workers.providers.dashscope_native import DashScopeNative, NativeDecoder

TOOLS = [{"type": "function", "function": {"name": "f"}}]


def a_provider(**more: Any) -> DashScopeNative:
    credentials = [Credential("c", "sk-ours")]
    return DashScopeNative(
        Upstream(
            "dashscope-native", "https://host.example/api/v1", credentials, ["farui-plus"], user_agent="s/1", **more
        )
    )


def exchange(body: dict[str, Any], made: DashScopeNative | None = None, model: str = "farui-plus") -> HttpStream:
    fields = {"messages": [{"role": "user", "content": "Hi"}]} | body
    raw = {name: value if isinstance(value, Raw) else Raw(json.dumps(value).encode()) for name, value in fields.items()}
    call = Call("chat", model, True, raw, Credential("caller", "sk-the-callers"), 0.0, "0" * 32)
    with pytest.raises(StopIteration) as done:
        next((made or a_provider()).plan(call))
    found: HttpStream = done.value.value
    return found


def sent(body: dict[str, Any], *arguments: Any, **more: Any) -> Any:
    return json.loads(exchange(body, *arguments, **more).request.body)


def refused(body: dict[str, Any], *arguments: Any, **more: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        exchange(body, *arguments, **more)
    return caught.value


def test_the_request_on_the_wire() -> None:
    asked = exchange(
        {"model": "farui-plus", "temperature": 0.7, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert asked.request.url == "https://host.example/api/v1/services/aigc/text-generation/generation"
    assert list(asked.request.headers) == [
        ("authorization", "Bearer sk-the-callers"),
        ("content-type", "application/json"),
        ("accept", "text/event-stream"),
        ("x-dashscope-sse", "enable"),
        ("accept-encoding", "identity"),
        ("user-agent", "s/1"),
    ]
    assert json.loads(asked.request.body) == {
        "model": "farui-plus",
        "input": {"messages": [{"role": "user", "content": "Hi"}]},
        "parameters": {"result_format": "message", "incremental_output": True, "temperature": 0.7},
    }
    assert asked.framing == "sse-tolerant"


SAME = {
    "temperature": 0.3,
    "top_p": 0.9,
    "max_tokens": 100,
    "stop": ["a", "b"],
    "seed": 1234,
    "presence_penalty": -0.5,
    "n": 2,
    "tools": TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "response_format": {"type": "json_object"},
    "logprobs": True,
    "top_logprobs": 3,
    "top_k": 5,
    "repetition_penalty": 1.1,
    "enable_search": True,
    "search_options": {"forced": True},
    "enable_thinking": True,
    "thinking_budget": 50,
    "something_new": {"x": [1]},
}


@pytest.mark.parametrize("name", SAME)
def test_parameters_with_a_counterpart(name: str) -> None:
    assert sent({name: SAME[name]})["parameters"][name] == SAME[name]


def test_parameters_keep_every_digit() -> None:
    assert b'"seed":12345678901234567890' in exchange({"seed": Raw(b"12345678901234567890")}).request.body


@pytest.mark.parametrize(
    ("body", "parameters"),
    [
        ({"max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 7, "max_tokens": 5}, {"max_tokens": 5}),
        ({"temperature": 1.99}, {"temperature": 1.99}),
        ({"temperature": None, "stop": None}, {}),
        ({"top_p": 0.001}, {"top_p": 0.001}),
        ({"result_format": "text", "incremental_output": False}, {}),
        ({"user": "u", "metadata": {"a": "b"}, "store": True, "frequency_penalty": 0, "logit_bias": {}}, {}),
    ],
)
def test_parameters_that_change(body: dict[str, Any], parameters: dict[str, Any]) -> None:
    assert sent(body)["parameters"] == {"result_format": "message", "incremental_output": True, **parameters}


@pytest.mark.parametrize(
    "body",
    [
        {"frequency_penalty": 0.5},
        {"logit_bias": {"1": 2}},
        {"reasoning_effort": "high"},
        {"functions": [{"name": "f"}]},
        {"modalities": ["text", "audio"]},
        {"temperature": 2},
        {"temperature": 2.0},
        {"top_p": 0},
    ],
)
def test_what_has_no_counterpart_is_refused_or_told(body: dict[str, Any]) -> None:
    (name,) = body
    failure = refused(body).failure
    assert (failure.kind, failure.param) == ("unsupported_parameter", name)
    lenient = exchange(body, a_provider(drops_unsupported=True))
    assert lenient.dropped == (name,)
    assert name not in json.loads(lenient.request.body)["parameters"]


def test_messages_become_texts() -> None:
    messages = [
        {"role": "developer", "content": "Be brief.", "name": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": "So ", "partial": True},
    ]
    assert sent({"messages": messages})["input"]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": "So ", "partial": True},
    ]


PICTURE = {"type": "image_url", "image_url": {"url": "https://pictures.example/1.png", "detail": "low"}}


def test_pictures_go_to_models_that_see() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "What?"}, PICTURE]}
    failure = refused({"messages": [message]}).failure
    assert (failure.kind, failure.param) == ("unsupported_parameter", "messages[0].content")
    made = a_provider(options={"multimodal_models": ("qwen-vl-*",)})
    asked = exchange({"messages": [{"role": "system", "content": "x"}, message]}, made, model="qwen-vl-max")
    assert asked.request.url.endswith("/services/aigc/multimodal-generation/generation")
    assert json.loads(asked.request.body)["input"]["messages"] == [
        {"role": "system", "content": [{"text": "x"}]},
        {"role": "user", "content": [{"text": "What?"}, {"image": "https://pictures.example/1.png"}]},
    ]
    sound = {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}
    assert refused({"messages": [sound]}, made, model="qwen-vl-max").failure.kind == "unsupported_parameter"


def test_models_that_repeat_themselves_are_not_asked_for_increments_nor_for_tools() -> None:
    made = a_provider(options={"cumulative_models": ("farui-*",)})
    assert sent({}, made)["parameters"]["incremental_output"] is False
    assert sent({}, made, model="qwen-plus")["parameters"]["incremental_output"] is True
    assert refused({"tools": TOOLS}, made).failure.param == "tools"


def test_a_model_by_its_public_name() -> None:
    assert sent({}, a_provider(spelled={"law": "farui-plus"}), model="law")["model"] == "farui-plus"


def an_event(output: Any, status: int | None = 200, event: str = "result", **more: Any) -> ServerSentEvent:
    return ServerSentEvent(json.dumps({"output": output, **more}).encode(), event, status)


def a_choice(finish: Any = "null", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}]}


def fed(*frames: ServerSentEvent | bytes, **more: Any) -> list[Any]:
    decoder = NativeDecoder(**more)
    return [event for frame in frames for event in decoder.feed(frame)]


@pytest.mark.parametrize(
    ("said", "reason"), [("stop", "stop"), ("length", "length"), ("tool_calls", "tool_calls"), ("odd", "stop")]
)
def test_finish_reasons(said: str, reason: str) -> None:
    assert fed(an_event(a_choice(said)))[-1] == Finish(reason)


def test_null_in_quotes_is_no_end() -> None:
    assert fed(an_event(a_choice("null", content="a")), an_event(a_choice(None, content="b"))) == [
        Delta({"content": "a"}),
        Delta({"content": "b"}),
    ]


def test_usage_under_openais_names() -> None:
    usage = {
        "input_tokens": 10,
        "output_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 2},
        "output_tokens_details": {"reasoning_tokens": 3},
    }
    assert fed(an_event(a_choice("stop"), usage=usage))[0] == Usage(
        10, 5, 15, {"cached_tokens": 2}, {"reasoning_tokens": 3}
    )
    assert fed(an_event(a_choice("null"), usage={})) == []


def test_what_is_new_in_a_text_that_repeats_itself() -> None:
    events = fed(
        an_event(a_choice("null", reasoning_content="Hm", content="")),
        an_event(a_choice("null", reasoning_content="Hm.", content="haha")),
        an_event(a_choice("null", reasoning_content="Hm.", content="haha")),
        an_event(a_choice("stop", reasoning_content="Hm.", content="hahaha")),
        cumulative=True,
    )
    result = told(events)
    assert (result.text("reasoning_content"), result.text()) == ("Hm.", "hahaha")


def test_a_model_may_repeat_itself_in_increments() -> None:
    assert (
        told(fed(an_event(a_choice("null", content="ha")), an_event(a_choice("stop", content="ha")))).text() == "haha"
    )


def test_what_was_said_cannot_be_taken_back() -> None:
    events = fed(an_event(a_choice(content="abc")), an_event(a_choice(content="abd")), cumulative=True)
    assert isinstance(events[-1], Failed) and events[-1].failure.kind == "protocol_error"


def half(text: str, finish: str = "null") -> ServerSentEvent:
    whole = an_event(a_choice(finish, content="HERE")).data
    return ServerSentEvent(whole.replace(b"HERE", text.encode()))


def test_half_characters() -> None:
    assert told(fed(half(r"a\ud83d"), half(r"\ude00b\ud83d"), half("", "stop"))).text() == "a😀b\ufffd"
    assert told(fed(half(r"a\ud83d"), half(r"a\ud83d\ude00"), half("a😀b", "stop"), cumulative=True)).text() == "a😀b"


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (
            ServerSentEvent(b'{"code":"InvalidApiKey","message":"no","request_id":"r"}', "error", 401),
            "credential_invalid",
        ),
        (ServerSentEvent(b'{"code":"Arrearage","message":"no"}', "result", 200), "billing"),
        (ServerSentEvent(b'{"code":"Odd","message":"no"}', "result", 503), "overloaded"),
        (ServerSentEvent(b"not json", "error", 500), "upstream_error"),
        (ServerSentEvent(b'{"output":{"choices":[]}}', "result", 429), "rate_limit"),
        (b'{"code":"DataInspectionFailed","message":"no"}', "content_filter"),
        (b"<html></html>", "protocol_error"),
        (b"{}", "protocol_error"),
    ],
)
def test_errors_in_a_200(frame: ServerSentEvent | bytes, kind: str) -> None:
    decoder = NativeDecoder()
    (failed,) = decoder.feed(frame)
    assert isinstance(failed, Failed) and failed.failure.kind == kind
    assert decoder.feed(an_event(a_choice("stop"))) == []


@pytest.mark.parametrize("data", [b"garbage", b"[]", b'{"output":5}', b'{"output":{"choices":5}}', b"null"])
def test_garbage_is_counted(data: bytes) -> None:
    decoder = NativeDecoder()
    assert decoder.feed(ServerSentEvent(data)) == []
    assert decoder.malformed == 1


def test_tool_calls_that_make_no_sense() -> None:
    result = told(fed(an_event(a_choice("tool_calls", tool_calls=["x"]))))
    assert result.error == "protocol_error"


def test_parts_on_the_multimodal_path_and_sources_of_a_search() -> None:
    events = fed(
        an_event(a_choice("null", content=[]) | {"search_info": {"search_results": [{"url": "u"}]}}),
        an_event(a_choice("stop", content=[{"text": "a"}, {"text": "b"}])),
    )
    assert told(events).text() == "ab"
    assert events[0].fields["search_info"] == {"search_results": [{"url": "u"}]}
