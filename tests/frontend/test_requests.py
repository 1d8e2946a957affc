"""What callers send: checked for type and size only, and refused in OpenAI's words."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.requests import LONGEST_MODEL, MOST_CHOICES, MOST_MESSAGES, MOST_TOOLS, ChatRequest, parse
from shared.errors import GatewayError

DECODER = msgspec.json.Decoder(ChatRequest)
MESSAGE = {"role": "user", "content": "hello"}


def read(body):
    return parse(DECODER, body if isinstance(body, bytes) else json.dumps(body).encode())


def refusal(body):
    with pytest.raises(GatewayError) as refused:
        read(body)
    failure = refused.value.failure
    assert failure.kind == "invalid_request"
    return failure


def with_field(name, value):
    return {"messages": [MESSAGE], name: value}


# --- what is taken


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"model": "org/any-thing:x", "stream": True, "stream_options": {"include_usage": True, "new": 1}},
        {"temperature": 1, "top_p": 0.1, "n": 8, "seed": -(2**63), "logit_bias": {"1": -100, "2": 0.5}},
        {"stop": "x"},
        {"stop": ["x", "y"]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}, {"type": "custom"}]},
        {"tool_choice": "auto"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"something_new": [{"deep": [1, None, "x"]}], "metadata": {"a": 1}},
        dict.fromkeys(("model", "stream", "n", "temperature", "stop", "tools", "stream_options", "logit_bias", "user")),
    ],
)
def test_what_openai_takes_is_taken(more):
    assert read({"messages": [MESSAGE]} | more).messages[0].role == "user"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}]},
        {"role": "user", "content": [{"type": "something_new", "at": 1}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
        {"role": "assistant", "tool_calls": []},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "developer", "content": "x", "name": "n", "reasoning_content": "more"},
    ],
)
def test_messages_of_every_kind(message):
    assert read({"messages": [message]}).messages[0].role == message["role"]


def test_the_typed_view():
    asked = read({"messages": [MESSAGE], "model": "m", "stream": True, "stream_options": {"include_usage": True}})
    assert (asked.model, asked.stream, asked.stream_options.include_usage) == ("m", True, True)


# --- what is refused, and how


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (with_field("temperature", "hot"), "temperature", "expected a decimal, but got a string"),
        (with_field("temperature", True), "temperature", "expected a decimal, but got a boolean"),
        (with_field("n", 1.5), "n", "expected an integer, but got a decimal number"),
        (with_field("n", "1"), "n", "expected an integer, but got a string"),
        (with_field("max_tokens", 1.0), "max_tokens", "expected an integer, but got a decimal number"),
        (with_field("stream", "true"), "stream", "expected a boolean, but got a string"),
        (with_field("stream", 1), "stream", "expected a boolean, but got an integer"),
        (with_field("model", 5), "model", "expected a string, but got an integer"),
        (with_field("model", ["m"]), "model", "expected a string, but got an array"),
        (with_field("stop", 5), "stop", "expected one of a string or an array, but got an integer"),
        (with_field("stop", ["x", 5]), "stop[1]", "expected a string, but got an integer"),
        (with_field("logit_bias", {"5": "x"}), "logit_bias", "expected a decimal, but got a string"),
        (with_field("tools", {}), "tools", "expected an array, but got an object"),
        (with_field("tools", [None]), "tools[0]", "expected an object, but got null"),
        (with_field("tool_choice", 5), "tool_choice", "expected one of a string or an object, but got an integer"),
        (with_field("response_format", "json"), "response_format", "expected an object, but got a string"),
        (with_field("stream_options", True), "stream_options", "expected an object, but got a boolean"),
        (
            with_field("stream_options", {"include_usage": "yes"}),
            "stream_options.include_usage",
            "expected a boolean, but got a string",
        ),
        ({"messages": None}, "messages", "expected an array, but got null"),
        ({"messages": {}}, "messages", "expected an array, but got an object"),
        ({"messages": ["x"]}, "messages[0]", "expected an object, but got a string"),
        ({"messages": [MESSAGE, {"role": 1}]}, "messages[1].role", "expected a string, but got an integer"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content",
            "expected one of a string or an array, but got an integer",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": 1}]}]},
            "messages[0].content[0].type",
            "expected a string, but got an integer",
        ),
    ],
)
def test_wrong_types(body, param, message):
    failure = refusal(body)
    assert failure.message == f"Invalid type for '{param}': {message} instead."
    assert (failure.param, failure.code) == (param, "invalid_type")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"model": "m"}, "messages"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": [MESSAGE, {"content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        (with_field("tools", [{"function": {}}]), "tools[0].type"),
    ],
)
def test_what_is_missing(body, param):
    failure = refusal(body)
    assert failure.message == f"Missing required parameter: '{param}'."
    assert (failure.param, failure.code) == (param, "missing_required_parameter")


@pytest.mark.parametrize(
    ("body", "param", "code", "expected"),
    [
        ({"messages": []}, "messages", "empty_array", "empty array. Expected an array with minimum length 1"),
        (
            {"messages": [MESSAGE] * (MOST_MESSAGES + 1)},
            "messages",
            "array_above_max_length",
            f"array too long. Expected an array with maximum length {MOST_MESSAGES}",
        ),
        (
            with_field("tools", [{"type": "function"}] * (MOST_TOOLS + 1)),
            "tools",
            "array_above_max_length",
            f"array too long. Expected an array with maximum length {MOST_TOOLS}",
        ),
        (
            with_field("n", MOST_CHOICES + 1),
            "n",
            "integer_above_max_value",
            f"integer above maximum value. Expected a value <= {MOST_CHOICES}",
        ),
        (with_field("n", 0), "n", "integer_below_min_value", "integer below minimum value. Expected a value >= 1"),
        (
            with_field("model", "m" * (LONGEST_MODEL + 1)),
            "model",
            "string_above_max_length",
            f"string too long. Expected a string with maximum length {LONGEST_MODEL}",
        ),
    ],
)
def test_limits(body, param, code, expected):
    failure = refusal(body)
    assert failure.message == f"Invalid '{param}': {expected}."
    assert (failure.param, failure.code) == (param, code)


def test_the_limits_themselves_are_allowed():
    body = {"messages": [MESSAGE] * MOST_MESSAGES, "tools": [{"type": "function"}] * MOST_TOOLS, "n": MOST_CHOICES}
    assert len(read(body | {"model": "m" * LONGEST_MODEL}).messages) == MOST_MESSAGES


@pytest.mark.parametrize(
    ("body", "got"), [(b"[]", "an array"), (b'"x"', "a string"), (b"5", "an integer"), (b"null", "null")]
)
def test_a_body_that_is_no_object(body, got):
    failure = refusal(body)
    assert failure.message == f"The request body must be an object, not {got}."
    assert (failure.param, failure.code) == (None, "invalid_type")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{'messages': []}",
        b'{"messages": [}',
        b'{"messages": [{"role": "user"}]} trailing',
        b'{"messages": [{"role": "user"}],}',
        b'\xef\xbb\xbf{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [{"role": "user", "x": "\xc3("}]}',
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
        b'{"messages": [{"role": "user", "x": "\\udc00\\ud800"}]}',
        b'{"messages": [{"role": "user"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "a\nb"}]}',
        b'{"messages": [{"role": "user"}], "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"messages": [{"role": "user"}], "x": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_for_us(body):
    failure = refusal(body)
    assert failure.message.startswith("We could not parse the JSON body of your request: ")
    assert (failure.param, failure.code) == (None, "invalid_json")
    assert len(failure.message) < 300


def test_a_number_beyond_all_numbers():
    failure = refusal(b'{"messages": [{"role": "user"}], "temperature": 1e999}')
    assert failure.message == "Invalid value for 'temperature': Number out of range."
    assert (failure.param, failure.code) == ("temperature", "invalid_value")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(ChatRequest.__struct_fields__)), JSON) | JSON)
def test_any_json_is_a_request_or_a_clear_no(body):
    try:
        assert read(body).messages
    except GatewayError as refused:
        failure = refused.failure
        assert failure.row.status == 400 and failure.code
        assert "`" not in failure.message, "the parser's own words"
        assert failure.param is None or f"'{failure.param}'" in failure.message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_clear_no(body):
    with pytest.raises(GatewayError, match="invalid_request"):
        read(body)
