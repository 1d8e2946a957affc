"""The keyless provider: your own words, or a failure on command."""

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from shared.errors import GatewayError
from tests.workers.recordings import decoded, told
from workers.provider import Call, ScriptedStream, Timeouts
from workers.providers.echo import RETRY_AFTER_SECONDS, SLOW_SECONDS, STALL_SECONDS, Echo

WORDS = "Grüße an alle,  zwei\nLeerzeichen 👋 "


def script(model: str, words: Any = WORDS, **fields: Any) -> ScriptedStream:
    body = {"messages": [{"role": "user", "content": "earlier"}, {"role": "user", "content": words}], **fields}
    raw = {name: value if isinstance(value, Raw) else Raw(msgspec.json.encode(value)) for name, value in body.items()}
    try:
        next(Echo(Timeouts()).plan(Call("chat", model, True, raw, None, 1760000000.9, "ab" * 16)))
    except StopIteration as done:
        assert isinstance(done.value, ScriptedStream)
        return done.value
    raise AssertionError("asked something first")


def heard(stream: ScriptedStream) -> Any:
    return told(decoded(stream.decoder, [step.frame for step in stream.steps]))


def test_echo_says_your_words_token_by_token() -> None:
    stream = script("echo")
    result = heard(stream)
    assert (result.text(), result.error, result.finish_reasons()) == (WORDS, None, {0: "stop"})
    assert result.usage.completion_tokens == 7 and not result.usage.estimated
    assert len(result.chunks) == 7 + 2
    assert result.chunks[0]["created"] == 1760000000
    assert {step.delay_seconds for step in stream.steps} == {0}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}],
            "a\nb",
        ),
        ("", ""),
        (None, ""),
        (5, ""),
    ],
)
def test_echo_reads_every_kind_of_content(words: Any, text: str) -> None:
    assert heard(script("echo", words)).text() == text


@pytest.mark.parametrize("messages", [Raw(b"5"), Raw(b"[]"), Raw(b'[{"role":"system","content":"x"}]'), Raw(b"[5]")])
def test_echo_has_nothing_to_say_to_nonsense(messages: Raw) -> None:
    result = heard(script("echo", messages=messages))
    assert (result.text(), result.error) == ("", None)


def test_echo_slow_takes_its_time() -> None:
    delays = [step.delay_seconds for step in script("echo-slow", "a b c").steps]
    assert delays == [0, SLOW_SECONDS, SLOW_SECONDS, 0, 0, 0]


def test_echo_thinks_first() -> None:
    result = heard(script("echo-think", "hm"))
    assert (result.text("reasoning_content"), result.text()) == ("The caller said: hm", "hm")


def test_echo_calls_the_first_tool() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}, {"type": "function", "function": {"name": "other"}}]
    result = heard(script("echo-tool", 'say "hi"', tools=tools))
    (call,) = result.answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert msgspec.json.decode(call["function"]["arguments"]) == {"words": 'say "hi"'}
    assert result.finish_reasons() == {0: "tool_calls"}


@pytest.mark.parametrize("tools", [None, [], [{}], "x", [{"function": {"name": 5}}]])
def test_without_a_tool_it_talks(tools: Any) -> None:
    assert heard(script("echo-tool", "hi", tools=tools)).text() == "hi"


@pytest.mark.parametrize(("model", "kind"), [("echo-cut", "truncated"), ("echo-break", "upstream_error")])
def test_failures_in_the_middle(model: str, kind: str) -> None:
    result = heard(script(model, "one two three four"))
    assert (result.text(), result.error, result.finish_reasons()) == ("one two", kind, {})


def test_echo_stalls_after_two_words() -> None:
    *said, stall = script("echo-stall", "one two three").steps
    assert len(said) == 2
    assert stall.delay_seconds == STALL_SECONDS


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request"),
        (401, "credential_invalid"),
        (429, "rate_limit"),
        (500, "upstream_error"),
        (503, "overloaded"),
    ],
)
def test_refusals_on_command(status: int, kind: str) -> None:
    with pytest.raises(GatewayError) as caught:
        script(f"echo-error-{status}")
    failure = caught.value.failure
    assert (failure.kind, failure.upstream_status) == (kind, status)
    assert failure.retry_after_seconds == (RETRY_AFTER_SECONDS if status in (429, 503) else None)


def test_models_are_all_offered_and_all_play() -> None:
    for model in Echo(Timeouts()).models:
        if "error" in model.id:
            with pytest.raises(GatewayError):
                script(model.id)
        else:
            assert script(model.id).steps
