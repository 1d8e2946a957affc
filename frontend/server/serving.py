"""Serves an ASGI app: one process, one listening socket, one call of `serve`."""

import errno
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from frontend.server.connection import RESET_ON_CLOSE, Connection, Surroundings, serve_connection
from frontend.server.hypercorn_parts import (
    Address,
    AsgiApp,
    WorkerContext,
    end_keep_alive,
    make_config,
    make_lifespan,
)
from frontend.server.listener import connection_limit, open_listener
from frontend.server.refusals import refusal_bytes
from frontend.server.settings import KIB, ServerSettings

log = logging.getLogger("frontend.server")

MAX_REFUSALS = 32
"""Refusals that are being read by their clients at once; beyond that, new connections are reset."""
ACCEPT_PAUSE_SECONDS = 0.1
OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
BELONGS_TO_ONE_CLIENT = {
    errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT,
}  # fmt: skip
"""Errors that accept(2) hands on from a connection which died in the queue."""

Shutdown = trio.Event | Callable[[], Awaitable[object]]


async def serve(
    app: AsgiApp,
    settings: ServerSettings,
    *,
    shutdown: Shutdown,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` over HTTP/1.1 until `shutdown` is set or returns, then stop in order. Starts with its (host, port).

    Stopping: no more is accepted, connections without a request are closed, every response is the last of its connection
    and says so, and after `graceful_seconds` what is left is cut. The app's lifespan surrounds all this.

    Raises OSError if the address cannot be listened on, and what Hypercorn raises when the app's start-up fails.
    """
    config, context = make_config(settings), WorkerContext(None)
    lifespan = make_lifespan(app, config)
    async with trio.open_nursery() as lifespan_nursery:
        await lifespan_nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        with open_listener(settings) as listener:
            address: Address = listener.getsockname()[:2]
            server = Server(listener, Surroundings(app, settings, config, context, address))
            task_status.started(address)
            await server.run(shutdown)
        await lifespan.wait_for_shutdown()
        lifespan_nursery.cancel_scope.cancel()


class Server:
    """Accepts connections while there is room, and sees all of them to their end."""

    def __init__(self, listener: socket.socket, around: Surroundings) -> None:
        self._listener = listener
        self._around = around
        self._connections: set[Connection] = set()
        self._open = 0
        self._open_by_address: Counter[str] = Counter()
        self._refusing = 0
        self._limit = connection_limit(around.settings.max_connections)
        if self._limit < around.settings.max_connections:
            log.warning("file descriptors allow %d connections only (ulimit -n)", self._limit)

    def __repr__(self) -> str:
        return f"<Server: {self._open} of {self._limit} connections>"

    async def run(self, shutdown: Shutdown) -> None:
        """Accept until `shutdown`, then see the connections off; cancels what is left after `graceful_seconds`."""
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, nursery)
                await (shutdown.wait() if isinstance(shutdown, trio.Event) else shutdown())
                accepting.cancel_scope.cancel()
            nursery.cancel_scope.deadline = trio.current_time() + self._around.settings.graceful_seconds
            await end_keep_alive(self._around.config, self._around.context)
            # Clients in the queue believe that they are connected; closing it resets them, so they are let in first.
            self._accept_waiting(nursery)
            self._listener.close()
            await trio.lowlevel.checkpoint()
            for connection in list(self._connections):
                connection.retire()

    async def _accept(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._listener)
            if not self._accept_waiting(nursery):
                await trio.sleep(ACCEPT_PAUSE_SECONDS)

    def _accept_waiting(self, nursery: trio.Nursery) -> bool:
        """Accept all that wait in the listener's queue; False if the system has no room for them."""
        while True:
            try:
                sock, client = self._listener.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno in BELONGS_TO_ONE_CLIENT:
                    continue
                if error.errno not in OUT_OF_RESOURCES:
                    raise
                log.error("cannot accept connections: %s", error)
                return False
            sock.setblocking(False)
            address = network_of(client[0])
            if self._open >= self._limit:
                self._refuse(nursery, sock, 503, "The server has no room for another connection.")
            elif self._has_its_share(address):
                self._refuse(nursery, sock, 429, "There are too many connections from your address.")
            else:
                self._open += 1
                self._open_by_address[address] += 1
                nursery.start_soon(self._serve, sock, client[:2], address)

    def _has_its_share(self, address: str) -> bool:
        share = self._around.settings.max_connections_per_address
        return 0 < share <= self._open_by_address[address]

    async def _serve(self, sock: socket.socket, client: Address, address: str) -> None:
        try:
            await serve_connection(sock, client, self._around, self._connections)
        finally:
            self._open -= 1
            self._open_by_address[address] -= 1
            if not self._open_by_address[address]:
                del self._open_by_address[address]

    def _refuse(self, nursery: trio.Nursery, sock: socket.socket, status: int, why: str) -> None:
        if self._refusing < MAX_REFUSALS:
            self._refusing += 1
            nursery.start_soon(self._say_no, sock, refusal_bytes(status, why))
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            sock.close()

    async def _say_no(self, sock: socket.socket, words: bytes) -> None:
        """Say why, and stay until the client has read it: bytes left unread would turn into a reset."""
        try:
            with sock, suppress(OSError), trio.move_on_after(self._around.settings.linger_seconds):
                sock.send(words)
                sock.shutdown(socket.SHUT_WR)
                await trio.lowlevel.wait_readable(sock)
                while sock.recv(64 * KIB):
                    await trio.lowlevel.wait_readable(sock)
        finally:
            self._refusing -= 1


def network_of(host: str) -> str:
    """What counts as one address: in IPv6 the 64 bits that a network gives to one customer."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64))
