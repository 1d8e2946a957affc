"""Who is asking: by digest, in constant words, without ever repeating a key."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.admission import LONGEST_KEY, Admission
from shared.errors import GatewayError

KEY = "sk-sluice-0123456789abcdef"
OTHER = "sk-sluice-fedcba9876543210"


def an_admission(*keys, open_door=False, pepper=b"pepper"):
    return Admission(keys or (KEY, OTHER), pepper, open_door=open_door)


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {KEY}",
        f"bearer {KEY}",
        f"BEARER {KEY}",
        f"Bearer   {KEY}  ",
        f"\tBearer\t{KEY}",
        f"Bearer Bearer {KEY}",
        f"Bearer bearer Bearer {KEY}",
        f"Bearer {OTHER}",
    ],
)
def test_a_known_key(header):
    admission = an_admission()
    caller = admission.identify([header])
    assert caller.known
    admission.require(caller)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        [" "],
        ["Bearer"],
        ["Bearer "],
        ["Bearer Bearer"],
        [KEY],
        [f"Basic {KEY}"],
        [f"Token {KEY}"],
        [f"Bearer {KEY} {KEY}"],
        [f"Bearer {KEY}, Bearer {KEY}"],
        [f"Bearer {KEY}x"],
        [f"Bearer {KEY[:-1]}"],
        [f"Bearer {KEY.upper()}"],
        [f'Bearer "{KEY}"'],
        [f"Bearer\u00a0{KEY}\u200b"],
        [f"Bearer {KEY}", f"Bearer {KEY}"],
        [f"Bearer {KEY}" + " " * LONGEST_KEY],
        ["Bearer " + "x" * 10_000],
        ["Bearer \udcff\ud800"],
        ["Bearer ключ"],
    ],
)
def test_everybody_else_hears_the_same(headers):
    admission = an_admission()
    caller = admission.identify(headers)
    assert not caller.known
    with pytest.raises(GatewayError) as refused:
        admission.require(caller)
    failure = refused.value.failure
    assert (failure.kind, failure.row.status, failure.row.code) == ("invalid_api_key", 401, "invalid_api_key")
    with pytest.raises(GatewayError) as missing:
        admission.require(admission.identify([]))
    assert failure == missing.value.failure
    assert not any(word in failure.message for header in headers for word in header.split() if word.lower() != "bearer")


def test_an_open_door_knows_everybody_and_still_tells_them_apart():
    admission = an_admission(open_door=True)
    nobody, somebody = admission.identify([]), admission.identify(["Bearer upstream-key"])
    assert nobody.known and somebody.known
    admission.require(nobody)
    assert nobody.fingerprint == "none" != somebody.fingerprint
    assert somebody.presented == "upstream-key"


def test_only_a_foreign_key_can_be_an_upstreams():
    assert an_admission().identify([f"Bearer {KEY}"]).presented == ""
    assert an_admission(open_door=True).identify([f"Bearer {KEY}"]).presented == ""
    for odd in ("ключ", "sk-\x01", "\udcff"):
        assert an_admission().identify([f"Bearer {odd}"]).presented == "", "no header could carry it"


def test_an_empty_key_in_the_settings_opens_nothing():
    admission = Admission([""], b"pepper", open_door=False)
    assert not admission.identify([]).known
    assert not admission.identify(["Bearer "]).known


def test_without_keys_nobody_is_known():
    assert not Admission([], b"pepper", open_door=False).identify([f"Bearer {KEY}"]).known


def test_a_fingerprint_names_a_key_only_here():
    one, again, other = (an_admission().identify([f"Bearer {key}"]).fingerprint for key in (KEY, KEY, OTHER))
    assert one == again != other
    assert len(one) == 8 and int(one, 16) >= 0
    assert one != an_admission(pepper=b"another").identify([f"Bearer {KEY}"]).fingerprint


def test_a_caller_never_shows_its_key(caplog):
    caller = Admission([], b"pepper", open_door=False).identify([f"Bearer {KEY}"])
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("%s %r %s", caller, caller, [caller])
    assert caller.presented == KEY
    assert KEY not in caplog.text
    assert caller.fingerprint in caplog.text


@given(st.lists(st.text(max_size=40), max_size=3))
def test_no_header_breaks_it(headers):
    assert not an_admission().identify(headers).known
