"""What an upstream's no becomes: its kind, its wait, and a text that gives nothing away."""

import json
import time
from typing import Any

import pytest

from workers.dialects.refusal_rules import CEREBRAS, DASHSCOPE, DEEPSEEK, HUGGING_FACE, KIMI, OPENAI
from workers.dialects.refusals import refusal, reported, scrubbed
from workers.dialects.waiting import LONGEST_SECONDS, waiting_seconds
from workers.exchange import HttpReply

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


def reply(status: int, body: Any = b"", **headers: str) -> HttpReply:
    return HttpReply(
        status=status, headers=headers, body=body if isinstance(body, bytes) else json.dumps(body).encode()
    )


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({}, "", None),
        ({"retry-after-ms": "350"}, "", 0.35),
        ({"retry-after-ms": "350", "retry-after": "9"}, "in 8s", 0.35),
        ({"retry-after-ms": "soon", "retry-after": "9"}, "", 9),
        ({"retry-after": "2.5"}, "", 2.5),
        ({"retry-after": "0"}, "", 0),
        ({"retry-after": "99999999"}, "", LONGEST_SECONDS),
        ({"retry-after": "-1"}, "", None),
        ({"retry-after": "nan"}, "", None),
        ({"retry-after": "inf"}, "", None),
        ({"retry-after": "garbage"}, "try again in 4s", 4),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:40 GMT", "date": DATE}, "", 40),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT", "date": DATE}, "", 0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:40 GMT"}, "", None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:40", "date": DATE}, "", None),
        ({"x-ratelimit-reset-requests": "8.64s", "x-ratelimit-remaining-requests": "0"}, "", 8.64),
        ({"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0"}, "in 1s", 360),
        ({"x-ratelimit-reset-requests": "1h2m3.5s", "x-ratelimit-reset-tokens": "6ms"}, "", 0.006),
        (
            {
                "x-ratelimit-reset-requests": "20s",
                "x-ratelimit-remaining-requests": "5",
                "x-ratelimit-reset-tokens": "7s",
                "x-ratelimit-remaining-tokens": "0",
            },
            "",
            7,
        ),
        ({"x-ratelimit-reset-tokens-minute": "41.25", "x-ratelimit-remaining-tokens-minute": "0"}, "", 41.25),
        ({"x-ratelimit-reset-requests": "20s"}, "Please try again in 350ms.", 0.35),
        ({"x-ratelimit-reset": "1760000000"}, "", None),
        ({"x-ratelimit-reset": "never"}, "", None),
        ({}, "please try again after 1 seconds", 1),
        ({}, "Rate limit: Limit 3, Used 3. Please try again in 20s. Visit us", 20),
        ({}, "Please try again in 6m0s.", 360),
        ({}, "retry in 1h 30 minutes", 5400),
        ({}, "Retry after 500 milliseconds", 0.5),
        ({}, "Wait 2 days", LONGEST_SECONDS),
        ({}, "try again later; 20 s were used", None),
        ({}, "max RPM: 3, try again soon", None),
    ],
)
def test_waiting(headers: dict[str, str], message: str, seconds: float | None) -> None:
    assert waiting_seconds(headers, message) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request"),
        (401, "credential_invalid"),
        (402, "billing"),
        (403, "permission"),
        (404, "model_not_found"),
        (405, "upstream_config"),
        (408, "timeout"),
        (409, "invalid_request"),
        (413, "payload_too_large"),
        (418, "invalid_request"),
        (422, "invalid_request"),
        (429, "rate_limit"),
        (500, "upstream_error"),
        (502, "upstream_error"),
        (503, "overloaded"),
        (504, "timeout"),
        (520, "upstream_error"),
        (529, "overloaded"),
        (301, "upstream_config"),
        (307, "upstream_config"),
        (101, "upstream_config"),
    ],
)
@pytest.mark.parametrize("rules", [OPENAI, DEEPSEEK, CEREBRAS, KIMI, DASHSCOPE, HUGGING_FACE])
def test_unknown_words_are_judged_by_the_status(status: int, kind: str, rules: Any) -> None:
    failure = refusal(reply(status, {"error": {"message": "boo", "code": "never_heard_of"}}), rules)
    assert (failure.kind, failure.upstream_status) == (kind, status)


@pytest.mark.parametrize(
    "page", [b"<html>secret</html>", b"", b'{"error":', b'{"hello":"secret"}', b"[]", b"\xff", b"[" * 10_000]
)
@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "upstream_error"), (401, "credential_invalid"), (403, "upstream_error"), (404, "upstream_config"),
     (429, "rate_limit"), (500, "upstream_error"), (503, "overloaded"), (504, "timeout"), (200, "protocol_error")],
)  # fmt: skip
def test_what_is_not_understood_is_not_passed_on(status: int, kind: str, page: bytes) -> None:
    failure = refusal(reply(status, page, **{"retry-after": "3"}), OPENAI)
    assert (failure.kind, failure.retry_after_seconds) == (kind, 3)
    assert "secret" not in failure.message and failure.message


SHAPES = [
    {"error": {"message": "boo", "type": "t", "param": "p", "code": "c"}},
    {"error": {"message": "boo", "type": "t", "param": "p", "code": "c"}, "request_id": "r", "status_code": 400},
    {"message": "boo", "type": "t", "param": "p", "code": "c"},
    {"object": "error", "message": "boo", "type": "t", "param": "p", "code": "c"},
    [{"error": {"message": "boo", "param": "p", "code": "c"}}],
]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_shapes(shape: Any) -> None:
    failure = refusal(reply(400, shape), OPENAI)
    assert (failure.kind, failure.message, failure.param, failure.code) == ("invalid_request", "boo", "p", "c")


@pytest.mark.parametrize(
    "shape",
    [
        {"error": "boo"},
        {"detail": "boo"},
        {"msg": "boo"},
        {"error": "x", "error_description": "boo"} | {"error": "boo"},
    ],
    ids=repr,
)
def test_shapes_with_a_message_only(shape: Any) -> None:
    failure = refusal(reply(422, shape), OPENAI)
    assert (failure.kind, failure.message, failure.param, failure.code) == ("invalid_request", "boo", None, None)


def test_params_and_codes_of_other_kinds_are_ours() -> None:
    failure = refusal(reply(404, {"error": {"message": "boo", "param": "p", "code": "model_not_found"}}), OPENAI)
    assert failure.envelope()["error"] == {
        "message": "boo",
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }


@pytest.mark.parametrize(
    ("message", "kind"),
    [("Requests per minute", None), ("Tokens per minute limit", "tokens"), ("max TPM: 5", "tokens")],
)
def test_what_ran_out(message: str, kind: str | None) -> None:
    assert refusal(reply(429, {"error": {"message": message}}), OPENAI).type == kind


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        ({"error": {"message": "boo"}}, None, "upstream_error"),
        ({"error": {"message": "boo"}}, 400, "invalid_request"),
        ({"error": {"message": "boo"}, "status_code": 503}, None, "overloaded"),
        ({"error": {"message": "boo", "code": 502}}, None, "upstream_error"),
        ({"error": {"message": "boo", "type": "invalid_request_error"}}, None, "invalid_request"),
        ({"error": {"message": "boo", "code": "context_length_exceeded"}}, None, "context_length"),
        ({"code": "DataInspectionFailed", "message": "boo"}, None, "content_filter"),
        (None, None, "upstream_error"),
        ("boo", None, "upstream_error"),
        ({"error": True}, None, "upstream_error"),
    ],
)
def test_in_a_stream(error: Any, status: int | None, kind: str) -> None:
    failure = reported(error, (*DASHSCOPE, *OPENAI), status)
    assert failure.kind == kind and failure.message


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcDEF123456",
        "sk-test-************0000",
        "csk-abc123def456",
        "hf_AbCdEfGh",
        "org-TEST",
        "ak-TEST",
        "proj_12345",
        "eyJhbGciOi.eyJzdWIi.sig-nature",
        "somebody@example.com",
        "http://10.0.0.5:8000/v1",
        "https://internal.example/path?key=1",
        "10.0.0.5:8000",
        "0123456789abcdef0123456789abcdef",
        "user-abc123",
    ],
)
def test_secrets_are_scrubbed(secret: str) -> None:
    text = scrubbed(f"Your account {secret} may not <{secret}>\n\tat all: {secret}, sorry ({secret})")
    assert secret not in text
    assert text.startswith("Your account […] may not <[…]> at all: […]")


def test_names_in_known_phrases_are_scrubbed() -> None:
    assert "tiny" not in scrubbed("permission to call on behalf of user tiny-cat at all")
    assert "0000" not in scrubbed("Your api key: ****0000 is invalid")
    assert "abc" not in scrubbed("got Bearer abc.def")


@pytest.mark.parametrize(
    "harmless",
    [
        "The model `gpt-99` does not exist or you do not have access to it.",
        "messages.1.assistant.reasoning_content: property 'x' is unsupported",
        "Unsupported value: 'messages[0].role' does not support 'user-provided' key-value pairs.",
        "This model's maximum context length is 128000 tokens. 1.5 and 10.25 are numbers.",
        "qwen-3-235b-a22b-thinking-2507 is not task-oriented, nor is openai/gpt-oss-120b:fireworks-ai",
    ],
)
def test_what_helps_the_caller_stays(harmless: str) -> None:
    assert scrubbed(harmless) == harmless


def test_a_text_is_one_line_of_readable_length() -> None:
    text = scrubbed("a\r\nb\t c" + " d" * 5000)
    assert text.startswith("a b c d") and len(text) == 500


@pytest.mark.parametrize("piece", ["a@", "1.", "eyJ.", "sk-", "in 1", "wait 1 s ", "a-", "http://", "user-"])
def test_hostile_texts_are_quick(piece: str) -> None:
    start = time.process_time()
    failure = refusal(reply(429, {"error": {"message": piece * 20_000}}), OPENAI)
    assert failure.kind == "rate_limit"
    assert time.process_time() - start < 0.5  # milliseconds; without a bound some of these need a minute
