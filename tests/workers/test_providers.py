"""Every registered provider over every recording of its upstream: bytes in, what the caller is told out."""

from itertools import zip_longest
from typing import Any

import pytest
from msgspec import Raw

from shared.errors import KINDS
from shared.schema.events import Complete, Failed
from tests.simulators.supabase import sign
from tests.workers import conversations
from tests.workers.recordings import ERRORS, STREAMS, body, decoded, framed, told
from workers.exchange import HttpReply
from workers.provider import Call, Credential, HttpStream, Provider, SocketIOStream, Upstream
from workers.registry import factories

VOICES = {"huggingface": "hf", "dashscope": "dashscope-compat"}
"""Whose recordings are a provider's, where the recordings have another name for it."""

ANSWERS = {"flowgpt": "flowgpt_create.json"}
"""The recording that answers the questions of a provider's plan."""

OPTIONS: dict[str, dict[str, Any]] = {
    "flowgpt": {"device_ids": ["device-c"]},
    "langfast": {
        **{"socket_url": "wss://socket.example", "anon_key": "anon", "prompt_id": "p", "default_model": "a-model"},
        **{"min_credentials": 1, "max_credentials": 2, "signups_per_hour": 30},
    },
}
"""What a provider cannot do without."""

CLASSES = {"blocked": "upstream_error"}
"""The recordings' class of a kind that they do not know."""

PROVIDERS = sorted(set(factories()) - {"echo"})


def provider(name: str, file: str = "") -> Provider:
    """The provider as it must be set up for a recording."""
    options = dict(OPTIONS.get(name, {}))
    if file and expect(file).get("cumulative"):
        options["cumulative_models"] = ["a-model"]
    credentials = [Credential("c", "sk-c")]
    return factories()[name](Upstream(name, "https://upstream.example/v1", credentials, ["a-model"], options=options))


def secret(made: Provider, number: int) -> str:
    return sign({"sub": f"user-{number}"}) if made.name == "langfast" else f"sk-secret-{number}"


def exchange(made: Provider, number: int = 0) -> HttpStream | SocketIOStream:
    """The exchange of a plan whose questions are answered from the recordings."""
    messages = Raw(b'[{"role":"user","content":"Hi"}]')
    credential = Credential(f"c{number}", secret(made, number), {"device_id": f"device-{number}"})
    plan = made.plan(Call("chat", "a-model", True, {"messages": messages}, credential, 1760000000.0, f"{number:032x}"))
    try:
        next(plan)
        while True:
            plan.send(HttpReply(status=200, headers={}, body=body(ANSWERS[made.name])))
    except StopIteration as done:
        assert isinstance(done.value, HttpStream | SocketIOStream)
        return done.value


def recordings(name: str) -> list[str]:
    """Files, and scenes of files as `file#number`."""
    wires = ("sse", "sse-dashscope", "ndjson", "json", "json-dashscope")
    mine = {file: entry for file, entry in STREAMS.items() if entry["provider"] == VOICES.get(name, name)}
    files = [file for file, entry in mine.items() if entry["wire"] in wires and "text" in entry["expect"]]
    sockets = [file for file, entry in mine.items() if entry["wire"].startswith("socketio")]
    return files + [scene for file in sockets for scene in conversations.scenes(file)]


def expect(file: str) -> Any:
    """What a correct decoder gets out of a recording."""
    return conversations.scenes(file.partition("#")[0])[file] if "#" in file else STREAMS[file]["expect"]


def frames(exchanged: HttpStream | SocketIOStream, file: str, pieces: list[bytes] | None = None) -> list[Any]:
    """What the decoder is fed. `pieces`: how the body of an HTTP stream arrives."""
    if isinstance(exchanged, SocketIOStream):
        return conversations.heard(exchanged, file).events
    return framed(exchanged.framing, pieces or [body(file)])


RECORDED = [(name, file) for name in PROVIDERS for file in recordings(name)]


def cuts(stream: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, in odd sizes, and in two at every position."""
    sizes = [[stream[i : i + size] for i in range(0, len(stream), size)] for size in (len(stream), 1, 7, 1460)]
    return sizes + [[stream[:position], stream[position:]] for position in range(0, len(stream), 13)]


def play(made: Provider, file: str, pieces: list[bytes] | None = None) -> list[Any]:
    exchanged = exchange(made)
    if isinstance(exchanged, SocketIOStream) and (refused := conversations.heard(exchanged, file).refused):
        return [Failed(made.refusal(refused))]
    return decoded(exchanged.decoder, frames(exchanged, file, pieces))


@pytest.mark.parametrize("name", PROVIDERS)
def test_has_recordings(name: str) -> None:
    assert recordings(name)


@pytest.mark.parametrize(("name", "file"), RECORDED)
def test_recording(name: str, file: str) -> None:
    expected = expect(file)
    result = told(play(provider(name, file), file))
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


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, file in RECORDED if "#" not in file])
def test_cuts_do_not_matter(name: str, file: str) -> None:
    made, stream = provider(name, file), body(file)
    whole = told(play(made, file, [stream]))
    for pieces in cuts(stream):
        assert told(play(made, file, pieces)) == whole


@pytest.mark.parametrize("name", PROVIDERS)
def test_streams_of_one_provider_share_nothing(name: str) -> None:
    made = provider(name)
    files = [file for file in recordings(name) if not expect(file).get("cumulative")]
    for one, other in zip(files, [*files[1:], files[0]], strict=True):
        exchanges = [exchange(made, number) for number in (1, 2)]
        fed = [frames(each, file) for each, file in zip(exchanges, (one, other), strict=True)]
        events: list[list[Any]] = [[], []]
        for pair in zip_longest(*fed):
            for each, frame, heard in zip(exchanges, pair, events, strict=True):
                if frame is not None:
                    heard.extend(each.decoder.feed(frame))
        for each, heard, file in zip(exchanges, events, (one, other), strict=True):
            alone = decoded(exchange(made).decoder, frames(exchange(made), file))
            assert told([*heard, *each.decoder.end()] if heard[-1:] != alone[-1:] else heard) == told(alone)


@pytest.mark.parametrize(("name", "file"), RECORDED)
def test_nothing_follows_the_end(name: str, file: str) -> None:
    exchanged = exchange(provider(name, file))
    fed = frames(exchanged, file)
    events = [event for frame in fed for event in exchanged.decoder.feed(frame)]
    if not events or not isinstance(events[-1], Complete):
        return
    assert [event for frame in fed for event in exchanged.decoder.feed(frame)] == []


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_plan_depends_on_its_call_alone(name: str) -> None:
    made = provider(name)
    exchanges = [exchange(made, number) for number in (1, 1, 2)]
    first, again, other = [each.start if isinstance(each, SocketIOStream) else each.request for each in exchanges]
    assert first == again
    assert exchanges[0].decoder is not exchanges[1].decoder
    key = secret(made, 1)
    assert key in str(first.headers)
    assert key not in repr(first) and key.encode() not in other.body and key not in str(other.headers)


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
