"""A job with several routes: when it moves on to the next provider, what that costs, and when it may not."""

import pytest

from shared.errors import ELSEWHERE, KINDS, UNSPENT, Failure
from shared.sansio.job import Ownership, State
from tests.shared.sansio.test_job import CHUNK, FAILED, STARTED, failure, play


def a_job(routes=3, *, streaming=True, max_starts=2):
    return Ownership(b"job", max_starts=max_starts, commits_on_chunk=streaming, routes=routes)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_moves_on_after_what_another_provider_may_do_better(kind):
    job = a_job()
    due = play(job, "w", 1, STARTED, FAILED, fails_with=kind)
    if kind in ELSEWHERE:
        assert (job.route, job.attempt, job.state, job.resubmit) == (1, 2, State.WAITING, True)
        assert (due, job.setbacks) == ([STARTED], [kind])
    elif KINDS[kind].again:
        assert (job.route, job.attempt, job.state) == (0, 2, State.WAITING)
    else:
        assert (job.route, job.state, job.failure.kind) == (0, State.ENDED, kind)


@pytest.mark.parametrize("kind", sorted(UNSPENT))
def test_what_cost_an_upstream_nothing_costs_no_start(kind):
    job = a_job(routes=4)
    for attempt in range(1, 4):
        play(job, "w", attempt, STARTED, FAILED, fails_with=kind)
    assert (job.route, job.starts, job.state) == (3, 3, State.WAITING), "three refusals, and the last route is open"
    play(job, "w", 4, STARTED, FAILED, fails_with="upstream_error")
    assert job.attempt == 5, "which may be tried again, as if it had been the first"


def test_what_cost_something_counts_over_all_routes():
    job = a_job()
    play(job, "w", 1, STARTED, FAILED, fails_with="upstream_error")
    play(job, "w", 2, STARTED, FAILED, fails_with="upstream_error")
    assert (job.route, job.state, job.failure.kind) == (1, State.ENDED, "upstream_error")


def test_it_never_moves_on_after_a_token():
    job = a_job()
    play(job, "w", 1, STARTED, CHUNK, FAILED, fails_with="overloaded")
    assert (job.state, job.route) == (State.ENDED, 0)
    whole = a_job(streaming=False)
    play(whole, "w", 1, STARTED, CHUNK, FAILED, fails_with="disconnected")
    assert (whole.state, whole.route) == (State.WAITING, 1), "nobody has seen anything of it"


def test_a_queue_that_refuses_is_passed_by():
    job = a_job(routes=2)
    job.turned_away(Failure("queue_full", ""))
    assert (job.route, job.attempt, job.starts, job.resubmit) == (1, 2, 0, True)
    job.turned_away(Failure("circuit_open", "", retry_after_seconds=7.0))
    assert (job.state, job.failure.kind, job.failure.retry_after_seconds) == (State.ENDED, "circuit_open", 7.0)


def test_a_job_that_runs_is_not_turned_away():
    job = a_job()
    play(job, "w", 1, STARTED)
    job.turned_away(Failure("provider_unavailable", ""))
    assert (job.state, job.route) == (State.RUNNING, 0)


def test_the_last_refusal_is_what_the_caller_hears():
    job = a_job(routes=2)
    play(job, "w", 1, STARTED, FAILED, fails_with="rate_limit")
    assert job.frame("v", 2, 0, STARTED, b"")
    job.frame("v", 2, 1, FAILED, failure("no_credential"))
    assert (job.failure.kind, job.starts) == ("no_credential", 2)
