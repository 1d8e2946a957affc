"""OpenAI's dialect as others speak it: what is mended, what is dropped, what is an error."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from shared.sansio.sse import ServerSentEvent
from shared.schema.events import Complete, Delta, Failed, Finish, Meta, Usage
from tests.workers.recordings import decoded, told
from workers.dialects.openai import ChatDecoder, usage_of
from workers.dialects.refusal_rules import HUGGING_FACE


def event(payload: Any, name: str = "message", status: int | None = None) -> ServerSentEvent:
    return ServerSentEvent(payload if isinstance(payload, bytes) else json.dumps(payload).encode(), name, status)


def choice(delta: Any = None, reason: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, **more}]}


def text(value: str) -> dict[str, Any]:
    return choice({"content": value})


STOP = choice({}, "stop")
DONE = b"[DONE]"


def heard(*payloads: Any, decoder: ChatDecoder | None = None) -> Any:
    return told(decoded(decoder or ChatDecoder(), [event(payload) for payload in payloads]))


def failure_of(*frames: Any, decoder: ChatDecoder | None = None) -> Any:
    events = decoded(decoder or ChatDecoder(), list(frames))
    assert isinstance(events[-1], Failed)
    return events[-1].failure


def test_what_is_said_of_the_answer_comes_first_and_once() -> None:
    named = {"id": "x", "created": 5.9, "system_fingerprint": "fp", "service_tier": None}
    events = decoded(ChatDecoder(), [event(named | text("a")), event(named | text("b"))])
    assert [type(each) for each in events] == [Meta, Delta, Delta]
    assert events[0] == Meta("x", 5, "fp", None)
    assert decoded(ChatDecoder(), [event({"id": 7, "created": "x"} | text("a"))])[0] == Meta()


@pytest.mark.parametrize(
    "delta",
    [
        {"role": "assistant", "content": "a"},
        {"content": "a", "refusal": None, "tool_calls": None, "function_call": None, "audio": None},
        {"content": "a", "reasoning_content": "", "reasoning": None, "tool_calls": []},
    ],
)
def test_what_says_nothing_is_dropped(delta: dict[str, Any]) -> None:
    *_, got = decoded(ChatDecoder(), [event(choice(delta))])
    assert {name: json.loads(bytes(value)) for name, value in got.fields.items()} == {"content": "a"}


@pytest.mark.parametrize(
    "delta", [None, {}, {"role": "assistant"}, {"role": "assistant", "content": ""}, {"content": None}]
)
def test_a_delta_without_news_is_no_delta(delta: Any) -> None:
    assert [type(each) for each in decoded(ChatDecoder(), [event(choice(delta))])] == [Meta]


def test_reasoning_has_one_name() -> None:
    result = heard(
        choice({"reasoning": "a"}),
        choice({"reasoning": "b", "content": ""}),
        choice({"reasoning": "c", "reasoning_content": "c", "content": None}),
        choice({"reasoning_content": "d", "content": None}),
        text("x"),
        STOP,
    )
    assert (result.text("reasoning_content"), result.text("reasoning"), result.text()) == ("abcd", "", "x")


@pytest.mark.parametrize(
    ("said", "told_as"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("brand_new", "stop"),
    ],
)
def test_finish_reasons(said: str, told_as: str) -> None:
    decoder = ChatDecoder()
    assert heard(text("a"), choice({}, said), DONE, decoder=decoder).finish_reasons() == {0: told_as}
    assert decoder.odd_finish_reasons == ([said] if said == "brand_new" else [])


@pytest.mark.parametrize("unfinished", [None, "", "null", 17, ["stop"]])
def test_not_finished_yet(unfinished: Any) -> None:
    assert heard(choice({"content": "a"}, unfinished), DONE).error == "truncated"


@pytest.mark.parametrize(
    ("said", "kind"), [("insufficient_system_resource", "overloaded"), ("error", "upstream_error")]
)
def test_an_interruption_is_no_end(said: str, kind: str) -> None:
    result = heard(text("a"), {"usage": {"total_tokens": 3}} | choice({"content": "b"}, said), DONE)
    assert (result.error, result.text(), result.finish_reasons()) == (kind, "ab", {})
    assert result.usage.total_tokens == 3


def test_text_beside_a_finish_reason_is_told_before_it() -> None:
    result = heard(choice({"content": "a"}, "stop"))
    assert [each["choices"][0]["delta"] for each in result.chunks if each["choices"]] == [
        {"role": "assistant", "content": "a"},
        {},
    ]


COUNTS = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


@pytest.mark.parametrize(
    "payloads",
    [
        [text("a"), STOP | {"usage": COUNTS}],
        [text("a"), STOP, {"choices": [], "usage": COUNTS}],
        [text("a"), STOP, {"usage": COUNTS}],
        [text("a"), choice({}, "stop", usage=COUNTS)],
        [text("a"), choice({}, "stop", usage=COUNTS), {"choices": [], "usage": COUNTS}],
        [text("a") | {"usage": {"total_tokens": 1}}, STOP | {"usage": COUNTS}],
        [text("a") | {"usage": None}, STOP | {"usage": COUNTS}, {"choices": [], "usage": {}}],
    ],
)
def test_usage_wherever_it_comes(payloads: list[Any]) -> None:
    assert heard(*payloads, DONE).usage == Usage(1, 2, 3)


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"total_tokens": None, "cost": 0.1}, None),
        ({"prompt_tokens": 1, "completion_tokens": 2}, Usage(1, 2, 3)),
        (COUNTS | {"cached_tokens": 1}, Usage(1, 2, 3, {"cached_tokens": 1})),
        (COUNTS | {"prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": 1}, Usage(1, 2, 3, {"cached_tokens": 0})),
        (
            COUNTS | {"prompt_tokens_details": {"cached_tokens": 9, "x": None}, "cached_tokens": 1},
            Usage(1, 2, 3, {"cached_tokens": 9}),
        ),
        (
            COUNTS | {"completion_tokens_details": {"reasoning_tokens": 2}},
            Usage(1, 2, 3, None, {"reasoning_tokens": 2}),
        ),
    ],
)
def test_usage_under_openais_names(said: Any, counts: Usage | None) -> None:
    assert usage_of(said) == counts


ERRORS = [
    (event({"error": {"message": "boo", "type": "server_error", "param": None, "code": None}}), "upstream_error"),
    (event({"error": {"message": "boo"}, "status_code": 503}, "error"), "overloaded"),
    (event({"error": {"message": "boo", "code": 429}}), "rate_limit"),
    (event({"error": "boo", "error_type": "overloaded"}), "overloaded"),
    (event({"message": "boo", "type": "too_many_requests_error", "code": "queue_exceeded"}), "overloaded"),
    (event({"code": "boo", "message": "boo"}, "error", 401), "credential_invalid"),
    (event({"message": "boo", "type": "invalid_request_error"}, "error"), "invalid_request"),
    (event(b"not json", "error"), "upstream_error"),
    (event(b"not json", "error", 429), "rate_limit"),
    (event({"choices": None, "error": {"message": "boo"}}), "upstream_error"),
    (event({"choices": [], "error": True}), "upstream_error"),
    (event(text("a") | {"error": {"message": "boo"}}), "upstream_error"),
    (b'{"error":{"message":"boo","code":"context_length_exceeded"}}', "context_length"),
    (b'\n\n{"message":"boo","code":"queue_exceeded"}', "overloaded"),
    (b'[{"error":{"message":"boo","code":400}}]', "invalid_request"),
    (b'{"detail":"boo"}', "upstream_error"),
    (b"<html>captive portal</html>", "protocol_error"),
    (b'{"hello":"world"}', "protocol_error"),
    (b'{"choices":[]}', "protocol_error"),
    (b"", "protocol_error"),
]


@pytest.mark.parametrize(("frame", "kind"), ERRORS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("after", [[], [event(text("a"))]], ids=["first", "later"])
def test_errors_inside_a_200(frame: Any, kind: str, after: list[Any]) -> None:
    failure = failure_of(*after, frame, decoder=ChatDecoder(HUGGING_FACE))
    assert failure.kind == kind
    assert "captive" not in failure.message and "world" not in failure.message


MALFORMED = [
    b"",
    b"nonsense",
    b'{"choices":[{"delta":{"content":"a"',
    b"[1]",
    b'"text"',
    b"null",
    b"{" * 5000,
    b'{"a":' * 5000,
    b'{"choices":{}}',
    b'{"choices":[{"delta":[]}]}',
    b'{"choices":[{"delta":{"content":"\\x"}}]}',
    b'{"choices":[{"delta":{"content":"\\ud83d"}}',
]


@pytest.mark.parametrize("garbage", MALFORMED, ids=lambda value: repr(value[:40]))
def test_garbage_in_a_good_stream_is_dropped_and_counted(garbage: bytes) -> None:
    decoder = ChatDecoder()
    result = heard(garbage, text("a"), garbage, text("b"), STOP, DONE, decoder=decoder)
    assert (result.text(), result.error, decoder.malformed) == ("ab", None, 2)


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": []},
        {"choices": None},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"index": None, "delta": None}]},
        {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
        {"error": None, "choices": []},
        {"error": "", "usage": None},
        {},
        {"object": "ping", "type": "keepalive"},
    ],
)
def test_what_does_not_concern_the_caller_is_passed_over(odd: Any) -> None:
    decoder = ChatDecoder()
    result = heard(odd, text("a"), odd, STOP, odd, DONE, decoder=decoder)
    assert (result.text(), result.error, decoder.malformed) == ("a", None, 0)


@pytest.mark.parametrize("index", ["-1", "4096", "1" + "0" * 30], ids=len)
def test_a_choice_that_nobody_asked_for_is_dropped(index: str) -> None:
    decoder = ChatDecoder()
    foreign = b'{"choices":[{"index":%s,"delta":{"content":"x"}},{"index":0,"delta":{"content":"a"}}]}'
    events = decoder.feed(ServerSentEvent(foreign % index.encode()))
    assert [event for event in events if isinstance(event, Delta)] == [Delta({"content": Raw(b'"a"')}, 0)]
    assert decoder.malformed == 1


@pytest.mark.parametrize("index", [None, "0", 1.5, True])
def test_an_odd_index_costs_no_text(index: Any) -> None:
    result = heard({"choices": [{"index": index, "delta": {"content": "a"}}]}, STOP)
    assert result.text() == "a" and result.error is None


@pytest.mark.parametrize("done", [b"[DONE]", b" [DONE] ", b"[DONE] bye"])
def test_done_ends_it_and_nothing_follows(done: bytes) -> None:
    decoder = ChatDecoder()
    assert decoder.feed(event(done)) == [Complete()]
    assert decoder.feed(event(text("a"))) == decoder.feed(b"{}") == decoder.feed(event(done)) == []


def test_bad_utf8_becomes_the_replacement_character_and_is_counted() -> None:
    decoder = ChatDecoder()
    payload = b'{"choices":[{"index":0,"delta":{"content":"a\xff\xc3b \xc3\xbc"}}]}'
    assert heard(payload, STOP, decoder=decoder).text() == "a\ufffd\ufffdb ü"
    assert decoder.malformed == 1


def test_half_characters_are_joined_over_chunks() -> None:
    decoder = ChatDecoder()
    result = heard(
        text("a"), text("b\ud83d"), {"usage": COUNTS}, text("\udc4b c"), text("\ud83d"), text("d\udc4b"), text("\ud83d"),
        choice({"content": ""}, "stop"), DONE, decoder=decoder,
    )  # fmt: skip
    assert result.text() == "ab👋 c\ufffdd\ufffd\ufffd"
    assert (result.error, decoder.malformed) == (None, 0)
    assert result.answer["choices"][0]["message"]["content"] == result.text()


def test_half_characters_of_several_choices_and_tool_calls() -> None:
    def call(arguments: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": 1, "function": {"arguments": arguments}}]}

    chunks = [
        {"choices": [{"index": 1, "delta": {"content": "\ud83d"}}]},
        choice(call('"\ud83d')),
        {"choices": [{"index": 1, "delta": {"content": "\udc4b"}, "finish_reason": "stop"}]},
        choice(call("\udc4c")),
        choice(call("\ud83d")),
        choice({}, "tool_calls"),
    ]
    result = heard(*chunks)
    assert result.text(choice=1) == "👋"
    calls = result.answer["choices"][0]["message"]["tool_calls"]
    assert [each["function"]["arguments"] for each in calls] == ['"👌\ufffd']


def test_a_payload_over_several_lines_becomes_one_line() -> None:
    payload = b'{"choices":[\n{"index":0,"delta":{"tool_calls":[\n {"index":0,"id":"x",\n"function":{}}]}}]}'
    result = heard(payload, choice({"extra": {"a": [1]}}), STOP)  # `told` looks for line ends
    assert result.answer["choices"][0]["message"]["tool_calls"][0]["id"] == "x"


def test_numbers_in_unknown_fields_survive_to_the_last_digit() -> None:
    (_, delta) = decoded(ChatDecoder(), [event(b'{"choices":[{"delta":{"score":0.10000000000000000001e2}}]}')])
    assert bytes(delta.fields["score"]) == b"0.10000000000000000001e2"


def test_a_number_that_json_does_not_know_costs_no_text() -> None:
    payload = b'{"choices":[{"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-Infinity}]}}]}'
    result = heard(payload, STOP)
    assert result.text() == "a"
    assert result.answer["choices"][0]["logprobs"] == {"content": [{"token": "a", "logprob": None}]}


def test_a_whole_answer_becomes_the_same_events() -> None:
    message = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "annotations": [],
        "tool_calls": [{"id": "a", "function": {}}],
    }
    body = json.dumps(
        {"id": "x", "choices": [{"message": message, "finish_reason": "stop"}], "usage": COUNTS}, indent=1
    )
    events = decoded(ChatDecoder(), [body.encode()])
    assert [type(each) for each in events] == [Meta, Delta, Usage, Finish, Complete]
    assert set(events[1].fields) == {"content", "tool_calls"}


NAMES = ["choices", "delta", "message", "index", "finish_reason", "usage", "error", "logprobs", "content", "code"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)
calls = st.lists(
    st.dictionaries(st.sampled_from(["index", "id", "type", "function", "name", "arguments"]), json_values, max_size=4)
    | json_values,
    max_size=2,
)
chunks = st.builds(
    lambda delta, reason, logprobs: choice(delta, reason, logprobs=logprobs),
    st.fixed_dictionaries({}, optional={"content": json_values, "tool_calls": calls, "role": json_values}),
    json_values,
    json_values,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(chunks | json_values | st.binary(max_size=10), max_size=5), st.booleans())
def test_nothing_makes_it_stumble(payloads: list[Any], whole: bool) -> None:
    """Whatever comes is text, a failure, or dropped; never a defect of ours."""
    frames = [event(payload).data if whole else event(payload) for payload in payloads]
    told(decoded(ChatDecoder(), frames))
