"""Recorded conversations of a socket: the events that one run hears in them, and how they begin and end."""

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from shared.sansio.socketio import ClientEnd, Refused, SocketEvent
from tests.simulators.langfast_scene import scene
from tests.workers.recordings import STREAMS
from workers.exchange import HttpReply
from workers.provider import SocketIOStream
from workers.transports.packets import PacketReader


@dataclass
class Conversation:
    """`events`: those of the run, in the order in which they came. `refused`: the server did not let us in."""

    events: list[SocketEvent] = field(default_factory=list)
    refused: HttpReply | None = None


@cache
def scenes(file: str) -> dict[str, dict[str, Any]]:
    """What is expected of the scenes of one recording, by `file#number`."""
    expect = STREAMS[file]["expect"]
    told = expect.get("scenes", [expect])
    return {
        f"{file}#{number}": {"reasoning": "", "finish_reason": None, "usage": None, "tool_calls": []} | each
        for number, each in enumerate(told, 1)
    }


def heard(exchange: SocketIOStream, name: str) -> Conversation:
    """What the run of this exchange hears in a scene; its name is the recorded one."""
    file, _, number = name.partition("#")
    conversation, reader = Conversation(), PacketReader()
    end = ClientEnd(now=0, opening_seconds=1)
    end.join(exchange.session.namespace)
    for direction, frame in scene(file, int(number)):
        packet = reader.read(frame) if direction == "S" else None
        happening = end.receive(packet, 0) if packet is not None else None
        if isinstance(happening, Refused):
            reply = json.dumps({"message": happening.payload["message"]}).encode()
            conversation.refused = HttpReply(status=401, headers={}, body=reply)
        elif isinstance(happening, SocketEvent):
            owner = exchange.owner(happening)
            if owner is not None and owner.execution == STREAMS[file]["expect"]["job_id"]:
                conversation.events.append(happening)
    assert reader.malformed == end.ignored == 0
    return conversation
