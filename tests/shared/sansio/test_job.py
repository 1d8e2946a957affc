"""One job as its owner sees it: every transition, every order that it gives, and the truth about the end."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import KINDS, Failure
from shared.sansio.job import UNLISTED_REPORTS, Ownership, State
from shared.schema.job import FrameKind, OrderKind

STARTED, ACCEPTED, CHUNK, DONE, FAILED = range(5)
JOB = b"job"


def a_job(*, streaming=True, max_starts=2):
    return Ownership(JOB, max_starts=max_starts, commits_on_chunk=streaming)


def failure(kind):
    return msgspec.msgpack.encode(Failure(kind, "because"))


def play(job, worker, attempt, *kinds, first=0, fails_with="overloaded"):
    """Frames of these kinds, numbered from `first`; what they lead to, flat."""
    due = []
    for seq, kind in enumerate(kinds, first):
        payload = failure(fails_with) if kind == FAILED else b"%d" % seq
        due += job.frame(worker, attempt, seq, kind, payload)
    return [kind for kind, _ in due]


def orders(job):
    taken = [(worker, kind, attempt, seq) for worker, (kind, job_id, attempt, seq) in job.orders if job_id == JOB]
    job.orders.clear()
    return taken


def cancel(worker, attempt=1):
    return (worker, OrderKind.CANCEL, attempt, 0)


def finished(worker, attempt=1):
    return (worker, OrderKind.FINISHED, attempt, 0)


def resend(worker, seq, attempt=1):
    return (worker, OrderKind.RESEND, attempt, seq)


def test_a_good_attempt():
    job = a_job()
    assert (job.state, job.attempt, job.starts) == (State.WAITING, 1, 0)
    assert play(job, "w", 1, STARTED) == [STARTED]
    assert (job.state, job.worker, job.starts) == (State.RUNNING, "w", 1)
    assert play(job, "w", 1, ACCEPTED, CHUNK, CHUNK, first=1) == [ACCEPTED, CHUNK, CHUNK]
    assert orders(job) == []
    assert play(job, "w", 1, DONE, first=4) == [DONE]
    assert (job.state, job.failure) == (State.ENDED, None)
    assert orders(job) == [finished("w")]


def test_a_report_may_be_the_first_that_is_heard_of_a_worker():
    job = a_job()
    job.report("w", 1, 3)
    assert (job.state, job.worker, job.starts) == (State.RUNNING, "w", 1)
    assert orders(job) == [resend("w", 0)]
    assert play(job, "w", 1, STARTED, ACCEPTED, CHUNK) == [STARTED, ACCEPTED, CHUNK]
    job.report("w", 1, 3)
    assert orders(job) == []


def test_a_hole_is_asked_about_and_later_frames_wait():
    job = a_job()
    play(job, "w", 1, STARTED)
    assert play(job, "w", 1, CHUNK, CHUNK, first=2) == []
    assert orders(job) == [resend("w", 1)], "once"
    job.report("w", 1, 4)
    assert orders(job) == [resend("w", 1)], "and again with each report"
    assert play(job, "w", 1, ACCEPTED, CHUNK, CHUNK, first=1) == [ACCEPTED, CHUNK, CHUNK]
    assert orders(job) == []


def test_the_end_waits_for_what_comes_before_it():
    job = a_job()
    play(job, "w", 1, STARTED, ACCEPTED)
    assert play(job, "w", 1, DONE, first=3) == []
    assert job.state is State.RUNNING
    assert orders(job) == [resend("w", 2)]
    assert play(job, "w", 1, CHUNK, first=2) == [CHUNK, DONE]
    assert job.state is State.ENDED
    assert orders(job) == [finished("w")]


@pytest.mark.parametrize("last_but_one", [DONE, FAILED])
def test_nothing_follows_the_end(last_but_one):
    """Not even when it was held up together with the end."""
    job = a_job()
    play(job, "w", 1, STARTED)
    assert play(job, "w", 1, last_but_one, FAILED, CHUNK, first=2, fails_with="timeout") == []
    orders(job)
    assert play(job, "w", 1, CHUNK, first=1) == [CHUNK, last_but_one]
    assert job.state is State.ENDED
    assert (job.failure is None) == (last_but_one == DONE)
    assert orders(job) == [finished("w")]


def test_doubles_are_dropped():
    job = a_job()
    assert play(job, "w", 1, STARTED, ACCEPTED, CHUNK) == [STARTED, ACCEPTED, CHUNK]
    assert play(job, "w", 1, STARTED, ACCEPTED, CHUNK) == []
    assert (orders(job), job.starts) == ([], 1)


@pytest.mark.parametrize(
    ("worker", "attempt"),
    [("other", 1), ("w", 2), ("w", 0), ("other", 2)],
    ids=["another worker", "a later attempt", "an earlier attempt", "neither"],
)
def test_whoever_else_speaks_is_told_to_cancel(worker, attempt):
    job = a_job()
    play(job, "w", 1, STARTED)
    assert play(job, worker, attempt, ACCEPTED, CHUNK, first=1) == []
    assert orders(job) == [cancel(worker, attempt)] * 2
    job.report(worker, attempt, 9)
    assert orders(job) == [cancel(worker, attempt)]
    assert (job.worker, job.attempt, job.starts, job.state) == ("w", 1, 1, State.RUNNING)


@pytest.mark.parametrize("attempt", [0, 1, 3])
def test_a_waiting_job_listens_to_its_current_attempt_alone(attempt):
    job = a_job()
    play(job, "w", 1, STARTED, FAILED)
    orders(job)
    assert (job.state, job.attempt) == (State.WAITING, 2)
    assert play(job, "v", attempt, STARTED) == []
    assert orders(job) == [cancel("v", attempt)]
    assert job.state is State.WAITING


def test_after_the_end_everybody_is_told_to_cancel():
    job = a_job()
    play(job, "w", 1, STARTED, DONE)
    orders(job)
    assert play(job, "w", 1, STARTED, DONE) == []
    job.report("w", 1, 2)
    job.report("other", 1, 2)
    assert orders(job) == [cancel("w"), cancel("w"), cancel("w"), cancel("other")]


@pytest.mark.parametrize("kind", [kind for kind, row in KINDS.items() if row.again])
def test_a_retryable_failure_leads_to_another_attempt(kind):
    job = a_job()
    assert play(job, "w", 1, STARTED, ACCEPTED, FAILED, fails_with=kind) == [STARTED, ACCEPTED]
    assert (job.state, job.attempt, job.worker, job.resubmit) == (State.WAITING, 2, None, True)
    assert job.failure is None
    assert orders(job) == [finished("w", 1)], "for the attempt that is over"
    assert play(job, "w", 2, STARTED, ACCEPTED, CHUNK, DONE) == [STARTED, ACCEPTED, CHUNK, DONE]
    assert (job.state, job.starts) == (State.ENDED, 2)
    assert orders(job) == [finished("w", 2)]


@pytest.mark.parametrize("kind", [kind for kind, row in KINDS.items() if not row.again])
def test_any_other_failure_is_final(kind):
    job = a_job()
    assert play(job, "w", 1, STARTED, FAILED, fails_with=kind) == [STARTED, FAILED]
    assert (job.state, job.resubmit, job.failure) == (State.ENDED, False, Failure(kind, "because"))
    assert orders(job) == [finished("w")]


def test_starts_are_limited():
    job = a_job(max_starts=2)
    play(job, "w", 1, STARTED, FAILED)
    assert play(job, "v", 2, STARTED, FAILED) == [STARTED, FAILED]
    assert (job.state, job.failure.kind, job.starts) == (State.ENDED, "overloaded", 2)


def test_no_other_attempt_after_a_chunk_of_a_stream():
    job = a_job()
    assert play(job, "w", 1, STARTED, ACCEPTED, CHUNK, FAILED) == [STARTED, ACCEPTED, CHUNK, FAILED]
    assert (job.state, job.failure.kind) == (State.ENDED, "overloaded")


def test_a_chunk_and_the_failure_may_come_due_together():
    """The chunk is handed out with the failure, so it is too late for another attempt."""
    job = a_job()
    play(job, "w", 1, STARTED, ACCEPTED)
    play(job, "w", 1, FAILED, first=3)
    assert play(job, "w", 1, CHUNK, first=2) == [CHUNK, FAILED]
    assert job.state is State.ENDED


def test_chunks_do_not_bind_when_the_caller_waits_for_the_whole():
    job = a_job(streaming=False)
    assert play(job, "w", 1, STARTED, ACCEPTED, CHUNK) == [STARTED, ACCEPTED, CHUNK]
    assert play(job, "w", 1, FAILED, first=3) == []
    assert (job.state, job.resubmit) == (State.WAITING, True)
    play(job, "v", 2, STARTED, ACCEPTED)
    play(job, "v", 2, FAILED, first=3)
    assert play(job, "v", 2, CHUNK, first=2) == [CHUNK, FAILED], "the last attempt's failure is final"


def test_handing_back_is_no_start():
    """A worker that shuts down before the upstream has accepted, any number of times."""
    job = a_job(max_starts=2)
    for attempt in range(1, 6):
        assert play(job, f"w{attempt}", attempt, STARTED, FAILED, fails_with="shutting_down") == [STARTED]
        assert (job.starts, job.attempt, job.state) == (0, attempt + 1, State.WAITING)


def test_shutting_down_in_the_middle_of_a_call_is_a_start():
    job = a_job(max_starts=2)
    play(job, "w", 1, STARTED, ACCEPTED, FAILED, fails_with="shutting_down")
    assert (job.starts, job.state) == (1, State.WAITING)
    assert play(job, "v", 2, STARTED, ACCEPTED, FAILED, fails_with="shutting_down")[-1] == FAILED
    assert (job.starts, job.state) == (2, State.ENDED)


def test_a_lost_worker_before_the_first_chunk():
    job = a_job()
    play(job, "w", 1, STARTED, ACCEPTED)
    job.worker_lost()
    assert (job.state, job.attempt, job.resubmit, job.worker) == (State.WAITING, 2, True, None)
    assert play(job, "w", 1, CHUNK, first=2) == [], "it was only asleep"
    assert orders(job) == [cancel("w", 1)]
    assert play(job, "v", 2, STARTED) == [STARTED]


def test_a_lost_worker_after_the_first_chunk():
    job = a_job()
    play(job, "w", 1, STARTED, ACCEPTED, CHUNK)
    job.worker_lost()
    assert (job.state, job.failure.kind, job.resubmit) == (State.ENDED, "worker_lost", False)
    assert play(job, "w", 1, CHUNK, first=3) == []
    assert orders(job) == [cancel("w", 1)]


def test_workers_that_die_use_up_starts():
    job = a_job(max_starts=2)
    for attempt in (1, 2):
        play(job, "w", attempt, STARTED)
        job.worker_lost()
    assert (job.state, job.failure.kind) == (State.ENDED, "worker_lost")


def test_only_a_running_job_loses_its_worker():
    job = a_job()
    job.worker_lost()
    assert (job.state, job.attempt) == (State.WAITING, 1)
    play(job, "w", 1, STARTED, DONE)
    job.worker_lost()
    assert (job.state, job.failure) == (State.ENDED, None)


def test_an_attempt_that_its_worker_no_longer_names_is_lost():
    job = a_job()
    play(job, "w", 1, STARTED)
    for _ in range(UNLISTED_REPORTS - 1):
        job.unlisted("w")
        assert job.state is State.RUNNING, "its report may be older than the start"
    job.report("w", 1, 1)
    for _ in range(UNLISTED_REPORTS - 1):
        job.unlisted("w")
        job.unlisted("other")
        assert job.state is State.RUNNING, "only the followed worker's reports count, and only in a row"
    job.unlisted("w")
    assert (job.state, job.attempt) == (State.WAITING, 2)
    job.unlisted("w")
    play(job, "w", 2, STARTED)
    job.unlisted("w")
    assert (job.state, job.attempt) == (State.RUNNING, 2), "the next attempt is counted anew"


def test_an_entry_that_vanished_costs_no_start():
    job = a_job(max_starts=1)
    for attempt in range(2, 6):
        job.vanished()
        assert (job.attempt, job.starts, job.resubmit, job.state) == (attempt, 0, True, State.WAITING)
    assert play(job, "w", 4, STARTED) == [], "whoever took a vanished entry after all is late"
    assert orders(job) == [cancel("w", 4)]
    play(job, "w", 5, STARTED)
    job.vanished()
    assert (job.attempt, job.state) == (5, State.RUNNING)


def test_a_worker_may_be_faster_than_the_queue_is_to_answer():
    """The next attempt's frames arrive while its submission has not been confirmed; `resubmit` may even still be set."""
    job = a_job()
    play(job, "w", 1, STARTED, FAILED)
    assert job.resubmit
    assert play(job, "v", 2, STARTED) == [STARTED]
    assert (job.state, job.worker) == (State.RUNNING, "v")


def test_a_nudge_asks_for_what_follows():
    job = a_job()
    job.nudge()
    assert orders(job) == []
    play(job, "w", 1, STARTED, ACCEPTED)
    job.nudge()
    assert orders(job) == [resend("w", 2)]
    play(job, "w", 1, DONE, first=2)
    orders(job)
    job.nudge()
    assert orders(job) == []


def test_leaving_a_running_job_cancels_once():
    job = a_job()
    play(job, "w", 1, STARTED)
    job.leave()
    job.leave()
    assert (job.state, job.failure) == (State.ENDED, None)
    assert orders(job) == [cancel("w")]


def test_leaving_a_waiting_job_needs_no_order():
    job = a_job()
    job.leave()
    assert (orders(job), job.state) == ([], State.ENDED)
    assert play(job, "w", 1, STARTED) == [], "a worker that was faster"
    assert orders(job) == [cancel("w")]


def test_leaving_takes_back_the_wish_for_another_attempt():
    job = a_job()
    play(job, "w", 1, STARTED, FAILED)
    job.leave()
    assert not job.resubmit


def test_failing_is_leaving_with_a_reason():
    job = a_job()
    play(job, "w", 1, STARTED)
    job.fail(Failure("deadline", "too long"))
    assert (job.state, job.failure.kind) == (State.ENDED, "deadline")
    assert orders(job) == [cancel("w")]
    job.fail(Failure("internal", "later"))
    assert job.failure.kind == "deadline"


def test_nothing_that_has_ended_well_can_fail():
    job = a_job()
    play(job, "w", 1, STARTED, DONE)
    job.fail(Failure("deadline", "too long"))
    assert job.failure is None


def test_repr_says_where_it_stands():
    job = Ownership(b"\xab" * 16, max_starts=2, commits_on_chunk=True)
    job.frame("w", 1, 0, FrameKind.STARTED, b"")
    assert repr(job) == "<Ownership abababab running attempt=1 next=1>"


ACTIONS = st.one_of(
    st.tuples(
        st.just("frame"),
        st.sampled_from("wv"),
        st.integers(0, 3),
        st.integers(0, 5),
        st.sampled_from([STARTED, ACCEPTED, CHUNK, CHUNK, DONE, FAILED]),
        st.sampled_from(["overloaded", "timeout", "shutting_down"]),
    ),
    st.tuples(st.just("report"), st.sampled_from("wv"), st.integers(0, 3), st.integers(0, 6)),
    st.tuples(st.just("unlisted"), st.sampled_from("wv")),
    st.tuples(st.sampled_from(["nudge", "worker_lost", "vanished", "leave", "fail"])),
)


@given(st.booleans(), st.lists(ACTIONS, max_size=40))
def test_whatever_happens_the_story_makes_sense(streaming, actions):
    """Workers that lie, that number anyhow, that come back: the job still has one end, and gives no order out of turn."""
    job = a_job(streaming=streaming)
    begun_again_at = [1]
    chunks_of_attempt = {}
    for name, *arguments in actions:
        was = job.state
        if name == "frame":
            worker, attempt, seq, kind, fails_with = arguments
            current = job.attempt
            due = job.frame(worker, attempt, seq, kind, failure(fails_with))
            assert not due or (was is not State.ENDED and attempt == current)
            assert all(kind < DONE for kind, _ in due[:-1]), "the end is the end"
            assert not (due and due[-1][0] >= DONE) or job.state is State.ENDED
            chunks_of_attempt[current] = chunks_of_attempt.get(current, 0) + sum(kind == CHUNK for kind, _ in due)
        elif name == "fail":
            job.fail(Failure("deadline", ""))
        else:
            getattr(job, name)(*arguments)
        if was is State.ENDED:
            assert job.state is State.ENDED
        if job.attempt != begun_again_at[-1]:
            assert job.attempt == begun_again_at[-1] + 1
            assert not (streaming and chunks_of_attempt.get(begun_again_at[-1])), "words were seen, and it began again"
            begun_again_at.append(job.attempt)
        assert (job.state is State.RUNNING) <= (job.worker is not None)
        assert 0 <= job.starts <= 2
        assert not (job.failure and job.state is not State.ENDED)
    followed = [order for _, order in job.orders if order[0] == OrderKind.RESEND]
    assert all(1 <= attempt <= job.attempt for _, _, attempt, _ in followed)
