"""The form of a caller's key: told from garbage without asking anybody."""

import re

from hypothesis import given
from hypothesis import strategies as st

from shared.schema.key_text import SECRET_BYTES, compose, id_of

KEY = compose("1f2e3d4c", bytes(range(SECRET_BYTES)))
IDS = st.text("0123456789abcdef", min_size=8, max_size=8)


def test_a_key_is_readable_in_a_header_an_url_and_a_shell():
    assert KEY == "sk-sluice-1f2e3d4c-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8GB7fqQ"
    assert re.fullmatch(r"[A-Za-z0-9_-]+", KEY)


@given(IDS, st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES))
def test_every_key_says_its_id(key_id, secret):
    assert id_of(compose(key_id, secret)) == key_id


def test_every_changed_character_is_noticed():
    for place, letter in enumerate(KEY):
        for other in "aZ0-_":
            assert other == letter or id_of(KEY[:place] + other + KEY[place + 1 :]) is None
    for wrong in (KEY[:-1], KEY + "A", KEY + "\n", " " + KEY, KEY.upper(), ""):
        assert id_of(wrong) is None


@given(st.text(max_size=80) | st.from_regex(r"sk-sluice-[0-9a-f]{8}-[A-Za-z0-9_-]{49}", fullmatch=True))
def test_garbage_is_no_key(text):
    assert id_of(text) is None
