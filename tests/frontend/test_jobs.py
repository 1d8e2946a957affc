"""The frontend's shell around `shared.sansio.job`: which orders go out, what a report means, what a late reply means."""

import msgspec
import pytest
import trio

from frontend.jobs import Jobs
from frontend.open_job import Submission
from shared.errors import Failure
from shared.redis import keys
from shared.redis.failures import LinkDown, Refused
from shared.redis.submission.queue import WITHDRAW
from shared.redis.submission.script import Queued, Refusal
from shared.sansio.job import MOST_VANISHED, UNLISTED_REPORTS, State
from shared.schema.job import FrameKind, OrderKind, Orders, Outcome, Parcel
from shared.sealing import Seal

SEAL = Seal(["a secret key for tests only, 32 characters"])
CHANNEL = keys.frontend_channel("f")


class Paper:
    """A link that writes down what is posted; scripts are answered when a test says so."""

    up = True

    def __init__(self):
        self.orders = []
        self.withdrawn = []
        self.replies = []

    def post(self, command, *words, on_reply=None):
        if command == b"PUBLISH":
            channel, message = words
            for kind, _job, attempt, seq in msgspec.msgpack.decode(SEAL.open(message, channel), type=Orders).orders:
                self.orders.append((channel, kind, attempt, seq))

    def post_script(self, script, script_keys, arguments, on_reply=None):
        if script is WITHDRAW:
            self.withdrawn += arguments
        else:
            self.replies.append(on_reply)

    def taken(self):
        orders, self.orders = self.orders, []
        return [(channel.rpartition(b":")[2].decode(), kind, attempt, seq) for channel, kind, attempt, seq in orders]


class Frontend:
    """Jobs on paper, with one job submitted."""

    def __init__(self, stream=True):
        self.paper = Paper()
        self.jobs = Jobs("f", self.paper, SEAL, queue_limit=10, max_starts=2)
        self.job = self.jobs.new(Submission("chat", "echo", "m", "m", stream, False, b"{}", "r", 60.0))
        self.jobs._open[self.job.ownership.id] = self.job
        self.jobs.submit(self.job)

    def parcel(self, worker, *frames, running=None):
        """`frames` and `running` are about the one job."""
        job_id = self.job.ownership.id
        reports = None if running is None else [(job_id, *report) for report in running]
        parcel = Parcel(worker, [(job_id, *frame) for frame in frames], reports)
        self.jobs.deliver(CHANNEL, SEAL.seal(msgspec.msgpack.encode(parcel), CHANNEL))


FULL = msgspec.msgpack.encode(Refusal("queue_full", waiting=99))
QUEUED = msgspec.msgpack.encode(Queued())
STARTED = (1, 0, FrameKind.STARTED, b"")
DONE = (1, 1, FrameKind.DONE, msgspec.msgpack.encode(Outcome()))
CANCEL_W = ("w", OrderKind.CANCEL, 1, 0)


async def test_a_report_of_an_attempt_whose_job_has_ended_is_answered_with_cancel():
    """FINISHED would only drop the frames: a worker that never heard the first CANCEL would go on calling the upstream."""
    frontend = Frontend()
    frontend.parcel("w", STARTED)
    frontend.job.fail(Failure("deadline", ""))
    assert frontend.paper.taken() == [CANCEL_W]
    frontend.parcel("w", running=[(1, 1)])
    assert frontend.paper.taken() == [CANCEL_W]


async def test_a_second_worker_is_cancelled_after_the_first_has_finished():
    frontend = Frontend()
    frontend.parcel("w", STARTED, DONE)
    frontend.jobs.flush_orders()
    frontend.paper.taken()
    frontend.parcel("other", running=[(1, 5)])
    assert frontend.paper.taken() == [("other", OrderKind.CANCEL, 1, 0)]


async def test_what_a_worker_names_no_more_is_begun_again():
    frontend = Frontend()
    frontend.parcel("w", STARTED)
    for _ in range(UNLISTED_REPORTS):
        assert frontend.job.ownership.state is State.RUNNING
        frontend.parcel("w")
        frontend.parcel("other", running=[])
        frontend.parcel("w", running=[])
    assert (frontend.job.ownership.state, frontend.job.ownership.attempt) == (State.WAITING, 2)
    assert frontend.job.ownership.resubmit


async def test_a_waiting_caller_is_woken_when_its_worker_has_given_up(autojump_clock, nursery):
    frontend = Frontend()
    frontend.parcel("w", STARTED, (1, 1, FrameKind.CHUNK, b"x"))
    frontend.job.take()

    async def reports():
        for _ in range(UNLISTED_REPORTS):
            await trio.sleep(1)
            frontend.parcel("w", running=[])

    nursery.start_soon(reports)
    with trio.fail_after(10):
        while not frontend.job.ended:
            await frontend.job.wait()
    assert frontend.job.failure.kind == "worker_lost"


@pytest.mark.parametrize("reply", [LinkDown("cut"), FULL, None])
async def test_a_submission_without_a_reply_does_not_end_a_job_that_runs(reply):
    frontend = Frontend()
    frontend.parcel("w", STARTED)
    frontend.paper.replies[0](reply)
    assert frontend.job.ownership.state is State.RUNNING
    assert frontend.paper.taken() == []


@pytest.mark.parametrize(
    ("reply", "kind"), [(Refused("ERR unknown command"), "queue_unavailable"), (FULL, "queue_full")]
)
async def test_a_submission_that_is_refused_ends_a_job_that_waits(reply, kind):
    frontend = Frontend()
    frontend.paper.replies[0](reply)
    assert frontend.job.failure.kind == kind


@pytest.mark.parametrize("reply", [LinkDown("cut"), Refused("BUSY Redis is busy"), Refused("READONLY You can't write")])
async def test_a_submission_that_redis_did_not_answer_is_made_again_under_another_number(reply):
    """The first may have been executed; whoever claims it then is told to cancel."""
    frontend = Frontend()
    frontend.paper.replies[0](reply)
    assert frontend.job.failure is None
    assert (frontend.job.ownership.attempt, frontend.job.ownership.resubmit) == (2, True)
    for _ in range(20):  # as long as its patience lasts, which is the watch's to say
        frontend.jobs.submit(frontend.job)
        frontend.paper.replies[-1](reply)
    assert frontend.job.failure is None
    frontend.parcel("w", STARTED)
    assert frontend.paper.taken() == [("w", OrderKind.CANCEL, 1, 0)]


async def test_an_earlier_attempt_is_withdrawn_when_the_queue_has_it_after_all():
    frontend = Frontend()
    earlier = frontend.job.name
    frontend.job.vanished()
    frontend.paper.replies[0](QUEUED)
    assert frontend.paper.withdrawn == [earlier]
    assert not frontend.job.queued


async def test_who_leaves_is_withdrawn_once_the_queue_is_known_to_have_it():
    frontend = Frontend()
    frontend.job.leave()
    assert frontend.paper.withdrawn == []
    frontend.paper.replies[0](QUEUED)
    assert frontend.paper.withdrawn == [frontend.job.name]
    waiting = Frontend()
    waiting.paper.replies[0](QUEUED)
    waiting.job.fail(Failure("deadline", ""))
    assert waiting.paper.withdrawn == [waiting.job.name]


async def test_a_job_that_vanishes_again_and_again_ends():
    frontend = Frontend()
    for _ in range(MOST_VANISHED):
        frontend.job.vanished()
        assert frontend.job.ownership.state is State.WAITING
    frontend.job.vanished()
    assert (frontend.job.failure.kind, frontend.job.ownership.resubmit) == ("queue_unavailable", False)


async def test_waiting_is_counted_over_all_attempts(autojump_clock):
    frontend = Frontend()
    await trio.sleep(2)
    frontend.parcel("w", STARTED)
    await trio.sleep(5)
    assert frontend.job.waited_seconds == pytest.approx(2)
    frontend.job.lose_worker()
    frontend.jobs.submit(frontend.job)
    await trio.sleep(1)
    assert frontend.job.waited_seconds == pytest.approx(3)
    frontend.job.fail(Failure("queue_timeout", ""))
    await trio.sleep(1)
    assert frontend.job.waited_seconds == pytest.approx(3)


async def test_what_nobody_waits_for_travels_with_what_somebody_does():
    """FINISHED frees memory and can wait for the watch; a CANCEL closes an upstream call, so it goes at once."""
    frontend = Frontend()
    frontend.parcel("w", STARTED, DONE)
    assert frontend.paper.taken() == []
    frontend.parcel("other", running=[(1, 5)])
    assert ("other", OrderKind.CANCEL, 1, 0) in frontend.paper.taken()
    frontend.jobs.flush_orders()
    assert frontend.paper.taken() == []
