"""C: what an upstream can do wrong, asked for as a stream and as a whole, and exactly what the caller is told each time."""

import gzip
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import trio

from tests.faults.house import House
from tests.faults.scripted_upstream import STREAM, UNTIL_CLOSE, Script, answering, event, flooding, stream_of
from tests.faults.standing import Standing, standing_house
from tests.faults.streams import Raw, raw
from tests.simulators.script import DIFFICULT_TEXTS, ODD_EVENTS
from tests.simulators.speech import encode

pytestmark = [pytest.mark.promise("P3", "P19")]

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    with standing_house(
        SLUICE_FIRST_TOKEN_SECONDS="2", SLUICE_SILENCE_SECONDS="1.2", SLUICE_ANSWER_LIMIT_BYTES=str(4 * MIB)
    ) as made:
        yield made


@pytest.fixture
async def house(standing: Standing) -> AsyncIterator[House]:
    async with standing.visited() as made:
        with trio.fail_after(40):
            yield made


@dataclass(frozen=True)
class Answered:
    """`text`: what the caller has. `code`: of the error that followed, if one did, as event or (status not 200) instead."""

    status: int
    code: str | None
    text: str
    reply: Raw


async def ask(house: House, words: str, *, stream: bool) -> Answered:
    reply = await raw(house, words, stream=stream)
    if stream:
        error = reply.error
        return Answered(reply.status, error and error["code"], reply.text, reply)
    said = json.loads(reply.seen.body)
    if "error" in said:
        assert set(said["error"]) == {"message", "type", "param", "code"}
        return Answered(reply.status, said["error"]["code"], "", reply)
    return Answered(reply.status, None, said["choices"][0]["message"]["content"] or "", reply)


async def ask_both(house: House, words: str) -> tuple[Answered, Answered]:
    """The same words as a stream and as a whole, at the same time; their first word tells the calls apart."""
    answers: dict[bool, Answered] = {}

    async def one(stream: bool) -> None:
        answers[stream] = await ask(house, f"{'streamed' if stream else 'whole'} {words}", stream=stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, True)
        nursery.start_soon(one, False)
    return answers[True], answers[False]


TIMEOUT, CUT, TRUNCATED = "upstream_timeout", "upstream_disconnected", "upstream_stream_truncated"
PROTOCOL, FAILED, BUSY = "upstream_protocol_error", "upstream_error", "upstream_overloaded"
MID = "sim:chunks=9 sim:gap=0.01 sim:at=4"

BREAKS = [
    # row, words, the stream's status and code and whether it has text, the whole's status and code, upstream calls of both
    ("C2", "sim:fault=hang_before_headers", (504, TIMEOUT, False), (504, TIMEOUT), 2),
    ("C3", "sim:fault=hang_after_headers", (200, TIMEOUT, False), (504, TIMEOUT), 2),
    ("C3", f"{MID} sim:fault=hang_mid", (200, TIMEOUT, True), (504, TIMEOUT), 2),
    ("C4", "sim:fault=comments sim:gap=0.05", (200, TIMEOUT, False), (504, TIMEOUT), 2),
    ("C4", f"{MID} sim:fault=comments", (200, TIMEOUT, True), (504, TIMEOUT), 2),
    ("C5", "sim:fault=drip sim:gap=0.2", (200, TIMEOUT, False), (504, TIMEOUT), 2),
    ("C6", "sim:fault=close_before_headers", (502, CUT, False), (502, CUT), 4),
    ("C6", "sim:fault=reset_before_headers", (502, CUT, False), (502, CUT), 4),
    ("C6", "sim:fault=reset_after_headers", (502, CUT, False), (502, CUT), 4),
    ("C6", f"{MID} sim:fault=reset_mid_chunk", (200, CUT, True), (502, CUT), 3),
    ("C7", f"{MID} sim:fault=truncate", (200, TRUNCATED, True), (502, TRUNCATED), 3),
    ("C7", f"{MID} sim:fault=no_finish", (200, TRUNCATED, True), (502, TRUNCATED), 3),
    ("C8", f"{MID} sim:fault=drop_mid", (200, CUT, True), (502, CUT), 3),
    ("C8", "one two three four sim:fault=short_length", (200, CUT, True), (502, CUT), 3),
    ("C13", "sim:fault=gzip_bomb", (502, PROTOCOL, False), (502, PROTOCOL), 2),
    ("C15", "sim:fault=error_200 sim:error=openai_400_context_length", (400, "context_length_exceeded", False),
     (400, "context_length_exceeded"), 2),
    ("C15", "sim:fault=error_200_event sim:error=openai_429_rate_limit", (429, "rate_limit_exceeded", False),
     (429, "rate_limit_exceeded"), 2),
    ("C15", "sim:fault=error_200_event sim:status=500", (502, FAILED, False), (502, FAILED), 4),
    ("C16", "sim:fault=html sim:status=200", (502, PROTOCOL, False), (502, PROTOCOL), 2),
    ("C16", "sim:fault=html", (502, FAILED, False), (502, FAILED), 4),
    ("C16", "sim:fault=empty", (502, TRUNCATED, False), (502, TRUNCATED), 4),
    ("C21", "sim:error=openai_503_overloaded", (503, BUSY, False), (503, BUSY), 4),
    ("C22", "sim:fault=redirect", (502, "upstream_misconfigured", False), (502, "upstream_misconfigured"), 2),
    ("C25", "sim:fault=switching", (502, PROTOCOL, False), (502, PROTOCOL), 2),
    ("C25", "sim:fault=informational", (502, PROTOCOL, False), (502, PROTOCOL), 2),
    ("C25", "sim:fault=many_headers", (502, PROTOCOL, False), (502, PROTOCOL), 2),
    ("C25", "sim:fault=big_header", (502, PROTOCOL, False), (502, PROTOCOL), 2),
    ("C25", "sim:fault=bad_status_line", (502, PROTOCOL, False), (502, PROTOCOL), 2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "streamed", "whole", "calls"),
    [pytest.param(*rest, marks=pytest.mark.fault(row), id=f"{row} {rest[0]}") for row, *rest in BREAKS],
)
async def test_a_broken_answer_is_an_error_and_says_which(
    house: House, words: str, streamed: tuple[int, str, bool], whole: tuple[int, str], calls: int
) -> None:
    """An answer that hangs, is cut, lies or makes no sense."""
    stream, one = await ask_both(house, words)
    assert (stream.status, stream.code, bool(stream.text)) == streamed, stream.reply.seen.raw
    assert (one.status, one.code) == whole
    assert stream.reply.ended == "error"
    assert house.ledger.calls_seen == calls
    if stream.text:
        assert any(call.text.startswith(stream.text) for call in house.ledger.calls)
    for answer in (stream, one):
        assert b"<html" not in answer.reply.seen.body.lower() and b"sk-" not in answer.reply.seen.body
        if answer.status >= 500 and calls == 4:
            assert answer.reply.headers["x-should-retry"] == "false", "two starts are enough"


@pytest.mark.fault("C6", "C20")
@pytest.mark.parametrize(
    "trouble",
    [
        "sim:fault=reset_before_headers",
        "sim:fault=close_before_headers",
        "sim:fault=reset_after_headers",
        "sim:status=500",
        "sim:status=502",
        "sim:status=503",
        "sim:status=529",
    ],
)
async def test_what_goes_wrong_once_before_the_first_token_is_not_noticed(house: House, trouble: str) -> None:
    """One failure before the first token, then a healthy upstream."""
    for answer in await ask_both(house, f"good day {trouble} sim:times=1"):
        assert (answer.status, answer.code, answer.text.partition(" ")[2]) == (200, None, "good day")
        assert answer.reply.headers["x-sluice-attempts"] == "2"
    assert house.ledger.calls_seen == 4


GOOD = "one é漢😀 two\nthree"
BODY = stream_of("one é", "漢😀 two", "\nthree")
HABITS = {
    "split at every byte": (BODY, 1),
    "lines end with CRLF": (BODY.replace(b"\n", b"\r\n"), 0),
    "lines end with CRLF, split at every byte": (BODY.replace(b"\n", b"\r\n"), 1),
    "lines end with CR": (BODY.replace(b"\n", b"\r"), 0),
    "lines end with CR, split at every byte": (BODY.replace(b"\n", b"\r"), 1),
    "a byte order mark": (b"\xef\xbb\xbf" + BODY, 1),
    "no space after the colon": (BODY.replace(b"data: ", b"data:"), 3),
    "data in several lines": (BODY.replace(b'"choices"', b'\ndata: "choices"'), 7),
    "no blank line at the end": (BODY.rstrip(b"\n"), 0),
    "no [DONE]": (BODY.replace(b"data: [DONE]\n\n", b""), 0),
    "no [DONE] and no blank line": (BODY.replace(b"\n\ndata: [DONE]\n\n", b""), 0),
    "names, numbers and pauses": (BODY.replace(b"data: {", b": hm\nevent: chunk\nid: 7\nretry: 1\ndata: {"), 5),
    "an answer goes on behind [DONE]": (BODY + event("more") + BODY, 0),
}


@pytest.mark.fault("C7", "C9", "C10", "C24")
@pytest.mark.parametrize("habit", HABITS)
async def test_habits_of_framing_change_nothing(house: House, habit: str) -> None:
    """A good answer in a framing of the upstream's own."""
    body, pieces = HABITS[habit]
    house.upstream.script = answering(UNTIL_CLOSE + body, pieces=pieces)
    for answer in await ask_both(house, "hello"):
        assert (answer.status, answer.code, answer.text) == (200, None, GOOD)


@pytest.mark.fault("C10")
async def test_characters_are_whole_wherever_they_are_cut(house: House) -> None:
    """A code point cut at each of its bytes; halves of a surrogate pair in two chunks."""
    text = "é漢😀" * 3
    for pieces in (1, 2, 3, 5):
        house.upstream.script = answering(UNTIL_CLOSE + stream_of(text), pieces=pieces)
        assert [answer.text for answer in await ask_both(house, "hello")] == [text, text]
    house.upstream.script = None
    wanted = {"lone_surrogate": "a\ufffdb", "split_surrogate": "a 😀 b"}
    for name, parts in DIFFICULT_TEXTS.items():
        for answer in await ask_both(house, f"sim:text={name}"):
            assert answer.text == (wanted.get(name) or "".join(parts)), name


@pytest.mark.fault("C11")
async def test_bytes_that_are_no_text_are_replaced_and_counted(house: House) -> None:
    """Invalid UTF-8 in a chunk."""
    for answer in await ask_both(house, "two words sim:insert=invalid_utf8 sim:at=0"):
        assert answer.text.removeprefix("\ufffd\ufffd").partition(" ")[2] == "two words"
    assert house.workers[0].text().count("sent 1 events that made no sense") >= 2


@pytest.mark.fault("C14")
async def test_an_odd_event_costs_itself_only(house: House) -> None:
    """Events that are no JSON, no object, without choices, with null for everything, with unknown fields."""
    wrong: list[tuple[str, Answered]] = []

    async def one(odd: str) -> None:
        for answer in await ask_both(house, f"four words or so sim:insert={odd} sim:at=2"):
            if (answer.status, answer.code, answer.text.partition(" ")[2]) != (200, None, "four words or so"):
                wrong.append((odd, answer))

    async with trio.open_nursery() as nursery:
        for odd in ODD_EVENTS.keys() - {"invalid_utf8"}:
            nursery.start_soon(one, odd)
    assert wrong == []


SENSELESS = {
    "choices is a number": b'data: {"choices":7}\n\n',
    "choices holds numbers": b'data: {"choices":[1,2]}\n\n',
    "a delta is a list": b'data: {"choices":[{"index":0,"delta":[1]}]}\n\n',
    "tool calls are a text": event(tool_calls="call me"),
    "deep nesting": b'data: {"choices":[{"index":0,"delta":{"x":' + b"[" * 5000 + b"]" * 5000 + b"}}]}\n\n",
    "a tool call of an index without end": b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":1'
    + b"0" * 99
    + b',"function":{"name":"f","arguments":""}}]}}]}\n\n',
    "an index without end": b'data: {"choices":[{"index":1' + b"0" * 4000 + b',"delta":{"content":"x"}}]}\n\n',
}


@pytest.mark.fault("C14")
@pytest.mark.parametrize("sense", SENSELESS)
async def test_senseless_chunks_crash_nobody(house: House, sense: str) -> None:
    """A chunk whose parts have the wrong type, in an otherwise good answer: it is dropped, or the answer is an error."""
    house.upstream.script = answering(UNTIL_CLOSE + event("a") + SENSELESS[sense] + stream_of("b"))
    for answer in await ask_both(house, "hello"):
        assert (answer.status, answer.code, answer.text) == (200, None, "ab") or answer.code == PROTOCOL
    assert all(process.popen.poll() is None for process in house.processes)


def encoded(coding: str, body: bytes) -> Script:
    return answering(STREAM + b"Content-Encoding: " + coding.encode() + b"\r\n\r\n" + body)


@pytest.mark.fault("C13", "S24")
@pytest.mark.parametrize(
    ("script", "code"),
    [
        (encoded("gzip", gzip.compress(BODY)), None),
        (encoded("gzip", gzip.compress(BODY)[:-20]), PROTOCOL),
        (encoded("gzip", BODY), PROTOCOL),
        (encoded("br", BODY), PROTOCOL),
        (encoded("gzip\r\nContent-Encoding: gzip", gzip.compress(gzip.compress(BODY))), PROTOCOL),
    ],
    ids=["gzip that nobody asked for", "cut", "a lie", "unknown", "twice"],
)
async def test_compressed_answers(house: House, script: Script, code: str | None) -> None:
    """An answer that is compressed although we ask for `identity`."""
    house.upstream.script = script
    stream, one = await ask_both(house, "hello")
    assert house.ledger.calls[0].header("accept-encoding") == "identity"
    assert (one.code, one.text) == (code, GOOD if code is None else "")
    assert stream.code == code and GOOD.startswith(stream.text)
    assert code is not None or stream.text == GOOD


@pytest.mark.fault("C12", "S24")
async def test_a_line_without_end_is_bounded(house: House) -> None:
    """One line that does not end, as fast as it is taken: an error at 8 MiB, which a picture inside an event may well have."""
    for again in range(6):
        answer = await ask(house, "hello sim:fault=endless_line", stream=again % 2 == 0)
        assert (answer.status, answer.code) == (502, PROTOCOL)
        if again == 2:  # what the allocator has asked for by now, it keeps; more would be a leak
            house.before[house.workers[0].name] = await house.held(house.workers[0])
    assert all(call.bytes_sent < 16 * MIB for call in house.ledger.calls)


@pytest.mark.fault("C12", "C23", "S24")
async def test_an_answer_without_end_is_bounded_where_it_is_gathered(house: House) -> None:
    """Tokens as fast as they are taken, for a caller who does not stream: an error at SLUICE_ANSWER_LIMIT_BYTES."""
    house.upstream.script = flooding(UNTIL_CLOSE, event("x" * 400) * 100, at_most=200 * MIB)
    answer = await ask(house, "hello", stream=False)
    assert (answer.status, answer.code) == (502, PROTOCOL)
    (call,) = house.ledger.calls
    assert call.bytes_sent < 16 * MIB


REFUSED = [
    ("C17", 400, {"message": "bad sk-live-0123456789abcdef at https://internal.example/x", "type": "invalid_request_error",
                  "param": "top_p", "code": "odd"}, (400, "odd")),
    ("C17", 404, {"message": "no such model", "type": "invalid_request_error", "code": "model_not_found"},
     (404, "model_not_found")),
    ("C17", 422, {"message": "senseless", "type": "invalid_request_error"}, (400, None)),
    ("C18", 401, {"message": f"Incorrect API key provided: {'sk-up'}********cdef", "code": "invalid_api_key"},
     (503, "no_upstream_credential")),
    ("C18", 403, {"message": "Country not supported", "code": "unsupported_country_region_territory"},
     (403, "permission_denied")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "error", "wanted"),
    [pytest.param(*rest, marks=pytest.mark.fault(row), id=f"{row} {rest[0]}") for row, *rest in REFUSED],
)
async def test_a_refusal_is_passed_on_in_our_words(
    house: House, status: int, error: dict[str, str], wanted: tuple[int, str | None]
) -> None:
    """A 4xx of the upstream's."""
    body = encode({"error": error})
    head = b"HTTP/1.1 %d No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    house.upstream.script = answering(head + body)
    answer = await ask(house, "hello", stream=True)
    assert (answer.status, answer.code) == wanted
    assert house.ledger.calls_seen == 1, "what the caller must mend is not tried again"
    assert b"sk-" not in answer.reply.seen.body and b"internal.example" not in answer.reply.seen.body
    if status in (400, 404):
        said = (answer.reply.error or {})["message"]
        assert said.split()[0] == error["message"].split()[0]


WAITS = {
    "2": (2, 2), "0": (0, 1), "99999": (60, 60), "soon": (0, 60), "-5": (0, 60), "none": (0, 60), "past": (0, 1),
    "a minute": (55, 60), "ms": (2, 3),
}  # fmt: skip
"""A header, or what stands for it: the shortest and the longest wait that callers may be told, in seconds; none is 0."""


@pytest.mark.fault("C19")
@pytest.mark.parametrize("header", WAITS)
async def test_a_rate_limit_names_a_wait_that_clients_understand(house: House, header: str) -> None:
    """429 with Retry-After in every form, with none, and with nonsense."""
    fields = {
        "none": b"",
        "past": b"Retry-After: Fri, 01 Jan 2021 00:00:00 GMT\r\n",
        "a minute": b"Date: Fri, 01 Jan 2021 00:00:00 GMT\r\nRetry-After: Fri, 01 Jan 2021 00:01:00 GMT\r\n",
        "ms": b"Retry-After-Ms: 2500\r\n",
    }.get(header, b"Retry-After: " + header.encode() + b"\r\n")
    body = encode({"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}})
    house.upstream.script = answering(
        b"HTTP/1.1 429 No\r\nContent-Type: application/json\r\n" + fields
        + b"Content-Length: %d\r\n\r\n" % len(body) + body
    )  # fmt: skip
    answer = await ask(house, "hello", stream=False)
    assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
    shortest, longest = WAITS[header]
    told = answer.reply.headers.get("retry-after")
    assert (told is None and shortest <= 0) or shortest <= int(told or 0) <= longest


@pytest.mark.fault("C28")
async def test_an_upstream_that_does_not_hang_up_costs_nothing(house: House) -> None:
    """The upstream keeps its socket open for seconds after we have closed ours."""
    worker = house.workers[0]
    before = (await house.held(worker)).files
    for answer in await ask_both(house, f"{MID} sim:fault=hang_mid sim:linger=5"):
        assert answer.code == TIMEOUT
    with trio.fail_after(3):
        while (held := await house.held(worker)).jobs or held.files != before:  # noqa: ASYNC110
            await trio.sleep(0.05)
    assert house.ledger.connections_open >= 2, "the upstream still holds its ends"
