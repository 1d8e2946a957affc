"""What may be asked about usage."""

from datetime import date

import pytest
from werkzeug.datastructures import MultiDict

from frontend.api.admin_usage import Question, read_question
from shared.errors import GatewayError

TODAY = date(2030, 3, 15)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, Question(date(2030, 2, 14), TODAY)),
        ({"from": "2030-03-01"}, Question(date(2030, 3, 1), TODAY)),
        ({"from": "2030-03-01", "to": "2030-03-01"}, Question(date(2030, 3, 1), date(2030, 3, 1))),
        ({"to": "2029-12-31"}, Question(date(2029, 12, 2), date(2029, 12, 31))),
        ({"from": "1899000000"}, Question(date(2030, 3, 6), TODAY)),
        ({"from": "2030-03-02T00:30:00+02:00"}, Question(date(2030, 3, 1), TODAY)),
        ({"from": "2030-03-02T23:30:00Z"}, Question(date(2030, 3, 2), TODAY)),
        ({"key": "a", "model": "b", "provider": "c", "format": "csv"},
         Question(date(2030, 2, 14), TODAY, "a", "b", "c", "csv")),
    ],
    ids=str,
)  # fmt: skip
def test_questions(given, asked):
    assert read_question(MultiDict(given), TODAY) == asked


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ([("form", "csv")], "form", "unknown_parameter"),
        ([("key", "a"), ("key", "b")], "key", "invalid_value"),
        ([("from", "yesterday")], "from", "invalid_value"),
        ([("from", "")], "from", "invalid_value"),
        ([("to", "2030-02-30")], "to", "invalid_value"),
        ([("to", "999999999999")], "to", "invalid_value"),
        ([("from", "2030-03-16")], "from", "invalid_value"),
        ([("from", "2028-01-01")], "from", "invalid_value"),
        ([("format", "xml")], "format", "invalid_value"),
    ],
    ids=str,
)
def test_what_cannot_be_asked(given, param, code):
    with pytest.raises(GatewayError) as refused:
        read_question(MultiDict(given), TODAY)
    failure = refused.value.failure
    assert (failure.kind, failure.param, failure.code) == ("invalid_request", param, code)


def test_the_ends_of_time():
    assert read_question(MultiDict([("to", "0001-01-01")]), TODAY).first == date.min
    assert read_question(MultiDict([("to", "9999-12-31")]), TODAY).last == date.max
