"""More is asked than can be served: what is refused is refused at once, what is accepted is served in time."""

import statistics
import time

import pytest
import trio

from tests.faults.house import House
from tests.faults.streams import Raw, raw

AT_ONCE = 8
ANSWER_SECONDS = 0.4
CAPACITY = AT_ONCE / ANSWER_SECONDS
"""Answers a second."""
SECONDS = 4.0
TIMES = 5
PATIENCE_SECONDS = 2.0
REFUSED_SECONDS = 0.05
BUSY_SECONDS = 1.0
"""What a machine that runs other tests may add, to a refusal and to an answer."""


@pytest.mark.promise("P12")
async def test_five_times_as_much_as_can_be_served(house: House) -> None:
    """five times as many requests a second as the worker can answer, whatever comes back (an open loop)"""
    await house.open(
        workers=1,
        SLUICE_WORKER_CONCURRENCY=str(AT_ONCE),
        SLUICE_QUEUE_LIMIT=str(2 * AT_ONCE),
        SLUICE_QUEUE_SECONDS=str(PATIENCE_SECONDS),
    )
    answers: list[tuple[float, Raw]] = []

    async def ask(number: int) -> None:
        began = time.monotonic()
        answer = await raw(house, f"ask{number} sim:delay={ANSWER_SECONDS}")
        answers.append((time.monotonic() - began, answer))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            for number in range(int(SECONDS * CAPACITY * TIMES)):
                await trio.sleep_until(began + number / (CAPACITY * TIMES))
                nursery.start_soon(ask, number)
        took = trio.current_time() - began
    served = [seconds for seconds, answer in answers if answer.ended == "complete"]
    refused = [(seconds, answer) for seconds, answer in answers if answer.ended != "complete"]
    assert {(answer.status, answer.error["code"]) for _, answer in refused} <= {
        (503, "server_is_overloaded"),
        (503, "queue_timeout"),
    }
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for _, answer in refused)
    at_once = sorted(seconds for seconds, answer in refused if answer.error["code"] == "server_is_overloaded")
    print(
        f"{len(served)} served in {took:.1f} s (capacity {took * CAPACITY:.0f}), longest {max(served):.2f} s;"
        f" {len(refused)} refused, half within {statistics.median(at_once) * 1000:.0f} ms,"
        f" 99 % within {at_once[len(at_once) * 99 // 100] * 1000:.0f} ms"
    )
    assert len(served) >= 0.8 * SECONDS * CAPACITY
    assert max(served) < PATIENCE_SECONDS + ANSWER_SECONDS + 2 * BUSY_SECONDS
    assert len(at_once) > len(refused) / 2
    assert at_once[len(at_once) * 99 // 100] < REFUSED_SECONDS + BUSY_SECONDS
    assert house.ledger.calls_seen == len(served), "what was refused has never been asked of the upstream"
