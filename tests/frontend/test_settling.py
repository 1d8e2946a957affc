"""What jobs have cost is owed until Redis has confirmed it, and every end costs what it should."""

import msgspec
import pytest
import trio

from frontend.budget import Estimate
from frontend.jobs import Jobs
from frontend.open_job import Submission
from frontend.settling import LOOK_SECONDS, UNSEEN_TOKENS_PER_SECOND, Settling, settlement_of
from shared.errors import Failure
from shared.redis.failures import LinkDown, Refused
from shared.redis.submission.limits import Terms
from shared.redis.submission.script import Queued, Refusal
from shared.redis.submission.settlement import RENEW, RENEW_SECONDS, SETTLE, Settlement
from shared.schema.job import FrameKind, Outcome
from shared.sealing import Seal

SEAL = Seal(["a secret key for tests only, 32 characters"])
ESTIMATE = Estimate(prompt=12, answer=100, least=100)


class Paper:
    """A link that writes scripts down; a test answers them."""

    def __init__(self):
        self.up = True
        self.scripts = []
        self.loaded = 0

    def post(self, command, *words, on_reply=None):
        self.loaded += command == b"SCRIPT"

    def post_script(self, script, keys, arguments, on_reply=None):
        self.scripts.append((script, arguments, on_reply))

    def settled(self):
        """The settlements that were sent, batch by batch, each with how to answer it."""
        return [
            (msgspec.msgpack.decode(arguments[0], type=list[Settlement]), on_reply)
            for script, arguments, on_reply in self.scripts
            if script is SETTLE
        ]

    def renewed(self):
        return [msgspec.msgpack.decode(arguments[0]) for script, arguments, _ in self.scripts if script is RENEW]


QUEUED = Queued()


def house(**wanted):
    paper = Paper()
    jobs = Jobs("f", paper, SEAL, queue_limit=10, max_starts=2)
    fields = {
        "endpoint": "chat", "provider": "echo", "model": "m", "asked_model": "alias", "stream": True,
        "include_usage": False, "body": b"{}", "request_id": "r", "budget_seconds": 60.0, "caller": "0123abcd",
        "estimate": ESTIMATE,
    }  # fmt: skip
    return paper, jobs, jobs.new(Submission(**(fields | wanted)))


def let_in(paper, job, answer=QUEUED):
    paper.scripts[-1][2](msgspec.msgpack.encode(answer))


def frames(job, *kinds_and_payloads):
    for seq, (kind, payload) in enumerate(kinds_and_payloads, job.ownership.received.next):
        job.receive("w", 1, seq, kind, payload)


STARTED, ACCEPTED = (FrameKind.STARTED, b""), (FrameKind.ACCEPTED, b"")
DONE = (FrameKind.DONE, msgspec.msgpack.encode(Outcome(30, 40)))
CHUNKS = [(FrameKind.CHUNK, b'{"text":"%b"}' % text) for text in (b"a", b"bcdefgh", b"ijk")]


def end_of(job):
    settlement = settlement_of(job)
    return settlement and (
        settlement.outcome, settlement.prompt_tokens, settlement.completion_tokens, settlement.estimated
    )  # fmt: skip


async def test_a_done_job_costs_what_the_upstream_says():
    paper, jobs, job = house()
    jobs.open(job)
    let_in(paper, job)
    frames(job, STARTED, ACCEPTED, *CHUNKS, DONE)
    job.take()
    job.leave()
    job.leave()
    jobs.settling.flush()
    (((settlement,), _),) = paper.settled()
    assert settlement == Settlement(
        job.ownership.id.hex(), "0123abcd", "done", 30, 40, False, '["0123abcd","echo","m"]', True
    )


@pytest.mark.parametrize(
    ("limits", "at_once"),
    [
        ({"concurrent": 1}, True), ({"tokens": 9}, True), ({"daily": 9}, True), ({"monthly": 9}, True),
        ({"requests": 9}, False), ({}, False), (None, False),
    ],
)  # fmt: skip
async def test_what_the_next_request_may_need_is_given_back_at_once(limits, at_once):
    paper, jobs, job = house(terms=None if limits is None else Terms(1, **limits))
    jobs.open(job)
    let_in(paper, job)
    frames(job, STARTED, ACCEPTED, *CHUNKS, DONE)
    job.take()
    job.leave()
    assert len(paper.settled()) == at_once


async def test_nothing_is_given_back_into_the_dark():
    paper, jobs, job = house(terms=Terms(1, concurrent=1))
    jobs.open(job)
    let_in(paper, job)
    paper.up = False
    job.leave()
    assert not paper.settled()
    paper.up = True
    jobs.settling.tick([], 0.0)
    assert len(paper.settled()) == 1


async def test_what_an_upstream_does_not_count_costs_what_it_was_estimated_to():
    paper, jobs, job = house(stream=False, endpoint="embeddings")
    jobs.open(job)
    let_in(paper, job)
    frames(job, STARTED, ACCEPTED, CHUNKS[0], (FrameKind.DONE, msgspec.msgpack.encode(Outcome())))
    assert end_of(job) == ("done", 12, 0, True)


async def test_who_left_in_the_middle_pays_the_prompt_and_what_was_sent():
    paper, jobs, job = house()
    jobs.open(job)
    let_in(paper, job)
    frames(job, STARTED, ACCEPTED, *CHUNKS)
    job.take()
    job.leave()
    assert end_of(job) == ("cancelled", 12, 3, True), "eleven letters"


async def test_who_left_a_whole_answer_pays_the_prompt():
    paper, jobs, job = house(stream=False)
    jobs.open(job)
    let_in(paper, job)
    frames(job, STARTED, ACCEPTED)
    job.leave()
    assert end_of(job) == ("cancelled", 12, 0, True)


@pytest.mark.parametrize(("seconds", "tokens"), [(1, UNSEEN_TOKENS_PER_SECOND), (1000, ESTIMATE.answer)])
async def test_who_lets_an_upstream_write_and_leaves_before_the_end_pays_by_time(autojump_clock, seconds, tokens):
    paper, jobs, job = house(stream=False)
    jobs.open(job)
    let_in(paper, job)
    await trio.sleep(5)
    frames(job, STARTED, ACCEPTED)
    await trio.sleep(seconds)
    job.leave()
    assert end_of(job) == ("cancelled", 12, tokens, True)


@pytest.mark.parametrize("begun", [[], [STARTED]])
async def test_what_no_upstream_had_accepted_costs_no_tokens(begun):
    paper, jobs, job = house()
    jobs.open(job)
    let_in(paper, job)
    frames(job, *begun)
    job.fail(Failure("deadline", ""))
    job.leave()
    assert end_of(job) == ("failed", 0, 0, False)


async def test_a_stream_that_broke_off_costs_what_was_sent():
    paper, jobs, job = house()
    jobs.open(job)
    let_in(paper, job)
    frames(job, STARTED, ACCEPTED, *CHUNKS)
    job.take()
    frames(job, (FrameKind.FAILED, msgspec.msgpack.encode(Failure("disconnected", ""))))
    assert end_of(job) == ("failed", 12, 3, True)


async def test_who_was_refused_owes_nothing():
    paper, jobs, job = house()
    jobs.open(job)
    let_in(paper, job, Refusal("rate_limit", 20.0, limit="requests", size=1, used=1, wanted=1))
    assert job.failure.message.startswith("Rate limit reached")
    job.leave()
    assert settlement_of(job) is None
    jobs.settling.flush()
    assert not paper.settled()


async def test_who_never_came_to_the_door_owes_nothing():
    _paper, _jobs, job = house()
    job.leave()
    assert settlement_of(job) is None


async def test_who_left_before_the_answer_counts_only_if_there_is_a_reservation():
    _paper, jobs, job = house()
    jobs.open(job)
    job.leave()
    assert settlement_of(job).certain is False


async def test_an_attempt_that_is_refused_later_still_owes_for_the_first():
    paper, jobs, job = house()
    jobs.open(job)
    let_in(paper, job)
    job.vanished()
    jobs.submit(job)
    let_in(paper, job, Refusal("queue_full", waiting=1000))
    assert end_of(job) == ("failed", 0, 0, False)


@pytest.mark.parametrize("trouble", [LinkDown("cut", may_have_executed=True), Refused("OOM"), Refused("LOADING x")])
async def test_what_was_not_confirmed_is_sent_again(trouble):
    paper, jobs, job = house()
    jobs.open(job)
    job.leave()
    settling = jobs.settling
    settling.flush()
    assert settling.owed == 1
    paper.settled()[0][1](trouble)
    assert settling.owed == 1
    settling.flush()
    first, second = paper.settled()
    assert first[0] == second[0]
    second[1](1)
    assert settling.owed == 0


async def test_while_redis_is_away_nothing_is_sent_and_nothing_lost():
    paper, jobs, job = house()
    jobs.open(job)
    job.leave()
    paper.up = False
    jobs.settling.tick([], 100.0)
    assert not paper.settled()
    paper.up = True
    jobs.settling.came_up()
    assert len(paper.settled()) == 1
    assert paper.loaded == 3, "scripts that Redis does not know would run in another order"


async def test_many_ends_travel_together():
    paper = Paper()
    jobs = Jobs("f", paper, SEAL, queue_limit=10, max_starts=2)
    for _ in range(300):
        job = jobs.new(Submission("chat", "echo", "m", "m", True, False, b"{}", "r", 60.0))
        jobs.open(job)
        job.leave()
    jobs.settling.tick([], 0.0)
    assert [len(batch) for batch, _ in paper.settled()] == [256, 44]


async def test_slots_are_renewed_every_few_seconds_and_all_at_once_when_redis_is_back():
    paper, jobs, job = house()
    jobs.open(job)
    let_in(paper, job)
    waiting = jobs.new(job.submission)
    jobs.open(waiting)
    held = [[job.ownership.id.hex(), "0123abcd"]]
    for tenths in range(61):
        jobs.settling.tick(jobs.all(), tenths / 10)
    looks = round(6 / LOOK_SECONDS) + 1
    assert [bool(renewed) for renewed in paper.renewed()] == [
        (second * LOOK_SECONDS) % RENEW_SECONDS == 0 for second in range(looks)
    ]
    assert paper.renewed()[0] == held, "only what was let in"
    jobs.settling.came_up()
    jobs.settling.tick(jobs.all(), 7.1)
    assert paper.renewed()[-1] == held


async def test_leaving_waits_for_the_last_confirmation(autojump_clock, nursery):
    paper, jobs, job = house()
    jobs.open(job)
    job.leave()

    async def confirm():
        await trio.sleep(1)
        paper.settled()[0][1](1)

    nursery.start_soon(confirm)
    began = trio.current_time()
    await jobs.settling.finish(2.0)
    assert trio.current_time() - began == pytest.approx(1)
    await jobs.settling.finish(2.0)
    assert trio.current_time() - began == pytest.approx(1)


async def test_leaving_does_not_wait_for_ever(autojump_clock):
    settling, began = Settling(paper := Paper()), trio.current_time()
    settling._owed.append(Settlement("0" * 32, "master", "done", 1, 1, False, "[]"))
    await settling.finish(2.0)
    assert trio.current_time() - began == pytest.approx(2)
    assert len(paper.settled()) == 1
