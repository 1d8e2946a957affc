"""langfast: how accounts are made and renewed, and what a run of each model is asked for."""

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from shared.errors import GatewayError
from shared.settings.providers import KNOWN
from tests.simulators.supabase import TRICKY_NOTE, base64url, sign
from tests.workers.recordings import ERRORS, STREAMS, WIRE, body
from workers.exchange import HttpReply, HttpRequest
from workers.provider import (
    Call,
    Credential,
    Minter,
    Refresher,
    SocketIOStream,
    Timeouts,
    Upstream,
    Validator,
)
from workers.providers.langfast import Langfast, claims_of, named_owner, owner

SUB = "00000000-0000-4000-8000-000000000001"
NONCE = "0123456789abcdef0123456789abcdef"
TOKEN = sign({"sub": SUB, "exp": 1760003600, "note": TRICKY_NOTE})
MODELS = KNOWN["langfast"].models
OPTIONS: dict[str, Any] = {
    **{"anon_key": "anon", "socket_url": "wss://socket.example", "prompt_id": "PROMPT_ID_SETTING"},
    **{"default_model": "gpt-4o-mini", "min_credentials": 3, "max_credentials": 10, "signups_per_hour": 30},
}
HEADERS = {"apikey": "anon", "content-type": "application/json", "user-agent": "sluice/1"}


def a_provider(**more: Any) -> Langfast:
    upstream = Upstream(
        "langfast", "https://supabase.example", models=MODELS, options=OPTIONS, user_agent="sluice/1",
        timeouts=Timeouts(total=300.0), **more,
    )  # fmt: skip
    return Langfast(upstream)


def call(fields: dict[str, Any] | None = None, *, model: str = "gpt-4o-mini", **extra: str) -> Call:
    given = {"messages": [{"role": "user", "content": "Say hello"}]} | (fields or {})
    raw = {name: value if isinstance(value, Raw) else Raw(json.dumps(value).encode()) for name, value in given.items()}
    return Call("chat", model, True, raw, Credential("c", TOKEN, extra), 1760000000.0, NONCE)


def planned(made: Langfast, fields: dict[str, Any] | None = None, **more: Any) -> SocketIOStream:
    with pytest.raises(StopIteration) as done:
        next(made.plan(call(fields, **more)))
    assert isinstance(done.value.value, SocketIOStream)
    return done.value.value


def meta(fields: dict[str, Any] | None = None, *, model: str = "gpt-4o-mini") -> Any:
    """What is asked of the upstream."""
    return json.loads(planned(a_provider(), fields, model=model).start.body)["prompt_meta"]


def refused(fields: dict[str, Any], *, model: str = "gpt-4o-mini") -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        next(a_provider().plan(call(fields, model=model)))
    return caught.value


# --- accounts


def ended(plan: Any, reply: HttpReply) -> tuple[HttpRequest, Any]:
    """The one question of a plan, and what it makes of the reply."""
    question = next(plan)
    try:
        plan.send(reply)
    except StopIteration as done:
        return question, done.value
    raise AssertionError("one question was enough")


SIGNED_UP = HttpReply(status=200, headers={}, body=body("langfast_signup.json"))


def test_an_account_is_made() -> None:
    question, made = ended(a_provider().mint(call()), SIGNED_UP)
    assert (question.method, question.url, question.body) == ("POST", "https://supabase.example/auth/v1/signup", b"{}")
    assert dict(question.headers) == HEADERS
    expect = STREAMS["langfast_signup.json"]["expect"]
    assert (claims_of(made.secret).sub, made.expires_at) == (expect["sub"], expect["exp"])
    assert made.extra == {"refresh_token": "test-refresh-token"}
    assert made.secret not in repr(made)


def test_an_account_is_renewed_and_checked() -> None:
    provider = a_provider()
    asked = call(refresh_token="the-old-one")
    question, made = ended(provider.refresh(asked), SIGNED_UP)
    assert question.url == "https://supabase.example/auth/v1/token?grant_type=refresh_token"
    assert json.loads(question.body) == {"refresh_token": "the-old-one"}
    assert made.extra["refresh_token"] == "test-refresh-token"

    for status in (200, 404):
        question, _ = ended(provider.validate(asked), HttpReply(status=status, headers={}, body=b"{}"))
    assert (question.method, question.url) == ("GET", "https://supabase.example/auth/v1/user")
    assert dict(question.headers) == HEADERS | {"authorization": f"Bearer {TOKEN}"}
    with pytest.raises(GatewayError) as caught:
        ended(provider.validate(asked), HttpReply(status=403, headers={}, body=b'{"error_code":"bad_jwt","msg":"x"}'))
    assert caught.value.failure.kind == "credential_invalid"


@pytest.mark.parametrize("file", [file for file in ERRORS if "langfast_signup" in file])
def test_a_sign_up_is_refused(file: str) -> None:
    entry = ERRORS[file]
    with pytest.raises(GatewayError) as caught:
        ended(a_provider().mint(call()), HttpReply(status=entry["status"], headers=entry["headers"], body=body(file)))
    assert caught.value.failure.kind == entry["expect"]["class"]


SENSELESS = [b"", b"[]", b"{}", b'{"access_token":null}', b'{"access_token":"a.b"}', b'{"access_token":"a.b.c"}']
SENSELESS += [
    json.dumps({"access_token": f"x.{base64url(inner)}.x"}).encode() for inner in (b"{}", b'{"sub":1}', b"\xff")
]


@pytest.mark.parametrize("reply", SENSELESS)
def test_an_account_that_makes_no_sense_is_none(reply: bytes) -> None:
    with pytest.raises(GatewayError) as caught:
        ended(a_provider().mint(call()), HttpReply(status=200, headers={}, body=reply))
    assert caught.value.failure.kind == "protocol_error"


@given(st.dictionaries(st.text(), st.text() | st.integers()))
def test_claims_are_read_whatever_else_a_token_says(more: dict[str, Any]) -> None:
    claims = claims_of(sign(more | {"sub": "me", "exp": 7}))
    assert (claims.sub, claims.exp) == ("me", 7)
    assert claims_of(sign({"sub": "me"})).exp is None


def test_what_the_pool_is_told() -> None:
    made = a_provider()
    assert isinstance(made, Minter) and isinstance(made, Refresher) and isinstance(made, Validator)
    minting = made.minting
    assert (minting.least, minting.most, minting.per_hour, minting.margin_seconds) == (3, 10, 30, 300.0)


# --- runs


def test_the_recorded_requests() -> None:
    for file, fields in (
        (
            "langfast_initiate_request.json",
            {"temperature": Raw(b"0.7"), "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0},
        ),
        ("langfast_initiate_request_reasoning.json", {"reasoning_effort": "low", "max_tokens": 16384}),
    ):
        recorded = json.loads((WIRE / file).read_text())
        asked = recorded["prompt_meta"]
        stream = planned(a_provider(), fields | {"messages": asked["messages"]}, model=asked["model"])
        assert stream.start.url == "https://supabase.example/functions/v1/initiate-prompt-run"
        assert dict(stream.start.headers) == HEADERS | {"authorization": f"Bearer {TOKEN}"}
        sent = json.loads(stream.start.body)
        assert uuid.UUID(sent["run_id"]).version == 4
        assert sent == recorded | {"run_id": sent["run_id"]}


def test_the_session_and_the_runs_name() -> None:
    stream = planned(a_provider())
    session = stream.session
    assert (session.url, session.account, session.auth) == ("wss://socket.example", SUB, {"token": TOKEN})
    assert TOKEN not in repr(session)
    assert stream.owner is named_owner
    assert planned(a_provider(calls_per_credential=1)).owner is owner
    started = HttpReply(status=200, headers={}, body=body("langfast_initiate.json"))
    assert stream.execution(started) == STREAMS["langfast_initiate.json"]["expect"]["job_id"]
    for wrong in (
        b"",
        b"{}",
        b'{"jobs":[]}',
        b'{"jobs":[{}]}',
        b'{"jobs":[{"job_id":""}]}',
        b'{"jobs":[{"job_id":7}]}',
    ):
        with pytest.raises(GatewayError) as caught:
            stream.execution(HttpReply(status=200, headers={}, body=wrong))
        assert caught.value.failure.kind == "protocol_error"


def test_all_models_are_known_and_the_default_has_a_name() -> None:
    provider = a_provider(spelled={"gpt-4o-mini": "their-own-name"})
    assert [model.id for model in provider.models] == [*MODELS, "langfast"]
    assert len(MODELS) == 17
    for model in MODELS:
        assert meta(model=model)["model"] == model
    for name in ("langfast", "gpt-4o-mini"):
        assert json.loads(planned(provider, model=name).start.body)["prompt_meta"]["model"] == "their-own-name"
    assert refused({}, model="gpt-9").failure.kind == "model_not_found"


MOST_TOKENS = {
    **dict.fromkeys(("gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"), 32768),
    **dict.fromkeys(("gpt-4o", "gpt-4o-mini", "gpt-4.5-preview"), 16384),
    **dict.fromkeys(("gpt-4-turbo", "gpt-4", "gpt-3.5-turbo"), 4096),
    **{"o1-mini": 65536},
    **dict.fromkeys(("o1", "o3", "o3-mini", "o4-mini"), 100000),
    **dict.fromkeys(("gpt-5", "gpt-5-mini", "gpt-5-nano"), 128000),
}
SAMPLED = [model for model in MODELS if model.startswith("gpt") and not model.startswith("gpt-5")]


@pytest.mark.parametrize("model", MODELS)
def test_parameters_by_model(model: str) -> None:
    most = MOST_TOKENS[model]
    assert meta(model=model)["max_completion_tokens"] == most
    assert meta({"max_tokens": 7}, model=model)["max_completion_tokens"] == 7
    assert meta({"max_completion_tokens": 10**9}, model=model)["max_completion_tokens"] == most

    sampling = {"temperature": 0.2, "top_p": 0.9, "frequency_penalty": 0.1, "presence_penalty": -0.1}
    if model in SAMPLED:
        assert meta(sampling, model=model).items() >= sampling.items()
    else:
        for name, value in sampling.items():
            failure = refused({name: value}, model=model).failure
            assert (failure.kind, failure.param) == ("unsupported_parameter", name)
        assert not meta({"temperature": 1, "top_p": None}, model=model).keys() & sampling.keys()

    instructed = [{"role": role, "content": role} for role in ("system", "user", "developer", "assistant", "user")]
    said = [
        (message["role"], message["content"]) for message in meta({"messages": instructed}, model=model)["messages"]
    ]
    if model == "o1-mini":
        assert said == [("user", "system\n\ndeveloper\n\nuser"), ("assistant", "assistant"), ("user", "user")]
    else:
        role = "system" if model in SAMPLED else "developer"
        assert said == [
            (role, "system"),
            ("user", "user"),
            (role, "developer"),
            ("assistant", "assistant"),
            ("user", "user"),
        ]


SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}


def test_formats_efforts_and_verbosity_by_model() -> None:
    assert meta({"response_format": {"type": "json_object"}})["response_format"] == "json_object"
    assert meta({"response_format": SCHEMA})["response_format"] == SCHEMA
    assert meta({"response_format": {"type": "text"}})["response_format"] == "text"
    assert "response_format" not in meta({"response_format": {"type": "text"}}, model="o1-mini")
    assert (
        meta({"reasoning_effort": "minimal", "verbosity": "low"}, model="gpt-5").items()
        >= {
            "reasoning_effort": "minimal",
            "verbosity": "low",
        }.items()
    )
    for model, name, value in (
        ("gpt-4", "response_format", SCHEMA),
        ("o3", "response_format", {"type": "json_object"}),
        ("o1-mini", "response_format", {"type": "json_object"}),
        ("gpt-4o", "response_format", {"type": "grammar"}),
        ("o3", "reasoning_effort", "minimal"),
        ("gpt-4o", "reasoning_effort", "low"),
        ("o3", "verbosity", "low"),
    ):
        failure = refused({name: value}, model=model).failure
        assert (failure.kind, failure.param) == ("unsupported_parameter", name)


TOOL = {"type": "function", "function": {"name": "f"}}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}],
}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"n": 2}, "n"),
        ({"stop": ["x"]}, "stop"),
        ({"seed": 1}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"top_k": 5}, "top_k"),
        ({"messages": [IMAGE]}, "messages[0].content"),
        ({"messages": [CALLED]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[0].role"),
    ],
)
def test_what_it_cannot_honour_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    failure = refused(fields).failure
    assert (failure.kind, failure.param) == ("unsupported_parameter", param)


def test_wrong_requests() -> None:
    for fields, param in (
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
    ):
        failure = refused(fields).failure
        assert (failure.kind, failure.param) == ("invalid_request", param)


def test_where_dropping_is_allowed_it_is_told() -> None:
    fields = {"tools": [TOOL], "seed": 1, "temperature": 0.3, "response_format": SCHEMA}
    stream = planned(a_provider(drops_unsupported=True), fields, model="o3")
    assert stream.dropped == ("response_format", "seed", "temperature", "tools")
    asked = json.loads(stream.start.body)["prompt_meta"]
    assert asked.keys() == {"model", "messages", "max_completion_tokens", "response_format", "stream"}
    assert asked["response_format"] == "text"


def test_a_token_that_is_none_is_of_no_use() -> None:
    made = a_provider()
    for credential, kind in ((None, "no_credential"), (Credential("c", "no token"), "credential_invalid")):
        with pytest.raises(GatewayError) as caught:
            next(made.plan(Call("chat", "gpt-4o", True, call().body, credential, 0.0, NONCE)))
        assert caught.value.failure.kind == kind
