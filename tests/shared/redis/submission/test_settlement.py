"""Every job is settled once, whoever does it and however often, and what it really took replaces what was reserved."""

import random
from collections import Counter
from datetime import UTC, datetime

import pytest

from shared.redis.submission.limits import Terms
from shared.redis.submission.script import Queued, Refusal
from shared.redis.submission.settlement import OVERTAKEN_SECONDS, REPEAT_SECONDS
from shared.redis.usage import UsageRow
from tests.shared.redis.submission.door import CALLER, Door, left

TERMS = Terms(1, requests=100, tokens=1000, concurrent=2, daily=10_000, monthly=10_000)


def started(door: Door, tokens: int = 500, terms: Terms | None = TERMS, caller: str = CALLER) -> str:
    job = door.name()
    answer = door.ask(
        terms, caller, job=job, prompt_tokens=100, estimated_tokens=tokens, at_least_tokens=tokens if terms else 0
    )
    assert isinstance(answer, Queued)
    return job


def row(**counts: int) -> UsageRow:
    return UsageRow(day="2026-03-14", caller=CALLER, provider="echo", model="m", **counts)


def tokens_left(door: Door) -> int:
    """Without asking for anything."""
    refusal = door.ask(Terms(1, tokens=1000, concurrent=0))
    assert isinstance(refusal, Refusal)
    return left(refusal)["tokens_left"]


@pytest.mark.parametrize("tokens", [0, 1, 40, 500, 900])
def test_the_real_tokens_replace_the_estimate(door, tokens):
    job = started(door)
    assert tokens_left(door) == 500
    door.wait(7)
    door.settle(job, prompt=tokens)
    assert tokens_left(door) == 1000 - tokens
    assert door.totals() == {b"2026-03-14": b"%d" % tokens, b"2026-03": b"%d" % tokens}
    door.wait(53)
    assert tokens_left(door) == 1000, "corrected in the second in which they were charged"


def test_more_tokens_than_the_limit_keep_the_next_waiting(door):
    door.settle(started(door), prompt=1500)
    assert tokens_left(door) == 0
    refusal = door.ask(TERMS, estimated_tokens=1, at_least_tokens=1)
    assert (refusal.limit, refusal.used, refusal.retry_after_seconds) == ("tokens", 1500, 60)


@pytest.mark.parametrize("busy", [True, False], ids=["others", "alone"])
@pytest.mark.parametrize(("used", "counted"), [(900, 400), (500, 0), (20, 0)])
def test_of_what_has_left_the_window_only_the_surplus_counts_and_from_then_on(door, used, counted, busy):
    job = started(door)
    for _ in range(7):
        door.wait(9)
        door.renew(job)
    other = started(door, 100) if busy else None
    door.wait(1)
    door.settle(job, prompt=used)
    assert tokens_left(door) == 1000 - counted - 100 * busy
    if other:
        door.settle(other, prompt=100)
    assert door.totals()[b"2026-03-14"] == b"%d" % (used + 100 * busy)
    door.wait(59.9)
    assert tokens_left(door) == 1000 - counted
    door.wait(0.2)
    assert tokens_left(door) == 1000


def test_answers_that_last_for_minutes_pass_no_limit(door):
    first = started(door, 1000)
    for _ in range(20):
        door.wait(6)
        door.renew(first)
    door.settle(first, prompt=5000)
    refusal = door.ask(TERMS, estimated_tokens=1, at_least_tokens=1)
    assert (refusal.limit, refusal.used, refusal.retry_after_seconds) == ("tokens", 4000, 60)
    assert left(refusal)["requests_left"] == 100, "it is no request of this minute"


def test_tokens_count_for_the_day_on_which_they_were_charged(door):
    door.now = datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC).timestamp() * 1000
    yesterday = started(door)
    door.wait(2)
    today = started(door, 300)
    door.settle(yesterday, prompt=400)
    door.settle(today, prompt=30)
    assert door.totals() == {b"2026-04-01": b"30", b"2026-04": b"30"}
    assert [row.prompt_tokens for row in door.usage("2026-03-31")] == [400]
    assert [row.prompt_tokens for row in door.usage("2026-04-01")] == [30]


def test_only_the_first_settlement_counts(door):
    job = started(door)
    assert door.settle(job, "done", 10, 20) == 1
    assert door.settle(job, "done", 10, 20) == 0
    assert door.settle(job, "failed", 99, 99) == 0
    assert door.usage() == [row(requests=1, done=1, prompt_tokens=10, completion_tokens=20)]
    assert tokens_left(door) == 970


def test_what_nobody_renews_is_settled_at_the_estimate(door):
    job, alive = started(door), started(door, 400)
    door.wait(9)
    door.renew(alive)
    assert door.ask(TERMS).limit == "concurrent"
    door.wait(1)
    assert isinstance(door.ask(TERMS), Queued)
    assert door.usage() == [row(requests=1, unsettled=1, prompt_tokens=100, completion_tokens=400, estimated=1)]
    assert door.totals()[b"2026-03-14"] == b"900"
    assert door.settle(job, "done", 1, 1) == 0, "its owner was only asleep"
    assert door.totals()[b"2026-03-14"] == b"900"
    assert len(door.usage()) == 1


@pytest.mark.parametrize("jump", [11, 600, 30 * 24 * 3600])
def test_a_jump_of_time_settles_nobody_who_lives(door, jump):
    """Redis' clock was set, or Redis stood still, or nobody was there: everybody gets the time to renew."""
    alive, dead = started(door, 400), started(door, 400)
    door.renew(alive, dead)
    door.wait(jump, alone=True)
    assert door.ask(TERMS).limit == "concurrent"
    assert door.renew(alive) == 0
    door.wait(4.9, alone=True)
    assert door.renew(alive) == 0
    assert door.ask(TERMS).limit == "concurrent"
    door.wait(0.2, alone=True)
    assert door.renew(alive) == 1
    assert isinstance(door.ask(TERMS), Queued)
    assert door.settle(alive) == 1
    assert door.settle(dead) == 0


def test_a_clock_that_is_set_back_makes_no_lease_longer(door):
    alive, dead = started(door, 400), started(door, 400)
    door.renew(alive, dead)
    door.wait(-600, alone=True)
    for _ in range(10):
        assert door.renew(alive) == 0
        door.wait(1, alone=True)
    assert door.renew(alive) == 1
    assert door.settle(alive) == 1
    assert door.settle(dead) == 0


def test_any_renewal_settles_for_callers_who_never_come_again(door):
    started(door, terms=None, caller="master")
    door.wait(10)
    assert door.renew() == 1
    assert door.renew() == 0
    assert [(row.caller, row.unsettled, row.completion_tokens) for row in door.usage()] == [("master", 1, 400)]
    assert not door.client.exists("sluice:slots", "sluice:caller:{master}:reserved")


def test_an_owner_that_was_asleep_has_its_slot_again_but_settles_no_more(door):
    job = started(door)
    door.wait(11)
    door.renew()
    door.renew(job)
    assert isinstance(door.ask(Terms(1, concurrent=1)), Refusal)
    door.settle(job, "done", 1, 1)
    assert isinstance(door.ask(Terms(1, concurrent=1)), Queued)
    assert door.usage() == [row(requests=1, unsettled=1, prompt_tokens=100, completion_tokens=400, estimated=1)]


def test_a_redis_that_came_back_empty_learns_who_holds_a_slot_and_counts_all_that_ends(door):
    jobs = [started(door), started(door)]
    door.client.flushall()
    door.grant()
    door.renew(*jobs)
    assert isinstance(door.ask(TERMS), Refusal)
    assert door.settle(jobs[0], "done", 10, 20) == 1
    assert door.settle(jobs[0], "done", 10, 20) == 0
    assert isinstance(door.ask(Terms(1, concurrent=2)), Queued)
    assert door.settle(jobs[1], "cancelled", 10, 2) == 1
    assert door.usage() == [row(requests=2, done=1, cancelled=1, prompt_tokens=20, completion_tokens=22)]


def test_a_job_of_which_nobody_knows_whether_it_was_let_in(door):
    let_in, never_seen, late = started(door), door.name(), door.name()
    assert door.settle(let_in, "failed", certain=False) == 1
    assert door.settle(never_seen, "failed", certain=False) == 0
    assert door.settle(late, "failed", certain=False) == 0
    door.ask(TERMS, job=late, estimated_tokens=500, at_least_tokens=500)  # a Redis that had stalled
    assert tokens_left(door) == 500
    door.wait(10)
    door.renew()
    assert tokens_left(door) == 1000
    assert door.usage() == [row(requests=1, failed=1)]


def test_marks_last_as_long_as_somebody_may_come_again(door):
    job, expired = started(door), started(door)
    door.settle(job)
    assert 0 < door.client.ttl(f"sluice:settled:{job}") <= REPEAT_SECONDS
    door.wait(10)
    door.renew()
    assert REPEAT_SECONDS < door.client.ttl(f"sluice:settled:{expired}") <= OVERTAKEN_SECONDS


def test_a_day_has_a_bounded_number_of_rows(door):
    name = "sluice:usage:2026-03-14"
    door.client.hset(name, mapping={f'["x","echo","{i}"]': "1 1 0 0 0 1 1 0" for i in range(10_000)})
    for _ in range(3):
        door.settle(started(door, 10), prompt=5)
    assert door.client.hlen(name) == 10_001
    assert [r for r in door.usage() if r.caller == CALLER] == [
        UsageRow(day="2026-03-14", caller=CALLER, provider="echo", model="*", requests=3, done=3, prompt_tokens=15)
    ]
    assert len(door.usage()) == 10_001


def test_names_of_models_may_be_anything(door):
    job = started(door)
    names = ["a/b:c", 'say "hello" \\ ', "模型", "a\u2028b c", "%d %s", ""]
    for name in names:
        job = door.name()
        door.ask(None, "master", job=job)
        door.settle(job, caller="master", model=name)
    assert {r.model for r in door.usage()} == set(names)


@pytest.mark.parametrize("seed", range(4))
def test_the_books_balance_whatever_happens(door, seed):
    """Owners and workers that die, settle late, settle twice and settle what others have settled; all in virtual time."""
    chance = random.Random(seed)
    terms = Terms(1, concurrent=5)
    slots: dict[str, float] = {}
    settled: list[str] = []
    ends: Counter[str] = Counter()

    def sweep() -> None:
        for job in [job for job, end in slots.items() if end <= door.now]:
            del slots[job]
            settled.append(job)
            ends["unsettled"] += 1

    for _ in range(1000):
        step = chance.choice(["ask", "ask", "ask", "settle", "settle again", "renew", "wait", "wait"])
        job = chance.choice(list(slots)) if slots else None
        if step == "ask":
            job = door.name()
            answer = door.ask(terms, job=job, estimated_tokens=10, at_least_tokens=10)
            sweep()
            assert isinstance(answer, Queued) == (len(slots) < 5)
            if isinstance(answer, Queued):
                slots[job] = door.now + 10_000
        elif step == "settle" and job:
            outcome = chance.choice(["done", "failed", "cancelled"])
            assert door.settle(job, outcome, 3, 4) == 1
            ends[outcome] += 1
            settled.append(job)
            del slots[job]
        elif step == "settle again" and settled:
            assert door.settle(chance.choice(settled), "done", 100, 100) == 0
        elif step == "renew" and job:
            slots[job] = door.now + 10_000
            door.renew(job)
            sweep()
        elif step == "wait":
            door.wait(chance.choice([0.1, 1, 3, 8]))
    door.wait(10)
    door.renew()
    sweep()
    (found,) = door.usage()
    assert {name: getattr(found, name) for name in ("done", "failed", "cancelled", "unsettled")} == ends
    assert found.requests == ends.total()
    assert (
        found.prompt_tokens + found.completion_tokens == 7 * (ends.total() - ends["unsettled"]) + 10 * ends["unsettled"]
    )
    assert int(door.totals()[b"2026-03-14"]) == found.prompt_tokens + found.completion_tokens
    assert not door.client.exists("sluice:slots", f"sluice:caller:{{{CALLER}}}:reserved")
