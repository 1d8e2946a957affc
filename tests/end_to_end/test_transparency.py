"""Clients must not notice that a gateway stands between: what they send arrives, what they may send is accepted."""

import json
import re

import httpx2
import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway
from tests.simulators.openai_compatible import OpenAICompatible

DOCUMENTED = """{
  "model": "gpt-4o-mini", "messages": [
    {"role": "developer", "content": "Be brief.", "name": "boss"},
    {"role": "user", "content": [
      {"type": "text", "text": "What is this?"},
      {"type": "image_url", "image_url": {"url": "https://images.example/a.png", "detail": "low"}},
      {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]},
    {"role": "assistant", "content": null, "tool_calls": [
      {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\\"a\\":1.0}"}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    {"role": "user", "content": "go on"}],
  "temperature": 0.7000000000000001, "top_p": 1, "n": 1, "stop": ["END", "\\n\\n"], "max_completion_tokens": 4096,
  "presence_penalty": -2, "frequency_penalty": 2.0, "logit_bias": {"50256": -100}, "logprobs": true, "top_logprobs": 5,
  "seed": 9007199254740993, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true,
  "schema": {"type": "object", "properties": {"b": {"type": "number"}, "a": {"type": "null"}}}}},
  "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "auto",
  "parallel_tool_calls": false, "reasoning_effort": null, "user": "u-1", "metadata": {"k": "v"}, "store": false,
  "service_tier": "auto", "verbosity": "low", "prediction": null, "modalities": ["text"],
  "x_unknown": {"deep": [1, 2.50, 1e400, -0, null, "\\u00e9\\ud83d\\ude00"]}, "another-unknown": 1e-7
}"""


async def post(
    house: Gateway, content: bytes | str, path: str = "/v1/chat/completions", **headers: str
) -> httpx2.Response:
    sent = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx2.AsyncClient(timeout=20) as client:
        return await client.post(house.origin + path, content=content, headers=sent)


def members(text: str) -> dict[str, str]:
    """The top-level members of a JSON object, values as they were written (white space aside)."""
    decoder = json.JSONDecoder()
    found, at = {}, text.index("{") + 1
    while True:
        at = re.compile(r"[\s,]*").match(text, at).end()  # type: ignore[union-attr]
        if text[at] == "}":
            return found
        name, at = decoder.raw_decode(text, at)
        at = re.compile(r"\s*:\s*").match(text, at).end()  # type: ignore[union-attr]
        start = at
        _, at = decoder.raw_decode(text, at)
        found[name] = re.sub(r"\s+", "", text[start:at])


async def test_every_parameter_reaches_the_upstream_as_it_was_written(
    house: Gateway, upstream: OpenAICompatible
) -> None:
    reply = await post(house, DOCUMENTED)
    assert reply.status_code == 200, reply.text
    sent, arrived = members(DOCUMENTED), members(upstream.ledger.calls[0].body.decode())
    assert arrived.pop("stream") == "true"
    assert arrived.pop("stream_options") == '{"include_usage":true}'
    assert arrived == sent


@pytest.mark.fault("S9")
async def test_the_upstream_sees_only_our_headers(house: Gateway, upstream: OpenAICompatible) -> None:
    await post(
        house, '{"model":"gpt-4o","messages":[{"role":"user","content":"x"}]}', cookie="a=b", x_forwarded_for="1.2.3.4",
        x_stainless_lang="python", openai_organization="org-1", user_agent="curl",
    )  # fmt: skip
    names = {name.lower() for name, _ in upstream.ledger.calls[0].headers}
    assert names == {
        "host",
        "authorization",
        "content-type",
        "accept",
        "accept-encoding",
        "user-agent",
        "content-length",
        "x-client-request-id",
    }
    assert upstream.ledger.calls[0].header("accept-encoding") == "identity"
    assert API_KEY not in str(upstream.ledger.calls[0].headers)


@pytest.mark.parametrize(
    "authorization", [f"Bearer {API_KEY}", f"Bearer Bearer {API_KEY}", f"bearer {API_KEY}", f"Bearer   {API_KEY}"]
)
async def test_spellings_of_the_key(house: Gateway, authorization: str) -> None:
    async with httpx2.AsyncClient() as client:
        reply = await client.get(house.base_url + "/models", headers={"authorization": authorization})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {API_KEY}", API_KEY, "Bearer " + "x" * 9000]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/echo", "/v1/chat/completions"])
async def test_a_bad_key_is_always_refused_alike(house: Gateway, authorization: str | None, path: str) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    async with httpx2.AsyncClient() as client:
        reply = await client.request("POST" if "chat" in path else "GET", house.origin + path, headers=headers)
    assert reply.status_code == 401
    assert reply.json() == {
        "error": {
            "message": "Incorrect or missing API key. Send `Authorization: Bearer <key>` with a key of this gateway.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }


CHAT = '{"model":"echo","messages":[{"role":"user","content":"x"}]'


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ("", None, None),
        ("{", None, "invalid_json"),
        ("[]", None, "invalid_type"),
        ("null", None, "invalid_type"),
        ('"text"', None, "invalid_type"),
        ("{}", "messages", "missing_required_parameter"),
        ('{"model":"echo"}', "messages", "missing_required_parameter"),
        ('{"model":"echo","messages":[]}', "messages", None),
        ('{"model":1,"messages":[{"role":"user","content":"x"}]}', "model", "invalid_type"),
        ('{"model":"echo","messages":"hi"}', "messages", "invalid_type"),
        ('{"model":"echo","messages":[{"content":"x"}]}', "messages[0].role", "missing_required_parameter"),
        ('{"model":"echo","messages":[{"role":7,"content":"x"}]}', "messages[0].role", "invalid_type"),
        ('{"model":"echo","messages":[{"role":"user","content":5}]}', "messages[0].content", "invalid_type"),
        (CHAT + ',"temperature":"hot"}', "temperature", "invalid_type"),
        (CHAT + ',"stream":"yes"}', "stream", "invalid_type"),
        (CHAT + ',"n":128}', "n", None),
        (CHAT + ',"stream_options":[]}', "stream_options", "invalid_type"),
        (CHAT + ',"x":NaN}', None, "invalid_json"),
        (CHAT + ',"x":' + "[" * 500 + "]" * 500 + "}", None, None),
        (CHAT + ',"x":' + "[" * 100_000 + "]" * 100_000 + "}", None, None),
        (CHAT + ',"x":"\\ud83d"}', None, None),
        (CHAT + ',"x":"\\ude00\\ud83d"}', None, None),
        ('{"model":"echo","messages":[{"role":"user","content":"\\ud83d"}]}', None, None),
        (b'{"model":"echo","messages":[{"role":"user","content":"\xff"}]}', None, None),
        (b'{"model":"echo","messages":[{"role":"user","content":"x"}],"x":"\xc3\x28"}', None, None),
        (b"\xef\xbb\xbf" + CHAT.encode() + b"}", None, None),
        (CHAT + "} trailing", None, "invalid_json"),
    ],
)
async def test_bad_bodies_get_a_clear_400(
    house: Gateway, body: bytes | str, param: str | None, code: str | None
) -> None:
    reply = await post(house, body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    assert (await post(house, CHAT + "}")).status_code == 200


async def test_other_refusals_have_their_status(house: Gateway) -> None:
    assert (await post(house, CHAT + "}", content_type="text/plain")).status_code == 415
    assert (await post(house, CHAT + "}", content_encoding="gzip")).status_code == 415
    assert (await post(house, "x" * (10 * 1024 * 1024 + 1))).status_code == 413
    assert (await post(house, '{"model":"nobody","messages":[{"role":"user","content":"x"}]}')).json()["error"][
        "code"
    ] == ("model_not_found")
    unknown = await post(house, CHAT + "}", path="/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    async with httpx2.AsyncClient() as client:
        wrong = await client.get(house.base_url + "/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert "POST" in wrong.headers["allow"]
    assert wrong.headers["x-request-id"] != unknown.headers["x-request-id"]


@pytest.mark.parametrize("status", ["400", "401", "403", "404", "408", "413", "429", "500", "502", "503", "504"])
async def test_the_sdk_raises_what_it_raises_for_openai(sdk: openai.AsyncOpenAI, status: str) -> None:
    expected = {
        "400": openai.BadRequestError, "403": openai.PermissionDeniedError, "404": openai.NotFoundError,
        "429": openai.RateLimitError, "500": openai.InternalServerError, "502": openai.InternalServerError,
        "503": openai.InternalServerError, "504": openai.InternalServerError, "401": openai.InternalServerError,
    }  # fmt: skip
    with pytest.raises(expected.get(status, openai.APIStatusError)) as refused:
        await sdk.chat.completions.create(
            model=f"echo-error-{status}", messages=[{"role": "user", "content": "x"}], stream=True
        )
    assert refused.value.request_id
    assert refused.value.code or status == "400"


@pytest.mark.fault("D19", "S14")
async def test_cors_also_on_errors(house: Gateway) -> None:
    origin = {"origin": "https://app.example"}
    async with httpx2.AsyncClient() as client:
        asked = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, x-stainless-lang",
        }
        preflight = await client.options(house.base_url + "/chat/completions", headers=origin | asked)
        refused = await client.get(house.base_url + "/models", headers=origin)
        foreign = await client.get(house.base_url + "/models", headers={"origin": "https://evil.example"})
    assert preflight.status_code == 204
    assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in foreign.headers


async def test_public_pages(house: Gateway) -> None:
    async with httpx2.AsyncClient(base_url=house.origin) as client:
        for path in ("/", "/health", "/health/live", "/health/ready", "/openapi.json"):
            reply = await client.get(path)
            assert reply.status_code == 200, path
            assert reply.headers["x-request-id"]
            assert (await client.head(path)).status_code == 200
        document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    dangling = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document))) - set(
        document["components"]["schemas"]
    )
    assert not dangling


async def test_a_slow_first_token_does_not_delay_the_headers(house: Gateway, upstream: OpenAICompatible) -> None:
    """The head goes out one second after the upstream has accepted; an upstream that refuses later is an error event."""
    body = '{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"slow sim:first=4"}]}'
    async with httpx2.AsyncClient(timeout=20) as client:
        began = trio.current_time()
        async with client.stream(
            "POST", house.base_url + "/chat/completions", content=body,
            headers={"authorization": f"Bearer {API_KEY}", "content-type": "application/json"},
        ) as reply:  # fmt: skip
            assert 0.9 < trio.current_time() - began < 3.8
            assert reply.status_code == 200
            assert "slow" in (await reply.aread()).decode()
