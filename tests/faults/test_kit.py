"""The kit itself: an undisturbed house passes the audit, and the audit finds what it is for."""

import pytest
import trio

from tests.faults.audit import audit, documented
from tests.faults.house import House
from tests.faults.streams import account, assert_exact, many, raw, stream, whole
from tests.simulators.raw_client import Seen


async def test_an_undisturbed_house_is_as_it_was(audited: House) -> None:
    with trio.fail_after(20):
        told = await many(audited, 10, "good day sim:chunks=30 sim:gap=0.005")
        for number, one in enumerate(told):
            assert one.ended == "complete"
            assert_exact(one, audited.ledger, f"ask{number}")
        assert (await whole(audited, "in one piece")).text == "in one piece"
        assert (await raw(audited, "as bytes")).text == "as bytes"
        refused = await stream(audited, "no", model="no-such-model")
        assert (refused.ended, refused.status, refused.code) == ("error", 404, "model_not_found")


async def test_the_audit_finds_what_is_left(audited: House) -> None:
    client = audited.redis.client
    client.set("sluice:forgotten", 1)
    client.zadd("sluice:credentials:{openai}:timers", {"lease c1 somebody": 9e15})
    client.xadd("sluice:jobs:{other}", {"job": b"?"})
    with pytest.raises(AssertionError) as found:
        await audit(audited, patience_seconds=0.5)
    assert {line[3:5] for line in str(found.value).splitlines()[1:]} == {"Z1", "Z3", "Z4"}
    client.delete("sluice:forgotten", "sluice:jobs:{other}")
    client.zrem("sluice:credentials:{openai}:timers", "lease c1 somebody")


def test_the_table_of_keys_can_be_read() -> None:
    rows = {row.pattern.pattern: (row.type, row.expires) for row in documented()}
    assert ("string", True) in rows.values() and ("stream", False) in rows.values()
    matched = [row for row in documented() if row.pattern.fullmatch("sluice:credentials:{openai}:timers")]
    assert [(row.type, row.expires) for row in matched] == [("zset", False)]


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n',
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
        b'data: {"error":{}}\n\ndata: [DONE]\n\n',
        b'data: {"error":{}}\n\ndata: {"choices":[]}\n\n',
        b"data: \n\n",
        b'event: error\ndata: {"error":{}}\n\n',
    ],
)
def test_a_stream_that_lies_is_seen(body: bytes) -> None:
    with pytest.raises(AssertionError):
        account(Seen(b"", "complete", body, 200, {"content-type": "text/event-stream"}))
