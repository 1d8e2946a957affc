"""Every fault of the script can be observed on the socket and in the ledger."""

from __future__ import annotations

import gzip
import json

import pytest
import trio

from tests.simulators.openai_compatible import OpenAICompatible
from tests.simulators.raw_client import HELLO, ask, chat, connected, events, receive_message, request_bytes, said
from tests.simulators.recordings import recordings
from tests.simulators.script import DIFFICULT_TEXTS, FAULTS, ODD_EVENTS, answer_text

WORDS = "one two three four"


@pytest.fixture
async def upstream():
    with trio.fail_after(10):
        async with OpenAICompatible().running() as simulator:
            yield simulator


async def test_a_healthy_stream_echoes_the_words(upstream):
    seen = await ask(upstream, chat("tell  me\nmore"))

    assert (seen.status, seen.ended) == (200, "complete")
    assert said(seen.body) == "tell  me\nmore"
    assert events(seen.body)[-1] == "[DONE]"
    call = upstream.ledger.calls[0]
    assert (call.closed_by, call.finished, call.text) == ("us", True, "tell  me\nmore")


async def test_options_are_not_echoed_and_chunks_are_numbered(upstream):
    message = "red green sim:chunks=5 sim:bytes=7"

    seen = await ask(upstream, chat(message))

    assert said(seen.body) == answer_text(message) == "red.0 green.1 red.2 green.3 red.4"


async def test_options_may_stand_in_the_model_name(upstream):
    seen = await ask(upstream, chat(WORDS, model="gpt-4o,sim:chunks=2,sim:fault=no_done"))

    assert said(seen.body) == "one.0 two.1"
    assert "[DONE]" not in events(seen.body)
    assert json.loads(events(seen.body)[0])["model"] == "gpt-4o-2024-11-20"


async def test_a_misspelt_option_is_told(upstream):
    for wrong in ("sim:delai=1", "sim:fault=drop", "sim:error=no_such", "sim:play=no_such.sse", "sim:chunks=x"):
        seen = await ask(upstream, chat(wrong))

        assert seen.status == 400
        assert "x-simulator-error" in seen.headers


async def test_control_applies_always_next_or_to_a_key(upstream):
    upstream.control.always(status=503)
    upstream.control.next(status=429, retry_after="7")
    upstream.control.for_key("sk-bad", error="openai_401_invalid_api_key", status=401)

    first = await ask(upstream, HELLO)
    second = await ask(upstream, HELLO)
    bad = await ask(upstream, HELLO, authorization="Bearer sk-bad")
    upstream.control.always()
    well = await ask(upstream, HELLO)

    assert (first.status, first.headers["retry-after"]) == (429, "7")
    assert (second.status, bad.status, well.status) == (503, 401, 200)
    assert [call.key for call in upstream.ledger.by_key("sk-bad")] == ["sk-bad"]


async def test_times_lets_later_calls_pass(upstream):
    statuses = [(await ask(upstream, chat("again sim:status=500 sim:times=2"))).status for _ in range(3)]

    assert statuses == [500, 500, 200]


ERRORS = [name for name in recordings() if name.startswith("errors/")]


@pytest.mark.parametrize("name", ERRORS)
async def test_every_recorded_error_can_be_answered(upstream, name):
    wanted = recordings()[name]
    upstream.control.next(error=name)

    seen = await ask(upstream, HELLO)

    assert (seen.status, seen.body) == (wanted.status, wanted.body)
    assert dict(wanted.headers).items() <= seen.headers.items()


PLAYABLE = [name for name, found in recordings().items() if found.status == 200 and "/" not in name]


@pytest.mark.parametrize("name", PLAYABLE)
async def test_every_recording_is_played_verbatim(upstream, name):
    wanted = recordings()[name]
    upstream.control.next(play=name, bytes=7)

    seen = await ask(upstream, HELLO)

    assert (seen.status, seen.body, seen.ended) == (200, wanted.body, "complete")
    assert dict(wanted.headers).items() <= seen.headers.items()


CUTS = {
    "close_before_headers": ("closed", 0, ""),
    "reset_before_headers": ("reset", 0, ""),
    "reset_after_headers": ("reset", 200, ""),
    "reset_mid_chunk": ("reset", 200, "one two"),
    "drop_mid": ("closed", 200, "one two"),
    "bad_status_line": ("closed", 0, ""),
    "short_length": ("closed", 200, None),
}


@pytest.mark.parametrize("fault", CUTS)
async def test_a_cut_connection(upstream, fault):
    ended, status, text = CUTS[fault]

    seen = await ask(upstream, chat(f"{WORDS} sim:fault={fault}"))

    assert (seen.ended, seen.status) == (ended, status)
    if text is not None:
        assert said(seen.body) == text
    call = upstream.ledger.calls[0]
    assert (call.closed_by, call.finished) == ("us", False)


CLEAN_ENDS = {
    "truncate": ("one two", False, False),
    "no_finish": (WORDS, False, True),
    "no_done": (WORDS, True, False),
    "after_done": (WORDS + WORDS, True, True),
    "error_mid": ("one two", False, False),
    "wrong_type": (WORDS, True, True),
    "informational": (WORDS, True, True),
    "many_headers": (WORDS, True, True),
    "big_header": (WORDS, True, True),
    "drip": (WORDS, True, True),
}


@pytest.mark.parametrize("fault", CLEAN_ENDS)
async def test_a_body_that_ends_cleanly(upstream, fault):
    text, finished, done = CLEAN_ENDS[fault]
    gap = " sim:gap=0.00001" if fault == "drip" else ""

    seen = await ask(upstream, chat(f"{WORDS} sim:fault={fault}{gap}"))

    body = seen.body
    assert (seen.status, seen.ended) == (200, "complete")
    assert said(body) == text
    assert (b'"finish_reason":"stop"' in body, b"[DONE]" in body) == (finished, done)
    assert upstream.ledger.calls[0].finished


ENDLESS = ["hang_before_headers", "hang_after_headers", "hang_mid", "comments", "endless", "endless_line", "switching"]


@pytest.mark.parametrize("fault", ENDLESS)
async def test_what_never_ends_is_closed_by_the_client(upstream, fault):
    async with connected(upstream) as stream:
        await stream.send_all(request_bytes(chat(f"{WORDS} sim:fault={fault}")))
        call = await upstream.ledger.wait_for_call()
        if fault in ("endless", "endless_line", "comments"):
            await upstream.ledger.wait_for(lambda _: call.frames_sent > 2)
        elif fault == "hang_mid":
            await upstream.ledger.wait_for(lambda _: call.frames_sent == 3)
        assert call.open
    await upstream.ledger.wait_closed(call)

    assert (call.closed_by, call.finished) == ("client", False)
    await upstream.ledger.wait_for(lambda ledger: ledger.connections_open == 0)


async def test_answers_that_are_not_what_was_asked_for(upstream):
    html = await ask(upstream, chat("sim:fault=html"))
    portal = await ask(upstream, chat("sim:fault=html sim:status=200"))
    empty = await ask(upstream, chat("sim:fault=empty sim:status=504"))
    error_200 = await ask(upstream, chat("sim:fault=error_200 sim:error=openai_500_server_error"))
    error_event = await ask(upstream, chat("sim:fault=error_200_event"))
    redirect = await ask(upstream, chat("sim:fault=redirect"))
    bomb = await ask(upstream, chat("sim:fault=gzip_bomb"))

    assert (html.status, html.headers["content-type"]) == (502, "text/html")
    assert (portal.status, empty.status, empty.body) == (200, 504, b"")
    assert error_200.status == 200 and json.loads(error_200.body)["error"]["type"] == "server_error"
    assert error_200.headers["content-type"] == "application/json"
    assert "error" in json.loads(events(error_event.body)[0])
    assert (redirect.status, redirect.headers["location"][:17]) == (307, "http://localhost:")
    assert len(bomb.body) < 20_000 < len(gzip.decompress(bomb.body))


async def test_every_fault_of_the_table_is_tested():
    elsewhere = {"html", "empty", "error_200", "error_200_event", "redirect", "gzip_bomb"}

    assert set(CUTS) | set(CLEAN_ENDS) | set(ENDLESS) | elsewhere == set(FAULTS)


@pytest.mark.parametrize("odd", ODD_EVENTS)
async def test_an_odd_event_in_a_good_stream(upstream, odd):
    seen = await ask(upstream, chat(f"{WORDS} sim:insert={odd} sim:at=1"))

    assert ODD_EVENTS[odd].decode("utf-8", "surrogateescape") in events(seen.body)[2]
    assert said(seen.body).replace("\udcff\udcfe", "") == WORDS


@pytest.mark.parametrize("name", DIFFICULT_TEXTS)
async def test_difficult_texts_arrive_as_they_are(upstream, name):
    seen = await ask(upstream, chat(f"sim:text={name}"))

    assert said(seen.body) == "".join(DIFFICULT_TEXTS[name])


async def test_framing_habits(upstream):
    seen = await ask(upstream, chat(f"{WORDS} sim:nospace sim:crlf sim:comments=3 sim:burst=4"))

    assert seen.body.count(b": keep-alive\r\n\r\n") == 3
    assert b"data: " not in seen.body and b"\r\n\r\ndata:{" in seen.body
    assert said(seen.body) == WORDS


async def test_gzip_only_if_offered(upstream):
    plain = await ask(upstream, chat("hello sim:gzip"))
    squeezed = await ask(upstream, chat("hello sim:gzip"), accept_encoding="gzip, br")

    assert "content-encoding" not in plain.headers
    assert squeezed.headers["content-encoding"] == "gzip"
    assert said(gzip.decompress(squeezed.body)) == "hello"


async def test_faults_strike_whole_answers_too(upstream):
    whole = await ask(upstream, chat(WORDS, stream=False))
    dropped = await ask(upstream, chat(f"{WORDS} sim:fault=drop_mid", stream=False))
    blank = await ask(upstream, chat(f"{WORDS} sim:comments=3", stream=False))

    assert json.loads(whole.body)["choices"][0]["message"]["content"] == WORDS
    assert dropped.ended == "closed" and dropped.status == 200
    assert blank.body.startswith(b"\n\n\n{") and json.loads(blank.body)


async def test_a_megabyte(upstream):
    seen = await ask(upstream, chat("wide sim:size=1000000"))

    assert len(said(seen.body)) == 1_000_000


async def test_latencies_are_kept_and_the_ledger_has_the_times(upstream):
    seen = await ask(upstream, chat("a b c sim:delay=0.03 sim:first=0.02 sim:gap=0.01"))

    call = upstream.ledger.calls[0]
    assert seen.ended == "complete"
    assert call.head_at - call.started >= 0.03
    assert call.closed_at - call.head_at >= 0.04


async def test_the_client_leaves_in_the_middle_and_the_ledger_sees_it_at_once(upstream):
    async with connected(upstream) as stream:
        await stream.send_all(request_bytes(chat("go sim:chunks=1000 sim:gap=0.005")))
        call = await upstream.ledger.wait_for_call()
        await upstream.ledger.wait_for(lambda _: call.frames_sent >= 5)
        left = trio.current_time()
    await upstream.ledger.wait_closed(call)

    assert (call.closed_by, call.finished) == ("client", False)
    assert call.closed_at - left < 0.25
    assert upstream.ledger.open_calls == []


async def test_a_socket_may_linger_after_the_client_has_gone(upstream):
    async with connected(upstream) as stream:
        await stream.send_all(request_bytes(chat("go sim:fault=hang_after_headers sim:linger=5")))
        call = await upstream.ledger.wait_for_call()
        await stream.send_eof()
        await upstream.ledger.wait_closed(call)
        assert upstream.ledger.connections_open == 1


async def test_connections_are_kept_alive_and_counted(upstream):
    async with connected(upstream) as stream:
        for _ in range(3):
            await stream.send_all(request_bytes(HELLO))
            assert (await receive_message(stream)).ended == "complete"
    await ask(upstream, HELLO)

    assert upstream.ledger.connections_opened == 2
    assert [call.connection for call in upstream.ledger.calls] == [1, 1, 1, 2]


async def test_requests_are_recorded_to_the_letter(upstream):
    await ask(upstream, HELLO, X_Odd="Ä value", Authorization="Bearer Bearer sk-1")

    call = upstream.ledger.calls[0]
    assert ("X-Odd", "Ä value".encode().decode("latin-1")) in call.headers
    assert (call.key, call.method, call.path) == ("sk-1", "POST", "/v1/chat/completions")
    assert call.json() == HELLO
