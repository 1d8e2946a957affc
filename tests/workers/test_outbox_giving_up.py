"""When the outbox gives an attempt up without a word from its owner, and what must never happen afterwards."""

import pytest
import trio

from shared.neighbours import Sign
from shared.redis.failures import LinkDown
from tests.workers.outbox_paper import CHUNK, FAILED, Told, a_job, an_outbox
from workers.outbox import CUT_OFF_SECONDS, FORGET_SECONDS, FRAME_OVERHEAD_BYTES, PATIENCE_SECONDS, UNANSWERED_SECONDS


async def answering(outbox, frontend_id="f"):
    """The frontend answers the reports."""
    while True:
        outbox.answered(frontend_id)
        await trio.sleep(1)


async def test_a_frontend_that_stays_deaf_is_given_up(autojump_clock, nursery):
    paper, outbox = an_outbox()
    told = Told()
    retained = outbox.open(a_job(), told)
    outbox.put(retained, [(CHUNK, b"a")])
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
    nursery.start_soon(answering, outbox)
    await trio.sleep(0.5)
    for _ in range(5):
        await trio.sleep(2)
        paper.answer = 1
        await trio.sleep(1)
        paper.answer = 0
    assert told.gone == 0


@pytest.mark.parametrize(
    ("sign", "least", "most"),
    [
        (Sign.GONE, 0, 1.1),
        (Sign.SILENT, 2, PATIENCE_SECONDS + 0.1),
        (Sign.ANSWERS, CUT_OFF_SECONDS, CUT_OFF_SECONDS + 1.1),
    ],
)
async def test_a_neighbour_that_is_deaf_is_asked(autojump_clock, nursery, sign, least, most):
    """One whose process has ended is given up at once; one that answers has lost its connection, and may come back."""
    paper, outbox = an_outbox(ask=lambda peer, now: sign)
    told = Told()
    outbox.open(a_job(), told)
    nursery.start_soon(outbox.run)
    nursery.start_soon(answering, outbox)
    await trio.sleep(1.5)
    paper.answer = 0
    await trio.sleep(0.5)  # the next report
    with trio.fail_after(most):
        deaf_since = trio.current_time()
        while not told.gone:  # noqa: ASYNC110 - a callback without an event, on a clock that jumps
            await trio.sleep(0.1)
    assert trio.current_time() - deaf_since >= least


async def test_a_frontend_that_seems_to_listen_and_never_answers_is_given_up(autojump_clock, nursery):
    """Its connection is half-open: Redis counts an ear, and nobody can tell us to stop."""
    _, outbox = an_outbox()
    told = Told()
    outbox.open(a_job(), told)
    nursery.start_soon(outbox.run)
    await trio.sleep(UNANSWERED_SECONDS - 1)
    assert told.gone == 0
    outbox.ear_restored()  # it was ours that did not work
    await trio.sleep(UNANSWERED_SECONDS - 1)
    assert told.gone == 0
    await trio.sleep(2.1)
    assert told.gone == 1


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
    outbox.put(finished, [(FAILED, b"x" * 100)])
    outbox.put(running, [(CHUNK, b"y" * 10)])
    nursery.start_soon(outbox.run)
    nursery.start_soon(answering, outbox)
    await trio.sleep(FORGET_SECONDS - 0.5)
    assert outbox.statistics() == {
        "attempts": 2,
        "retained_bytes": 110 + 2 * FRAME_OVERHEAD_BYTES,
        "unsent": 0,
        "resends": 0,
    }
    await trio.sleep(2)
    assert outbox.statistics() == {
        "attempts": 1,
        "retained_bytes": 10 + FRAME_OVERHEAD_BYTES,
        "unsent": 0,
        "resends": 0,
    }
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
