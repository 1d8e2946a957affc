"""Silence counts only up to the last proof that messages would have reached us."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.sansio.liveness import SLOW_PING_SECONDS, Liveness


def heard_at(*seconds):
    liveness = Liveness()
    for moment in seconds:
        liveness.heard("w", moment)
    return liveness


def test_nobody_is_silent_without_proof():
    liveness = heard_at(10.0)
    assert liveness.silent_seconds("w") == 0


def test_silence_lasts_until_the_last_proof():
    liveness = heard_at(10.0)
    liveness.ping_answered(12.0, 12.1)
    assert liveness.silent_seconds("w") == pytest.approx(2.1)
    liveness.heard("w", 12.2)
    assert liveness.silent_seconds("w") == 0


def test_a_peer_that_is_not_watched_is_never_silent():
    liveness = Liveness()
    liveness.ping_answered(99.0, 99.0)
    assert liveness.silent_seconds("w") == 0
    liveness.heard("w", 1.0)
    liveness.forget("w")
    liveness.forget("w")
    assert liveness.silent_seconds("w") == 0
    assert liveness.peers() == []


@pytest.mark.parametrize(
    ("round_trip", "silent"), [(0.0, 5.0), (SLOW_PING_SECONDS, 5.0), (SLOW_PING_SECONDS + 0.01, 0.0), (4.0, 0.0)]
)
def test_a_slow_ping_proves_nothing(round_trip, silent):
    """It was held up, so messages may have been, and those clocks start again."""
    liveness = heard_at(10.0)
    liveness.ping_answered(15.0 - round_trip, 15.0)
    assert liveness.silent_seconds("w") == pytest.approx(silent)


def test_after_a_slow_ping_silence_has_to_be_earned_anew():
    liveness = heard_at(10.0)
    liveness.ping_answered(11.0, 14.0)
    liveness.ping_answered(15.0, 15.0)
    assert liveness.silent_seconds("w") == pytest.approx(1.0)


def test_a_new_connection_starts_every_clock_again():
    liveness = heard_at(10.0)
    liveness.heard("v", 3.0)
    liveness.start_again(20.0)
    liveness.ping_answered(20.5, 20.5)
    assert liveness.silent_seconds("w") == liveness.silent_seconds("v") == pytest.approx(0.5)


def test_the_same_old_ping_again_changes_nothing():
    """The watch presents the last ping several times a second, until there is another."""
    liveness = heard_at(10.0)
    liveness.ping_answered(11.0, 12.0)
    liveness.heard("w", 12.4)
    liveness.ping_answered(11.0, 12.0)
    liveness.ping_answered(12.5, 12.5)
    assert liveness.silent_seconds("w") == pytest.approx(0.1)
    liveness.ping_answered(12.0, 12.0)
    assert liveness.silent_seconds("w") == pytest.approx(0.1), "and an older proof takes nothing away"


@given(st.lists(st.tuples(st.sampled_from(["heard", "ping", "again"]), st.floats(0, 2), st.floats(0, 2)), max_size=30))
def test_a_peer_that_reports_in_time_is_never_silent_for_long(steps):
    """Whatever else happens, a peer is silent at most as long as nothing was heard of it."""
    liveness, now, heard = heard_at(0.0), 0.0, 0.0
    for step, wait, round_trip in steps:
        now += wait
        if step == "heard":
            liveness.heard("w", now)
            heard = now
        elif step == "ping":
            liveness.ping_answered(now - round_trip, now)
        else:
            liveness.start_again(now)
        assert 0 <= liveness.silent_seconds("w") <= now - heard + 1e-9
