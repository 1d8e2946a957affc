"""WebSocket messages to packets of Engine.IO 4 and Socket.IO 5 and back, by the codecs of python-engineio and python-socketio.

A binary event comes as a packet that counts its attachments and leaves holes for them; they follow as binary messages of their
own. What makes no sense is dropped and counted: one bad packet does not end a connection that carries other people's answers.
"""

from typing import Any, Final

from engineio.packet import Packet as EngineCodec
from socketio.packet import BINARY_ACK, BINARY_EVENT
from socketio.packet import Packet as Codec

from shared.sansio.socketio import DEFAULT_NAMESPACE, EngineKind, EnginePacket, Kind, Packet

MOST_ATTACHMENTS: Final = 64
_WHOLE: Final = {BINARY_EVENT: Kind.EVENT, BINARY_ACK: Kind.ACK}


class PacketReader:
    """Reads the messages of one connection. `malformed` counts those that were dropped."""

    __slots__ = ("_incomplete", "malformed")

    def __init__(self) -> None:
        self.malformed = 0
        self._incomplete: Codec | None = None

    def read(self, message: str | bytes) -> EnginePacket | Packet | None:
        """The packet that is complete with this message, if one is."""
        try:
            return self._read(message)
        # The codecs say in many ways that they do not understand; RecursionError is how `json` says "nested too deeply".
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            self.malformed += 1
            self._incomplete = None
            return None

    def _read(self, message: str | bytes) -> EnginePacket | Packet | None:
        outer = EngineCodec(encoded_packet=message)
        if outer.packet_type != EngineKind.MESSAGE:
            return EnginePacket(outer.packet_type, outer.data)
        if outer.binary:
            return self._attach(outer.data)
        if self._incomplete is not None:  # the attachments never came, but this message is a good one
            self._incomplete = None
            self.malformed += 1
        packet = Codec(encoded_packet=outer.data)
        if packet.attachment_count == 0:
            return _decoded(packet)
        if packet.attachment_count > MOST_ATTACHMENTS:
            raise ValueError("too many attachments")
        self._incomplete = packet
        return None

    def _attach(self, attachment: bytes) -> Packet | None:
        if self._incomplete is None:
            raise ValueError("an attachment of nothing")
        if not self._incomplete.add_attachment(attachment):
            return None
        packet, self._incomplete = self._incomplete, None
        return _decoded(packet)


def messages(packet: EnginePacket | Packet) -> list[str | bytes]:
    """What to send for a packet: one message, and one more for each `bytes` value in it."""
    if isinstance(packet, EnginePacket):
        return [EngineCodec(packet.kind, packet.payload).encode()]
    encoded: Any = Codec(packet.kind, packet.payload, packet.namespace, packet.id).encode()
    parts = encoded if isinstance(encoded, list) else [encoded]
    return [EngineCodec(EngineKind.MESSAGE, part).encode() for part in parts]


def _decoded(packet: Codec) -> Packet:
    kind = _WHOLE.get(packet.packet_type, packet.packet_type)
    return Packet(kind, packet.namespace or DEFAULT_NAMESPACE, packet.data, packet.id)
