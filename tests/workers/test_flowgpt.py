"""FlowGPT: what is sent in which order and how it is signed, and how an answer loses its preamble."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from shared.errors import GatewayError
from shared.schema.events import Complete, Delta, Failed, Finish
from tests.workers.recordings import WIRE
from workers.exchange import HttpReply, HttpRequest
from workers.provider import Call, Credential, HttpStream, Upstream
from workers.providers.flowgpt import LONGEST_PREAMBLE, FlowGPT, LinesDecoder, PrefixCleaner

SIGNED = json.loads((WIRE / "flowgpt_signature.json").read_text())
CREATED = HttpReply(status=201, headers={}, body=b'{"id":"conv-1","more":true}')
ORIGIN = "https://site.example"


def a_provider(**more: Any) -> FlowGPT:
    options = {"device_ids": ("TEST-DEVICE-ID-0001",), "origin": ORIGIN, "engine": "an-engine"} | more.pop(
        "options", {}
    )
    return FlowGPT(
        Upstream(
            "flowgpt",
            "https://upstream.example",
            [Credential("c", "TEST-TOKEN")],
            ["known", "plain"],
            options=options,
            user_agent="sluice/1",
            spelled={"known": "PROMPT-1"},
            **more,
        )
    )


def plan(
    made: FlowGPT, body: dict[str, Any], reply: HttpReply = CREATED, **more: Any
) -> tuple[HttpRequest, HttpStream]:
    """The two requests of a call: the one that creates, and the exchange."""
    fields = {"messages": [{"role": "user", "content": "Hi"}]} | body
    call = Call(
        "chat",
        more.get("model", "known"),
        True,
        {name: value if isinstance(value, Raw) else Raw(json.dumps(value).encode()) for name, value in fields.items()},
        made.credentials[0],
        more.get("now", 1760000000.9),
        more.get("nonce", SIGNED["nonce"]),
    )
    steps = made.plan(call)
    create = next(steps)
    with pytest.raises(StopIteration) as done:
        steps.send(reply)
    return create, done.value.value


def refused(made: FlowGPT, body: dict[str, Any], **more: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        plan(made, body, **more)
    return caught.value


def test_the_two_requests() -> None:
    history = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}], "name": "n"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Three"},
    ]
    create, exchange = plan(a_provider(), {"messages": history, "temperature": Raw(b"0.30")})
    assert create.url == "https://upstream.example/conversation/create"
    assert json.loads(create.body) == {
        "promptId": "PROMPT-1",
        "location": "CHAT_PAGE",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One\ntwo"},
            {"role": "assistant", "content": "Yes"},
            {"role": "user", "content": "Three"},
        ],
    }
    assert exchange.request.url == "https://upstream.example/v3/chat"
    assert b'"temperature":0.30' in exchange.request.body
    assert json.loads(exchange.request.body) == {
        "model": "an-engine",
        "nsfw": False,
        "question": "Three",
        "temperature": 0.3,
        "userId": "",
        "promptId": "PROMPT-1",
        "conversationId": "conv-1",
        "documentIds": [],
        "generateImage": False,
        "generateAudio": False,
    }
    both = {
        "accept": "*/*",
        "accept-language": "en",
        "authorization": "Bearer TEST-TOKEN",
        "content-type": "application/json",
        "origin": ORIGIN,
        "referer": f"{ORIGIN}/",
        "user-agent": "sluice/1",
        "x-flow-device-id": "TEST-DEVICE-ID-0001",
        "x-flow-language": "en",
    }
    signed = {"x-timestamp": "1760000000", "x-nonce": SIGNED["nonce"], "x-signature": SIGNED["vectors"][0]["md5"]}
    assert dict(create.headers) == both
    assert dict(exchange.request.headers) == both | signed
    assert exchange.framing == "lines" and exchange.dropped == ()


@pytest.mark.parametrize("vector", SIGNED["vectors"], ids=lambda vector: vector["source"])
def test_the_signature_is_that_of_the_configured_template(vector: dict[str, str]) -> None:
    made = a_provider(options={"signature_template": vector["template"]})
    assert dict(plan(made, {})[1].request.headers)["x-signature"] == vector["md5"]


def test_every_attempt_is_signed_anew() -> None:
    made = a_provider()
    signatures = {
        dict(plan(made, {}, **attempt)[1].request.headers)["x-signature"]
        for attempt in ({}, {"now": 1760000001.0}, {"nonce": "f" * 32})
    }
    assert len(signatures) == 3


def test_a_model_without_a_prompt_of_its_own_is_its_prompt() -> None:
    assert json.loads(plan(a_provider(), {}, model="plain")[0].body)["promptId"] == "plain"


def test_each_token_has_its_device() -> None:
    upstream = Upstream("flowgpt", credentials=[Credential("a", "t1"), Credential("b", "t2")])
    made = FlowGPT(Upstream("flowgpt", "", upstream.credentials, options={"device_ids": ("d1", "d2")}))
    assert [(one.secret, one.extra) for one in made.credentials] == [
        ("t1", {"device_id": "d1"}),
        ("t2", {"device_id": "d2"}),
    ]
    with pytest.raises(ValueError):
        FlowGPT(Upstream("flowgpt", "", upstream.credentials, options={"device_ids": ("d1",)}))


def test_an_unknown_model_is_not_another_one() -> None:
    assert refused(a_provider(), {}, model="other").failure.kind == "model_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 5}, "max_tokens"),
        ({"top_p": 0.5}, "top_p"),
        ({"stop": "END"}, "stop"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"x_unknown": 1}, "x_unknown"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls"),
    ],
)
def test_what_it_cannot_honour_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    failure = refused(a_provider(), body).failure
    assert (failure.kind, failure.param) == ("unsupported_parameter", param)
    assert param in failure.message


def test_or_left_out_and_told_if_the_settings_say_so() -> None:
    made = a_provider(drops_unsupported=True)
    _, exchange = plan(made, {"top_p": 0.5, "max_tokens": 5, "user": "u", "n": 1, "temperature": None})
    assert exchange.dropped == ("max_tokens", "top_p")
    assert json.loads(exchange.request.body)["temperature"] == 0.7
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    assert refused(made, {"messages": [picture]}).failure.kind == "unsupported_parameter"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b'{"statusCode":404,"message":"Not Found"}', "model_not_found"),
        (401, b'{"statusCode":401,"message":"Unauthorized"}', "credential_invalid"),
        (403, b"<html>go away</html>", "blocked"),
        (500, b"", "upstream_error"),
        (200, b"{}", "protocol_error"),
        (200, b'{"id":5}', "protocol_error"),
        (200, b"not json", "protocol_error"),
        (200, b"[]", "protocol_error"),
    ],
)
def test_a_conversation_that_is_not_created(status: int, body: bytes, kind: str) -> None:
    reply = HttpReply(status=status, headers={}, body=body)
    assert refused(a_provider(), {}, reply=reply).failure.kind == kind


def decoded(*lines: bytes, **more: Any) -> list[Any]:
    decoder = LinesDecoder(**more)
    return [event for line in lines for event in decoder.feed(line)] + decoder.end()


def text(events: list[Any]) -> str:
    return "".join(event.fields["content"] for event in events if isinstance(event, Delta))


def test_which_lines_are_text() -> None:
    lines = [
        b'{"data":"a"}',
        b'{"event":"text","data":"b"}',
        b'{"event":"say","data":"c"}',
        b'{"event":"text","data":1}',
    ]
    assert text(decoded(*lines)) == "ab"
    assert text(decoded(*lines, text_events=frozenset({"say"}))) == "ac"
    assert decoded()[-2:] == [Finish("stop"), Complete()]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"event":"error","data":"out of luck"}', "upstream_error"),
        (b'{"event":"error"}', "upstream_error"),
        (b'{"statusCode":429,"message":"Too Many Requests"}', "rate_limit"),
    ],
)
def test_an_error_in_the_stream_ends_it(line: bytes, kind: str) -> None:
    decoder = LinesDecoder()
    assert decoder.feed(b'{"data":"%b"}' % (b"x" * 151))
    (failed,) = decoder.feed(line)
    assert isinstance(failed, Failed) and failed.failure.kind == kind
    assert decoder.feed(b'{"data":"more"}') == [] and decoder.end() == []


def test_garbage_is_counted_and_half_characters_are_joined() -> None:
    decoder = LinesDecoder()
    events = [
        *decoder.feed(b"garbage"),
        *decoder.feed(rb'{"data":"a\ud83d"}'),
        *decoder.feed(rb'{"data":"\ude00b\ud83d"}'),
    ]
    assert text([*events, *decoder.end()]) == "a😀b\ufffd"
    assert decoder.malformed == 1


def cleaned(*pieces: str) -> list[str]:
    cleaner = PrefixCleaner()
    return [*(cleaner.feed(piece) for piece in pieces), cleaner.end()]


def test_a_preamble_goes_and_what_follows_is_told_once() -> None:
    assert cleaned("**A** Resp", "onse:** \n", "\n ", " Hi", " you", " Response:** x") == [
        *("", "", "", "Hi", " you", " Response:** x", "")
    ]


def test_without_a_preamble_the_text_is_held_back_up_to_its_bound() -> None:
    full = "x" * LONGEST_PREAMBLE
    assert cleaned(full, "y", " Response:** z") == ["", full + "y", " Response:** z", ""]
    assert cleaned("short", " text") == ["", "", "short text"]


def test_the_mark_is_looked_for_before_the_bound() -> None:
    assert cleaned("x" * 500 + "Response:**  Hi") == ["Hi", ""]


@given(st.text(alphabet="ab \nRespone:*", max_size=400), st.data())
def test_pieces_do_not_matter(whole: str, data: st.DataObject) -> None:
    """Cut anywhere, the same comes out, except that a mark beyond the bound only counts if nothing was told before it."""
    cut = data.draw(st.integers(0, len(whole)))
    mark = whole.find("Response:**")
    if mark >= 0 and mark + len("Response:**") > LONGEST_PREAMBLE:
        return
    alone = "".join(cleaned(*whole))
    assert "".join(cleaned(whole[:cut], whole[cut:])) == alone
    assert alone == (whole[mark + len("Response:**") :].lstrip() if mark >= 0 else whole)
