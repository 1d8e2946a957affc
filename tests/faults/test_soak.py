"""The soak, short enough for CI; `make soak` runs it for two minutes."""

import random

import pytest
import trio

from tests.faults.house import House
from tests.faults.soak import complaints, report, run

SECONDS = 20.0


@pytest.mark.promise("P1", "P2", "P3", "P9", "P11")
async def test_many_streams_while_things_break_at_random(house: House) -> None:
    """workers and Redis killed, stopped and cut at random for twenty seconds, callers who leave: every text compared"""
    await house.open(workers=3)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    with trio.fail_after(SECONDS + 90):
        soak = await run(house, SECONDS, callers=20, seed=seed)
    print(report(soak, SECONDS))
    assert not complaints(soak, SECONDS)
    assert soak.outcomes["complete"] > 20
    assert sum(soak.injected.values()) > 5
