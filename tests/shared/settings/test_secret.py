"""A secret does not show itself."""

import json
import pickle

import pytest

from shared.settings import Secret


def test_it_shows_stars_wherever_text_is_made_of_it():
    secret = Secret("hidden")
    assert {str(secret), repr(secret), f"{secret}", f"{secret!r}", "%s" % secret, f"{secret:>3}"} == {"***"}  # noqa: UP031
    assert secret.reveal() == "hidden"


def test_it_is_no_text_for_anything_that_takes_text():
    secret = Secret("hidden")
    for attempt in (
        lambda: "".join([secret]),
        lambda: json.dumps(secret),
        lambda: pickle.dumps(secret),
        lambda: "x" + secret,
        lambda: vars(secret),
    ):
        with pytest.raises(TypeError):
            attempt()


def test_equality():
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert not Secret("")
