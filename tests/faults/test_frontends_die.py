"""A frontend is killed, stopped or defective: its callers notice at once, and nothing of theirs runs on."""

import json

import pytest
import trio

from tests.faults.house import House, says
from tests.faults.streams import Told, assert_exact, raw, stream, whole
from tests.waiting import until

GONE_SECONDS = 4.0
"""Bound of P8."""
BUSY_SECONDS = 1.0
STREAMS = 50


@pytest.mark.fault("A14")
@pytest.mark.promise("P3", "P8")
async def test_killed_with_fifty_streams(house: House) -> None:
    """kill -9 of a frontend with fifty streams and three jobs that wait in the queue"""
    await house.open(workers=2, SLUICE_WORKER_CONCURRENCY=str(STREAMS // 2))
    with trio.fail_after(30):
        streams, queued = [Told() for _ in range(STREAMS)], [Told() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for told in streams:
                nursery.start_soon(lambda told=told: stream(house, "go sim:fault=endless sim:gap=0.1", told=told))
            await house.ledger.wait_for(lambda ledger: len(ledger.open_calls) == STREAMS)
            await until(lambda: all(told.pieces for told in streams), 10)
            for told in queued:
                nursery.start_soon(lambda told=told: stream(house, "never", told=told))
            await until(lambda: house.redis.client.xlen("sluice:jobs:{openai}") == len(queued), 15)
            house.frontend.kill()
            killed_at = trio.current_time()
        noticed = trio.current_time() - killed_at
        await house.ledger.wait_until_idle()
        closed = trio.current_time() - killed_at
        await until(lambda: house.redis.client.xlen("sluice:jobs:{openai}") == 0, 10)
    assert noticed < BUSY_SECONDS
    assert {told.ended for told in streams} == {"cut"}
    assert {told.ended for told in queued} == {"refused"}
    assert closed < GONE_SECONDS + BUSY_SECONDS
    print(f"closed after {closed:.2f} s")
    assert house.ledger.calls_seen == STREAMS, "what was still queued has never been asked of the upstream"


@pytest.mark.fault("A15")
@pytest.mark.promise("P2", "P11")
async def test_stopped_and_continued(audited: House) -> None:
    """SIGSTOP of a frontend for ten seconds in mid-stream, then SIGCONT: every text is exact"""
    with trio.fail_after(60):
        streams = [Told() for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for number, told in enumerate(streams):
                nursery.start_soon(
                    lambda n=number, told=told: stream(audited, f"ask{n} sim:chunks=60 sim:gap=0.05", told=told)
                )
            await until(lambda: all(told.pieces for told in streams), 10)
            audited.frontend.freeze()
            await trio.sleep(10)
            audited.frontend.thaw()
    for number, told in enumerate(streams):
        assert told.ended == "complete", told.error
        assert_exact(told, audited.ledger, f"ask{number}")
    assert audited.ledger.calls_seen == 5


@pytest.mark.fault("A18")
@pytest.mark.promise("P16", "P18", "P19")
async def test_a_defect_in_the_frontend(house: House) -> None:
    """an exception that nobody expects, in a frontend's request and in the middle of its event stream"""
    await house.open(frontends=0, warm_up=False)
    house.add_defective_frontend()
    await house.ready()
    await house.warm_up()
    with trio.fail_after(30):
        healthy = Told()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stream(house, "healthy sim:chunks=30 sim:gap=0.05", told=healthy))
            await until(lambda: healthy.pieces, 10)
            refused = await raw(house, "defect-in-request", stream=False)
            cut = await raw(house, "defect-in-stream sim:chunks=30 sim:gap=0.02")
    assert refused.status == 500
    assert json.loads(refused.seen.body)["error"]["code"] == "internal_error"
    assert (cut.status, cut.ended, cut.error["code"]) == (200, "error", "internal_error")
    for answer in (refused, cut):
        assert answer.headers["x-request-id"].startswith("req_")
        assert b"Traceback" not in answer.seen.raw and b"LookupError" not in answer.seen.raw
        assert b"planted" not in answer.seen.raw
        assert answer.headers["x-request-id"] in house.frontend.text()
    assert house.frontend.text().count("LookupError") >= 2, "the log has the traceback"
    assert (healthy.ended, healthy.text) == ("complete", house.ledger.calls[0].text)


@pytest.mark.fault("A18")
@pytest.mark.promise("P16", "P18", "P19")
@pytest.mark.parametrize("after", [0, 2])
async def test_a_defect_in_a_provider(house: House, after: int) -> None:
    """an exception that nobody expects in a worker's provider, before the first token and in mid-stream"""
    await house.open_havoc(workers=1)
    words = "a b c d"
    with trio.fail_after(20):
        healthy = Told()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stream(house, "a b c d e f g h i j k l m", told=healthy))
            await until(lambda: healthy.pieces, 10)
            told = await stream(house, f"after={after} {words}", model="havoc-raise")
        in_one_piece = await whole(house, f"after={after} {words}", model="havoc-raise")
        answer = await raw(house, f"after={after} {words}", model="havoc-raise")
    assert (told.ended, told.code) == ("error", "internal_error")
    assert told.status == (None if after else 500)
    assert told.text == " ".join(words.split()[:after])
    assert (in_one_piece.status, in_one_piece.code) == (500, "internal_error")
    assert b"LookupError" not in answer.seen.raw and b"sk-havoc" not in answer.seen.raw
    assert answer.headers["x-request-id"] in house.workers[0].text()
    assert "sk-havoc" not in house.workers[0].text()
    assert (healthy.ended, healthy.text) == ("complete", "a b c d e f g h i j k l m")
    await says(house, house.workers[0], running=0)
