"""A small HTTP/1.1 server on trio for simulated upstreams: keeps a ledger of every call, and breaks HTTP on command.

It is written on raw sockets, not on a library, because a library that writes correct HTTP cannot be made to write the
wrong one. What it reads it takes at face value: requests come from our own tests.

While a call is being answered a second task reads the socket, so that the ledger knows within a scheduler tick when the
client goes away, in whatever phase the answer is; that ends the answer's task.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import trio

from tests.simulators.administration import PREFIX, administer
from tests.simulators.ledger import Call, Ledger
from tests.simulators.metronome import Metronome
from tests.simulators.script import Control, ScriptError

MAX_REQUEST_HEAD = 256 * 1024
MAX_READ_AHEAD = 1024 * 1024
READ_SIZE = 64 * 1024
REASONS = {
    101: "Switching Protocols",
    200: "OK",
    201: "Created",
    307: "Temporary Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Payload Too Large",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

Headers = tuple[tuple[str, str], ...] | list[tuple[str, str]]


class BadRequest(Exception):
    """The client sent something that is not an HTTP/1.1 request this server can read."""


class Connection:
    """One accepted socket: unbuffered writes, buffered reads."""

    def __init__(self, sock: socket.socket, client_port: int) -> None:
        self.sock = sock
        self.client_port = client_port
        self.buffer = bytearray()
        self.closed = False

    async def receive(self) -> bytes:
        """Some bytes, or `b""` at the end of the stream.

        Raises OSError if the peer has reset the connection, ClosedResourceError if this side has closed it.
        """
        while not self.closed:
            await trio.lowlevel.wait_readable(self.sock)
            try:
                return self.sock.recv(READ_SIZE)
            except BlockingIOError:
                continue
        raise trio.ClosedResourceError

    async def fill(self) -> bool:
        """Read more into the buffer; False at the end of the stream."""
        received = await self.receive()
        self.buffer += received
        return bool(received)

    async def send(self, payload: bytes, ledger: Ledger, call: Call) -> None:
        """Write everything. Does not yield to other tasks unless the socket is full."""
        view = memoryview(payload)
        while True:
            try:
                count = self.sock.send(view)
            except BlockingIOError:
                count = 0
            ledger.sent(call, count)
            if count == len(view):
                return
            view = view[count:]
            await trio.lowlevel.wait_writable(self.sock)

    def close(self, *, reset: bool = False) -> None:
        """Close with FIN, or with RST if `reset`; safe to repeat."""
        if self.closed:
            return
        self.closed = True
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()

    async def take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not await self.fill():
                raise BadRequest("the body is cut")
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    async def take_line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            if len(self.buffer) > MAX_REQUEST_HEAD or not await self.fill():
                raise BadRequest("a line without end")
        return (await self.take(end + 2))[:-2]

    async def read_request(self) -> tuple[str, str, tuple[tuple[str, str], ...], bytes] | None:
        """Method, target, headers and body of the next request; None when the client closed instead."""
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if len(self.buffer) > MAX_REQUEST_HEAD:
                raise BadRequest("the head is too long")
            if not await self.fill():
                return None
        lines = (await self.take(end + 4))[:-4].decode("latin-1").split("\r\n")
        try:
            method, target, _version = lines[0].split(" ")
            headers = tuple((name, value.strip()) for name, value in (line.split(":", 1) for line in lines[1:]))
        except ValueError:
            raise BadRequest(f"not a request: {lines[0]!r}") from None
        fields = {name.lower(): value for name, value in headers}
        if "chunked" in fields.get("transfer-encoding", "").lower():
            return method, target, headers, await self._chunked_body()
        return method, target, headers, await self.take(int(fields.get("content-length", "0")))

    async def _chunked_body(self) -> bytes:
        pieces = []
        while size := int((await self.take_line()).split(b";")[0], 16):
            pieces.append(await self.take(size))
            await self.take(2)
        while await self.take_line():
            pass
        return b"".join(pieces)


class Answer:
    """The writing end of one call. Every method that writes may raise OSError when the client has gone."""

    def __init__(self, connection: Connection, call: Call, ledger: Ledger, metronome: Metronome) -> None:
        self.connection = connection
        self.call = call
        self.ledger = ledger
        self.metronome = metronome
        self.write_size: int | None = None
        """Cut every payload into HTTP chunks of this many bytes, each in a write of its own."""
        self.linger_seconds = 0.0
        """Keep the socket open so long after the client has closed its side."""
        self.keep_alive = (call.header("connection") or "").lower() != "close"
        self.chunked = False
        self.watch = trio.CancelScope()

    async def raw(self, payload: bytes) -> None:
        """Bytes as they are, whatever that does to HTTP."""
        await self.connection.send(payload, self.ledger, self.call)

    def head_bytes(self, status: int, headers: Headers) -> bytes:
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if not self.keep_alive:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    async def head(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        """Status line and headers; the body follows in chunks, or in exactly `length` bytes if that is given."""
        self.chunked = length is None
        framing = ("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))
        self.call.status = status
        self.call.head_at = trio.current_time()
        await self.raw(self.head_bytes(status, [*headers, framing]))

    async def write(self, payload: bytes) -> None:
        """A piece of the body, in one system call (or in many, by `write_size`)."""
        if not payload:
            return  # an empty HTTP chunk would end the body
        if self.write_size is None:
            await self.raw(b"%x\r\n%b\r\n" % (len(payload), payload) if self.chunked else payload)
            return
        for start in range(0, len(payload), self.write_size):
            piece = payload[start : start + self.write_size]
            await self.raw(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)
            await trio.lowlevel.checkpoint()

    async def end(self, payload: bytes = b"") -> None:
        """The last piece of the body, in one write with what ends it: clients leave as soon as they see `[DONE]`."""
        if self.write_size is not None:
            await self.write(payload)
            payload = b""
        last = b"%x\r\n%b\r\n" % (len(payload), payload) if payload and self.chunked else payload
        await self.raw(last + b"0\r\n\r\n" if self.chunked else last)
        self.ledger.close(self.call, "us", finished=True)

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole response in one write."""
        self.call.status = status
        self.call.head_at = trio.current_time()
        named = {name.lower() for name, _ in headers}
        framing = [] if "content-length" in named else [("Content-Length", str(len(body)))]
        await self.raw(self.head_bytes(status, [*headers, *framing]) + body)
        self.ledger.close(self.call, "us", finished=True)

    async def misused(self, problem: ScriptError) -> None:
        """The test asked for something that does not exist: say so, loudly enough to fail it."""
        body = json.dumps({"error": {"message": f"simulator: {problem}", "type": "simulator_error"}}).encode()
        await self.send(400, [("content-type", "application/json"), ("x-simulator-error", str(problem))], body)

    def cut(self, *, reset: bool = False) -> None:
        """Close the connection in the middle of the answer, with FIN or with RST."""
        self.keep_alive = False
        self.ledger.close(self.call, "us")
        self.connection.close(reset=reset)

    async def upgrade(self) -> Connection:
        """Stop watching for the client's close and hand over the connection (its buffer may hold bytes already)."""
        self.keep_alive = False
        self.watch.cancel()
        await trio.lowlevel.checkpoint()
        return self.connection


class Simulator:
    """A simulated upstream: subclasses say in `respond` what to answer.

    Use it in a test's own trio process (`async with OpenAI().running() as upstream:`), or let `serve` run in a nursery.
    """

    name = "simulator"

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.control = Control()
        self.metronome = Metronome()
        self.port = 0

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:PORT`"""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What a client is given as base URL."""
        return self.origin

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables that let Sluice use this simulator."""
        return {}

    async def respond(self, call: Call, answer: Answer) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[Self]:
        """Serve until the block is left; on the way out all connections are closed."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve, port)
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()

    async def serve(self, port: int = 0, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections on loopback for ever; port 0 takes a free one, `self.port` says which."""
        listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        with listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.metronome.run)
                await nursery.start(self.background)
                task_status.started(self)
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    try:
                        sock, address = listener.accept()
                    except OSError:
                        continue
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    nursery.start_soon(self._converse, Connection(sock, address[1]))

    async def background(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Work beside the connections, for subclasses that need some."""
        task_status.started()

    async def _converse(self, connection: Connection) -> None:
        number = self.ledger.connected()
        try:
            while (request := await connection.read_request()) is not None:
                if request[1].startswith(PREFIX):
                    await self._administer(connection, *request)
                elif not await self._exchange(connection, number, *request):
                    break
        except BadRequest as problem:
            connection.sock.send(f"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nX-Why: {problem}\r\n\r\n".encode())
        except OSError:
            pass  # the client reset the connection between two calls
        finally:
            connection.close()
            self.ledger.disconnected()

    async def _exchange(
        self,
        connection: Connection,
        number: int,
        method: str,
        target: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
    ) -> bool:
        """Answer one request; True if the connection can carry another."""
        call = self.ledger.open(number, method, target, headers, body)
        call.client_port = connection.client_port
        answer = Answer(connection, call, self.ledger, self.metronome)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, answer, nursery.cancel_scope)
                await self._respond(call, answer)
                nursery.cancel_scope.cancel()
        finally:
            self.ledger.close(call, "us")
        return answer.keep_alive and call.finished and not connection.closed

    async def _administer(
        self, connection: Connection, method: str, target: str, headers: tuple[tuple[str, str], ...], body: bytes
    ) -> None:
        status, described = administer(self, method, target, body)
        aside = Ledger()
        answer = Answer(connection, aside.open(0, method, target, headers, body), aside, self.metronome)
        await answer.send(status, [("content-type", "application/json")], json.dumps(described).encode())

    async def _respond(self, call: Call, answer: Answer) -> None:
        try:
            await self.respond(call, answer)
        except OSError:
            self.ledger.close(call, "client")

    async def _watch(self, answer: Answer, exchange: trio.CancelScope) -> None:
        """See the client go away while the answer is under way; pipelined bytes stay in the buffer."""
        connection = answer.connection
        with answer.watch:
            try:
                while len(connection.buffer) < MAX_READ_AHEAD and await connection.fill():
                    pass
            except (OSError, trio.ClosedResourceError):
                pass  # reset by the client, or cut by the answer, which has told the ledger so
            self.ledger.close(answer.call, "client")
            if answer.linger_seconds:
                await trio.sleep(answer.linger_seconds)
            exchange.cancel()
