"""What headers say about waiting: limits that a caller means, advice that a client gives, and nonsense."""

import pytest

from frontend.waiting import patience, priority
from shared.errors import GatewayError


def headers(**given):
    return {name.replace("_", "-"): value for name, value in given.items()}.get


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, 30.0),
        ({"x_sluice_max_wait": "2.5"}, 2.5),
        ({"x_sluice_max_wait": "0"}, 0.0),
        ({"x_sluice_max_wait": "600"}, 30.0),
        ({"x_stainless_read_timeout": "10"}, 10.0),
        ({"x_stainless_timeout": "20", "x_stainless_read_timeout": "7"}, 7.0),
        ({"x_stainless_timeout": "600", "x_sluice_max_wait": "4"}, 4.0),
        ({"x_stainless_read_timeout": "NOT_GIVEN"}, 30.0),
        ({"x_stainless_read_timeout": "-1"}, 30.0),
        ({"x_stainless_read_timeout": "0"}, 30.0),
        ({"x_stainless_read_timeout": "nan"}, 30.0),
    ],
)
def test_the_shortest_counts(given, seconds):
    assert patience(headers(**given), 30.0) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "1s", "1,5", "x" * 500])
def test_a_wait_that_is_no_number_of_seconds_is_refused(text):
    with pytest.raises(GatewayError) as refused:
        patience(headers(x_sluice_max_wait=text), 30.0)
    failure = refused.value.failure
    assert (failure.kind, failure.param, failure.code) == ("invalid_request", "x-sluice-max-wait", "invalid_header")
    assert len(failure.message) < 200


@pytest.mark.parametrize(
    ("asked", "of_key", "priority_"),
    [
        (None, "normal", "normal"), (None, "low", "low"), ("low", "normal", "low"), ("low", "low", "low"),
        ("normal", "normal", "normal"), ("normal", "low", "low"),
    ],
)  # fmt: skip
def test_the_header_only_lowers(asked, of_key, priority_):
    given = {} if asked is None else {"x_sluice_priority": asked}
    assert priority(headers(**given), of_key) == priority_


@pytest.mark.parametrize("text", ["", "high", "LOW", "x" * 500])
def test_other_priorities_are_refused(text):
    with pytest.raises(GatewayError) as refused:
        priority(headers(x_sluice_priority=text), "normal")
    assert refused.value.failure.param == "x-sluice-priority"
