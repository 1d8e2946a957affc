"""langfast: what comes over the socket, everything-so-far turned into what is new."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.sansio.socketio import SocketEvent
from shared.schema.events import Complete, Delta, Event, Failed, Finish
from workers.provider import Belonging
from workers.providers.langfast import ChunkDecoder, named_owner, owner


def chunk(content: Any = None, status: str = "in_progress", **more: Any) -> SocketEvent:
    return SocketEvent("execution:chunk", ({"executionId": "e", "status": status, "content": content} | more,))


FINISHED = SocketEvent("completion_finished", ({"executionId": "e"},))


def decoded(*events: SocketEvent) -> list[Event]:
    decoder = ChunkDecoder()
    return [event for frame in events for event in decoder.feed(frame)]


def text(events: list[Event]) -> str:
    return "".join(event.fields["content"] for event in events if isinstance(event, Delta))


def kind(events: list[Event]) -> str:
    assert isinstance(events[-1], Failed)
    return events[-1].failure.kind


def test_whose_an_event_is() -> None:
    as_text = SocketEvent("execution:chunk", (json.dumps({"executionId": "e", "content": "x"}),))
    assert owner(chunk("x")) == owner(as_text) == Belonging("e")
    assert owner(FINISHED) == Belonging("e", last=True)
    assert owner(SocketEvent("completion_finished")) == Belonging(None, last=True)
    for payload in ("plain text", '"quoted"', "42", "null", '{"a":1}', "[" * 100_000, {}, None, 7, {"executionId": 7}):
        assert owner(SocketEvent("execution:chunk", (payload,))) == Belonging(None)
    assert owner(SocketEvent("execution:progress", ({"executionId": "e"},))) is None


def test_nobody_guesses_where_runs_share_an_account() -> None:
    assert named_owner(chunk("x")) == Belonging("e")
    assert named_owner(FINISHED) == Belonging("e", last=True)
    for event in (SocketEvent("execution:chunk", ("plain text",)), SocketEvent("completion_finished")):
        assert named_owner(event) is None


@given(st.lists(st.text(min_size=1), max_size=6), st.data())
def test_differences_add_up_to_everything(pieces: list[str], data: st.DataObject) -> None:
    """Chunks that come twice, late, as objects or as strings, with all or part of the text: each word is told once."""
    full = ["".join(pieces[:count]) for count in range(len(pieces) + 1)]
    frames = []
    for position, content in enumerate(full):
        frames += [chunk(content)] * data.draw(st.integers(1, 2))
        frames.append(chunk(full[data.draw(st.integers(0, position))]))
    frames.append(chunk(full[-1], "completed", finish_reason="length"))
    shaped = [
        SocketEvent(frame.name, (json.dumps(frame.arguments[0]),)) if data.draw(st.booleans()) else frame
        for frame in frames
    ]
    events = decoded(*shaped, FINISHED)
    assert text(events) == "".join(pieces)
    assert events[-2:] == [Finish("length"), Complete()]


@pytest.mark.parametrize(
    "last", [FINISHED, SocketEvent("completion_finished"), chunk("ab", "completed"), chunk(None, "done")]
)
def test_every_way_to_end(last: SocketEvent) -> None:
    assert decoded(chunk("a"), chunk("ab"), last, chunk("abc"), FINISHED) == [
        Delta({"content": "a"}),
        Delta({"content": "b"}),
        Finish("stop"),
        Complete(),
    ]


def test_the_reason_may_come_before_the_end() -> None:
    assert decoded(chunk("a", finish_reason="content_filter"), FINISHED)[-2:] == [Finish("content_filter"), Complete()]
    decoder = ChunkDecoder()
    assert decoder.feed(chunk("a", "completed", finish_reason="bored"))[-2] == Finish("stop")
    assert decoder.odd_finish_reasons == ["bored"]


@pytest.mark.parametrize(
    "frames",
    [
        [chunk("The cat"), chunk("A dog")],
        [chunk("The cat"), chunk("The", "completed")],
        [chunk("The cat"), chunk("The"), chunk("The dog")],
    ],
)
def test_what_was_said_cannot_be_unsaid(frames: list[SocketEvent]) -> None:
    events = decoded(*frames, FINISHED)
    assert (text(events), kind(events)) == ("The cat", "protocol_error")


CONTEXT = {"message": "This model's maximum context length is 8192 tokens."}
PARAMETER = "Unsupported parameter: 'top_p' is not supported with this model."
FAILED = SocketEvent("completion_finished", ({"executionId": "e", "status": "failed", "content": "ab"},))


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (chunk("ab", "failed"), "upstream_error"),
        (chunk("ab", "in_progress", error="The model's rate limit is reached."), "rate_limit"),
        (chunk("ab", "failed", error=CONTEXT), "context_length"),
        (chunk("ab", "error", error=PARAMETER), "unsupported_parameter"),
        (chunk("ab", "completed", error="Request failed"), "upstream_error"),
        (FAILED, "upstream_error"),
    ],
)
def test_failures_come_after_the_text_that_came_with_them(frame: SocketEvent, expected: str) -> None:
    events = decoded(chunk("a"), frame, FINISHED)
    assert (text(events), kind(events)) == ("ab", expected)
    assert not any(isinstance(event, Finish) for event in events)


def test_text_without_an_envelope() -> None:
    plain = [SocketEvent("execution:chunk", (said,)) for said in ("4", "42", '42 {"a":1}')]
    assert text(decoded(*plain, FINISHED)) == '42 {"a":1}'


def test_half_characters_wait_for_their_other_half() -> None:
    halves = [SocketEvent("execution:chunk", (f'{{"content":"a{said}"}}',)) for said in (r"\ud83d", r"\ud83d\ude00")]
    assert [event.fields["content"] for event in decoded(*halves) if isinstance(event, Delta)] == ["a", "😀"]
    assert text(decoded(halves[0], FINISHED)) == "a\ufffd"
    assert text(decoded(chunk("a\ude00"), chunk("a\ude00b\ud83d", "completed"))) == "a\ufffdb\ufffd"


def test_what_makes_no_sense_is_counted() -> None:
    decoder = ChunkDecoder()
    for content in (7, [], {"text": "x"}):
        assert decoder.feed(chunk(content)) == []
    assert decoder.feed(SocketEvent("execution:chunk")) == []
    assert decoder.feed(SocketEvent("something:else", ({"content": "x"},))) == []
    assert decoder.malformed == 3
    assert decoder.end() == []
