"""What a request may cost, before and after, and how limits are told in OpenAI's words."""

import json
import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.budget import (
    TOKENS_PER_ATTACHMENT,
    TOKENS_PER_MESSAGE,
    USUAL_ANSWER_TOKENS,
    Estimate,
    Sent,
    duration,
    estimate,
    limit_failure,
    limit_headers,
)
from frontend.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from shared.redis.submission.limits import Left
from shared.redis.submission.script import Refusal


def of(kind, **fields) -> Estimate:
    body = json.dumps(fields).encode()
    return estimate(msgspec.json.decode(body, type=kind), body)


def chat(*contents, **fields) -> Estimate:
    return of(ChatRequest, messages=[{"role": "user", "content": content} for content in contents], **fields)


def test_a_prompt_is_estimated_by_its_text():
    assert chat("x" * 300).prompt == 100 + TOKENS_PER_MESSAGE
    assert chat("x" * 300, "y" * 30).prompt == 110 + 2 * TOKENS_PER_MESSAGE
    assert chat("模" * 100).prompt == 100 + TOKENS_PER_MESSAGE, "bytes, not characters"
    assert chat([{"type": "text", "text": "x" * 300}]).prompt == 100 + TOKENS_PER_MESSAGE


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}},
        {"type": "input_audio", "input_audio": {"data": "A" * 100_000, "format": "wav"}},
        {"type": "file", "file": {"file_data": "A" * 100_000}},
    ],
    ids=lambda part: part["type"],
)
def test_what_is_no_text_has_a_flat_price(part):
    assert chat([part, {"type": "text", "text": "abc"}]).prompt == TOKENS_PER_ATTACHMENT + 1 + TOKENS_PER_MESSAGE


def test_tools_and_formats_are_read_as_well():
    plain = chat("hi").prompt
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 3000}}]
    assert chat("hi", tools=tools).prompt > plain + 1000
    assert chat("hi", response_format={"type": "json_schema", "json_schema": {"x": "y" * 3000}}).prompt > plain + 1000


def test_calls_of_tools_are_part_of_the_history():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "x" * 3000}}
    asked = of(ChatRequest, messages=[{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert asked.prompt > 1000


HIDDEN = "read me " * 10_000


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": HIDDEN}},
        {"role": "assistant", "content": "a", "reasoning_content": HIDDEN},
        {"role": "user", "content": [{"type": "refusal", "refusal": HIDDEN}]},
        {"role": "user", "content": [{"type": "document", "source": {"text": HIDDEN}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}], "thoughts": HIDDEN},
    ],
    ids=["function_call", "reasoning", "refusal", "unknown", "beside an image"],
)
def test_no_text_is_read_for_nothing_wherever_it_stands(message):
    assert of(ChatRequest, messages=[message]).prompt >= len(HIDDEN) / 9


def test_old_functions_and_odd_inputs_are_read_as_well():
    assert chat("hi", functions=[{"name": "f", "description": HIDDEN}]).prompt >= len(HIDDEN) / 9
    assert of(CompletionRequest, prompt=[{"text": HIDDEN}]).prompt >= len(HIDDEN) / 9
    assert of(EmbeddingRequest, input=[{"text": HIDDEN}]).prompt >= len(HIDDEN) / 9


def test_the_answer_may_become_as_long_as_was_said():
    assert chat("hi", max_tokens=50) == Estimate(5, 50, 50)
    assert chat("hi", max_completion_tokens=50, n=3) == Estimate(5, 150, 150)
    assert chat("hi", max_tokens=4000, max_completion_tokens=1) == Estimate(5, 4000, 4000), "whichever is obeyed"


def test_who_does_not_say_needs_but_one_token_and_reserves_the_usual():
    assert chat("hi") == Estimate(5, USUAL_ANSWER_TOKENS, 1)
    assert chat("hi", n=2).answer == 2 * USUAL_ANSWER_TOKENS
    for nothing in (0, -1, -(10**15)):
        assert chat("hi", max_tokens=nothing) == chat("hi")
        assert chat("hi", max_completion_tokens=nothing) == chat("hi")


def test_legacy_completions_and_embeddings():
    assert of(CompletionRequest, prompt="x" * 30, max_tokens=7) == Estimate(10, 7, 7)
    assert of(CompletionRequest, prompt=["x" * 30, "y" * 30], suffix="z" * 3, max_tokens=7).prompt == 21
    assert of(CompletionRequest, prompt=[[1, 2, 3], [4]], max_tokens=7, best_of=4) == Estimate(4, 56, 56)
    assert of(CompletionRequest, prompt=[1, 2, 3], max_tokens=7, n=2) == Estimate(3, 14, 14)
    assert of(EmbeddingRequest, input=["x" * 30, "yyy"]) == Estimate(11, 0, 0)
    assert of(EmbeddingRequest, input=[1, 2, 3]) == Estimate(3, 0, 0)


@given(st.lists(st.text("abcdefg ", min_size=1, max_size=12), min_size=1, max_size=200))
def test_what_was_sent_of_a_stream_is_about_what_was_said(texts):
    sent, envelope = Sent(), b'{"id":"chatcmpl-1","choices":[{"delta":{"content":"%s"}}]}'
    for text in texts:
        sent.add([envelope % text.encode()])
    said = sum(map(len, texts)) / 4
    assert 0 < sent.tokens <= said + 1
    if min(map(len, texts)) == 1:
        assert sent.tokens >= said


def test_an_answer_in_one_large_chunk_is_not_taken_for_its_envelope():
    sent = Sent()
    sent.add([b'{"choices":[{"delta":{"role":"assistant","content":"%s"}}]}' % (b"word " * 8000)])
    assert 9_000 < sent.tokens <= 10_100


def test_nothing_sent_is_nothing():
    assert Sent().tokens == 0


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0s"), (0.2, "1ms"), (20, "20ms"), (999.5, "1s"), (1000, "1s"), (1500, "1.5s"), (8640, "8.64s"),
        (59_999, "59.999s"), (60_000, "1m0s"), (61_001, "1m1.001s"), (360_000, "6m0s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(milliseconds, text):
    assert duration(milliseconds) == text


@given(st.floats(0, 10**7))
def test_durations_are_never_shorter_than_they_are(milliseconds):
    minutes, seconds, whole = re.fullmatch(r"(?:(\d+)m)?(?:([\d.]+)s|(\d+)ms)", duration(milliseconds)).groups()
    assert int(minutes or 0) * 60_000 + float(seconds or 0) * 1000 + int(whole or 0) >= milliseconds - 1e-6


def test_only_limits_that_there_are_have_headers():
    assert limit_headers(Left(requests=10, requests_left=7, requests_reset_ms=6000)) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "7",
        "x-ratelimit-reset-requests": "6s",
    }
    assert list(limit_headers(Left(tokens=10))) == [
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
    ]


def failure(kind, **details):
    return limit_failure(Refusal(kind, **details))


def test_what_callers_read_about_their_limits():
    requests = failure("rate_limit", limit="requests", size=3, used=3, wanted=1, retry_after_seconds=20.0)
    assert requests.envelope()["error"] == {
        "message": "Rate limit reached for this key: 3 requests per minute, used 3. Please try again in 20s.",
        "type": "requests", "param": None, "code": "rate_limit_exceeded",
    }  # fmt: skip
    assert requests.headers() == {"retry-after": "20", "retry-after-ms": "20000"}
    tokens = failure("rate_limit", limit="tokens", size=1000, used=900, wanted=200, retry_after_seconds=0.3)
    assert tokens.envelope()["error"]["type"] == "tokens"
    assert "used 900, requested 200" in tokens.message
    assert tokens.headers() == {"retry-after": "1", "retry-after-ms": "300"}


def test_what_waiting_does_not_help_is_not_to_be_tried_again():
    large = failure("request_over_limit", limit="tokens", size=1000, used=0, wanted=2000)
    assert (large.row.status, large.row.type, large.row.code) == (429, "tokens", "rate_limit_exceeded")
    assert large.headers() == {"x-should-retry": "false"}


def test_too_many_at_once():
    busy = failure("concurrency_limit", limit="concurrent", size=2, used=2, wanted=1, retry_after_seconds=0.5)
    assert (busy.row.status, busy.row.code) == (429, "concurrency_limit_exceeded")
    assert busy.headers() == {"retry-after": "1", "retry-after-ms": "500"}


@pytest.mark.parametrize(("limit", "words"), [("daily", "100 tokens a day"), ("monthly", "100 tokens a month")])
def test_a_quota_says_which_it_is_how_large_and_when_it_opens(limit, words):
    midnight = (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    wait = (midnight - datetime.now(UTC)).total_seconds()
    used_up = failure("insufficient_quota", limit=limit, size=100, used=90, wanted=20, retry_after_seconds=wait)
    assert used_up.envelope()["error"]["type"] == used_up.envelope()["error"]["code"] == "insufficient_quota"
    assert words in used_up.message
    assert f"opens again at {midnight:%Y-%m-%d}T00:00Z" in used_up.message
    assert used_up.headers() == {"x-should-retry": "false"}


def test_what_is_not_about_limits_is_somebody_elses_to_say():
    assert failure("queue_full", waiting=7) is None
