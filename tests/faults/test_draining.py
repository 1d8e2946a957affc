"""Processes that are asked to stop: what they have begun is finished, what they have not is handed on, nobody is cut."""

import signal
import time

import httpx2
import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Process, free_port
from tests.faults.house import House, says
from tests.faults.streams import Told, assert_exact, stream
from tests.waiting import until

DRAIN_SECONDS = "12"
EXIT_SECONDS = 2.0
"""After the last word."""
BUSY_SECONDS = 1.0
PIECES = 30


async def exit_status(process: Process, seconds: float) -> int:
    with trio.fail_after(seconds):
        await until(lambda: process.popen.poll() is not None, seconds)
    return process.popen.returncode


@pytest.mark.fault("A12")
@pytest.mark.promise("P1", "P15")
async def test_a_worker_finishes_its_streams_and_hands_on_what_it_has_not_begun(house: House) -> None:
    """SIGTERM of a worker with twenty streams and a job that waits for a credential"""
    await house.open(workers=1, OPENAI_CALLS_PER_CREDENTIAL="20", SLUICE_DRAIN_SECONDS=DRAIN_SECONDS)
    leaving = house.workers[0]
    with trio.fail_after(40):
        streams = [Told() for _ in range(20)]
        late = Told()
        async with trio.open_nursery() as nursery:
            for number, told in enumerate(streams):
                nursery.start_soon(
                    lambda n=number, told=told: stream(house, f"first{n} sim:chunks=50 sim:gap=0.1", told=told)
                )
            await until(lambda: all(told.pieces for told in streams), 10)
            nursery.start_soon(lambda: stream(house, "late", told=late))
            await says(house, leaving, claimed=21)
            taking = house.add_worker()
            await house.ready()
            leaving.popen.terminate()
            await says(house, taking, claimed=1)
            assert all(told.finish_reason is None for told in streams), "it is handed on before the streams end"
        assert await exit_status(leaving, EXIT_SECONDS + BUSY_SECONDS) == 0
    assert [told.ended for told in [*streams, late]] == ["complete"] * 21
    for number, told in enumerate(streams):
        assert_exact(told, house.ledger, f"first{number}")
    assert house.ledger.calls_seen == 21
    assert '"attempts": 2' not in house.frontend.text(), "handing on costs no start"


@pytest.mark.fault("A13")
@pytest.mark.promise("P15")
async def test_a_frontend_finishes_its_streams(house: House) -> None:
    """SIGTERM of a frontend with ten streams: not ready any more, no new connections, gone after the last word"""
    await house.open(SLUICE_DRAIN_SECONDS=DRAIN_SECONDS)
    port = house.gateway.ports[0]
    with trio.fail_after(30):
        streams = [Told() for _ in range(10)]
        async with trio.open_nursery() as nursery, await trio.open_tcp_stream("127.0.0.1", port) as waiting:
            for number, told in enumerate(streams):
                nursery.start_soon(
                    lambda n=number, told=told: stream(house, f"ask{n} sim:chunks={PIECES} sim:gap=0.1", told=told)
                )
            await until(lambda: all(told.pieces for told in streams), 10)
            await waiting.send_all(b"GET /health/ready HTTP/1.1\r\nhost: sluice\r\n")
            await until(lambda: httpx2.get(f"{house.gateway.origin}/health/ready").status_code == 200)
            house.frontend.popen.terminate()
            await until(lambda: not _accepts(port))
            await waiting.send_all(b"\r\n")
            answer = await waiting.receive_some()
            assert answer.startswith(b"HTTP/1.1 503 ") and b"shutting down" in answer
        ended_at = time.monotonic()
        assert await exit_status(house.frontend, EXIT_SECONDS + BUSY_SECONDS) == 0
    assert time.monotonic() - ended_at < 1 + BUSY_SECONDS
    for number, told in enumerate(streams):
        assert told.ended == "complete"
        assert_exact(told, house.ledger, f"ask{number}")


def _accepts(port: int) -> bool:
    try:
        httpx2.get(f"http://127.0.0.1:{port}/health/live", headers={"connection": "close"})
    except httpx2.TransportError:
        return False
    return True


@pytest.mark.fault("A16")
@pytest.mark.promise("P3")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_frontend_that_is_asked_twice(house: House, number: signal.Signals) -> None:
    """a second SIGTERM or SIGINT to a draining frontend: every stream ends with an error event, at once"""
    await house.open(SLUICE_DRAIN_SECONDS=DRAIN_SECONDS)
    with trio.fail_after(20):
        streams = [Told() for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for told in streams:
                nursery.start_soon(lambda told=told: stream(house, "go sim:fault=endless sim:gap=0.05", told=told))
            await until(lambda: all(told.pieces for told in streams), 10)
            house.frontend.popen.send_signal(number)
            await until(lambda: not _accepts(house.gateway.ports[0]))
            assert all(told.error is None for told in streams)
            house.frontend.popen.send_signal(number)
            asked_at = time.monotonic()
        assert await exit_status(house.frontend, EXIT_SECONDS + BUSY_SECONDS) == 0
        assert time.monotonic() - asked_at < EXIT_SECONDS + BUSY_SECONDS
        await house.ledger.wait_until_idle()
    assert {(told.ended, told.code) for told in streams} == {("error", "shutting_down")}


@pytest.mark.fault("A16")
@pytest.mark.promise("P3")
async def test_a_worker_that_is_asked_twice(house: House) -> None:
    """a second SIGTERM to a draining worker: what streams ends with an error event, what does not is done by another"""
    await house.open(SLUICE_DRAIN_SECONDS=DRAIN_SECONDS)
    with trio.fail_after(20):
        streaming, waiting = Told(), Told()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stream(house, "go sim:fault=endless sim:gap=0.05", told=streaming))
            await until(lambda: streaming.pieces, 10)
            worker = house.worker_of()
            await house.take_no_jobs(next(other for other in house.workers if other is not worker))
            nursery.start_soon(lambda: stream(house, "one two sim:fault=hang_before_headers sim:times=1", told=waiting))
            await house.ledger.wait_for_call(2)
            for other in house.workers:
                other.thaw()
            worker.popen.terminate()
            await until(lambda: "draining" in worker.text())
            worker.popen.terminate()
            asked_at = time.monotonic()
            assert await exit_status(worker, EXIT_SECONDS + BUSY_SECONDS) == 0
            assert time.monotonic() - asked_at < EXIT_SECONDS + BUSY_SECONDS
    assert (streaming.ended, streaming.code) == ("error", "shutting_down")
    assert (waiting.ended, waiting.text) == ("complete", "one two")


@pytest.mark.promise("P1", "P2", "P15")
async def test_a_rolling_restart_of_everything(house: House) -> None:
    """SIGTERM in turn to both frontends, which share a port, and both workers, under load, each replaced first"""
    port = free_port()
    await house.open(frontends=0, workers=2, warm_up=False, SLUICE_DRAIN_SECONDS=DRAIN_SECONDS)
    house.gateway.ports.append(port)
    for _ in range(2):
        house.add_frontend(SLUICE_PORT=str(port))
    await house.ready()
    asked: dict[str, Told] = {}
    over = trio.Event()

    async def caller(number: int) -> None:
        """One stream after the other, each over a connection of its own, as many callers are."""
        count = 0
        while not over.is_set():
            count += 1
            name = f"c{number}x{count}"
            async with openai.AsyncOpenAI(base_url=house.gateway.base_url, api_key=API_KEY, timeout=30) as sdk:
                asked[name] = await stream(house, f"{name} sim:chunks=20 sim:gap=0.05", sdk=sdk)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(caller, number)
            for old in [*house.frontends, *house.workers]:
                house.add_frontend(SLUICE_PORT=str(port)) if old in house.frontends else house.add_worker()
                await house.ready()
                old.popen.terminate()
                assert await exit_status(old, 15) == 0
            over.set()
    assert len(asked) > 20
    assert {told.outcome for told in asked.values()} == {"complete"}
    for name, told in asked.items():
        assert_exact(told, house.ledger, name)
