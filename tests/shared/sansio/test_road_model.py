"""The protocol of jobs, frames and orders as a whole, in thousands of small worlds where everything goes wrong.

What must hold in each: a caller gets a prefix of one call's words or all of them, and is told the truth about which; nothing
is begun anew once it has seen a word; every job has one outcome; an upstream is called at most so many times for it; and once
things are calm every job ends, every call that nobody follows is stopped, and nothing stays behind.
"""

import pytest

from shared.sansio.job import Ownership, State
from shared.sansio.sequence import Receiver, Sender
from shared.schema.job import OrderKind
from tests.shared.sansio.road.owner import Owner
from tests.shared.sansio.road.worker import Worker
from tests.shared.sansio.road.world import World


def try_world(seed):
    try:
        World(seed).run()
    except AssertionError as broken:
        told = World(seed, trace=True)
        with pytest.raises(AssertionError):
            told.run()
        pytest.fail("\n".join([f"{broken}", *told.trace]), pytrace=False)


@pytest.mark.promise("P1", "P2", "P6")
@pytest.mark.parametrize("hundred", range(10))
def test_promises_hold(hundred):
    for seed in range(hundred * 100, hundred * 100 + 100):
        try_world(seed)


@pytest.mark.promise("P1", "P2", "P6")
@pytest.mark.slow
@pytest.mark.parametrize("thousand", range(1, 21))
def test_promises_hold_in_many_more_worlds(thousand):
    for seed in range(thousand * 1000, thousand * 1000 + 1000):
        try_world(seed)


def test_a_world_is_its_seed():
    stories = []
    for _ in range(2):
        world = World(2, trace=True)
        world.run()
        stories.append(world.trace)
    assert stories[0] == stories[1]
    assert len(stories[0]) > 10


def finds_something(worlds):
    for seed in range(worlds):
        try:
            World(seed).run()
        except AssertionError:
            return True
    return False


listens_to = Ownership._listens_to
accept = Receiver.accept


def listens_to_any_worker(ownership, worker, attempt):
    same = ownership.state is State.RUNNING and attempt == ownership.attempt
    return same or listens_to(ownership, worker, attempt)


def listens_to_any_attempt(ownership, worker, attempt):
    return listens_to(ownership, worker, ownership.attempt)


def tells_nobody_to_cancel(ownership, worker, attempt):
    before = len(ownership.orders)
    listens = listens_to(ownership, worker, attempt)
    if not listens:
        del ownership.orders[before:]
    return listens


def hands_out_duplicates(receiver, seq, frame):
    return [frame] if seq < receiver.next else accept(receiver, seq, frame)


def skips_holes(receiver, seq, frame):
    receiver.next = max(receiver.next, seq)
    return accept(receiver, seq, frame)


def begins_again_after_words(ownership, failure):
    ownership.committed = False
    return failed(ownership, failure)


def begins_again_for_ever(ownership, failure):
    ownership.starts = 0
    return failed(ownership, failure)


def gives_back_every_start(ownership, failure):
    if failure.kind == "shutting_down" and ownership.received.next > 2:
        ownership.starts -= 1
    return failed(ownership, failure)


failed = Ownership._failed
since = Sender.since
consumed = Sender.consumed
reported = Owner._reported


def runs_again_what_it_gave_up(worker, attempt):
    attempt.call.open = False
    worker._drop(attempt)


def calls_it_finished_when_the_job_is_over(owner, worker, running):
    still = []
    for job_id, attempt, next_seq in running:
        if job_id in owner.jobs and owner.jobs[job_id].ownership.state is State.ENDED:
            owner._orders.setdefault(worker, []).append((OrderKind.FINISHED, job_id, attempt, 0))
        else:
            still.append((job_id, attempt, next_seq))
    reported(owner, worker, still)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "name", "mistake"),
    [
        (Ownership, "_listens_to", listens_to_any_worker),
        (Ownership, "_listens_to", listens_to_any_attempt),
        (Ownership, "_listens_to", tells_nobody_to_cancel),
        (Ownership, "_failed", begins_again_after_words),
        (Ownership, "_failed", begins_again_for_ever),
        (Ownership, "_failed", gives_back_every_start),
        (Ownership, "unlisted", lambda ownership, worker: None),
        (Ownership, "worker_lost", lambda ownership: None),
        (Ownership, "vanished", lambda ownership: None),
        (Ownership, "leave", lambda ownership: setattr(ownership, "state", State.ENDED)),
        (Receiver, "accept", hands_out_duplicates),
        (Receiver, "accept", skips_holes),
        (Receiver, "reported", lambda receiver, next_seq: None),
        (Sender, "since", lambda sender, seq: since(sender, seq + 1)),
        (Sender, "consumed", lambda sender, below: consumed(sender, below + 1)),
        (Worker, "_give_up", runs_again_what_it_gave_up),
        (Owner, "_reported", calls_it_finished_when_the_job_is_over),
    ],
)
def test_the_model_finds_mistakes(monkeypatch, part, name, mistake):
    monkeypatch.setattr(part, name, mistake)
    assert finds_something(worlds=3000)
