"""Every registered provider over every recording of its upstream: bytes in, what the caller is told out."""

from itertools import zip_longest
from typing import Any

import pytest
from msgspec import Raw

from shared.errors import KINDS
from shared.schema.events import Complete
from tests.workers.recordings import ERRORS, STREAMS, body, decoded, framed, told
from workers.exchange import HttpReply
from workers.provider import Call, Credential, HttpStream, Provider, Upstream
from workers.registry import factories

VOICES = {"huggingface": "hf", "dashscope": "dashscope-compat"}
"""Whose recordings are a provider's, where the recordings have another name for it."""

ANSWERS = {"flowgpt": "flowgpt_create.json"}
"""The recording that answers the questions of a provider's plan."""

OPTIONS = {"flowgpt": {"device_ids": ["device-c"]}}
"""What a provider cannot do without."""

CLASSES = {"blocked": "upstream_error"}
"""The recordings' class of a kind that they do not know."""

PROVIDERS = sorted(set(factories()) - {"echo"})


def provider(name: str, file: str = "") -> Provider:
    """The provider as it must be set up for a recording."""
    options: dict[str, Any] = dict(OPTIONS.get(name, {}))
    if file and STREAMS[file]["expect"].get("cumulative"):
        options["cumulative_models"] = ["a-model"]
    credentials = [Credential("c", "sk-c")]
    return factories()[name](Upstream(name, "https://upstream.example/v1", credentials, ["a-model"], options=options))


def exchange(made: Provider, number: int = 0) -> HttpStream:
    """The exchange of a plan whose questions are answered from the recordings."""
    messages = Raw(b'[{"role":"user","content":"Hi"}]')
    credential = Credential(f"c{number}", f"sk-secret-{number}", {"device_id": f"device-{number}"})
    plan = made.plan(Call("chat", "a-model", True, {"messages": messages}, credential, 1760000000.0, f"{number:032x}"))
    try:
        next(plan)
        while True:
            plan.send(HttpReply(status=200, headers={}, body=body(ANSWERS[made.name])))
    except StopIteration as done:
        if not isinstance(done.value, HttpStream):
            pytest.skip("not an HTTP exchange")
        return done.value


def recordings(name: str) -> list[str]:
    wires = ("sse", "sse-dashscope", "ndjson", "json", "json-dashscope")
    return [
        file
        for file, entry in STREAMS.items()
        if entry["provider"] == VOICES.get(name, name) and entry["wire"] in wires and "text" in entry["expect"]
    ]


RECORDED = [(name, file) for name in PROVIDERS for file in recordings(name)]


def cuts(stream: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, in odd sizes, and in two at every position."""
    sizes = [[stream[i : i + size] for i in range(0, len(stream), size)] for size in (len(stream), 1, 7, 1460)]
    return sizes + [[stream[:position], stream[position:]] for position in range(0, len(stream), 13)]


def play(made: Provider, file: str, pieces: list[bytes]) -> list[Any]:
    exchanged = exchange(made)
    return decoded(exchanged.decoder, framed(exchanged.framing, pieces))


@pytest.mark.parametrize("name", PROVIDERS)
def test_has_recordings(name: str) -> None:
    assert recordings(name)


@pytest.mark.parametrize(("name", "file"), RECORDED)
def test_recording(name: str, file: str) -> None:
    expected = STREAMS[file]["expect"]
    result = told(play(provider(name, file), file, [body(file)]))
    assert result.text() == expected["text"]
    assert result.text("reasoning_content") == expected["reasoning"]
    assert result.text("reasoning") == ""
    assert result.finish_reasons().get(0) == expected["finish_reason"]
    assert result.error == (expected["error"] and expected["error"]["class"])
    assert_usage(result.usage, expected["usage"])
    for choice in expected.get("choices", ()):
        assert result.text(choice=choice["index"]) == choice["text"]
        assert result.finish_reasons()[choice["index"]] == choice["finish_reason"]
    if expected["error"] is None:
        assert_answer(result.answer, expected)
    else:
        assert result.answer is None


def assert_usage(usage: Any, expected: Any) -> None:
    if expected is None:
        assert usage is None or usage.estimated
        return
    assert not usage.estimated
    for name, value in expected.items():
        found = getattr(usage, name)
        assert found == value if isinstance(value, int) else value.items() <= found.items()


def assert_answer(answer: Any, expected: Any) -> None:
    """The whole answer says what the stream said."""
    message = answer["choices"][0]["message"]
    assert (message["content"] or "") == expected["text"]
    assert message.get("reasoning_content", "") == expected["reasoning"]
    calls = [{"id": call["id"], **call["function"]} for call in message.get("tool_calls", [])]
    assert calls == expected["tool_calls"]
    assert answer["choices"][0]["finish_reason"] == expected["finish_reason"]


@pytest.mark.parametrize(("name", "file"), RECORDED)
def test_cuts_do_not_matter(name: str, file: str) -> None:
    made, stream = provider(name, file), body(file)
    whole = told(play(made, file, [stream]))
    for pieces in cuts(stream):
        assert told(play(made, file, pieces)) == whole


@pytest.mark.parametrize("name", PROVIDERS)
def test_streams_of_one_provider_share_nothing(name: str) -> None:
    made = provider(name)
    files = [file for file in recordings(name) if not STREAMS[file]["expect"].get("cumulative")]
    for one, other in zip(files, [*files[1:], files[0]], strict=True):
        exchanges = [exchange(made, number) for number in (1, 2)]
        frames = [framed(each.framing, [body(file)]) for each, file in zip(exchanges, (one, other), strict=True)]
        events: list[list[Any]] = [[], []]
        for pair in zip_longest(*frames):
            for each, frame, heard in zip(exchanges, pair, events, strict=True):
                if frame is not None:
                    heard.extend(each.decoder.feed(frame))
        for each, heard, file in zip(exchanges, events, (one, other), strict=True):
            alone = play(made, file, [body(file)])
            assert told([*heard, *each.decoder.end()] if heard[-1:] != alone[-1:] else heard) == told(alone)


@pytest.mark.parametrize(("name", "file"), RECORDED)
def test_nothing_follows_the_end(name: str, file: str) -> None:
    exchanged = exchange(provider(name, file))
    frames = framed(exchanged.framing, [body(file)])
    events = [event for frame in frames for event in exchanged.decoder.feed(frame)]
    if not events or not isinstance(events[-1], Complete):
        return
    assert [event for frame in frames for event in exchanged.decoder.feed(frame)] == []


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_plan_depends_on_its_call_alone(name: str) -> None:
    made = provider(name)
    first, again, other = exchange(made, 1), exchange(made, 1), exchange(made, 2)
    assert first.request == again.request
    assert first.decoder is not again.decoder
    assert b"sk-secret-1" not in other.request.body and "sk-secret-1" not in str(other.request.headers)
    assert "sk-secret-1" not in repr(first.request)


REFUSED = [
    (name, file)
    for name in PROVIDERS
    for file, entry in ERRORS.items()
    if entry["provider"] in (VOICES.get(name, name), "generic")
]


@pytest.mark.parametrize(("name", "file"), REFUSED)
def test_refusal(name: str, file: str) -> None:
    entry = ERRORS[file]
    expected = entry["expect"]
    failure = provider(name).refusal(HttpReply(status=entry["status"], headers=entry["headers"], body=body(file)))
    assert CLASSES.get(failure.kind, failure.kind) == expected["class"]
    if expected["credential"] != "stop_minting":
        assert KINDS[failure.kind].credential == expected["credential"]
    # "retry" is about the same credential: none where another must be tried, or where the request itself is at fault.
    patient = {"rate_limit", "overloaded", "upstream_error", "timeout"}
    assert (failure.kind in patient) == (expected["retry"] is True)
    assert failure.message and "<html" not in failure.message
    for secret in ("org-", "ak-", "sk-", "****", "test-user"):
        assert secret not in failure.message
