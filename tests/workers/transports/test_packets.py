"""Messages of Engine.IO 4 and Socket.IO 5, as their documents print them, and what no peer should send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.sansio.socketio import EngineKind, EnginePacket, Kind, Packet
from workers.transports.packets import MOST_ATTACHMENTS, PacketReader, messages

BOTH_WAYS = [
    (EnginePacket(EngineKind.CLOSE, ""), ["1"]),
    (EnginePacket(EngineKind.PONG, "probe"), ["3probe"]),
    (EnginePacket(EngineKind.OPEN, {"sid": "s", "pingInterval": 1}), ['0{"sid":"s","pingInterval":1}']),
    (Packet(Kind.CONNECT, "/", {"token": "t"}), ['40{"token":"t"}']),
    (Packet(Kind.CONNECT, "/admin"), ["40/admin,"]),
    (Packet(Kind.CONNECT_ERROR, "/", {"message": "no"}), ['44{"message":"no"}']),
    (Packet(Kind.DISCONNECT), ["41"]),
    (Packet(Kind.EVENT, "/", ["e", 1, None]), ['42["e",1,null]']),
    (Packet(Kind.EVENT, "/admin", ["e", {"a": [1]}], 12), ['42/admin,12["e",{"a":[1]}]']),
    (Packet(Kind.ACK, "/admin", [], 13), ["43/admin,13[]"]),
    (
        Packet(Kind.EVENT, "/", ["e", b"1", {"x": b"2"}], 7),
        ['452-7["e",{"_placeholder":true,"num":0},{"x":{"_placeholder":true,"num":1}}]', b"1", b"2"],
    ),
    (Packet(Kind.ACK, "/", [b"1"], 7), ['461-7[{"_placeholder":true,"num":0}]', b"1"]),
]


@pytest.mark.parametrize(("packet", "sent"), BOTH_WAYS)
def test_a_packet_and_its_messages(packet: EnginePacket | Packet, sent: list[str | bytes]) -> None:
    assert messages(packet) == sent
    reader = PacketReader()
    *parts, last = sent
    assert [reader.read(part) for part in parts] == [None] * len(parts)
    assert reader.read(last) == packet
    assert reader.malformed == 0


SENSELESS = [
    *("", "x", "4x", "²", "4²", '42["a"', '42["a"]x', "42" + "[" * 100_000, '42["a",' + "1" * 101 + "]"),
    *('451234567890123-["a"]', f'45{MOST_ATTACHMENTS + 1}-["a"]', "42" + "1" * 101 + '["a"]', "b!"),
]


@pytest.mark.parametrize("message", SENSELESS)
def test_what_makes_no_sense_is_dropped_and_counted(message: str) -> None:
    reader = PacketReader()
    assert reader.read(message) is None
    assert reader.malformed == 1
    assert reader.read('42["good"]') == Packet(Kind.EVENT, "/", ["good"])


def test_attachments_that_do_not_come_or_belong_to_nothing() -> None:
    reader = PacketReader()
    assert reader.read(b"stray") is None
    assert reader.read('451-["a",{"_placeholder":true,"num":0}]') is None
    assert reader.read('42["b"]') == Packet(Kind.EVENT, "/", ["b"])
    assert reader.read(b"late") is None
    assert reader.read('451-["a",{"_placeholder":true,"num":5}]') is None
    assert reader.read(b"no such place") is None
    assert reader.malformed == 4
    assert reader.read('42["b"]') is not None


def test_halves_of_characters_survive() -> None:
    """JavaScript cuts emoji in two; joining them is for those who know what the text means."""
    assert PacketReader().read(r'42["e","\ud83d"]') == Packet(Kind.EVENT, "/", ["e", "\ud83d"])


@given(st.lists(st.text() | st.binary() | st.from_regex(r"4?[0-9](\d-)?(/\w*,)?\d*(\[.*\])?", fullmatch=True)))
def test_the_reader_never_fails(received: list[str | bytes]) -> None:
    reader = PacketReader()
    for message in received:
        assert isinstance(reader.read(message), EnginePacket | Packet | None)
