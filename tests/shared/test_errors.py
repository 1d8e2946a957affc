"""Every way to fail has its place in OpenAI's world: a status, a type, a code, and the truth about trying again."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ELSEWHERE, FAULTS, KINDS, UNSPENT, Failure, GatewayError, Kind, fail

STATUSES = {400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 502, 503, 504}
TYPES = {
    "invalid_request_error",
    "server_error",
    "service_unavailable_error",
    "requests",
    "tokens",
    "insufficient_quota",
}
WITHOUT_CODE = {"invalid_request", "unprocessable"}
"""What these are about differs every time: whoever raises them gives the code."""


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_is_complete(kind: Kind):
    assert KINDS[kind.name] is kind
    assert kind.status in STATUSES
    assert kind.type in TYPES
    assert (kind.code is None) == (kind.name in WITHOUT_CODE)
    assert kind.meaning.endswith(".") and len(kind.meaning) < 80
    assert kind.status < 500 or kind.type in ("server_error", "service_unavailable_error")


def test_what_may_go_elsewhere_is_nobodys_mistake_but_a_providers():
    assert KINDS.keys() >= ELSEWHERE | FAULTS
    assert ELSEWHERE > UNSPENT
    assert all(KINDS[name].status >= 429 for name in ELSEWHERE | FAULTS)
    assert not FAULTS & {"rate_limit", "credential_invalid", "no_credential", "blocked"}, (
        "these do not speak of its health"
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.again], ids=lambda kind: kind.name)
def test_only_failures_of_a_moment_are_tried_again(kind: Kind):
    assert kind.status >= 500
    assert kind.credential == "keep", "another attempt with a credential that was refused would be refused as well"


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.credential != "keep"], ids=lambda kind: kind.name
)
def test_what_our_upstream_keys_do_is_never_the_callers_fault(kind: Kind):
    """A caller that got the upstream's 401 would throw its own good key away."""
    assert kind.status not in {401, 402, 403}


@pytest.mark.parametrize("kind", KINDS)
def test_the_envelope_is_openais(kind):
    envelope = Failure(kind, "What happened.").envelope()
    row = KINDS[kind]
    assert envelope == {"error": {"message": "What happened.", "type": row.type, "param": None, "code": row.code}}
    assert list(envelope["error"]) == ["message", "type", "param", "code"]


def test_an_occurrence_may_know_more_than_its_kind():
    failure = Failure("rate_limit", "Slow down.", "messages", "tokens_per_minute", 3.0, 429, "tokens")
    assert failure.envelope()["error"] == {
        "message": "Slow down.", "type": "tokens", "param": "messages", "code": "tokens_per_minute",
    }  # fmt: skip


def test_a_kind_of_a_newer_version_is_an_internal_error():
    failure = Failure("something_new", "What happened.")
    assert failure.row is KINDS["internal"]
    assert failure.envelope()["error"]["code"] == "internal_error"


@pytest.mark.parametrize(
    ("seconds", "header"),
    [
        (0.0, "1"),
        (-5.0, "1"),
        (0.2, "1"),
        (1.0, "1"),
        (1.2, "2"),
        (29.5, "30"),
        (60.0, "60"),
        (61.0, "60"),
        (1e9, "60"),
        (math.inf, "60"),
        (-math.inf, "1"),
        (math.nan, "1"),
    ],
)
def test_retry_after_is_whole_seconds_that_clients_obey(seconds, header):
    """Never shorter than asked for within what they obey: older clients ignore more than a minute."""
    assert Failure("rate_limit", "x", retry_after_seconds=seconds).headers()["retry-after"] == header


@pytest.mark.parametrize("kind", KINDS)
def test_waiting_is_suggested_where_waiting_helps(kind):
    row = KINDS[kind]
    headers = Failure(kind, "x").headers()
    assert ("retry-after" in headers) == (row.status == 503 and row.sdk_retry is not False)
    assert Failure(kind, "x", retry_after_seconds=7.0).headers()["retry-after"] == "7"


@pytest.mark.parametrize("kind", KINDS)
def test_clients_are_told_not_to_repeat_what_was_repeated(kind):
    row = KINDS[kind]
    verdict = {None: None, True: "true", False: "false"}[row.sdk_retry]
    assert Failure(kind, "x").headers().get("x-should-retry") == verdict
    assert Failure(kind, "x").headers(starts=1).get("x-should-retry") == verdict
    repeated = Failure(kind, "x").headers(starts=2).get("x-should-retry")
    assert repeated == ("false" if row.status >= 500 else verdict)


def test_headers_are_plain_text():
    for kind in KINDS:
        for name, value in Failure(kind, "x\r\ny: z", retry_after_seconds=2.5).headers(starts=2).items():
            assert name.isascii() and value.isascii() and not {"\r", "\n"} & set(name + value)


@given(
    st.builds(
        Failure,
        kind=st.sampled_from(list(KINDS)) | st.text(),
        message=st.text(),
        param=st.none() | st.text(),
        code=st.none() | st.text(),
        retry_after_seconds=st.none() | st.floats(allow_nan=False),
        upstream_status=st.none() | st.integers(100, 599),
        type=st.none() | st.text(),
    )
)
def test_failures_cross_redis_unchanged(failure):
    packed = msgspec.msgpack.encode(failure)
    assert msgspec.msgpack.decode(packed, type=Failure) == failure
    assert set(msgspec.json.decode(msgspec.json.encode(failure.envelope()))["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }


def test_a_failure_of_an_older_version_has_fewer_fields():
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(["timeout", "x"]), type=Failure) == Failure("timeout", "x")
    newer = msgspec.msgpack.encode(["timeout", "x", None, None, None, None, None, "more"])
    assert msgspec.msgpack.decode(newer, type=Failure) == Failure("timeout", "x")


def test_fail_makes_an_exception_that_says_what_it_is():
    error = fail("model_not_found", "No such model.", param="model", retry_after_seconds=1.0)
    assert isinstance(error, GatewayError)
    assert str(error) == "model_not_found: No such model."
    assert error.failure == Failure("model_not_found", "No such model.", "model", None, 1.0)
    assert error.starts == 1


def test_an_unknown_kind_is_a_programming_error():
    with pytest.raises(KeyError):
        fail("no_such_kind", "x")
