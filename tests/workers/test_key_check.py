"""Whether an OpenAI-compatible upstream accepts a key, found out by asking for its list of models."""

import pytest

from shared.errors import GatewayError
from workers.exchange import HttpReply
from workers.provider import Call, Credential, Upstream, Validator
from workers.providers.openai_compatible import ROWS, WithGuardedList, row

CALL = Call("", "", False, {}, Credential("c1", "sk-upstream-secret"), 0.0, "0" * 32)
BASE_URL = "https://upstream.example/v1"


def outcome(status: int, name: str = "openai") -> str:
    """What the check makes of a reply: `accepted` or the kind of refusal."""
    made = row(Upstream(name, BASE_URL))
    assert isinstance(made, WithGuardedList)
    check = made.validate(CALL)
    next(check)
    try:
        check.send(HttpReply(status=status, headers={}, body=b'{"object":"list","data":[]}'))
    except StopIteration:
        return "accepted"
    except GatewayError as error:
        return error.failure.kind
    raise AssertionError("asked twice")


def test_asks_for_the_list_with_the_key_and_nothing_else() -> None:
    made = row(Upstream("openai", BASE_URL, user_agent="sluice/1"))
    asked = next(made.validate(CALL))
    assert (asked.method, asked.url, asked.body) == ("GET", f"{BASE_URL}/models", b"")
    assert dict(asked.headers) == {
        "authorization": "Bearer sk-upstream-secret",
        "accept-encoding": "identity",
        "user-agent": "sluice/1",
    }


@pytest.mark.parametrize("name", sorted(ROWS.keys() - {"huggingface"}))
def test_what_the_answer_says_about_the_key(name: str) -> None:
    assert outcome(200, name) == "accepted"
    assert outcome(401, name) == "credential_invalid"
    assert outcome(500, name) == "upstream_error"
    assert outcome(404, name) not in ("accepted", "credential_invalid", "billing"), "no such list: that says nothing"


def test_a_public_list_says_nothing() -> None:
    assert not isinstance(row(Upstream("huggingface", BASE_URL)), Validator)
    assert isinstance(row(Upstream("a-server-of-somebody", BASE_URL)), Validator)
