"""The worker's end of the road: what it sends when, what it keeps, what it repeats, how far it goes ahead of its caller."""

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from shared.redis import keys
from shared.redis.address import Address
from shared.redis.failures import LinkDown
from shared.redis.link import Link
from shared.redis.subscription import Subscription
from shared.schema.job import FrameKind, Parcel
from tests.waiting import until
from tests.workers.outbox_paper import CHUNK, DONE, FAILED, SEAL, STARTED, Told, a_job, an_outbox, no_time
from workers.outbox import EMPTY_REPORTS, FRAME_OVERHEAD_BYTES, PARCEL_BYTES, PATIENCE_SECONDS, WINDOW_BYTES, Outbox

# --- sending


async def test_a_frame_goes_at_once_numbered_and_sealed_for_its_channel():
    paper, outbox = an_outbox()
    retained = outbox.open(a_job(attempt=3), Told())
    outbox.put(retained, [(STARTED, b"")])
    outbox.put(retained, [(CHUNK, b"hello")])
    assert [channel for channel, _ in paper.published] == [keys.frontend_channel("f")] * 2
    assert paper.frames() == [(1, 3, 0, STARTED, b""), (1, 3, 1, CHUNK, b"hello")]
    assert {parcel.worker for parcel in paper.parcels} == {"w"}


async def test_what_comes_while_a_parcel_is_under_way_gathers_into_the_next():
    paper, outbox = an_outbox(answer=None)
    one, two = outbox.open(a_job(1), Told()), outbox.open(a_job(2), Told())
    outbox.put(one, [(CHUNK, b"a")])
    outbox.put(two, [(CHUNK, b"b")])
    outbox.put(one, [(CHUNK, chunk) for chunk in [b"c", b"d"]])
    assert len(paper.parcels) == 1
    paper.reply()
    assert [len(parcel.frames) for parcel in paper.parcels] == [1, 3]
    assert paper.frames()[1:] == [(2, 1, 0, CHUNK, b"b"), (1, 1, 1, CHUNK, b"c"), (1, 1, 2, CHUNK, b"d")]
    paper.reply()
    assert len(paper.parcels) == 2, "nothing waits, nothing is sent"
    outbox.put(two, [(CHUNK, b"e")])
    assert len(paper.parcels) == 3


async def test_each_frontend_has_its_own_road():
    paper, outbox = an_outbox(answer=None)
    outbox.put(outbox.open(a_job(1, owner="f"), Told()), [(CHUNK, b"a")])
    outbox.put(outbox.open(a_job(2, owner="g"), Told()), [(CHUNK, b"b")])
    assert [channel for channel, _ in paper.published] == [keys.frontend_channel("f"), keys.frontend_channel("g")]


async def test_a_parcel_has_a_limit_and_the_rest_follows():
    paper, outbox = an_outbox(answer=None)
    retained = outbox.open(a_job(), Told())
    outbox.put(retained, [(STARTED, b"")])
    chunks = [b"%d" % number + b"x" * (PARCEL_BYTES // 3) for number in range(8)]
    outbox.put(retained, [(CHUNK, chunk) for chunk in chunks])
    for _ in range(4):
        paper.reply()
    assert [len(parcel.frames) for parcel in paper.parcels] == [1, 3, 3, 2]
    assert [payload for *_, payload in paper.frames()] == [b"", *chunks]


async def test_a_frame_larger_than_a_parcel_travels_alone():
    paper, outbox = an_outbox()
    retained = outbox.open(a_job(), Told())
    outbox.put(retained, [(CHUNK, chunk) for chunk in [b"x" * (2 * PARCEL_BYTES), b"y"]])
    assert [len(parcel.frames) for parcel in paper.parcels] == [1, 1]


async def test_nothing_follows_the_end():
    """A connection that breaks after the last chunk is no second ending."""
    paper, outbox = an_outbox()
    retained = outbox.open(a_job(), Told())
    outbox.put(retained, [(DONE, b"")])
    outbox.put(retained, [(FAILED, b"late")])
    outbox.put(retained, [(CHUNK, b"later")])
    assert [kind for _, _, _, kind, _ in paper.frames()] == [DONE]
    assert retained.sender.next == 1


# --- what is lost


@pytest.mark.parametrize("reply", [LinkDown("away"), None])
async def test_a_parcel_without_an_answer_is_not_repeated_but_kept(reply):
    paper, outbox = an_outbox(answer=None)
    retained = outbox.open(a_job(), Told())
    outbox.put(retained, [(CHUNK, b"a")])
    outbox.put(retained, [(CHUNK, b"b")])
    paper.reply(reply)
    assert len(paper.parcels) == 1, "what waited is dropped as well"
    outbox.put(retained, [(CHUNK, b"c")])
    assert [seq for _, _, seq, _, _ in paper.frames()] == [0, 2], "a hole, which the owner will ask about"
    outbox.resend(retained, 0)
    paper.reply()
    assert [payload for *_, payload in paper.frames()[2:]] == [b"a", b"b", b"c"]
    assert outbox.resends == 3


async def test_a_resend_of_what_was_consumed_sends_the_rest():
    paper, outbox = an_outbox()
    retained = outbox.open(a_job(), Told())
    outbox.put(retained, [(CHUNK, chunk) for chunk in [b"a", b"b", b"c"]])
    retained.consumed(2)
    outbox.resend(retained, 1)
    outbox.resend(retained, 3)
    assert [(seq, payload) for _, _, seq, _, payload in paper.frames()[3:]] == [(2, b"c")]
    assert len(paper.parcels) == 2, "nothing to send is not sent"


async def test_reports_name_every_attempt_and_how_far_it_is(autojump_clock, nursery):
    paper, outbox = an_outbox()
    one, two = outbox.open(a_job(1), Told()), outbox.open(a_job(2, attempt=2), Told())
    outbox.put(one, [(CHUNK, chunk) for chunk in [b"a", b"b"]])
    outbox.put(two, [(DONE, b"")])
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
    outbox.put(one, [(STARTED, b"")])
    outbox.put(one, [(CHUNK, chunk) for chunk in [b"x" * PARCEL_BYTES]])
    outbox.put(two, [(CHUNK, chunk) for chunk in [b"a", b"b"]])
    outbox.put(one, [(CHUNK, b"c")])
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
        assert await outbox.heard(retained, outbox.start(retained))
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
        assert await outbox.heard(retained, outbox.start(retained))
    assert paper.reports() == [[(1, 1, 1)]] * 2


async def test_a_start_that_nobody_ever_heard_is_given_up(autojump_clock):
    paper, outbox = an_outbox(answer=0)
    told = Told()
    retained = outbox.open(a_job(), told)
    with no_time(PATIENCE_SECONDS):
        assert not await outbox.heard(retained, outbox.start(retained))
    assert outbox.find(b"\1" * 16, 1) is None
    outbox.put(retained, [(CHUNK, b"no")])
    assert len(paper.parcels) == 1
    with pytest.raises(KeyError):
        outbox.open(a_job(), Told())


async def test_a_parcel_that_leaves_frames_behind_confirms_nothing():
    paper, outbox = an_outbox(answer=None)
    big, small = outbox.open(a_job(1), Told()), outbox.open(a_job(2), Told())
    outbox.put(big, [(STARTED, b"")])
    outbox.put(big, [(CHUNK, chunk) for chunk in [b"x" * PARCEL_BYTES, b"y"]])
    confirmed = outbox.start(small)
    paper.reply()
    assert len(paper.parcels) == 2
    paper.reply()
    assert not confirmed.is_set(), "its frame is in the third parcel"
    paper.reply()
    assert confirmed.is_set()


# --- room


async def test_an_attempt_stops_at_its_window_and_goes_on_when_its_caller_has_read(autojump_clock, nursery):
    _, outbox = an_outbox()
    retained = outbox.open(a_job(), Told())
    chunk = b"x" * (WINDOW_BYTES // 4)
    outbox.put(retained, [(CHUNK, chunk) for chunk in [chunk] * 3])
    assert not retained.full
    with no_time():
        await retained.room()
    outbox.put(retained, [(CHUNK, chunk) for chunk in [chunk] * 3])
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
        assert await outbox.heard(retained, outbox.start(retained))
    await until(lambda: heard)
    assert heard[0].running == [(b"\1" * 16, 1, 1)], "the report says that there is more than was heard"
    assert retained.road.deaf_since is None
    outbox.resend(retained, 0)
    outbox.put(retained, [(CHUNK, chunk) for chunk in [b"%d" % number for number in range(100)]])
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
    outbox.put(retained, [(CHUNK, b"a")])
    redis_server.kill()
    await until(lambda: not link.up)
    outbox.put(retained, [(CHUNK, chunk) for chunk in [b"b", b"c"]])
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
