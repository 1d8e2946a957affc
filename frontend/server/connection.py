"""One client's connection: reads for Hypercorn's protocol, writes for the app, and notices when it is over.

Three rules keep what this package promises:

1. **The reader always reads.** Whatever the app is doing, one task waits for the socket to become readable, so a client that
   leaves (FIN, RST, half-close) is seen at once. Bytes that may not be acted on yet wait in the parser, bounded.
2. **Writing never waits, sending does.** See `socket_writer.py`: the app's `send` waits, and may be cancelled while it does.
3. **There is one way out.** Whatever ends a connection wakes its reader, which closes the socket and tells the app.
"""

import enum
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import h11
import trio

from frontend.server.app_call import AppCall
from frontend.server.hypercorn_parts import (
    Address,
    AsgiApp,
    Closed,
    Config,
    Event,
    Message,
    RawData,
    Updated,
    WorkerContext,
    make_protocol,
)
from frontend.server.request_parser import RequestParser
from frontend.server.settings import KIB, ServerSettings
from frontend.server.socket_writer import SocketWriter

log = logging.getLogger("frontend.server")

READ_BYTES = 64 * KIB
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, for no time
COMPLETE = {h11.DONE, h11.MUST_CLOSE, h11.CLOSED}


@dataclass(frozen=True)
class Surroundings:
    """What all connections of a server share."""

    app: AsgiApp
    settings: ServerSettings
    config: Config
    context: WorkerContext
    address: Address


class Phase(enum.Enum):
    """What the client has to do next; `ServerSettings` gives each its limit."""

    HEAD = "head"
    BODY = "body"
    RESPONSE = "response"
    IDLE = "idle"
    LINGER = "linger"


class Connection:
    """An accepted socket being served. Owns the socket; its tasks live in `nursery`."""

    def __init__(self, sock: socket.socket, client: Address, around: Surroundings, nursery: trio.Nursery) -> None:
        settings = around.settings
        self._sock = sock
        self._client = client
        self._around = around
        self._nursery = nursery
        self._writer = SocketWriter(sock, nursery, settings.write_stall_seconds, self._on_written, self._on_broken)
        self._parser = RequestParser(
            max_header_bytes=settings.max_header_bytes,
            max_headers=settings.max_headers,
            refusal_headers=settings.refusal_headers,
        )
        self._protocol = make_protocol(
            config=around.config,
            context=around.context,
            starter=self,
            parser=self._parser,
            client=client,
            server=around.address,
            send=self._obey,
        )
        self._phase = Phase.HEAD
        self._deadline = trio.current_time() + settings.header_seconds
        self._wait = trio.CancelScope()
        self._look_again = False
        self._hanging_up = False
        self._reset = False
        self._over = False

    def __repr__(self) -> str:
        return f"<Connection of {self._client[0]}: {self._phase.value}, {self._writer.unsent_bytes} bytes unsent>"

    async def run(self) -> None:
        """Read until the connection is over, then close it and tell the app."""
        try:
            while not self._over:
                data = await self._next_bytes()
                if data is None:
                    break
                if not self._hanging_up:  # else it is read lest the kernel answers it with a reset, and dropped
                    await self._protocol.handle(RawData(data))
                    self._follow()
                    if self._parser.waiting_bytes() > self._around.settings.max_waiting_bytes:
                        break
        finally:
            self._close_socket()
        await self._protocol.handle(Closed())

    def retire(self) -> None:
        """The server is stopping: end at once if no request has begun; else the response will be the last."""
        if self._phase is Phase.IDLE or (self._phase is Phase.HEAD and not self._parser.waiting_bytes()):
            try:
                self._sock.recv(1, socket.MSG_PEEK)
            except OSError:  # as a rule BlockingIOError: no request is on its way that the reader has yet to see
                self._end()

    # ---- Reading

    async def _next_bytes(self) -> bytes | None:
        """What the client sent next; nothing but a reason to look at what waits; or None: it is over."""
        while not self._over:
            if self._look_again:
                self._look_again = False
                return b""
            with trio.CancelScope(deadline=self._deadline) as self._wait:
                await trio.lowlevel.wait_readable(self._sock)
            if not self._wait.cancelled_caught:
                try:
                    return self._sock.recv(READ_BYTES) or None
                except BlockingIOError:
                    continue
                except OSError:
                    return None
            if trio.current_time() >= self._deadline:
                await self._time_is_up()
        return None

    async def _time_is_up(self) -> None:
        if self._phase is Phase.BODY and self._parser.our_state is h11.SEND_RESPONSE:
            self._writer.write(self._parser.refuse(408, "The request's body did not arrive in time."))
            await self._obey(Closed())
        else:
            self._end()

    def _follow(self) -> None:
        """Set the clock of the phase that the last bytes, in or out, have led to."""
        phase = self._next_phase()
        if phase is self._phase:
            return
        settings = self._around.settings
        seconds = {
            Phase.HEAD: settings.header_seconds,
            Phase.BODY: settings.body_seconds,
            Phase.RESPONSE: inf,
            Phase.IDLE: settings.keep_alive_seconds,
            Phase.LINGER: settings.linger_seconds,
        }[phase]
        self._phase = phase
        self._deadline = self._wait.deadline = trio.current_time() + seconds

    def _next_phase(self) -> Phase:
        if self._writer.unsent_bytes and (self._hanging_up or self._parser.their_state is h11.IDLE):
            return Phase.RESPONSE
        if self._hanging_up:
            return Phase.LINGER
        if self._parser.their_state is h11.SEND_BODY:
            return Phase.BODY
        if self._parser.their_state is h11.IDLE:
            return Phase.HEAD if self._parser.waiting_bytes() else Phase.IDLE
        return Phase.RESPONSE

    # ---- What the protocol asks for. Nothing here waits (hypercorn_parts tells why that matters).

    async def spawn_app(
        self, _app: Any, _config: Any, scope: Any, send: Callable[[Message | None], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]:
        call = AppCall(scope, self._writer, send, self._around.settings.max_unread_body_bytes)
        self._nursery.start_soon(partial(call.run, self._around.app))
        return call.deliver

    async def _obey(self, event: Event) -> None:
        if isinstance(event, RawData):
            self._writer.write(event.data)
            self._parser.on_hold = self._writer.unsent_bytes > 0
        elif isinstance(event, Closed):
            self._hang_up()
            await self._protocol.handle(Closed())
        elif isinstance(event, Updated) and event.idle:
            self._go_on()

    def _go_on(self) -> None:
        """A response is complete: turn to the request that waits, or wait for the next."""
        if self._over or self._hanging_up or self._parser.on_hold:
            return
        if self._parser.their_state is h11.IDLE and self._parser.waiting_bytes():
            # The reader has to do it: an app call started from here would inherit the context of the one that ends.
            self._look_again = True
            self._wait.cancel()
        self._follow()

    # ---- The end

    def _hang_up(self) -> None:
        """Nothing more will be said: close as soon as everything is written."""
        if self._over or self._hanging_up:
            return
        self._writer.together = False
        self._writer.write(b"")
        self._hanging_up = True
        if self._writer.unsent_bytes:
            self._follow()
        else:
            self._last_words_are_out()

    def _last_words_are_out(self) -> None:
        """Close; but a client that is still sending may notice first, or a reset would destroy what it has yet to read."""
        heard_everything = self._parser.their_state in COMPLETE and not self._parser.waiting_bytes()
        if heard_everything or self._passes_for_complete():
            self._end()
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._end()
        self._follow()

    def _end(self, *, reset: bool = False) -> None:
        self._reset |= reset
        self._over = True
        self._wait.cancel()

    def _on_written(self) -> None:
        self._parser.on_hold = False
        if self._hanging_up:
            self._last_words_are_out()
        else:
            self._go_on()

    def _on_broken(self, stalled: bool) -> None:
        if stalled:
            log.info("dropped a client that stopped reading: %r", self)
        self._end(reset=stalled)

    def _passes_for_complete(self) -> bool:
        """Whether the response is cut but, closed in the usual way, would look whole to the client.

        In HTTP/1.1 the last chunk or a part of the length is missing. But where HTTP/1.0 gives no length, the end of
        the connection is the end of the response, and only a reset tells (RFC 9112, 8).
        """
        whole = self._parser.our_state in COMPLETE | {h11.IDLE} and not self._writer.unsent_bytes
        return not whole and self._parser.their_http_version == b"1.0"

    def _close_socket(self) -> None:
        if self._reset or self._passes_for_complete():
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._over = True
        self._writer.close()
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


async def serve_connection(
    sock: socket.socket, client: Address, around: Surroundings, connections: set[Connection]
) -> None:
    """Serve an accepted socket until it is closed and its app calls have ended; a member of `connections` meanwhile.

    A boundary: what one client's bytes break must not break the server.
    """
    try:
        async with trio.open_nursery() as nursery:
            connection = Connection(sock, client, around, nursery)
            connections.add(connection)
            try:
                await connection.run()
            finally:
                connections.discard(connection)
    except* Exception:
        log.exception("a connection failed")
