"""The client's end of one Engine.IO 4 connection, and of the Socket.IO 5 namespaces that it carries.

The connection belongs to Engine.IO. The server opens it, and from then on it pings; a client that hears nothing for
`pingInterval + pingTimeout` of the open packet knows that the connection is dead, whatever TCP says.

    opening ──open packet──▶ open ──close packet──▶ closed

Inside its messages speaks Socket.IO. A namespace is asked for with an auth value that the server may check:

    asked ──CONNECT──▶ joined ──DISCONNECT──▶ (gone)
      └──CONNECT_ERROR──▶ (gone)

Either side may ask for an acknowledgement of an event by giving it an id, which is unique for one side and one namespace.

The machine takes packets, not frames: their encoding is elsewhere. What it wants to send waits in `outgoing`.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, TypeGuard

import msgspec

from shared.errors import GatewayError, fail

DEFAULT_NAMESPACE: Final = "/"
LONGEST_SILENCE_SECONDS: Final = 600.0
"""More than that is not believed: `pingInterval + pingTimeout` is 45 s at most servers."""


class EngineKind(IntEnum):
    """Engine.IO packet types. A message carries a Socket.IO packet; probing and upgrading do not occur on a WebSocket."""

    OPEN = 0
    CLOSE = 1
    PING = 2
    PONG = 3
    MESSAGE = 4
    UPGRADE = 5
    NOOP = 6


class Kind(IntEnum):
    """Socket.IO packet types, once binary ones have been put together."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4


class EnginePacket(msgspec.Struct, frozen=True):
    """An Engine.IO packet of its own. `kind`: an `EngineKind`, or a number that we do not know."""

    kind: int
    payload: Any = None


class Packet(msgspec.Struct, frozen=True):
    """A Socket.IO packet. `kind`: a `Kind`, or a number that we do not know. `payload`: JSON values, with bytes among them."""

    kind: int
    namespace: str = DEFAULT_NAMESPACE
    payload: Any = None
    id: int | None = None


class SocketEvent(msgspec.Struct, frozen=True):
    """An event from the server. `id`: it wants an acknowledgement under this number."""

    name: str
    arguments: tuple[Any, ...] = ()
    namespace: str = DEFAULT_NAMESPACE
    id: int | None = None


class Joined(msgspec.Struct, frozen=True):
    """The server has let us into a namespace. `sid`: what it calls us there."""

    namespace: str
    sid: str


class Refused(msgspec.Struct, frozen=True):
    """The server does not let us into a namespace. `payload`: what it says, as a rule an object with a `message`."""

    namespace: str
    payload: Any


class Acknowledged(msgspec.Struct, frozen=True):
    """The server acknowledges an event of ours."""

    namespace: str
    id: int
    arguments: tuple[Any, ...]


class Left(msgspec.Struct, frozen=True):
    """The server has put us out of a namespace."""

    namespace: str


class Closed(msgspec.Struct, frozen=True):
    """The server has closed the connection in order. Nothing follows."""


Happening = SocketEvent | Joined | Refused | Acknowledged | Left | Closed


class ClientEnd:
    """One connection. `deadline`: when the server must have been heard again, or the connection is dead; in the caller's clock.

    `outgoing`: packets to be sent, which the caller takes out. `ignored` counts packets that made no sense here.
    """

    def __init__(self, *, now: float, opening_seconds: float) -> None:
        self.deadline = now + opening_seconds
        self.outgoing: list[EnginePacket | Packet] = []
        self.ignored = 0
        self.closed = False
        self._silence_seconds: float | None = None
        self._asked: dict[str, Any] = {}
        self._joined: set[str] = set()
        self._awaited: set[tuple[str, int]] = set()
        self._last_id = -1

    @property
    def open(self) -> bool:
        return self._silence_seconds is not None and not self.closed

    @property
    def in_use(self) -> bool:
        """A namespace is joined, or one is asked for."""
        return bool(self._joined or self._asked)

    # --- what we want

    def join(self, namespace: str, auth: Any = None) -> None:
        """Ask for a namespace; before the connection is open, as soon as it is."""
        self._asked[namespace] = auth
        if self.open:
            self.outgoing.append(Packet(Kind.CONNECT, namespace, auth))

    def emit(self, namespace: str, name: str, arguments: Sequence[Any], *, acknowledged: bool = False) -> int | None:
        """Send an event; the id of the acknowledgement that is asked for. Raises ValueError outside of the namespace."""
        if namespace not in self._joined:
            raise ValueError(f"not in the namespace {namespace}")
        event_id = None
        if acknowledged:
            self._last_id += 1
            event_id = self._last_id
            self._awaited.add((namespace, event_id))
        self.outgoing.append(Packet(Kind.EVENT, namespace, [name, *arguments], event_id))
        return event_id

    def forget(self, namespace: str, event_id: int) -> None:
        """Nobody waits for this acknowledgement any more."""
        self._awaited.discard((namespace, event_id))

    def acknowledge(self, event: SocketEvent, arguments: Sequence[Any] = ()) -> None:
        """Answer an event that asked for it; does nothing for one that did not, or after the namespace is gone."""
        if event.id is not None and event.namespace in self._joined | self._asked.keys():
            self.outgoing.append(Packet(Kind.ACK, event.namespace, list(arguments), event.id))

    def leave(self) -> None:
        """Take leave of everything."""
        if self.open:
            self.outgoing += [Packet(Kind.DISCONNECT, namespace) for namespace in sorted(self._joined)]
            self.outgoing.append(EnginePacket(EngineKind.CLOSE))
        self._close()

    # --- what the server says

    def receive(self, packet: EnginePacket | Packet, now: float) -> Happening | None:
        """What a packet means. Raises `protocol_error` if the connection does not begin as it must."""
        if self.closed:
            return None
        if self._silence_seconds is None:
            self._open(packet)
        self.deadline = now + (self._silence_seconds or 0.0)
        if isinstance(packet, Packet):
            return self._message(packet)
        if packet.kind == EngineKind.PING:
            self.outgoing.append(EnginePacket(EngineKind.PONG, packet.payload))
        elif packet.kind == EngineKind.CLOSE:
            self._close()
            return Closed()
        elif packet.kind not in (EngineKind.OPEN, EngineKind.NOOP):
            self.ignored += 1
        return None

    def _open(self, packet: EnginePacket | Packet) -> None:
        if isinstance(packet, Packet) or packet.kind != EngineKind.OPEN:
            raise _violation("does not begin with an open packet")
        times = packet.payload if isinstance(packet.payload, dict) else {}
        interval, timeout = times.get("pingInterval"), times.get("pingTimeout")
        if not (_is_duration(interval) and _is_duration(timeout) and interval + timeout > 0):
            raise _violation("does not say how often it pings")
        self._silence_seconds = min((interval + timeout) / 1000, LONGEST_SILENCE_SECONDS)
        for namespace, auth in self._asked.items():
            self.outgoing.append(Packet(Kind.CONNECT, namespace, auth))

    def _message(self, packet: Packet) -> Happening | None:
        namespace = packet.namespace
        if namespace in self._asked and packet.kind == Kind.CONNECT:
            del self._asked[namespace]
            self._joined.add(namespace)
            sid = packet.payload.get("sid") if isinstance(packet.payload, dict) else None
            return Joined(namespace, sid if isinstance(sid, str) else "")
        if namespace in self._asked and packet.kind == Kind.CONNECT_ERROR:
            del self._asked[namespace]
            return Refused(namespace, packet.payload)
        if namespace in self._joined and packet.kind == Kind.DISCONNECT:
            self._joined.discard(namespace)
            self._awaited = {awaited for awaited in self._awaited if awaited[0] != namespace}
            return Left(namespace)
        # Servers may speak before they have let us in: python-socketio does while it decides.
        happening = self._exchange(packet) if namespace in self._joined | self._asked.keys() else None
        self.ignored += happening is None
        return happening

    def _exchange(self, packet: Packet) -> Happening | None:
        """An event or an acknowledgement inside a namespace."""
        payload = packet.payload
        if not isinstance(payload, list):
            return None
        if packet.kind == Kind.EVENT and payload and isinstance(payload[0], str):
            return SocketEvent(payload[0], tuple(payload[1:]), packet.namespace, packet.id)
        if packet.kind == Kind.ACK and packet.id is not None and (packet.namespace, packet.id) in self._awaited:
            self._awaited.discard((packet.namespace, packet.id))
            return Acknowledged(packet.namespace, packet.id, tuple(payload))
        return None

    def _close(self) -> None:
        self.closed = True
        self._asked.clear()
        self._joined.clear()
        self._awaited.clear()


def _is_duration(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _violation(what: str) -> GatewayError:
    return fail("protocol_error", f"The upstream's socket {what}.")
