"""Answers in one piece: gathered, bounded, handed on under the name that was asked for."""

import pytest

from shared.errors import Failure, GatewayError
from shared.sansio.relay import BodyGatherer, Relay
from shared.schema.events import Complete, Failed, Usage, Whole


def test_a_body_in_any_pieces():
    for pieces in ([b"abc"], [b"a", b"b", b"c"], [b"ab", b"", b"c"]):
        gatherer = BodyGatherer()
        assert [frame for piece in pieces for frame in gatherer.feed(piece)] == []
        assert gatherer.end() == [b"abc"]


def test_no_body_is_endless():
    gatherer = BodyGatherer(limit_bytes=3)
    gatherer.feed(b"abc")
    with pytest.raises(GatewayError) as refused:
        gatherer.feed(b"d")
    assert refused.value.failure.kind == "protocol_error"


def test_the_body_goes_on_as_it_is_but_for_the_name():
    relay = Relay(model="fast")
    assert relay.feed(Whole(b'{"model":"up-1","n":1.50,"list":[ 1 ]}')) == [] == relay.feed(Usage(1, 0, 1))
    assert relay.feed(Complete()) == [b'{"model":"fast","n":1.50,"list":[ 1 ]}']
    assert relay.usage == Usage(1, 0, 1)
    assert relay.feed(Whole(b"{}")) == [] == relay.end()


def test_no_body_is_an_error():
    with pytest.raises(GatewayError) as refused:
        Relay(model="fast").end()
    assert refused.value.failure.kind == "protocol_error"
    with pytest.raises(GatewayError) as failed:
        Relay(model="fast").feed(Failed(Failure("overloaded", "x")))
    assert failed.value.failure.kind == "overloaded"
