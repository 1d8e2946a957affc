"""What goes to an OpenAI-compatible upstream: the caller's fields as they are, and nothing else of the caller."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from workers.exchange import HttpRequest
from workers.provider import Call, Credential, HttpStream, Upstream
from workers.providers.openai_compatible import ROWS, OpenAICompatible, Row, row

SECRET = "sk-upstream-secret"


def request(
    body: dict[str, Any] | bytes,
    name: str = "openai",
    model: str = "a-model",
    made: OpenAICompatible | None = None,
    **more: Any,
) -> HttpRequest:
    made = made or row(Upstream(name, "https://upstream.example/v1", user_agent="sluice/1", **more))
    fields = json.loads(body) if isinstance(body, bytes) else body
    raw = {
        field: value if isinstance(value, Raw) else Raw(json.dumps(value).encode()) for field, value in fields.items()
    }
    try:
        next(made.plan(Call("chat", model, False, raw, Credential("c1", SECRET), 0.0, "0" * 32)))
    except StopIteration as done:
        assert isinstance(done.value, HttpStream)
        return done.value.request
    raise AssertionError("asked something first")


def sent(body: dict[str, Any], name: str = "openai", **more: Any) -> Any:
    return json.loads(request(body, name, **more).body)


OURS = {"model": "a-model", "stream": True, "stream_options": {"include_usage": True}}


def test_the_request_on_the_wire() -> None:
    asked = request({"model": "asked", "messages": [{"role": "user", "content": "Hi"}], "stream": False})
    assert asked.method == "POST"
    assert asked.url == "https://upstream.example/v1/chat/completions"
    assert list(asked.headers) == [
        ("authorization", f"Bearer {SECRET}"),
        ("content-type", "application/json"),
        ("accept", "text/event-stream"),
        ("accept-encoding", "identity"),
        ("user-agent", "sluice/1"),
    ]
    assert json.loads(asked.body) == OURS | {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("base_url", ["https://u.example/v1", "https://u.example/v1/", "https://u.example/v1//"])
def test_base_urls(base_url: str) -> None:
    assert request({}, made=row(Upstream("x", base_url))).url == "https://u.example/v1/chat/completions"


@pytest.mark.parametrize(
    "raw",
    [
        b"null",
        b"1.50",
        b"1e2",
        b"12345678901234567890123",
        b"0.1000000000000000055511151231257827",
        b"[ 1,\n2 ]",
        '"ü"'.encode(),
    ],
)
def test_values_go_through_byte_for_byte(raw: bytes) -> None:
    assert b'"field":' + raw in request({"field": Raw(raw), "temperature": Raw(raw)}).body


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(st.sampled_from(["messages", "tools", "response_format", "seed", "user", "x_new", ""]), json_values)
)
def test_every_field_known_or_not_goes_through(fields: dict[str, Any]) -> None:
    assert sent(fields) == fields | OURS


@pytest.mark.parametrize(
    ("options", "result"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
        ("nonsense", {"include_usage": True}),
    ],
)
def test_usage_is_always_asked_for(options: Any, result: Any) -> None:
    assert sent({"stream_options": options})["stream_options"] == result


def test_unless_the_upstream_does_not_know_how() -> None:
    made = OpenAICompatible(Upstream("x", "https://u.example"), Row(asks_usage=False))
    assert json.loads(request({"stream_options": {"include_usage": True}}, made=made).body) == {
        "model": "a-model",
        "stream": True,
    }


@pytest.mark.parametrize("name", sorted(ROWS))
def test_no_field_of_the_caller_becomes_a_header_or_an_address(name: str) -> None:
    evil = "https://evil.example/\r\nx-evil: 1"
    asked = request({"messages": [{"role": evil, "content": evil}], "user": evil, "base_url": evil}, name, model=evil)
    assert asked.url == "https://upstream.example/v1/chat/completions"
    assert "evil" not in repr(asked.headers)
    assert json.loads(asked.body)["model"] == evil


def test_an_unknown_upstream_is_a_row_of_its_own() -> None:
    made = row(Upstream("mine", "http://127.0.0.1:9/v1", [Credential("a", "b")], ["m1", "m2"]))
    assert (made.name, [model.id for model in made.models], made.accepts_any_model) == ("mine", ["m1", "m2"], True)
    assert {model.owned_by for model in made.models} == {"mine"}


def test_without_a_credential_no_authorization_is_sent() -> None:
    made = row(Upstream("local", "http://127.0.0.1:9/v1"))
    try:
        next(made.plan(Call("chat", "m", True, {}, None, 0.0, "0")))
    except StopIteration as done:
        assert "authorization" not in dict(done.value.request.headers)
    assert not made.caller_credentials


def test_hugging_face_bills_whom_the_settings_name() -> None:
    assert dict(request({}, "huggingface", options={"bill_to": "my-org"}).headers)["x-hf-bill-to"] == "my-org"
    assert "x-hf-bill-to" not in dict(request({}, "openai", options={"bill_to": "my-org"}).headers)


def test_dashscope_spells_its_models_without_a_hyphen() -> None:
    assert sent({}, "dashscope", model="qwen-3-32b")["model"] == "qwen3-32b"
    assert sent({}, "dashscope", model="qwen-plus")["model"] == "qwen-plus"


def test_a_model_by_the_name_that_the_settings_give_it() -> None:
    assert sent({}, model="fast", spelled={"fast": "gpt-4o-mini"})["model"] == "gpt-4o-mini"
    assert sent({}, "dashscope", model="qwen-3-32b", spelled={"qwen-3-32b": "other"})["model"] == "other"


@pytest.mark.parametrize(
    ("spelled", "body", "model", "thinking"),
    [
        ("deepseek-flash:no-thinking", {}, "deepseek-flash", {"type": "disabled"}),
        ("deepseek-flash:thinking", {}, "deepseek-flash", {"type": "enabled"}),
        ("deepseek-flash:thinking", {"thinking": {"type": "auto"}}, "deepseek-flash", {"type": "auto"}),
        ("deepseek-flash:other", {}, "deepseek-flash:other", None),
        (":thinking", {}, ":thinking", None),
    ],
)
def test_deepseeks_retired_names_live_on_as_variants(
    spelled: str, body: dict[str, Any], model: str, thinking: Any
) -> None:
    asked = sent(body, "deepseek", model="deepseek-chat", spelled={"deepseek-chat": spelled})
    assert (asked["model"], asked.get("thinking")) == (model, thinking)
    assert sent({}, "openai", model="gpt:thinking")["model"] == "gpt:thinking"


CALLED = {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}], "reasoning_content": "hm", "refusal": None}
THOUGHT = {"role": "assistant", "content": "x", "reasoning_content": "hm"}
TOOL = {"role": "tool", "content": "1", "tool_call_id": "a"}
USER = {"role": "user", "content": "x", "name": "n"}


def test_cerebras_gets_no_foreign_message_fields() -> None:
    assert sent({"messages": [USER, CALLED, TOOL, THOUGHT]}, "cerebras")["messages"] == [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        TOOL,
        {"role": "assistant", "content": "x"},
    ]


def test_deepseek_gets_reasoning_back_only_with_tools() -> None:
    with_tools = [USER, THOUGHT, CALLED, TOOL]
    assert sent({"messages": with_tools}, "deepseek")["messages"] == with_tools
    assert sent({"messages": [USER, THOUGHT, USER]}, "deepseek")["messages"] == [
        USER,
        {"role": "assistant", "content": "x"},
        USER,
    ]


@pytest.mark.parametrize(
    ("content", "result"),
    [
        ("x", "x"),
        (None, None),
        ([], []),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "ü"}], "aü"),
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}], None),
        ([1], None),
    ],
)
def test_kimi_gets_texts_as_one_text(content: Any, result: Any) -> None:
    kept = content if result is None else result
    assert sent({"messages": [{"role": "user", "content": content, "partial": True}]}, "kimi")["messages"] == [
        {"role": "user", "content": kept, "partial": True}
    ]


@pytest.mark.parametrize(
    ("temperature", "result"),
    [(b"0.30", b"0.30"), (b"1", b"1"), (b"1.7", b"1"), (b"2", b"1"), (b"null", b"null"), (b'"x"', b'"x"')],
)
def test_kimis_temperature_ends_at_one(temperature: bytes, result: bytes) -> None:
    assert b'"temperature":' + result in request({"temperature": Raw(temperature)}, "kimi").body


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize("messages", [None, 5, "x", [5], [[]], {"a": 1}, [{"content": {"a": 1}}, {"role": 5}]])
def test_what_a_quirk_cannot_read_it_leaves_alone(name: str, messages: Any) -> None:
    assert sent({"messages": messages}, name)["messages"] == messages
    assert "messages" not in sent({}, name)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_quirks_keep_every_digit_of_what_they_pass_on(name: str) -> None:
    messages = Raw(b'[{"role":"user","content":[{"type":"image_url","n":1.50e1}],"name":"a"}]')
    assert b'[{"type":"image_url","n":1.50e1}]' in request({"messages": messages}, name).body
