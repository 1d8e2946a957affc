"""What callers get: OpenAI's chunks to the field, or one answer, from the same events."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from shared.errors import Failure, GatewayError
from shared.sansio.completion import AnswerAssembler, ChunkRenderer
from shared.schema.events import Complete, Delta, Failed, Finish, Meta, Usage

NAMES = {"fallback_id": "chatcmpl-1", "created": 1760000000, "model": "fast"}


def rendered(events, **options):
    renderer = ChunkRenderer(**NAMES, **options)
    return [chunk for event in events for chunk in renderer.feed(event)] + renderer.end()


def assembled(events, **options):
    assembler = AnswerAssembler(**NAMES, **options)
    answer = unchecked(assembler, events)
    ChatCompletion.model_validate(answer, strict=True)
    return answer


def unchecked(assembler, events):
    for event in events:
        assert assembler.feed(event) == []
    (body,) = assembler.end()
    return json.loads(body)


def text(value, choice=0):
    return Delta({"content": Raw(json.dumps(value).encode())}, choice)


def test_chunks_have_openais_shape_to_the_byte():
    chunks = rendered([text("Hel"), text("lo"), Delta({"reasoning_content": "hm"}), Finish("stop")])
    head = b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1760000000,"model":"fast","choices":[{"index":0,'
    assert chunks == [
        head + b'"delta":{"role":"assistant","content":"Hel"},"logprobs":null,"finish_reason":null}]}',
        head + b'"delta":{"content":"lo"},"logprobs":null,"finish_reason":null}]}',
        head + b'"delta":{"reasoning_content":"hm"},"logprobs":null,"finish_reason":null}]}',
        head + b'"delta":{},"logprobs":null,"finish_reason":"stop"}]}',
    ]


def test_what_the_upstream_says_of_the_answer_is_kept_on_all_chunks():
    meta = Meta("chatcmpl-up", 1750000000, system_fingerprint="fp", service_tier="default")
    usage = Usage(3, 1, 4)
    chunks = rendered([meta, text("x"), Finish("stop"), usage], include_usage=True)
    head = (
        b'{"id":"chatcmpl-up","object":"chat.completion.chunk","created":1750000000,"model":"fast",'
        b'"service_tier":"default","system_fingerprint":"fp","choices":['
    )
    assert chunks == [
        head
        + b'{"index":0,"delta":{"role":"assistant","content":"x"},"logprobs":null,"finish_reason":null}],"usage":null}',
        head + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}',
        head + b'],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}',
    ]


def test_the_answer_has_openais_shape():
    meta = Meta("chatcmpl-up", 1750000000, "fp", "default")
    details = {"cached_tokens": 2}
    answer = assembled([meta, text("Hel"), text("lo \ud83d\udc4b"), Finish("stop"), Usage(3, 2, 5, details, None)])
    assert answer == {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 1750000000,
        "model": "fast",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello 👋", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
        "service_tier": "default",
        "system_fingerprint": "fp",
    }


def test_usage_only_for_whom_asked_and_the_last_one_once():
    events = [Usage(1, 1, 2), text("x"), Usage(1, 2, 3), Finish("stop"), Usage(1, 3, 4)]
    assert not any(b"usage" in chunk for chunk in rendered(events))
    chunks = [json.loads(chunk) for chunk in rendered(events, include_usage=True)]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 2
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}


def test_an_estimate_says_that_it_is_one():
    events = [text("x" * 38), Finish("stop")]
    expected = {"prompt_tokens": 25, "completion_tokens": 10, "total_tokens": 35, "estimated": True}
    assert json.loads(rendered(events, include_usage=True, prompt_bytes=99)[-1])["usage"] == expected
    assert assembled(events, prompt_bytes=99)["usage"] == expected
    renderer = ChunkRenderer(**NAMES)
    for event in events:
        renderer.feed(event)
    assert renderer.usage is None
    renderer.end()
    assert renderer.usage.estimated


TOOLS = [
    {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}},
    {"index": 0, "id": "", "type": "function", "function": {"arguments": '{"ci'}},
    {"index": 0, "function": {"name": None, "arguments": 'ty":1}'}},
    {"index": 1, "id": "call_b", "function": {"name": "time", "arguments": "{}"}},
    {"index": 1, "id": "call_b", "type": "function", "function": {"name": "time", "arguments": " "}},
]


@pytest.mark.parametrize("raw", [True, False])
def test_tool_calls_tell_id_type_and_name_once(raw):
    deltas = [Delta({"tool_calls": Raw(json.dumps([part]).encode()) if raw else [part]}) for part in TOOLS]
    chunks = [json.loads(chunk) for chunk in rendered([*deltas, Finish("tool_calls")])]
    assert [chunk["choices"][0]["delta"].get("tool_calls") for chunk in chunks] == [
        [{"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"ci'}}],
        [{"index": 0, "function": {"arguments": 'ty":1}'}}],
        [{"index": 1, "id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}}],
        [{"index": 1, "function": {"arguments": " "}}],
        None,
    ]
    assert chunks[0]["choices"][0]["delta"]["content"] is None
    message = assembled([*deltas, Finish("tool_calls")])["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city":1}'}},
        {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{} "}},
    ]


def test_tool_calls_without_index_are_counted():
    calls = [{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}, {"id": "b", "function": {"name": "g"}}]
    (first, _, _) = rendered([Delta({"tool_calls": calls}), text("x"), Finish("tool_calls")])
    assert [call["index"] for call in json.loads(first)["choices"][0]["delta"]["tool_calls"]] == [0, 1]
    message = assembled([Delta({"tool_calls": calls}), Finish("tool_calls")])["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x":1}'}


@pytest.mark.parametrize("machine", [ChunkRenderer, AnswerAssembler])
@pytest.mark.parametrize("nonsense", [b"5", b"{}", b"[1]", b'"x"'])
def test_tool_calls_that_make_no_sense_are_a_protocol_error(machine, nonsense):
    with pytest.raises(GatewayError, match="protocol_error"):
        machine(**NAMES).feed(Delta({"tool_calls": Raw(nonsense)}))


def test_logprobs_stay_with_their_chunk_and_are_strung_together_in_the_answer():
    first, second = (
        b'{"content":[{"token":"a","logprob":-0.10}],"refusal":null}',
        b'{"content":[{"token":"b"}],"refusal":null}',
    )
    events = [
        Delta({"content": Raw(b'"a"')}, logprobs=Raw(first)),
        Delta({"content": Raw(b'"b"')}, logprobs=Raw(second)),
        Finish("stop"),
    ]
    chunks = rendered(events)
    assert b'"logprobs":' + first in chunks[0] and b'"logprobs":' + second in chunks[1]
    assembler = AnswerAssembler(**NAMES)
    for event in events:
        assembler.feed(event)
    assert b'"logprobs":{"content":[{"token":"a","logprob":-0.10},{"token":"b"}],"refusal":null}' in assembler.end()[0]


def test_unknown_fields_are_copied_byte_for_byte_and_joined():
    events = [
        Delta({"content": Raw(b'"a"'), "remarks": Raw(b'[{"n":1.50}]')}),
        Delta({"remarks": Raw(b'[{"n":2}]'), "sound": Raw(b'{"id":"x","data":"QQ"}')}),
        Delta({"sound": Raw(b'{"data":"Ug"}'), "signature": Raw(b'"s1"')}),
        Delta({"signature": Raw(b'"s2"'), "weight": Raw(b"1e3"), "nothing": Raw(b"null")}),
        Finish("stop"),
    ]
    assert b'{"role":"assistant","content":"a","remarks":[{"n":1.50}]}' in rendered(events)[0]
    message = assembled(events)["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": "a",
        "refusal": None,
        "signature": "s1s2",
        "remarks": [{"n": 1.5}, {"n": 2}],
        "sound": {"id": "x", "data": "QQUg"},
        "weight": 1000,
    }


def test_choices_are_kept_apart():
    events = [text("a", 1), text("b", 0), text("c", 1), Finish("length", 1), text("d", 0), Finish("stop", 0)]
    chunks = [json.loads(chunk)["choices"][0] for chunk in rendered(events)]
    assert [(chunk["index"], chunk["delta"].get("role")) for chunk in chunks[:3]] == [
        (1, "assistant"),
        (0, "assistant"),
        (1, None),
    ]
    answer = assembled(events)
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in answer["choices"]] == [
        (0, "bd", "stop"),
        (1, "ac", "length"),
    ]


def test_a_choice_that_only_finishes_still_has_a_beginning():
    first, last = (json.loads(chunk)["choices"][0] for chunk in rendered([Finish("stop")]))
    assert first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None
    assert last["delta"] == {} and last["finish_reason"] == "stop"
    assert assembled([Finish("stop")])["choices"][0]["message"]["content"] == ""


@pytest.mark.parametrize("machine", [ChunkRenderer, AnswerAssembler])
@pytest.mark.parametrize(
    "events",
    [
        [],
        [Meta("x")],
        [text("a")],
        [text("a"), text("b", 1), Finish("stop", 1)],
        [text("a"), Usage(1, 1, 2)],
    ],
)
@pytest.mark.parametrize("closing", [lambda m: m.end(), lambda m: m.feed(Complete())])
def test_an_answer_without_its_end_is_truncated(machine, events, closing):
    made = machine(**NAMES)
    for event in events:
        made.feed(event)
    with pytest.raises(GatewayError, match="truncated"):
        closing(made)
    assert made.end() == []


@pytest.mark.parametrize("machine", [ChunkRenderer, AnswerAssembler])
def test_nothing_follows_the_end(machine):
    made = machine(**NAMES)
    made.feed(text("a"))
    assert not made.ended and made.started
    made.feed(Finish("stop"))
    made.feed(Complete())
    for event in (text("b"), Finish("length"), Usage(1, 1, 2), Meta("z"), Complete(), Failed(Failure("timeout", "x"))):
        assert made.feed(event) == []
    assert made.end() == [] and made.finish_reasons == {0: "stop"}


@pytest.mark.parametrize("machine", [ChunkRenderer, AnswerAssembler])
def test_a_failure_is_raised_and_ends_it(machine):
    made = machine(**NAMES)
    made.feed(text("a"))
    made.feed(Usage(1, 1, 2))
    with pytest.raises(GatewayError, match="overloaded"):
        made.feed(Failed(Failure("overloaded", "x")))
    assert made.feed(text("b")) == [] == made.end()
    assert made.usage == Usage(1, 1, 2)


@pytest.mark.parametrize(
    ("pieces", "content"),
    [
        (["a", [{"type": "image"}], "b", "", "c"], [("a"), {"type": "image"}, "b", "c"]),
        ([[{"type": "thinking"}], "a"], [{"type": "thinking"}, "a"]),
        ([{"x": "a", "y": [1]}, {"x": "b", "y": [2], "z": None}], {"x": "ab", "y": [1, 2], "z": None}),
        (["a", {"x": 1}], {"x": 1}),
        ([7, 8], 8),
    ],
)
def test_a_content_that_is_no_text_is_put_together_too(pieces, content):
    if isinstance(content, list):
        content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    answer = unchecked(AnswerAssembler(**NAMES), [*(Delta({"content": piece}) for piece in pieces), Finish("stop")])
    assert answer["choices"][0]["message"]["content"] == content


def test_a_long_tool_call_takes_linear_time():
    first = Delta({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}]})
    more = Delta({"tool_calls": [{"index": 0, "function": {"arguments": "x" * 10}}]})
    logprobs = Delta({}, 0, Raw(b'{"content":[{"token":"x","logprob":0.0,"top_logprobs":[]}]}'))
    began = time.process_time()
    answer = assembled([first, *[more] * 20_000, *[logprobs] * 20_000, Finish("tool_calls")])
    assert time.process_time() - began < 2
    choice = answer["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == "x" * 200_000
    assert len(choice["logprobs"]["content"]) == 20_000


def test_what_follows_a_finish_reason_is_dropped():
    events = [text("a"), Finish("stop"), text("b"), Finish("length"), Delta({"content": "c", "x": 1})]
    assert len(rendered(events)) == 2
    assert assembled(events)["choices"][0]["message"]["content"] == "a"


deltas = st.builds(
    Delta,
    st.dictionaries(
        st.sampled_from(["content", "reasoning_content", "refusal"]),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5),
        min_size=1,
        max_size=2,
    ),
    st.integers(0, 2),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(deltas, min_size=1, max_size=12), st.booleans())
def test_a_client_that_adds_up_the_chunks_has_the_answer(events, raw):
    # The client wants choices to begin in their order.
    order = list(dict.fromkeys(delta.choice for delta in events))
    events = [Delta(delta.fields, order.index(delta.choice)) for delta in events]
    if raw:
        events = [Delta({k: Raw(json.dumps(v).encode()) for k, v in d.fields.items()}, d.choice) for d in events]
    events += [Finish("stop", choice) for choice in sorted({delta.choice for delta in events})]
    state = ChatCompletionStreamState()
    for chunk in rendered([Usage(1, 2, 3), *events], include_usage=True):
        state.handle_chunk(ChatCompletionChunk.model_validate(json.loads(chunk), strict=True))
    added_up = state.get_final_completion().model_dump()
    answer = assembled([Usage(1, 2, 3), *events])
    for ours in answer["choices"]:
        theirs = next(choice for choice in added_up["choices"] if choice["index"] == ours["index"])
        for name in ("content", "reasoning_content", "refusal"):
            assert (ours["message"].get(name) or "") == (theirs["message"].get(name) or "")
        assert ours["finish_reason"] == theirs["finish_reason"]
    assert answer["usage"]["total_tokens"] == added_up["usage"]["total_tokens"]
