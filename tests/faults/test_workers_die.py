"""A worker is killed, stopped or blocked, at every step of a job: another takes over, or the caller is told."""

import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trio.testing

from tests.end_to_end.gateway import Process
from tests.faults.house import House, says
from tests.faults.streams import Told, raw, stream, whole
from tests.waiting import until

KILLED_SECONDS = 1.5
"""Bound of P4 and P5 for a killed worker."""
STOPPED_SECONDS = 4.0
"""… and for one that hangs."""
BUSY_SECONDS = 1.0
"""What a machine that is busy with other tests may add."""
PIECES = 20


@asynccontextmanager
async def asking(house: House, words: str, **fields: object) -> AsyncIterator[Told]:
    """A stream that is read beside the block, and has ended when the block is left."""
    told = Told()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stream(house, words, told=told, **fields))
            yield told


async def has(told: Told, pieces: int) -> None:
    await until(lambda: len(told.pieces) >= pieces, 10)


@contextmanager
def black_hole() -> Iterator[str]:
    """The address of something that accepts connections and never answers: to the upstream, no call was made."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


# --- before the first token


@pytest.mark.fault("A1")
@pytest.mark.promise("P4")
async def test_killed_with_an_entry_that_it_has_read_but_not_begun(audited: House) -> None:
    """kill -9 of a worker between reading a job from the queue and saying that it has begun"""
    reader, other = audited.workers
    await audited.take_no_jobs(other)
    took = None
    while took is None:
        async with asking(audited, "one two") as told:
            took = await _killed_while_it_reads(audited, reader, other)
        assert (told.text, told.ended) == ("one two", "complete")
    killed_at, seconds = took
    assert len([call for call in audited.ledger.calls if call.started >= killed_at]) == 1
    assert seconds < KILLED_SECONDS + BUSY_SECONDS


async def _killed_while_it_reads(house: House, reader: Process, other: Process) -> tuple[float, float] | None:
    """When that was and how long it took until another called the upstream; None if the worker had not read the job."""
    seen = house.ledger.calls_seen
    reader.freeze()
    await until(lambda: house.redis.client.xlen("sluice:jobs:{openai}") == 1)
    if house.redis.client.xpending("sluice:jobs:{openai}", "workers")["pending"] == 0:
        reader.thaw()  # it was between two questions: once more
        return None
    reader.kill()
    killed_at = trio.current_time()
    other.thaw()
    call = await house.ledger.wait_for_call(seen + 1)
    return killed_at, call.started - killed_at


@pytest.mark.fault("A2")
@pytest.mark.promise("P4")
async def test_killed_after_the_claim_before_the_upstream_has_heard_anything(house: House) -> None:
    """kill -9 of a worker that has claimed a job and not reached the upstream"""
    await house.open(workers=1)
    with black_hole() as nowhere:
        lost = house.add_worker(OPENAI_BASE_URL=nowhere)
        await house.ready()
        (other, _) = house.workers
        await house.take_no_jobs(other)
        async with asking(house, "one two") as told:
            await says(house, lost, running=1)
            lost.kill()
            killed_at = time.monotonic()
            other.thaw()
            await house.ledger.wait_for_call()
            took = time.monotonic() - killed_at
    assert (told.text, told.ended) == ("one two", "complete")
    assert house.ledger.calls_seen == 1
    assert took < KILLED_SECONDS + BUSY_SECONDS
    assert '"attempts": 2' in house.frontend.text()


@pytest.mark.fault("A3")
@pytest.mark.promise("P4", "P19")
@pytest.mark.parametrize("step", ["hang_before_headers", "hang_after_headers"])
async def test_killed_before_the_first_token(audited: House, step: str) -> None:
    """kill -9 of a worker that waits for its upstream's first token"""
    async with asking(audited, f"one two sim:fault={step} sim:times=1") as told:
        first = await audited.ledger.wait_for_call()
        await until(lambda: first.status is not None or step == "hang_before_headers")
        audited.worker_of(first).kill()
        killed_at = time.monotonic()
        await audited.ledger.wait_for_call(2)
        took = time.monotonic() - killed_at
    assert (told.text, told.ended) == ("one two", "complete")
    assert audited.ledger.calls_seen == 2
    assert (first.open, first.finished, first.closed_by) == (False, False, "client")
    assert took < KILLED_SECONDS + BUSY_SECONDS


# --- after it


@pytest.mark.fault("A4", "A5")
@pytest.mark.promise("P3", "P5")
@pytest.mark.parametrize("count", [1, 10, PIECES - 1, PIECES])
async def test_killed_in_mid_stream(audited: House, count: int) -> None:
    """kill -9 of a worker after 1, 10, all but one, all pieces of an answer whose end has not come"""
    async with asking(audited, f"go sim:chunks={PIECES} sim:fault=hang_mid sim:at={count}") as told:
        await has(told, count)
        audited.worker_of().kill()
        killed_at = time.monotonic()
    took = time.monotonic() - killed_at
    assert told.text == " ".join(f"go.{place}" for place in range(count))
    assert (told.ended, told.code, told.error.type) == ("error", "worker_lost", "server_error")
    assert audited.ledger.calls_seen == 1
    assert took < KILLED_SECONDS + BUSY_SECONDS


@pytest.mark.fault("A4")
@pytest.mark.promise("P3")
async def test_killed_in_mid_stream_as_bytes(audited: House) -> None:
    """kill -9 of a worker in mid-stream, down to the bytes that the caller gets"""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            seen = []

            async def ask() -> None:
                seen.append(await raw(audited, "go sim:chunks=9 sim:fault=hang_mid sim:at=4"))

            nursery.start_soon(ask)
            call = await audited.ledger.wait_for_call()
            await until(lambda: call.frames_sent >= 4)
            await audited.ledger.wait_for(lambda _: call.bytes_sent > 0)
            await trio.testing.wait_all_tasks_blocked(0.2)  # what was sent is on its way to the caller
            audited.worker_of(call).kill()
    (answer,) = seen
    assert answer.ended == "error"
    assert answer.text == "go.0 go.1 go.2 go.3"
    assert answer.error == {
        "message": "The worker that ran this request was lost.",
        "type": "server_error",
        "param": None,
        "code": "worker_lost",
    }
    assert "[DONE]" not in answer.events


@pytest.mark.fault("A4")
@pytest.mark.promise("P4", "P17", "P19")
async def test_killed_twice_under_an_answer_that_is_not_streamed(house: House) -> None:
    """kill -9 of both workers that work on an answer in one piece, of which the caller has seen nothing"""
    await house.open(workers=3)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            answers: list[Told] = []

            async def ask() -> None:
                answers.append(await whole(house, "go sim:chunks=9 sim:fault=hang_mid sim:at=4"))

            nursery.start_soon(ask)
            for number in (1, 2):
                call = await house.ledger.wait_for_call(number)
                house.worker_of(call).kill()
    (told,) = answers
    assert (told.status, told.code) == (502, "worker_lost")
    assert told.headers["x-should-retry"] == "false"
    assert house.ledger.calls_seen == 2


@pytest.mark.fault("A6")
@pytest.mark.promise("P2", "P3")
async def test_killed_when_the_last_frame_is_out(audited: House) -> None:
    """kill -9 of a worker right after it has published the end of the answer, which the frontend has not read yet"""
    async with asking(audited, f"go sim:chunks={PIECES} sim:first=0.3") as told:
        call = await audited.ledger.wait_for_call()
        worker = audited.worker_of(call)
        audited.frontend.freeze()
        await audited.ledger.wait_closed(call)
        await says(audited, worker, running=0, unsent=0)
        worker.kill()
        audited.frontend.thaw()
    assert (told.text, told.ended) == (call.text, "complete")
    assert audited.ledger.calls_seen == 1


# --- stopped, blocked


@pytest.mark.fault("A7")
@pytest.mark.promise("P4", "P6")
async def test_stopped_before_the_first_token_and_continued(audited: House) -> None:
    """SIGSTOP of a worker for five seconds before the first token, then SIGCONT"""
    async with asking(audited, "go sim:chunks=9 sim:delay=0.5 sim:gap=0.1 sim:times=1") as told:
        first = await audited.ledger.wait_for_call()
        worker = audited.worker_of(first)
        worker.freeze()
        stopped_at = time.monotonic()
        second = await audited.ledger.wait_for_call(2)
        took = time.monotonic() - stopped_at
        await until(lambda: time.monotonic() - stopped_at > 5, 10)
        worker.thaw()
        await audited.ledger.wait_closed(first)
    assert (told.text, told.ended) == (second.text, "complete")
    assert audited.ledger.calls_seen == 2
    assert took < STOPPED_SECONDS + BUSY_SECONDS


@pytest.mark.fault("A7")
@pytest.mark.promise("P5", "P6")
async def test_stopped_in_mid_stream_and_continued(audited: House) -> None:
    """SIGSTOP of a worker for five seconds in mid-stream, then SIGCONT: not a byte of it comes later"""
    async with asking(audited, "go sim:fault=endless sim:gap=0.05") as told:
        await has(told, 5)
        call = audited.ledger.calls[0]
        worker = audited.worker_of(call)
        worker.freeze()
        stopped_at = time.monotonic()
        await until(lambda: told.error is not None, 10)
        took = time.monotonic() - stopped_at
        await until(lambda: time.monotonic() - stopped_at > 5, 10)
        worker.thaw()
        thawed_at = trio.current_time()
        await audited.ledger.wait_closed(call)
    assert (told.ended, told.code) == ("error", "worker_lost")
    assert call.text == "" or call.text.startswith(told.text) or told.text.startswith(call.text)
    assert trio.current_time() - thawed_at < 1.5 + BUSY_SECONDS, "the upstream is closed as soon as the worker goes on"
    assert took < STOPPED_SECONDS + BUSY_SECONDS


@pytest.mark.fault("A8")
@pytest.mark.promise("P4", "P5", "P6")
@pytest.mark.parametrize("after", [0, 3])
async def test_an_event_loop_that_is_blocked(house: House, after: int) -> None:
    """eight seconds of computing in a worker's event loop, before the first token and in mid-stream"""
    await house.open_havoc(workers=1)
    blocks, other = house.workers[0], house.add_worker(HAVOC="no")
    await house.ready()
    await house.take_no_jobs(other)
    async with asking(house, f"after={after} a b c d e f", model="havoc-block") as told:
        await says(house, house.frontend, jobs=1)
        await until(lambda: house.redis.client.xlen("sluice:jobs:{havoc}") == 0)
        other.thaw()
    if after:
        assert (told.ended, told.code, told.text) == ("error", "worker_lost", "a b c")
    else:
        assert (told.ended, told.text) == ("complete", "a b c d e f")
    assert told.seconds < STOPPED_SECONDS + 2 * BUSY_SECONDS  # two of them start and answer meanwhile
    await says(house, blocks, running=0)


# --- none left


@pytest.mark.fault("A9")
@pytest.mark.promise("P10", "P19")
async def test_no_worker_is_left(audited: House) -> None:
    """kill -9 of all workers: what waits and what comes is refused with 503 and a time to try again"""
    first, second = audited.workers
    await audited.take_no_jobs(first)
    await audited.take_no_jobs(second)
    with trio.fail_after(30):
        async with asking(audited, "waits") as waited:
            await until(lambda: audited.redis.client.xlen("sluice:jobs:{openai}") == 1)
            first.kill()
            second.kill()
        assert (waited.status, waited.code) == (503, "provider_unavailable")
        await until(lambda: not audited.redis.client.exists(b"sluice:alive:worker:" + audited.id_of(first).encode()), 8)
        came = await stream(audited, "comes", model="openai/gpt-4o-mini")
        while came.status == 200 or came.seconds > 0.5:
            came = await stream(audited, "comes", model="openai/gpt-4o-mini")
    assert came.status in (503, 404)
    assert came.code in ("provider_unavailable", "model_not_found")
    assert waited.headers["retry-after"] == "5"
    assert audited.ledger.calls_seen == 0


# --- the bounds, over enough runs to mean something


@pytest.mark.promise("P4", "P5")
async def test_twenty_workers_are_killed_one_after_the_other(house: House) -> None:
    """kill -9 of twenty workers, each with a call that waits for its first token or one in mid-stream"""
    await house.open(workers=3)
    taken_over: list[float] = []
    told_off: list[float] = []
    while len(taken_over) + len(told_off) < 20:
        with trio.fail_after(30):
            await _kill_what_runs(house, taken_over, told_off)
            house.ledger.begin_again()
            await house.ready()
    for what, seconds in (("taken over", taken_over), ("told", told_off)):
        print(f"{what}: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s of {len(seconds)}")
        assert max(seconds) < KILLED_SECONDS + BUSY_SECONDS


async def _kill_what_runs(house: House, taken_over: list[float], told_off: list[float]) -> None:
    """One call in mid-stream, one that waits; their workers (it may be one) are killed; then there are new ones."""
    streaming, waiting = Told(), Told()

    async def note(seconds: list[float], holds: Callable[[], object]) -> None:
        await until(holds, 10)
        seconds.append(time.monotonic() - killed_at)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: stream(house, "go sim:fault=endless sim:gap=0.02", told=streaming))
        await has(streaming, 2)
        nursery.start_soon(lambda: stream(house, "wait sim:fault=hang_before_headers sim:times=1", told=waiting))
        await house.ledger.wait_for(lambda ledger: len(ledger.open_calls) == 2)
        victims = {worker.pid: worker for worker in map(house.worker_of, house.ledger.open_calls)}
        for victim in victims.values():
            victim.kill()
        killed_at = time.monotonic()
        nursery.start_soon(note, told_off, lambda: streaming.error is not None)
        nursery.start_soon(note, taken_over, lambda: waiting.first_seconds is not None)
        for _ in victims:
            house.add_worker()
    assert (streaming.ended, streaming.code) == ("error", "worker_lost")
    assert (waiting.ended, waiting.text) == ("complete", "wait")
    house.upstream.control.forget()
    house.workers = [worker for worker in house.workers if worker.lives]
