"""The worker's end of the road: what it sends when, what it keeps, what it repeats, and when it gives up."""

from contextlib import contextmanager

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from shared.redis import keys
from shared.redis.address import Address
from shared.redis.failures import LinkDown
from shared.redis.link import Link
from shared.redis.subscription import Subscription
from shared.schema.job import PROTOCOL, FrameKind, Job, Parcel
from shared.sealing import Seal
from tests.waiting import until
from workers.outbox import (
    EMPTY_REPORTS,
    FORGET_SECONDS,
    FRAME_OVERHEAD_BYTES,
    PARCEL_BYTES,
    PATIENCE_SECONDS,
    WINDOW_BYTES,
    Outbox,
)

SEAL = Seal(["a secret key for tests only, 32 characters"])
STARTED, ACCEPTED, CHUNK, DONE, FAILED = range(5)


def a_job(number=1, *, attempt=1, owner="f", budget_seconds=600.0):
    return Job(
        PROTOCOL, bytes([number]) * 16, attempt, owner, "chat", "echo", "echo", "echo", True, False, budget_seconds, b"{}", "r"
    )  # fmt: skip


class Paper:
    """A link that only writes down what is published; a test answers when it likes, or lets `answer` do it at once."""

    def __init__(self, answer=None):
        self.published = []
        self.answer = answer
        self._replies = []

    def post(self, command, channel, message, *, on_reply):
        assert command == b"PUBLISH"
        self.published.append((channel, msgspec.msgpack.decode(SEAL.open(message, channel), type=Parcel)))
        if self.answer is None:
            self._replies.append(on_reply)
        else:
            on_reply(self.answer)

    def reply(self, reply=1):
        self._replies.pop(0)(reply)

    @property
    def parcels(self):
        return [parcel for _, parcel in self.published]

    def frames(self):
        """`(job, attempt, seq, kind, payload)` of all parcels, the job by its first byte."""
        return [(job[0], attempt, *rest) for parcel in self.parcels for job, attempt, *rest in parcel.frames]

    def reports(self):
        return [
            [(job[0], attempt, next_seq) for job, attempt, next_seq in parcel.running]
            for parcel in self.parcels
            if parcel.running is not None
        ]


class Told:
    """What the attempt of a retained job is told."""

    def __init__(self):
        self.gone = 0

    def __call__(self):
        self.gone += 1


def an_outbox(answer=1):
    paper = Paper(answer)
    return paper, Outbox(paper, SEAL, "w")


@contextmanager
def no_time(seconds=0.0):
    began = trio.current_time()
    yield
    assert trio.current_time() - began == pytest.approx(seconds, abs=1e-6)


# --- sending


async def test_a_frame_goes_at_once_numbered_and_sealed_for_its_channel():
    paper, outbox = an_outbox()
    retained = outbox.open(a_job(attempt=3), Told())
    outbox.put(retained, STARTED, b"")
    outbox.put(retained, CHUNK, b"hello")
    assert [channel for channel, _ in paper.published] == [keys.frontend_channel("f")] * 2
    assert paper.frames() == [(1, 3, 0, STARTED, b""), (1, 3, 1, CHUNK, b"hello")]
    assert {parcel.worker for parcel in paper.parcels} == {"w"}


async def test_what_comes_while_a_parcel_is_under_way_gathers_into_the_next():
    paper, outbox = an_outbox(answer=None)
    one, two = outbox.open(a_job(1), Told()), outbox.open(a_job(2), Told())
    outbox.put(one, CHUNK, b"a")
    outbox.put(two, CHUNK, b"b")
    outbox.put_chunks(one, [b"c", b"d"])
    assert len(paper.parcels) == 1
    paper.reply()
    assert [len(parcel.frames) for parcel in paper.parcels] == [1, 3]
    assert paper.frames()[1:] == [(2, 1, 0, CHUNK, b"b"), (1, 1, 1, CHUNK, b"c"), (1, 1, 2, CHUNK, b"d")]
    paper.reply()
    assert len(paper.parcels) == 2, "nothing waits, nothing is sent"
    outbox.put(two, CHUNK, b"e")
    assert len(paper.parcels) == 3


async def test_each_frontend_has_its_own_road():
    paper, outbox = an_outbox(answer=None)
    outbox.put(outbox.open(a_job(1, owner="f"), Told()), CHUNK, b"a")
    outbox.put(outbox.open(a_job(2, owner="g"), Told()), CHUNK, b"b")
    assert [channel for channel, _ in paper.published] == [keys.frontend_channel("f"), keys.frontend_channel("g")]


async def test_a_parcel_has_a_limit_and_the_rest_follows():
    paper, outbox = an_outbox(answer=None)
    retained = outbox.open(a_job(), Told())
    outbox.put(retained, STARTED, b"")
    chunks = [b"%d" % number + b"x" * (PARCEL_BYTES // 3) for number in range(8)]
    outbox.put_chunks(retained, chunks)
    for _ in range(4):
        paper.reply()
    assert [len(parcel.frames) for parcel in paper.parcels] == [1, 3, 3, 2]
    assert [payload for *_, payload in paper.frames()] == [b"", *chunks]


async def test_a_frame_larger_than_a_parcel_travels_alone():
    paper, outbox = an_outbox()
    retained = outbox.open(a_job(), Told())
    outbox.put_chunks(retained, [b"x" * (2 * PARCEL_BYTES), b"y"])
    assert [len(parcel.frames) for parcel in paper.parcels] == [1, 1]


async def test_nothing_follows_the_end():
    """A connection that breaks after the last chunk is no second ending."""
    paper, outbox = an_outbox()
    retained = outbox.open(a_job(), Told())
    outbox.put(retained, DONE, b"")
    outbox.put(retained, FAILED, b"late")
    outbox.put_chunks(retained, [b"later"])
    assert [kind for _, _, _, kind, _ in paper.frames()] == [DONE]
    assert retained.sender.next == 1


# --- what is lost


@pytest.mark.parametrize("reply", [LinkDown("away"), None])
async def test_a_parcel_without_an_answer_is_not_repeated_but_kept(reply):
    paper, outbox = an_outbox(answer=None)
    retained = outbox.open(a_job(), Told())
    outbox.put_chunks(retained, [b"a"])
    outbox.put_chunks(retained, [b"b"])
    paper.reply(reply)
    assert len(paper.parcels) == 1, "what waited is dropped as well"
    outbox.put_chunks(retained, [b"c"])
    assert [seq for _, _, seq, _, _ in paper.frames()] == [0, 2], "a hole, which the owner will ask about"
    outbox.resend(retained, 0)
    paper.reply()
    assert [payload for *_, payload in paper.frames()[2:]] == [b"a", b"b", b"c"]
    assert outbox.resends == 3


async def test_a_resend_of_what_was_consumed_sends_the_rest():
    paper, outbox = an_outbox()
    retained = outbox.open(a_job(), Told())
    outbox.put_chunks(retained, [b"a", b"b", b"c"])
    retained.consumed(2)
    outbox.resend(retained, 1)
    outbox.resend(retained, 3)
    assert [(seq, payload) for _, _, seq, _, payload in paper.frames()[3:]] == [(2, b"c")]
    assert len(paper.parcels) == 2, "nothing to send is not sent"


async def test_reports_name_every_attempt_and_how_far_it_is(autojump_clock, nursery):
    paper, outbox = an_outbox()
    one, two = outbox.open(a_job(1), Told()), outbox.open(a_job(2, attempt=2), Told())
    outbox.put_chunks(one, [b"a", b"b"])
    outbox.put(two, DONE, b"")
    nursery.start_soon(outbox.run)
    await trio.sleep(2.5)
    assert paper.reports() == [[(1, 1, 2), (2, 2, 1)]] * 2, "ended ones too, until their owner has everything"
    outbox.drop(two)
    await trio.sleep(1)
    assert paper.reports()[2:] == [[(1, 1, 2)]]


async def test_a_report_does_not_count_what_still_waits():
    """Else the owner asks for it again, which makes the queue longer when it is long already."""
    paper, outbox = an_outbox(answer=None)
    one, two = outbox.open(a_job(1), Told()), outbox.open(a_job(2), Told())
    outbox.put(one, STARTED, b"")
    outbox.put_chunks(one, [b"x" * PARCEL_BYTES])
    outbox.put_chunks(two, [b"a", b"b"])
    outbox.put_chunks(one, [b"c"])
    two.road.report()
    assert [seq for _, _, seq, _, _ in paper.frames()] == [0, 1, 0], "a parcel that is full"
    assert paper.reports() == [[(1, 1, 2), (2, 1, 1)]]
    paper.reply()
    two.road.report()
    assert paper.reports()[1:] == [[(1, 1, 3), (2, 1, 2)]]


async def test_a_frontend_is_told_that_nothing_runs_for_it_any_more(autojump_clock, nursery):
    paper, outbox = an_outbox()
    retained = outbox.open(a_job(), Told())
    nursery.start_soon(outbox.run)
    await trio.sleep(1.5)
    outbox.drop(retained)
    await trio.sleep(10)
    assert paper.reports() == [[(1, 1, 0)], *[[]] * EMPTY_REPORTS]
    assert outbox._roads == {}
    again = outbox.open(a_job(2), Told())
    await trio.sleep(1)
    assert paper.reports()[-1] == [(2, 1, 0)]
    assert again.road is outbox._roads["f"]


# --- start


async def test_a_start_is_confirmed_by_a_receiver(autojump_clock):
    paper, outbox = an_outbox(answer=1)
    retained = outbox.open(a_job(), Told())
    with no_time():
        assert await outbox.start(retained)
    assert paper.frames() == [(1, 1, 0, STARTED, b"")]


@pytest.mark.parametrize("first", [0, LinkDown("away")])
async def test_a_start_that_nobody_heard_is_confirmed_by_a_later_parcel(autojump_clock, nursery, first):
    """The owner may be reconnecting; the report that it hears makes it ask for what it missed."""
    paper, outbox = an_outbox(answer=first)
    retained = outbox.open(a_job(), Told())
    nursery.start_soon(outbox.run)

    async def regain_hearing():
        await trio.sleep(1.5)
        paper.answer = 1

    nursery.start_soon(regain_hearing)
    with no_time(2.0):
        assert await outbox.start(retained)
    assert paper.reports() == [[(1, 1, 1)]] * 2


async def test_a_start_that_nobody_ever_heard_is_given_up(autojump_clock):
    paper, outbox = an_outbox(answer=0)
    told = Told()
    retained = outbox.open(a_job(), told)
    with no_time(PATIENCE_SECONDS):
        assert not await outbox.start(retained)
    assert outbox.find(b"\1" * 16, 1) is None
    outbox.put(retained, CHUNK, b"no")
    assert len(paper.parcels) == 1
    with pytest.raises(KeyError):
        outbox.open(a_job(), Told())


async def test_a_parcel_that_leaves_frames_behind_confirms_nothing():
    paper, outbox = an_outbox(answer=None)
    big, small = outbox.open(a_job(1), Told()), outbox.open(a_job(2), Told())
    outbox.put(big, STARTED, b"")
    outbox.put_chunks(big, [b"x" * PARCEL_BYTES, b"y"])
    confirmed = trio.Event()
    outbox.put(small, STARTED, b"", confirmed)
    paper.reply()
    assert len(paper.parcels) == 2
    paper.reply()
    assert not confirmed.is_set(), "its frame is in the third parcel"
    paper.reply()
    assert confirmed.is_set()


# --- giving up


async def test_a_frontend_that_stays_deaf_is_given_up(autojump_clock, nursery):
    paper, outbox = an_outbox()
    told = Told()
    retained = outbox.open(a_job(), told)
    outbox.put(retained, CHUNK, b"a")
    nursery.start_soon(outbox.run)
    await trio.sleep(1.1)
    paper.answer = 0
    with trio.fail_after(1 + PATIENCE_SECONDS + 0.1):
        while not told.gone:  # noqa: ASYNC110 - a callback without an event, on a clock that jumps
            await trio.sleep(0.1)
    assert outbox.find(b"\1" * 16, 1) is None
    assert told.gone == 1


async def test_a_frontend_that_hears_again_in_time_is_not_given_up(autojump_clock, nursery):
    paper, outbox = an_outbox(answer=0)
    told = Told()
    outbox.open(a_job(), told)
    nursery.start_soon(outbox.run)
    await trio.sleep(0.5)
    for _ in range(5):
        await trio.sleep(2)
        paper.answer = 1
        await trio.sleep(1)
        paper.answer = 0
    assert told.gone == 0


async def test_a_link_that_is_down_proves_nothing_about_the_frontend(autojump_clock, nursery):
    paper, outbox = an_outbox(answer=0)
    told = Told()
    outbox.open(a_job(), told)
    nursery.start_soon(outbox.run)
    await trio.sleep(2.5)
    paper.answer = LinkDown("away")
    await trio.sleep(20)
    assert told.gone == 0
    paper.answer = 0
    await trio.sleep(PATIENCE_SECONDS - 0.6)
    assert told.gone == 0, "from here on it counts again"
    await trio.sleep(2)
    assert told.gone == 1


async def test_a_finished_attempt_is_forgotten_when_nobody_asks(autojump_clock, nursery):
    _, outbox = an_outbox()
    told = Told()
    running, finished = outbox.open(a_job(1), told), outbox.open(a_job(2), told)
    outbox.put(finished, FAILED, b"x" * 100)
    outbox.put(running, CHUNK, b"y" * 10)
    nursery.start_soon(outbox.run)
    await trio.sleep(FORGET_SECONDS - 0.5)
    assert outbox.statistics() == {"attempts": 2, "retained_bytes": 110 + 2 * FRAME_OVERHEAD_BYTES, "resends": 0}
    await trio.sleep(2)
    assert outbox.statistics() == {"attempts": 1, "retained_bytes": 10 + FRAME_OVERHEAD_BYTES, "resends": 0}
    assert told.gone == 0, "its exchange is over, there is nothing to close"


async def test_everything_is_given_up_when_redis_stays_away():
    _, outbox = an_outbox(answer=LinkDown("away"))
    told = Told()
    outbox.open(a_job(1, owner="f"), told)
    outbox.open(a_job(2, owner="g"), told)
    outbox.abandon_all()
    assert told.gone == 2
    assert outbox.statistics()["attempts"] == 0


async def test_what_was_given_up_never_runs_again_under_its_number(autojump_clock, nursery):
    """The owner may still follow it; another run's words would be taken for the rest of the first."""
    _, outbox = an_outbox()
    outbox.open(a_job(budget_seconds=50), Told())
    outbox.abandon_all()
    nursery.start_soon(outbox.run)
    await trio.sleep(48)
    with pytest.raises(KeyError):
        outbox.open(a_job(), Told())
    outbox.open(a_job(attempt=2), Told())
    await trio.sleep(4)
    outbox.open(a_job(), Told())  # its owner has long ended it


async def test_what_the_owner_has_ended_may_be_delivered_again():
    """The owner does not follow that number any more, and will tell it to cancel."""
    _, outbox = an_outbox()
    first = outbox.open(a_job(), Told())
    with pytest.raises(KeyError):
        outbox.open(a_job(), Told())
    outbox.drop(first)
    second = outbox.open(a_job(), Told())
    outbox.drop(first)
    assert outbox.find(b"\1" * 16, 1) is second, "dropping twice does not hit another"
    assert (b"\1" * 16, 1) in second.road.attempts


# --- room


async def test_an_attempt_stops_at_its_window_and_goes_on_when_its_caller_has_read(autojump_clock, nursery):
    _, outbox = an_outbox()
    retained = outbox.open(a_job(), Told())
    chunk = b"x" * (WINDOW_BYTES // 4)
    outbox.put_chunks(retained, [chunk] * 3)
    assert not retained.full
    with no_time():
        await retained.room()
    outbox.put_chunks(retained, [chunk] * 3)
    assert retained.full
    went_on = []

    async def wait():
        await retained.room()
        went_on.append(retained.sender.retained_bytes)

    nursery.start_soon(wait)
    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    retained.consumed(2)
    await wait_all_tasks_blocked()
    assert went_on == [], "four quarters and the overhead are still more than the window"
    retained.consumed(1)
    retained.consumed(4)
    await wait_all_tasks_blocked()
    assert went_on == [2 * (len(chunk) + FRAME_OVERHEAD_BYTES)] * 2


async def test_emptied_waits_for_the_last_owner(autojump_clock, nursery):
    _, outbox = an_outbox()
    with no_time():
        await outbox.emptied()
    one, two = outbox.open(a_job(1), Told()), outbox.open(a_job(2), Told())
    done = []

    async def wait():
        await outbox.emptied()
        done.append(True)

    nursery.start_soon(wait)
    nursery.start_soon(wait)
    outbox.drop(one)
    await wait_all_tasks_blocked()
    assert done == []
    outbox.drop(two)
    await wait_all_tasks_blocked()
    assert done == [True, True]


# --- with a real Redis


async def test_over_a_real_link_to_a_frontend_that_is_not_there_yet(redis_server, nursery):
    link = Link(Address.parse(redis_server.url))
    await nursery.start(link.run)
    outbox = Outbox(link, SEAL, "w")
    nursery.start_soon(outbox.run)
    retained = outbox.open(a_job(), Told())
    heard = []

    def deliver(channel, message):
        heard.append(msgspec.msgpack.decode(SEAL.open(message, channel), type=Parcel))

    async def arrive_late():
        await until(lambda: retained.road.deaf_since is not None)
        ear = Subscription(Address.parse(redis_server.url), [keys.frontend_channel("f")])
        await nursery.start(ear.run, deliver)

    nursery.start_soon(arrive_late)
    with trio.fail_after(5):
        assert await outbox.start(retained)
    await until(lambda: heard)
    assert heard[0].running == [(b"\1" * 16, 1, 1)], "the report says that there is more than was heard"
    assert retained.road.deaf_since is None
    outbox.resend(retained, 0)
    outbox.put_chunks(retained, [b"%d" % number for number in range(100)])
    await until(lambda: sum(len(parcel.frames) for parcel in heard) == 101)
    frames = [frame for parcel in heard for frame in parcel.frames]
    assert [seq for _, _, seq, _, _ in frames] == list(range(101))
    assert frames[0][3] == FrameKind.STARTED
    nursery.cancel_scope.cancel()


async def test_a_redis_that_comes_back_empty_costs_no_frame(redis_server, nursery):
    link = Link(Address.parse(redis_server.url), timeout_seconds=0.5)
    await nursery.start(link.run)
    outbox = Outbox(link, SEAL, "w")
    retained = outbox.open(a_job(), Told())
    outbox.put_chunks(retained, [b"a"])
    redis_server.kill()
    await until(lambda: not link.up)
    outbox.put_chunks(retained, [b"b", b"c"])
    assert retained.road.deaf_since is None
    redis_server.restart()
    heard = []
    ear = Subscription(Address.parse(redis_server.url), [keys.frontend_channel("f")])
    await nursery.start(
        ear.run, lambda channel, message: heard.append(msgspec.msgpack.decode(SEAL.open(message, channel), type=Parcel))
    )
    with trio.fail_after(5):
        await link.wait_up()
    retained.road.report()
    await until(lambda: heard)
    assert heard[0].running == [(b"\1" * 16, 1, 3)]
    outbox.resend(retained, 0)
    await until(lambda: len(heard) > 1)
    assert [payload for *_, payload in heard[1].frames] == [b"a", b"b", b"c"]
    nursery.cancel_scope.cancel()
