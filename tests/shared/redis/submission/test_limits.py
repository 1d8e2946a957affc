"""What a key allows, exactly: the window against a model of it, then one limit after the other."""

from datetime import UTC, date, datetime, timedelta

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, given, settings

from shared.redis.submission.limits import Terms
from shared.redis.submission.script import Queued, Refusal
from shared.redis.usage import USAGE
from tests.shared.redis.submission.door import CALLER, NOON, Door, left

MINUTE = 60_000


class Model:
    """A minute's window as one would explain it: each second's requests leave together, a minute after the last of them."""

    def __init__(self, most_requests: int, most_tokens: int) -> None:
        self.most_requests = most_requests
        self.most_tokens = most_tokens
        self.granted: dict[str, list[float]] = {}  # job -> [time, tokens, requests]

    def inside(self, now: float) -> list[list[float]]:
        last: dict[int, float] = {}
        for time, _, _ in self.granted.values():
            last[time // 1000] = max(last.get(time // 1000, 0), time)
        return [grant for grant in self.granted.values() if last[grant[0] // 1000] + MINUTE > now]

    def allows(self, now: float, tokens: int) -> bool:
        inside = self.inside(now)
        return (
            sum(grant[2] for grant in inside) < self.most_requests
            and sum(grant[1] for grant in inside) + tokens <= self.most_tokens
        )

    def settle(self, job: str, now: float, tokens: float) -> None:
        """What has left comes back no more; what it did not count is counted now."""
        grant = self.granted[job]
        if any(grant is one for one in self.inside(now)):
            grant[1] = tokens
        elif tokens > grant[1]:
            self.granted[f"surplus of {job}"] = [now, tokens - grant[1], 0]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([1, 40, 999, 1000, 1001, 7_000, 30_000, 59_999, 60_000, 61_000])),
        st.tuples(st.just("ask"), st.integers(0, 60)),
        st.tuples(st.just("settle"), st.integers(0, 120)),
    ),
    min_size=20,
    max_size=70,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.integers(1, 8), st.integers(50, 300))
def test_the_window_is_what_the_model_says(redis_server, steps, most_requests, most_tokens):
    redis_server.client.flushall()
    door = Door(redis_server.client)
    door.grant()
    terms, model = Terms(1, requests=most_requests, tokens=most_tokens), Model(most_requests, most_tokens)
    running: list[str] = []
    for step, amount in steps:
        if step == "wait":
            door.wait(amount / 1000)
            door.renew(*running)
        elif step == "ask":
            job = door.name()
            expected = model.allows(door.now, amount)
            answer = door.ask(terms, job=job, estimated_tokens=amount, at_least_tokens=amount)
            assert isinstance(answer, Queued) == expected
            if expected:
                model.granted[job] = [door.now, amount, 1]
                running.append(job)
            inside = model.inside(door.now)
            assert answer.limits.requests_left == most_requests - sum(grant[2] for grant in inside)
            assert answer.limits.tokens_left == max(
                0, min(most_tokens, most_tokens - sum(grant[1] for grant in inside))
            )
            newest = max((grant[0] for grant in inside), default=None)
            assert answer.limits.requests_reset_ms == (0 if newest is None else newest + MINUTE - door.now)
            if isinstance(answer, Refusal) and answer.retry_after_seconds is not None:
                wait = answer.retry_after_seconds * 1000
                assert 0 < wait <= MINUTE
                assert model.allows(door.now + wait, amount), "when it was told to come again"
                assert not model.allows(door.now + wait - 1, amount), "and not before"
        elif running:
            job = running.pop(amount % len(running))
            assert door.settle(job, prompt=amount) == 1
            model.settle(job, door.now, amount)


def test_no_minute_wherever_it_begins_holds_more_than_the_limit(door):
    terms, accepted = Terms(1, requests=10), []
    for _ in range(500):
        if isinstance(door.ask(terms), Queued):
            accepted.append(door.now)
        door.wait(0.411)
    assert all(later - earlier >= MINUTE for earlier, later in zip(accepted, accepted[10:], strict=False))
    assert len(accepted) == 40, "and none of the four minutes that began in these 205 s was wasted"


def test_a_refused_request_costs_nothing(door):
    terms = Terms(1, requests=2, tokens=100, concurrent=2, daily=1000, monthly=1000)
    door.ask(terms, estimated_tokens=10, at_least_tokens=10)
    before = door.everything()
    for refused in (
        Terms(2),
        Terms(1, concurrent=1),
        Terms(1, requests=1),
        Terms(1, tokens=10),
        Terms(1, daily=10),
        Terms(1, monthly=10),
    ):
        assert isinstance(door.ask(refused, at_least_tokens=1, estimated_tokens=1), Refusal)
    assert isinstance(door.ask(terms, estimated_tokens=91, at_least_tokens=91), Refusal)
    assert isinstance(door.ask(Terms(1), caller="unknown"), Refusal)
    assert door.everything() == before


def test_what_the_queue_refuses_costs_nothing_either(door):
    terms = Terms(1, requests=2, tokens=100, concurrent=2, daily=100)
    before = door.everything()
    refusal = door.ask(terms, estimated_tokens=10, at_least_tokens=10, most_waiting=0)
    assert refusal.kind == "queue_full"
    assert left(refusal)["requests_left"] == 2
    assert door.everything() == before


def test_the_first_limit_in_the_way_is_named(door):
    terms = Terms(1, requests=1, tokens=10, concurrent=1, daily=10, monthly=10)
    job = door.name()
    door.ask(terms, job=job, estimated_tokens=10, at_least_tokens=10)
    named = []
    for clear in ("concurrent", "requests", "tokens", "daily", "monthly"):
        refusal = door.ask(terms, estimated_tokens=5, at_least_tokens=5)
        named.append((refusal.kind, refusal.limit))
        terms = Terms(**{name: getattr(terms, name) for name in Terms.__struct_fields__} | {clear: None})
    assert named == [
        ("concurrency_limit", "concurrent"),
        ("rate_limit", "requests"),
        ("rate_limit", "tokens"),
        ("insufficient_quota", "daily"),
        ("insufficient_quota", "monthly"),
    ]


def test_a_key_that_has_changed_is_found_out_at_once(door):
    door.ask(Terms(1))
    door.grant(revision=2)
    assert door.ask(Terms(1)).kind == "outdated_key"
    assert isinstance(door.ask(Terms(2)), Queued)
    door.grant(revision=-3)
    assert door.ask(Terms(2)).kind == "outdated_key"


def test_a_request_that_is_larger_than_its_limit_is_told_so(door):
    refusal = door.ask(Terms(1, tokens=100), estimated_tokens=101, at_least_tokens=101)
    assert (refusal.kind, refusal.size, refusal.wanted) == ("request_over_limit", 100, 101)
    assert refusal.retry_after_seconds is None


def test_who_does_not_say_how_much_reserves_the_usual_or_what_is_left(door):
    terms = Terms(1, tokens=1000, daily=1500)
    first = door.ask(terms, prompt_tokens=10, estimated_tokens=700, at_least_tokens=11)
    assert left(first)["tokens_left"] == 300
    second = door.ask(terms, prompt_tokens=10, estimated_tokens=700, at_least_tokens=11)
    assert left(second)["tokens_left"] == 0
    assert door.totals() == {b"2026-03-14": b"1000", b"2026-03": b"1000"}
    assert door.ask(terms, prompt_tokens=10, estimated_tokens=700, at_least_tokens=11).limit == "tokens"
    door.wait(60)
    third = door.ask(terms, prompt_tokens=10, estimated_tokens=700, at_least_tokens=11)
    assert left(third)["tokens_left"] == 500, "what is left of the day"


def test_slots(door):
    terms = Terms(1, concurrent=2)
    jobs = [door.name() for _ in range(3)]
    assert [isinstance(door.ask(terms, job=job), Queued) for job in jobs] == [True, True, False]
    refusal = door.ask(terms)
    assert (refusal.limit, refusal.size, refusal.used, refusal.retry_after_seconds) == ("concurrent", 2, 2, 0.5)
    door.settle(jobs[0])
    assert isinstance(door.ask(terms), Queued)
    assert isinstance(door.ask(terms), Refusal)
    assert isinstance(door.ask(terms, caller="another"), Refusal), "that has no key"
    door.grant("another")
    assert isinstance(door.ask(terms, caller="another"), Queued)


def test_a_slot_lasts_as_long_as_it_is_renewed(door):
    terms = Terms(1, concurrent=1)
    job = door.name()
    door.ask(terms, job=job)
    for _ in range(5):
        door.wait(9.9)
        door.renew(job)
    door.wait(9.9)
    assert isinstance(door.ask(terms), Refusal)
    door.wait(0.1)
    assert isinstance(door.ask(terms), Queued)


def test_the_same_job_is_charged_once(door):
    """Its owner never heard that it was let in, or gives it another attempt."""
    terms = Terms(1, requests=5, tokens=100, concurrent=1)
    job = door.name()
    first = door.ask(terms, job=job, estimated_tokens=10, at_least_tokens=10)
    unheard = door.ask(terms, job=job, estimated_tokens=10, at_least_tokens=10)
    assert isinstance(unheard, Queued)
    assert left(first) == left(unheard)
    assert isinstance(door.ask(terms, job=job, again=True, returns=True), Queued)
    assert left(door.ask(Terms(1, requests=5, tokens=100)))["requests_left"] == 3


@pytest.mark.parametrize(
    ("limit", "opens"), [("daily", datetime(2026, 12, 31, tzinfo=UTC)), ("monthly", datetime(2027, 1, 1, tzinfo=UTC))]
)
def test_quotas_open_with_the_day_and_the_month(door, limit, opens):
    door.now = datetime(2026, 12, 30, 23, 59, 50, tzinfo=UTC).timestamp() * 1000
    terms, job = Terms(1, **{limit: 100}), door.name()
    assert isinstance(door.ask(terms, job=job, estimated_tokens=60, at_least_tokens=60), Queued)
    refusal = door.ask(terms, estimated_tokens=50, at_least_tokens=50)
    assert (refusal.kind, refusal.limit) == ("insufficient_quota", limit)
    assert (refusal.size, refusal.used, refusal.wanted) == (100, 60, 50)
    assert door.now / 1000 + refusal.retry_after_seconds == pytest.approx(opens.timestamp())
    door.settle(job, prompt=50)
    assert isinstance(door.ask(terms, estimated_tokens=50, at_least_tokens=50), Queued)
    door.now = opens.timestamp() * 1000 - 1
    assert isinstance(door.ask(terms, estimated_tokens=50, at_least_tokens=50), Refusal)
    door.wait(0.001)
    assert isinstance(door.ask(terms, estimated_tokens=50, at_least_tokens=50), Queued)
    assert len(door.totals()) == 2, "the days that are over are forgotten"


def test_days_are_those_of_the_calendar(door):
    script = (
        USAGE + "\nlocal days = {}\nfor i, time in ipairs(ARGV) do days[i] = day_of(tonumber(time)) end\nreturn days"
    )
    day, days = date(1999, 12, 25), []
    while day < date(2105, 1, 10):
        days.append(day)
        day += timedelta(days=1 if day.month in (2, 3, 12) else 27)
    begins = [datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000 for day in days]
    for hour in (0, 12 * 3_600_000, 86_399_999):
        found = door.client.eval(script, 0, *(begin + hour for begin in begins))
        assert [text.decode() for text in found] == [day.isoformat() for day in days]


def test_callers_without_terms_have_no_limits_and_leave_no_window(door):
    assert all(door.ask(caller="master", estimated_tokens=10**6) == Queued() for _ in range(50))
    assert not door.client.keys("sluice:caller:{master}:window")
    assert not door.totals("master")


def test_a_clock_that_is_set_back_gives_the_window_back(door):
    terms = Terms(1, requests=1)
    door.ask(terms)
    door.wait(-30)
    assert isinstance(door.ask(terms), Refusal), "a little: it waits"
    door.wait(-3600)
    assert isinstance(door.ask(terms), Queued), "by an hour: it does not wait for an hour"
    assert isinstance(door.ask(terms), Refusal)


def test_a_redis_without_memory_lets_nobody_in_and_everybody_out(door):
    terms = Terms(1, requests=9, concurrent=9)
    settled, renewed, expired = (door.name() for _ in range(3))
    for job in (settled, renewed, expired):
        door.ask(terms, job=job)
    door.wait(9)
    door.renew(settled, renewed)
    door.client.config_set("maxmemory", 1)
    door.wait(2, alone=True)
    with pytest.raises(redis.exceptions.ResponseError, match=r"OOM|maxmemory"):
        door.ask(terms)
    assert door.settle(settled, prompt=3) == 1
    door.renew(renewed)
    door.client.config_set("maxmemory", 0)
    assert [row.requests for row in door.usage()] == [2]
    assert left(door.ask(terms))["requests_left"] == 5
    assert door.client.hlen(f"sluice:caller:{{{CALLER}}}:reserved") == 2


def test_nothing_is_kept_for_ever(door):
    job = door.name()
    door.ask(Terms(1, requests=5, daily=10), job=job, estimated_tokens=5, at_least_tokens=5)
    door.settle(job, prompt=5)
    eternal = {name.decode() for name in door.client.scan_iter() if door.client.ttl(name) == -1}
    assert eternal == {"sluice:callers:revisions", "sluice:jobs:{echo}", "sluice:waiting:{echo}:places"}
    assert door.now == NOON
