"""A server in this process, and a client that sees every byte of what it says."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from frontend.server import ServerSettings, serve

PATIENCE_SECONDS = 3


class Cut(Exception):
    """The connection ended in the middle of a response; `how` is "closed" (FIN) or "reset" (RST)."""

    def __init__(self, how, so_far):
        super().__init__(f"{how} after {so_far[-200:]!r}")
        self.how = how
        self.so_far = so_far


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Running:
    """A server that is being served; `ended` tells when `serve` has returned."""

    host: str
    port: int
    shutdown: trio.Event
    ended: trio.Event
    clients: list["Client"] = field(default_factory=list)

    async def connect(self, *, receive_buffer=None):
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect((self.host, self.port))
        client = Client(trio.SocketStream(sock))
        self.clients.append(client)
        return client

    async def ask(self, request):
        """One request on a connection of its own."""
        client = await self.connect()
        await client.send(request)
        return await client.answer()


@asynccontextmanager
async def running(app, **limits):
    """Serve `app` on a free port; afterwards everything of it has ended, or the test fails."""
    limits.setdefault("graceful_seconds", 0)
    shutdown, ended = trio.Event(), trio.Event()

    async def serve_and_tell(task_status):
        await serve(app, ServerSettings(port=0, **limits), shutdown=shutdown, task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        host, port = await nursery.start(partial(_with_status, serve_and_tell))
        server = Running(host, port, shutdown, ended)
        yield server
        shutdown.set()
        with trio.fail_after(PATIENCE_SECONDS):
            await ended.wait()
        for client in server.clients:
            await trio.aclose_forcefully(client.stream)
        nursery.cancel_scope.cancel()


async def _with_status(function, *, task_status):
    await function(task_status)


class Client:
    def __init__(self, stream):
        self.stream = stream
        self.unread = b""

    async def send(self, data):
        await self.stream.send_all(data)

    async def answer(self, *, to_head=False):
        """The next response. Raises Cut if the connection ends before the response does."""
        with trio.fail_after(PATIENCE_SECONDS):
            head = await self._until(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split()[1])
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
            if 100 <= status < 200:
                return Answer(status, headers, b"")
            if to_head or status in {204, 304}:
                body = b""
            elif "content-length" in headers:
                body = await self._exactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                body = await self._chunks()
            else:
                body = await self._rest()
            return Answer(status, headers, body)

    async def received(self, wanted):
        """Wait until these bytes have come; return everything up to and including them."""
        with trio.fail_after(PATIENCE_SECONDS):
            return await self._until(wanted)

    async def closed(self):
        """Wait for the end of the connection; return how it ended and what came before."""
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                while True:
                    await self._more()
            except Cut as cut:
                return cut.how, cut.so_far

    async def leave(self, how):
        """Leave as clients do: "fin" (close), "rst" (reset) or "half-close" (shut down the sending side)."""
        if how == "half-close":
            await self.stream.send_eof()
            return
        if how == "rst":
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            piece = await self._chunk()
            if not piece:
                return
            yield piece

    async def _chunk(self):
        size = int((await self._until(b"\r\n")).strip(), 16)
        piece = await self._exactly(size)
        assert await self._exactly(2) == b"\r\n"
        return piece

    async def _chunks(self):
        return b"".join([piece async for piece in self.pieces()])

    async def _until(self, wanted):
        while wanted not in self.unread:
            await self._more()
        end = self.unread.index(wanted) + len(wanted)
        found, self.unread = self.unread[:end], self.unread[end:]
        return found

    async def _exactly(self, count):
        while len(self.unread) < count:
            await self._more()
        found, self.unread = self.unread[:count], self.unread[count:]
        return found

    async def _rest(self):
        """A body that ends with its connection; a reset does not count as the end."""
        try:
            while True:
                await self._more()
        except Cut as cut:
            if cut.how == "reset":
                raise
            body, self.unread = self.unread, b""
            return body

    async def _more(self):
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            raise Cut("reset", self.unread) from None
        if not data:
            raise Cut("closed", self.unread)
        self.unread += data


def get(path="/", *, version="1.1", headers=""):
    return f"GET {path} HTTP/{version}\r\nHost: test\r\n{headers}\r\n".encode()


def post(path="/", body=b"{}", *, headers=""):
    return f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body
