"""One Socket.IO connection of the langfast simulator: Engine.IO 4 on a WebSocket, default namespace, text frames only."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field

import trio
from wsproto.utilities import RemoteProtocolError

from tests.simulators.http_server import Answer
from tests.simulators.langfast_scene import Scene, scene
from tests.simulators.ledger import Ledger
from tests.simulators.script import Script, Vocabulary
from tests.simulators.speech import encode
from tests.simulators.supabase import Accounts
from tests.simulators.websocket import WebSocket

SOCKET_FAULTS = {
    "refuse": "the token is refused with `44`, then `1`",
    "refuse_with_data": "the same, with `data` in the refusal",
    "ignore_connect": "`40` is never answered",
    "no_open": "the Engine.IO open packet never comes",
    "silent": "no pings: a client has to notice by itself",
    "close_after_connect": "`41` and `1` as soon as the client is connected",
    "noop": "frames that mean nothing: a noop, a binary event, an event of another namespace, an ack",
}
SOCKET_VOCABULARY = Vocabulary(options=frozenset({"scene"}), faults=frozenset(SOCKET_FAULTS))
NOISE = ("6", '451-["execution:chunk",{"_placeholder":true,"num":0}]', '42/admin,["execution:chunk",{}]', "430[]")


@dataclass(eq=False, slots=True)
class Socket:
    """A connected client; `sub` is the user of its token once it has been accepted."""

    websocket: WebSocket
    sub: str | None = None
    pings: int = 0
    pongs: int = 0
    odd_frames: list[str] = field(default_factory=list)
    """Frames the client sent that are not in the protocol."""
    answered: trio.Event = field(default_factory=trio.Event)
    scripted: bool = False
    """The frames come from a recording, not from the runs."""
    run_started: trio.Event = field(default_factory=trio.Event)

    async def emit(self, event: str, payload: object) -> None:
        """One event. Raises OSError or ClosedResourceError if the connection is gone."""
        await self.websocket.send("42" + encode([event, payload]).decode())

    async def leave(self) -> None:
        """The server's way to end: leave the namespace, close the session, close the connection."""
        await self.websocket.send("41")
        await self.websocket.send("1")
        await self.websocket.close()


@dataclass(eq=False, slots=True)
class Clients:
    """Everybody who is connected, and what the server asks of them. Durations in seconds."""

    accounts: Accounts
    ledger: Ledger
    ping_interval: float
    ping_timeout: float
    connected: list[Socket] = field(default_factory=list)

    def of(self, sub: str) -> list[Socket]:
        """Sockets of that user."""
        return [socket for socket in self.connected if socket.sub == sub]

    def forget(self, socket: Socket) -> None:
        if socket in self.connected:
            self.connected.remove(socket)
            self.ledger.changed()


async def converse(clients: Clients, answer: Answer, script: Script) -> None:
    """Open the session and answer the client's frames until either side ends it."""
    try:
        websocket = await WebSocket.accept(answer)
    except RemoteProtocolError:
        await answer.send(400, [("content-type", "application/json")], b'{"code":3,"message":"Bad request"}')
        return
    socket = Socket(websocket, scripted=script.play is not None)
    answer.call.notes["socket"] = socket
    await trio.sleep(script.delay)
    try:
        async with trio.open_nursery() as nursery:
            if script.fault not in ("silent", "no_open") and not socket.scripted:
                nursery.start_soon(_ping, clients, socket)
            await _talk(clients, socket, script)
            nursery.cancel_scope.cancel()
    finally:
        clients.forget(socket)
        answer.connection.close()


async def _talk(clients: Clients, socket: Socket, script: Script) -> None:
    try:
        if script.play is not None:
            await _play(clients, socket, scene(script.play, int(script.extra.get("scene", "1"))))
            return
        if script.fault != "no_open":
            await socket.websocket.send("0" + _open_packet(clients))
        await _read(clients, socket, script)
    except (OSError, trio.ClosedResourceError):
        clients.ledger.close(socket.websocket.call, "client")  # unless this side has closed it before


async def _play(clients: Clients, socket: Socket, frames: Scene) -> None:
    """The events come after a run has been started, as in the recordings."""
    for direction, frame in frames:
        if direction == "S":
            if frame.startswith(("42", "2", "41")):
                await socket.run_started.wait()
            await socket.websocket.send(frame)
            continue
        received = await socket.websocket.receive()
        if received is None:
            return
        if not received.startswith(frame[:2]):
            socket.odd_frames.append(received)
        elif frame.startswith("40"):
            socket.sub = clients.accounts.subject(str(json.loads(received[2:]).get("token")))
            clients.connected.append(socket)
            clients.ledger.changed()
    await socket.websocket.close()


def _open_packet(clients: Clients) -> str:
    return json.dumps(
        {
            "sid": uuid.uuid4().hex[:20],
            "upgrades": [],
            "pingInterval": int(clients.ping_interval * 1000),
            "pingTimeout": int(clients.ping_timeout * 1000),
            "maxPayload": 1000000,
        },
        separators=(",", ":"),
    )


async def _ping(clients: Clients, socket: Socket) -> None:
    """Ping the client; drop it when it does not answer in time."""
    try:
        while True:
            await trio.sleep(clients.ping_interval)
            socket.answered = trio.Event()
            await socket.websocket.send("2")
            socket.pings += 1
            with trio.move_on_after(clients.ping_timeout) as patience:
                await socket.answered.wait()
            if patience.cancelled_caught:
                socket.websocket.call.notes["dropped"] = "no pong"
                await socket.websocket.send("1")
                await socket.websocket.close()
                return
    except (OSError, trio.ClosedResourceError):
        return


async def _read(clients: Clients, socket: Socket, script: Script) -> None:
    while (frame := await socket.websocket.receive()) is not None:
        if frame == "3":
            socket.pongs += 1
            socket.answered.set()
            clients.ledger.changed()
        elif frame.startswith("40"):
            await _connect(clients, socket, script, frame[2:])
        elif frame == "41":
            clients.forget(socket)
        elif frame == "1":
            clients.ledger.close(socket.websocket.call, "client")
            return
        else:
            socket.odd_frames.append(frame)
            clients.ledger.changed()


async def _connect(clients: Clients, socket: Socket, script: Script, auth: str) -> None:
    if script.fault in ("ignore_connect", "no_open"):
        return
    try:
        token = json.loads(auth or "{}").get("token", "")
    except (ValueError, AttributeError):
        token = ""
    sub = clients.accounts.subject(str(token))
    if sub is None or script.fault in ("refuse", "refuse_with_data"):
        data = {"data": {"code": "invalid_token"}} if script.fault == "refuse_with_data" else {}
        socket.websocket.call.notes["refused"] = "token"
        await socket.websocket.send("44" + json.dumps({"message": "Authentication error", **data}))
        await socket.websocket.send("1")
        await socket.websocket.close()
        return
    socket.sub = sub
    socket.websocket.call.notes["sub"] = sub
    clients.connected.append(socket)
    await socket.websocket.send("40" + json.dumps({"sid": uuid.uuid4().hex[:20]}))
    clients.ledger.changed()
    if script.fault == "noop":
        for frame in NOISE:
            await socket.websocket.send(frame)
    elif script.fault == "close_after_connect":
        await socket.leave()
