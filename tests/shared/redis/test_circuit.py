"""When a circuit opens, for how long, and who is let through: the scripts on a real Redis, time by hand."""

import json

import pytest

from shared.redis import keys
from shared.redis.circuit import (
    IN_A_ROW,
    LONGEST_PAUSE_SECONDS,
    MANY,
    PAUSE_SECONDS,
    PROBE_SECONDS,
    Report,
    circuits,
    open_now,
    report,
)
from shared.redis.submission.queue import withdraw
from shared.redis.submission.script import Ask, Queued, answer_to, submission

PROVIDER = "openai"


class Upstream:
    """What workers say, and what the door answers."""

    def __init__(self, link):
        self.link = link
        self.now_ms = 1_760_000_000_000.0

    async def report(self, good=0, *, fault=False, model="m", probe="", well="", badly=""):
        reports = [Report(model, good, fault, probe, well, badly)]
        return open_now(await self.link.script(*report(PROVIDER, reports, now_ms=self.now_ms)))

    async def faults(self, count, badly=""):
        for _ in range(count):
            opened = await self.report(fault=True, badly=badly)
        return opened

    async def door(self, job="aa", model="m"):
        """Seconds to wait, or whether the job that is let in is a probe."""
        ask = Ask(
            job=job,
            name=f"{job}.1",
            caller="c",
            whose="c",
            model=model,
            patience_ms=1e6,
            most_waiting=9,
            now_ms=self.now_ms,
        )
        answer = answer_to(await self.link.script(*submission(PROVIDER, ask, b"sealed")))
        if not isinstance(answer, Queued):
            assert answer.kind == "circuit_open"
            return answer.retry_after_seconds
        (_, fields), *_ = await self.link.call(b"XREVRANGE", keys.jobs(PROVIDER), b"+", b"-", b"COUNT", b"1")
        await self.link.script(*withdraw(PROVIDER, f"{job}.1"))
        return fields[4:] == [b"probe", b"1"]

    def later(self, seconds):
        self.now_ms += seconds * 1000


@pytest.fixture
def upstream(link):
    return Upstream(link)


async def test_some_faults_in_a_row_open_it(upstream):
    assert await upstream.faults(IN_A_ROW - 1) == {}
    assert await upstream.door() is False
    assert await upstream.faults(1) == {"m": PAUSE_SECONDS}
    upstream.later(2)
    assert await upstream.door() == PAUSE_SECONDS - 2
    assert await upstream.door(model="other") is False, "each model has its own"


async def test_a_success_ends_the_row(upstream):
    for _ in range(2):
        assert await upstream.faults(IN_A_ROW - 1) == {}
        assert await upstream.report(1) == {}
    assert await upstream.faults(IN_A_ROW - 1) == {}
    assert await upstream.report(20, fault=True) == {}, "the successes come before the fault"


async def test_more_than_half_of_many_calls_open_it(upstream):
    for _ in range(MANY // 2):
        assert await upstream.report(1, fault=True) == {}
    assert await upstream.report(0, fault=True) == {"m": PAUSE_SECONDS}


async def test_half_of_few_or_less_than_half_of_many_do_not(upstream):
    for _ in range(100):
        assert await upstream.report(1, fault=True) == {}


async def test_faults_of_a_while_ago_are_forgotten(upstream):
    for _ in range(MANY // 2):
        await upstream.report(1, fault=True)
    await upstream.report(1)
    upstream.later(20)
    assert await upstream.faults(IN_A_ROW - 1) == {}


async def test_the_bucket_before_counts(upstream):
    upstream.now_ms -= upstream.now_ms % 10_000
    for _ in range(MANY // 2):
        await upstream.report(1, fault=True)
    upstream.later(10)
    assert await upstream.report(fault=True) == {"m": PAUSE_SECONDS}


async def test_one_probe_is_let_through_when_the_pause_is_over(upstream):
    await upstream.faults(IN_A_ROW)
    upstream.later(PAUSE_SECONDS)
    assert await upstream.door("aa") is True
    assert await upstream.door("bb") == 1, "others come again in a second"
    assert await upstream.door("aa") is True, "the next attempt of the same job is the probe as well"
    assert await upstream.report(5) == {"m": 0}, "what began before says nothing"
    assert await upstream.report(1, probe="bb") == {"m": 0}, "nor does anybody else"
    assert await upstream.door("bb") == 1
    assert await upstream.report(1, probe="aa") == {}
    assert await upstream.door("bb") is False
    assert await upstream.faults(IN_A_ROW - 1) == {}, "and it is counted from nothing"


async def test_each_failed_probe_makes_the_pause_twice_as_long(upstream):
    await upstream.faults(IN_A_ROW)
    pause = PAUSE_SECONDS
    for _ in range(6):
        upstream.later(pause)
        assert await upstream.door("aa") is True
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        assert await upstream.report(fault=True, probe="aa") == {"m": pause}
    upstream.later(pause)
    assert await upstream.door("aa") is True
    await upstream.report(1, probe="aa")
    assert await upstream.faults(IN_A_ROW) == {"m": PAUSE_SECONDS}, "after a success it begins with the shortest"


async def test_a_probe_that_says_nothing_makes_room_for_the_next(upstream):
    await upstream.faults(IN_A_ROW)
    upstream.later(PAUSE_SECONDS)
    assert await upstream.door("aa") is True
    await upstream.report(probe="aa")
    assert await upstream.door("bb") is True
    upstream.later(PROBE_SECONDS)
    assert await upstream.door("cc") is True, "nothing was heard of the second for too long"


async def test_open_circuits_can_be_looked_at_and_are_forgotten_some_day(upstream, link):
    await upstream.report(7)
    await upstream.report(fault=True)
    await upstream.faults(IN_A_ROW)
    assert {model: circuit.pauses for model, circuit in (await circuits(link, PROVIDER)).items()} == {"m": 1}
    for key in keys.circuits(PROVIDER):
        if await link.call(b"EXISTS", key):
            assert await link.call(b"TTL", key) > 0


async def test_names_that_somebody_makes_up_do_not_fill_redis(upstream, link):
    reports = [Report(f"model {number}", 0, fault=True) for number in range(1500)]
    await link.script(*report(PROVIDER, reports, now_ms=upstream.now_ms))
    assert await link.call(b"HLEN", keys.circuits(PROVIDER)[1]) == 1000
    kept = json.loads(await link.call(b"HGET", keys.circuits(PROVIDER)[1], b"model 0"))
    assert (kept["calls"], kept["faults"], kept["row"]) == (1, 1, 1)


async def test_one_caller_who_fails_where_others_succeed_shuts_nobody_out(upstream):
    await upstream.report(1, well="others")
    assert not await upstream.faults(3 * MANY, badly="one")
    upstream.now_ms += 10_000
    assert not await upstream.faults(IN_A_ROW, badly="one"), "others were well a moment ago"
    assert await upstream.report(fault=True, badly="another"), "two are not to blame for it"


@pytest.mark.parametrize("well", ["one", None], ids=["before", "never"])
async def test_a_caller_alone_is_spared_an_upstream_in_trouble(upstream, well):
    if well:
        await upstream.report(3, well=well)
    assert not await upstream.faults(IN_A_ROW - 1, badly="one")
    assert await upstream.faults(1, badly="one")


async def test_others_who_were_well_long_ago_say_nothing_of_now(upstream):
    await upstream.report(1, well="others")
    upstream.now_ms += 20_000
    assert await upstream.faults(IN_A_ROW, badly="one")
