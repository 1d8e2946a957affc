"""Legacy text completions: the same rules as for chats, in an older shape."""

import json

import pytest
from msgspec import Raw
from openai.types import Completion

from shared.errors import Failure, GatewayError
from shared.sansio.text_completion import TextAssembler, TextRenderer
from shared.schema.events import Complete, Delta, Failed, Finish, Meta, Usage

NAMES = {"fallback_id": "cmpl-1", "created": 1760000000, "model": "fast"}


def text(value, choice=0, logprobs=None):
    return Delta({"content": Raw(json.dumps(value).encode())}, choice, logprobs)


def rendered(events, **options):
    renderer = TextRenderer(**NAMES, **options)
    chunks = [json.loads(chunk) for event in events for chunk in renderer.feed(event)]
    chunks += [json.loads(chunk) for chunk in renderer.end()]
    for chunk in chunks:
        # The library's type has no chunks without a reason, which OpenAI sends all the same.
        shown = [choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in chunk["choices"]]
        Completion.model_validate(chunk | {"choices": shown}, strict=True)
    return chunks


def assembled(events):
    assembler = TextAssembler(**NAMES)
    for event in events:
        assert assembler.feed(event) == []
    (body,) = assembler.end()
    Completion.model_validate_json(body, strict=True)
    return json.loads(body)


def test_chunks_have_openais_shape():
    events = [Meta("cmpl-up", 1750000000, "fp"), text("Hel"), text("lo"), Finish("length"), Usage(3, 2, 5), Complete()]
    frame = {
        "id": "cmpl-up",
        "object": "text_completion",
        "created": 1750000000,
        "model": "fast",
        "system_fingerprint": "fp",
    }
    choice = {"index": 0, "logprobs": None, "finish_reason": None}
    assert rendered(events) == [
        frame | {"choices": [choice | {"text": "Hel"}]},
        frame | {"choices": [choice | {"text": "lo"}]},
        frame | {"choices": [choice | {"text": "", "finish_reason": "length"}]},
    ]
    counted = rendered(events, include_usage=True)
    assert [chunk["usage"] for chunk in counted[:-1]] == [None, None, None]
    assert counted[-1] == frame | {
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_a_whole_answer_has_all_texts_in_order():
    logprobs = [Raw(b'{"tokens":["a"],"text_offset":[0]}'), Raw(b'{"tokens":["b"],"text_offset":[1]}')]
    events = [
        text("x", 1),
        text("a", 0, logprobs[0]),
        text("b", 0, logprobs[1]),
        Finish("stop", 1),
        Finish("length", 0),
    ]
    answer = assembled([*events, Usage(1, 2, 3)])
    assert answer["choices"] == [
        {
            "text": "ab",
            "index": 0,
            "logprobs": {"tokens": ["a", "b"], "text_offset": [0, 1]},
            "finish_reason": "length",
        },
        {"text": "x", "index": 1, "logprobs": None, "finish_reason": "stop"},
    ]
    assert answer["usage"]["total_tokens"] == 3
    assert assembled([Finish("stop")])["choices"][0]["text"] == ""


def test_what_a_text_cannot_say_is_left_out_and_nothing_follows_an_end():
    chunks = rendered([Delta({"reasoning_content": "hm"}), text("a"), Finish("stop"), text("b"), Finish("length")])
    assert [(chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) for chunk in chunks] == [
        ("a", None),
        ("", "stop"),
    ]


@pytest.mark.parametrize("machine", [TextRenderer, TextAssembler])
def test_ends_that_are_none(machine):
    for events in ([], [text("a")], [text("a"), text("b", 1), Finish("stop", 1)]):
        one = machine(**NAMES)
        for event in events:
            one.feed(event)
        with pytest.raises(GatewayError) as cut:
            one.end()
        assert cut.value.failure.kind == "truncated"
        assert one.end() == []
    with pytest.raises(GatewayError):
        machine(**NAMES).feed(Failed(Failure("overloaded", "x")))
    assert not machine(**NAMES).started


def test_usage_is_estimated_where_there_is_none():
    assert rendered([text("12345678"), Finish("stop")], include_usage=True, prompt_bytes=8)[-1]["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "estimated": True,
    }
