"""The client's end of a Socket.IO connection: what is said in which state, and what is understood."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import GatewayError
from shared.sansio.socketio import (
    Acknowledged,
    ClientEnd,
    Closed,
    EngineKind,
    EnginePacket,
    Happening,
    Joined,
    Kind,
    Left,
    Packet,
    Refused,
    SocketEvent,
)

OPEN = EnginePacket(EngineKind.OPEN, {"sid": "e", "upgrades": [], "pingInterval": 25000, "pingTimeout": 20000})
PONG = EnginePacket(EngineKind.PONG, "")


def sent(end: ClientEnd) -> list[EnginePacket | Packet]:
    packets, end.outgoing = end.outgoing, []
    return packets


def opened(now: float = 0.0) -> ClientEnd:
    end = ClientEnd(now=now, opening_seconds=20)
    assert end.receive(OPEN, now) is None
    return end


def joined(*namespaces: str) -> ClientEnd:
    end = opened()
    for namespace in namespaces or ("/",):
        end.join(namespace)
        assert end.receive(Packet(Kind.CONNECT, namespace, {"sid": "s"}), 0) == Joined(namespace, "s")
    sent(end)
    return end


def test_namespaces_are_asked_for_when_the_connection_is_open() -> None:
    end = ClientEnd(now=0, opening_seconds=20)
    end.join("/", {"token": "t"})
    assert (sent(end), end.open, end.in_use) == ([], False, True)

    end.receive(OPEN, 1)
    end.join("/other")

    assert sent(end) == [Packet(Kind.CONNECT, "/", {"token": "t"}), Packet(Kind.CONNECT, "/other", None)]
    assert end.receive(Packet(Kind.CONNECT, "/other", {"sid": "s2"}), 1) == Joined("/other", "s2")
    refusal = {"message": "no", "data": {"code": 1}}
    assert end.receive(Packet(Kind.CONNECT_ERROR, "/", refusal), 1) == Refused("/", refusal)
    assert end.in_use
    assert end.receive(Packet(Kind.DISCONNECT, "/other"), 1) == Left("/other")
    assert not end.in_use


def test_every_sign_of_life_moves_the_deadline() -> None:
    end = ClientEnd(now=100, opening_seconds=20)
    assert end.deadline == 120
    end.receive(OPEN, 101)
    assert end.deadline == 146
    for packet in (EnginePacket(EngineKind.PING, ""), EnginePacket(EngineKind.NOOP), Packet(Kind.EVENT, "/", ["x"])):
        end.receive(packet, 110)
        assert end.deadline == 155
    assert sent(end) == [PONG]


def test_a_ping_is_answered_with_what_it_holds() -> None:
    end = opened()
    end.receive(EnginePacket(EngineKind.PING, "probe"), 1)
    assert sent(end) == [EnginePacket(EngineKind.PONG, "probe")]


@pytest.mark.parametrize(
    "first",
    [
        EnginePacket(EngineKind.PING),
        Packet(Kind.CONNECT, "/", {"sid": "s"}),
        EnginePacket(EngineKind.OPEN, "text"),
        EnginePacket(EngineKind.OPEN, {"sid": "s"}),
        EnginePacket(EngineKind.OPEN, {"pingInterval": "25000", "pingTimeout": 20000}),
        EnginePacket(EngineKind.OPEN, {"pingInterval": -1, "pingTimeout": 20000}),
        EnginePacket(EngineKind.OPEN, {"pingInterval": 0, "pingTimeout": 0}),
        EnginePacket(EngineKind.OPEN, {"pingInterval": float("nan"), "pingTimeout": 1}),
    ],
)
def test_a_connection_begins_with_an_open_packet_that_makes_sense(first: EnginePacket | Packet) -> None:
    with pytest.raises(GatewayError) as caught:
        ClientEnd(now=0, opening_seconds=1).receive(first, 0)
    assert caught.value.failure.kind == "protocol_error"


def test_an_endless_patience_is_not_believed() -> None:
    end = ClientEnd(now=0, opening_seconds=1)
    end.receive(EnginePacket(EngineKind.OPEN, {"pingInterval": 1e300, "pingTimeout": float("inf")}), 0)
    assert end.deadline == 600


def test_events_and_acknowledgements_go_both_ways() -> None:
    end = joined("/", "/other")
    assert end.emit("/", "greet", ["hello", b"bytes"]) is None
    first, second = (end.emit("/", "add", [1, 2], acknowledged=True) for _ in range(2))
    asked = end.receive(Packet(Kind.EVENT, "/", ["question", 1, None], 9), 0)
    assert asked == SocketEvent("question", (1, None), "/", 9)
    end.acknowledge(asked, ["yes"])
    end.acknowledge(SocketEvent("told"), ["nobody asked"])
    assert sent(end) == [
        Packet(Kind.EVENT, "/", ["greet", "hello", b"bytes"]),
        Packet(Kind.EVENT, "/", ["add", 1, 2], first),
        Packet(Kind.EVENT, "/", ["add", 1, 2], second),
        Packet(Kind.ACK, "/", ["yes"], 9),
    ]
    assert end.receive(Packet(Kind.ACK, "/other", [3], first), 0) is None, "another namespace"
    assert end.receive(Packet(Kind.ACK, "/", [3], second), 0) == Acknowledged("/", second or 0, (3,))
    assert end.receive(Packet(Kind.ACK, "/", [3], second), 0) is None, "twice"
    end.forget("/", first or 0)
    assert end.receive(Packet(Kind.ACK, "/", [3], first), 0) is None, "nobody waits"
    assert end.ignored == 3


def test_a_server_may_speak_before_it_lets_us_in() -> None:
    end = opened()
    end.join("/")
    assert end.receive(Packet(Kind.EVENT, "/", ["welcome"]), 0) == SocketEvent("welcome")


def test_nothing_is_said_outside_of_a_namespace() -> None:
    end = joined("/")
    asked = SocketEvent("question", (), "/", 1)
    end.receive(Packet(Kind.DISCONNECT, "/"), 0)
    with pytest.raises(ValueError, match="namespace"):
        end.emit("/", "late", [])
    end.acknowledge(asked, ["late"])
    assert sent(end) == []


SENSELESS = [
    Packet(Kind.EVENT, "/", None),
    Packet(Kind.EVENT, "/", []),
    Packet(Kind.EVENT, "/", [1, 2]),
    Packet(Kind.EVENT, "/", {"a": 1}),
    Packet(Kind.EVENT, "/stranger", ["x"]),
    Packet(Kind.CONNECT, "/", {"sid": "again"}),
    Packet(Kind.CONNECT_ERROR, "/", {"message": "too late"}),
    Packet(Kind.DISCONNECT, "/stranger"),
    Packet(Kind.ACK, "/", [], 5),
    Packet(Kind.ACK, "/", None, None),
    Packet(9, "/", ["x"]),
    EnginePacket(EngineKind.PONG),
    EnginePacket(EngineKind.UPGRADE),
    EnginePacket(9),
]


@pytest.mark.parametrize("packet", SENSELESS)
def test_what_makes_no_sense_is_counted_and_changes_nothing(packet: EnginePacket | Packet) -> None:
    end = joined("/")
    assert end.receive(packet, 0) is None
    assert (end.ignored, end.outgoing, end.in_use) == (1, [], True)


def test_both_sides_can_take_leave() -> None:
    end = joined("/", "/other")
    end.leave()
    goodbye = [Packet(Kind.DISCONNECT, "/"), Packet(Kind.DISCONNECT, "/other"), EnginePacket(EngineKind.CLOSE)]
    assert sent(end) == goodbye
    end.leave()
    assert (sent(end), end.receive(Packet(Kind.EVENT, "/", ["late"]), 0)) == ([], None)

    end = joined("/")
    assert end.receive(EnginePacket(EngineKind.CLOSE), 0) == Closed()
    assert (end.closed, end.in_use) == (True, False)
    assert end.receive(OPEN, 0) is None

    unopened = ClientEnd(now=0, opening_seconds=1)
    unopened.leave()
    assert sent(unopened) == []


json = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))
packets = st.one_of(
    st.builds(EnginePacket, st.integers(0, 9), json),
    st.builds(Packet, st.integers(0, 9), st.sampled_from(["/", "/other", "/stranger"]), json, st.none() | st.integers(0, 3)),
    st.builds(
        Packet, st.just(2), st.sampled_from(["/", "/other"]), st.lists(st.text(), min_size=1), st.none() | st.integers(0, 3)
    ),
)  # fmt: skip


@given(st.lists(packets))
def test_no_server_brings_the_machine_out_of_step(conversation: list[EnginePacket | Packet]) -> None:
    end = opened()
    end.join("/")
    end.join("/other")
    number: int | None = None
    heard: list[Happening] = []
    for now, packet in enumerate(conversation):
        happening: Any = end.receive(packet, float(now))
        if happening is None:
            continue
        assert not heard or heard[-1] != Closed(), "nothing follows the end"
        if isinstance(happening, Joined) and number is None:
            number = end.emit(happening.namespace, "x", [], acknowledged=True)
        heard.append(happening)
    entered = [event.namespace for event in heard if isinstance(event, Joined)]
    assert len(entered) == len(set(entered)), "a namespace is joined once"
    assert sum(isinstance(event, Acknowledged) for event in heard) <= 1
    if not end.closed:
        assert end.deadline == (len(conversation) - 1 if conversation else 0) + 45
