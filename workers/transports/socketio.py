"""A Socket.IO client on trio: one connection, from the dialing to the goodbye.

    connection = SocketIO(address, dialer, on_event=hear)
    nursery.start_soon(connection.run)
    await connection.join("/", {"token": "…"})
    connection.emit("greet", "hello")                  # does not wait; what it says leaves in order
    (answer,) = await connection.call("add", 1, 2)     # waits for the acknowledgement

1. Nothing that this connection does for one job can hold up another: events are handed on synchronously, everything that is
   said goes through one queue, and the reader reads whatever happens.
2. The connection is dead when the server has been silent for as long as it said, and is then dropped without ceremony.
3. `close` is synchronous. The goodbye, and waiting for the peer's, is the business of `run`, for at most two seconds.
"""

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import h11
import msgspec
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection
from wsproto.utilities import ProtocolError

from shared.errors import GatewayError
from shared.sansio.socketio import (
    DEFAULT_NAMESPACE,
    Acknowledged,
    ClientEnd,
    Closed,
    Joined,
    Left,
    Refused,
    SocketEvent,
)
from workers.exchange import Disconnected, HttpReply, ProtocolViolation, SocketRefused, TransportError
from workers.transports.connection import Origin
from workers.transports.dial import Dialer
from workers.transports.packets import PacketReader, messages
from workers.transports.websocket import open_websocket, refusal

OPENING_SECONDS: Final = 20.0
DISCONNECT_SECONDS: Final = 2.0
UNSENT_PACKETS: Final = 10_000
"""A peer that lets more than this wait does not read at all."""
REFUSAL_CHARACTERS: Final = 2000

_SCHEMES: Final = {"ws": ("ws", 80), "http": ("ws", 80), "wss": ("wss", 443), "https": ("wss", 443)}
_ORDERLY: Final = (1000, 1001, 1005)
"""WebSocket close codes: done, going away, none given (RFC 6455 section 7.4.1)."""


class Address(msgspec.Struct, frozen=True):
    """Where a Socket.IO server is: `ws(s)://` or `http(s)://`, and the path if it is not `/socket.io/`. Raises ValueError."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def origin(self) -> Origin:
        parts = urlsplit(self.url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ValueError("a socket's address is ws://, wss://, http:// or https://")
        scheme, port = _SCHEMES[parts.scheme]
        return Origin(scheme, parts.hostname.encode("idna").decode("ascii"), parts.port or port)

    @property
    def target(self) -> str:
        path = urlsplit(self.url).path.rstrip("/") or "/socket.io"
        return f"{path}/?EIO=4&transport=websocket"


class _Waiting:
    """Somebody who waits for one answer."""

    __slots__ = ("_answered", "_error", "_value")

    def __init__(self) -> None:
        self._answered = trio.Event()
        self._value: Any = None
        self._error: TransportError | None = None

    def answer(self, value: Any, error: TransportError | None = None) -> None:
        if not self._answered.is_set():
            self._value, self._error = value, error
            self._answered.set()

    async def result(self) -> Any:
        await self._answered.wait()
        if self._error is not None:
            raise self._error
        return self._value


class SocketIO:
    """One connection. `on_event` gets each event and the length of its message, synchronously; it must not raise.

    `ended` is set when nothing will be heard any more; `error` says why, None after a goodbye from either side.
    """

    def __init__(
        self, address: Address, dial: Dialer, *, on_event: Callable[[SocketEvent, int], object],
        opening_seconds: float = OPENING_SECONDS,
    ) -> None:  # fmt: skip
        self.error: TransportError | None = None
        self.ended = trio.Event()
        self._address = address
        self._dial = dial
        self._on_event = on_event
        self._end = ClientEnd(now=trio.current_time(), opening_seconds=opening_seconds)
        self._reader = PacketReader()
        self._waiting: dict[tuple[str | int, ...], _Waiting] = {}
        self._scope = trio.CancelScope()
        self._work = trio.Event()
        self._websocket: WebSocketConnection | None = None

    @property
    def ignored(self) -> int:
        """Messages that made no sense."""
        return self._end.ignored + self._reader.malformed

    async def run(self) -> None:
        """Connect, and serve until the end, however it comes; `error` then says how. Raises nothing."""
        self._scope.deadline = self._end.deadline
        try:
            with self._scope:
                await self._live()
            if self._scope.cancelled_caught and not self.ended.is_set():
                silent = "opened no session in time" if not self._end.open else "was silent for too long"
                self._fail(Disconnected(f"the upstream's socket {silent}", response_started=self._end.open))
        except* TransportError as group:
            self._fail(_first(group, TransportError))
        except* ConnectionRejected as group:
            self._fail(refusal(_first(group, ConnectionRejected)))
        except* GatewayError as group:
            self._fail(ProtocolViolation(_first(group, GatewayError).failure.message))
        except* (ProtocolError, h11.ProtocolError) as group:  # trio-websocket passes on what it does not expect
            self._fail(ProtocolViolation(f"the upstream speaks no WebSocket: {_first(group, Exception)}"))
        finally:
            self._stop_listening()

    async def join(self, namespace: str = DEFAULT_NAMESPACE, auth: Any = None) -> str:
        """Enter a namespace; what the server calls us there. Raises SocketRefused, or how the connection ended."""
        self._end.join(namespace, auth)
        sid: str = await self._answer(("join", namespace))
        return sid

    def emit(self, name: str, *arguments: Any, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Send an event; `bytes` anywhere in the arguments travel as such. Raises Disconnected outside of the namespace."""
        self._emit(namespace, name, arguments, acknowledged=False)
        self._wake()

    async def call(self, name: str, *arguments: Any, namespace: str = DEFAULT_NAMESPACE) -> tuple[Any, ...]:
        """Send an event and wait for its acknowledgement, without a time limit. Raises how the connection ended."""
        number = self._emit(namespace, name, arguments, acknowledged=True)
        assert number is not None
        try:
            answer: tuple[Any, ...] = await self._answer(("call", namespace, number))
            return answer
        finally:
            self._end.forget(namespace, number)

    def acknowledge(self, event: SocketEvent, *arguments: Any) -> None:
        """Answer an event that asks for it; does nothing for others."""
        self._end.acknowledge(event, arguments)
        self._wake()

    def close(self) -> None:
        """Say goodbye and close: nothing is heard from now on. `run` ends within two seconds."""
        if self.ended.is_set():
            return
        self._stop_listening()
        if self._websocket is None:
            self._scope.cancel()
        else:
            self._scope.deadline = trio.current_time() + DISCONNECT_SECONDS
            self._work.set()

    # --- one connection's life

    async def _live(self) -> None:
        connection = await self._dial(self._address.origin)
        try:
            async with trio.open_nursery() as nursery:
                self._websocket = await open_websocket(nursery, connection, self._address.target, self._address.headers)
                nursery.start_soon(self._write, self._websocket)
                await self._read(self._websocket)
                nursery.cancel_scope.cancel()
        finally:
            connection.close()

    async def _read(self, websocket: WebSocketConnection) -> None:
        while True:
            try:
                message = await websocket.get_message()
            except ConnectionClosed as closed:
                if not self.ended.is_set() and (closed.reason is None or closed.reason.code not in _ORDERLY):
                    self._fail(Disconnected("the upstream's socket was lost", response_started=True))
                return
            packet = self._reader.read(message)
            if packet is None or self.ended.is_set():
                continue
            happening = self._end.receive(packet, trio.current_time())
            self._scope.deadline = self._end.deadline
            if type(happening) is SocketEvent:
                self._on_event(happening, len(message))
            elif happening is not None:
                self._happened(happening)
            if self._end.outgoing:
                self._wake()

    async def _write(self, websocket: WebSocketConnection) -> None:
        """Send what there is to send, in order; after the goodbye, close."""
        try:
            while True:
                packets, self._end.outgoing = self._end.outgoing, []
                for packet in packets:
                    for message in messages(packet):
                        await websocket.send_message(message)
                if self.ended.is_set() and not self._end.outgoing:
                    await websocket.aclose()
                    return
                if not self._end.outgoing:
                    self._work = trio.Event()
                    await self._work.wait()
        except ConnectionClosed:
            return  # the reader says why

    def _happened(self, happening: Any) -> None:
        match happening:
            case Joined(namespace, sid):
                self._answered(("join", namespace), sid)
            case Refused(namespace, payload):
                self._answered(("join", namespace), None, _refused(payload))
            case Acknowledged(namespace, number, arguments):
                self._answered(("call", namespace, number), arguments)
            case Left(namespace) if self._end.in_use:
                for what in [what for what in self._waiting if what[:2] == ("call", namespace)]:
                    self._answered(what, None, _gone())
            case Left() | Closed():
                self.close()

    def _emit(self, namespace: str, name: str, arguments: tuple[Any, ...], *, acknowledged: bool) -> int | None:
        try:
            return self._end.emit(namespace, name, arguments, acknowledged=acknowledged)
        except ValueError:
            raise self.error or _gone() from None

    # --- those who wait

    async def _answer(self, what: tuple[str | int, ...]) -> Any:
        if self.ended.is_set():
            raise self.error or _gone()
        waiting = self._waiting[what] = _Waiting()
        self._wake()
        try:
            return await waiting.result()
        finally:
            self._waiting.pop(what, None)

    def _answered(self, what: tuple[str | int, ...], value: Any, error: TransportError | None = None) -> None:
        waiting = self._waiting.pop(what, None)
        if waiting is not None:
            waiting.answer(value, error)

    def _wake(self) -> None:
        if len(self._end.outgoing) > UNSENT_PACKETS:
            self._fail(Disconnected("the upstream's socket does not read", response_started=True))
            self._scope.cancel()
        self._work.set()

    def _fail(self, error: TransportError) -> None:
        if self.error is None:
            self.error = error

    def _stop_listening(self) -> None:
        """From now on nothing is heard, and nobody waits."""
        self._end.leave()
        self.ended.set()
        for waiting in self._waiting.values():
            waiting.answer(None, self.error or _gone())
        self._waiting.clear()


def _first(group: BaseExceptionGroup[Any], kind: type[Any]) -> Any:
    """One of the errors of a kind in a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, kind)
    return error


def _gone() -> Disconnected:
    return Disconnected("the upstream's socket is closed", response_started=False)


def _refused(payload: Any) -> SocketRefused:
    message = payload.get("message") if isinstance(payload, dict) else payload
    told = message[:REFUSAL_CHARACTERS] if isinstance(message, str) else ""
    body = msgspec.json.encode({"message": told})
    return SocketRefused("the upstream refused the socket's credential", HttpReply(status=401, headers={}, body=body))
