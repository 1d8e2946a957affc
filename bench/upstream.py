"""An upstream that costs next to nothing: one process, one epoll, OpenAI chunks at a steady pace or as fast as they are read.

The last message says what to send: `tokens=200 rate=20` (`rate=0`: as fast as the socket takes it). Token `i` is `w{i} `, so
that whoever reads can check that nothing is lost, doubled or out of order.
"""

import heapq
import re
import selectors
import socket
import sys
import time

_ORDER = re.compile(rb"tokens=(\d+) rate=(\d+)")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_START = b'data: {"id":"chatcmpl-bench0001","object":"chat.completion.chunk","created":1760000000,"model":"bench",'
_REST = b'"service_tier":"default","system_fingerprint":"fp_bench","choices":[{"index":0,"delta":'
FLAT_OUT_BATCH = 16


def event(delta: bytes, finish: bytes = b"null") -> bytes:
    return _START + _REST + delta + b',"logprobs":null,"finish_reason":' + finish + b"}]}\n\n"


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


FIRST = chunk(event(b'{"role":"assistant","content":""}'))
LAST = chunk(event(b"{}", b'"stop"')) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
TOKENS = [chunk(event(b'{"content":"w%d "}' % number)) for number in range(20_000)]


class Client:
    """One connection and the answer that is on its way."""

    __slots__ = ("interval", "next_token", "received", "sock", "tokens", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.unsent = b""
        self.tokens = 0
        self.next_token = 0
        self.interval = 0.0


class Upstream:
    """Serves until it is killed."""

    def __init__(self, listener: socket.socket) -> None:
        self._selector = selectors.EpollSelector()
        self._listener = listener
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._due: list[tuple[float, int, Client]] = []
        self._order = 0

    def run(self) -> None:
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for key, mask in self._selector.select(wait):
                if key.data is None:
                    self._accept()
                elif mask & selectors.EVENT_READ:
                    self._read(key.data)
                else:
                    self._flush(key.data)
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                self._tick(heapq.heappop(self._due)[2], now)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ, Client(sock))

    def _read(self, client: Client) -> None:
        try:
            piece = client.sock.recv(65536)
        except (ConnectionError, BlockingIOError):
            piece = b""
        if not piece:
            self._drop(client)
            return
        client.received += piece
        head, separator, body = client.received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not separator or (length and len(body) < int(length[1])):
            return
        order = _ORDER.search(body)
        client.received = b""
        if order is None:
            self._send(client, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return
        client.tokens, rate = int(order[1]), int(order[2])
        client.next_token = 0
        client.interval = 1 / rate if rate else 0.0
        self._send(client, _HEAD + FIRST)
        self._schedule(client, time.monotonic())

    def _schedule(self, client: Client, when: float) -> None:
        self._order += 1
        heapq.heappush(self._due, (when, self._order, client))

    def _tick(self, client: Client, now: float) -> None:
        if client.sock.fileno() < 0:
            return
        batch = 1 if client.interval else FLAT_OUT_BATCH
        piece = b"".join(TOKENS[client.next_token : min(client.next_token + batch, client.tokens)])
        client.next_token += batch
        if client.next_token >= client.tokens:
            piece += LAST
        self._send(client, piece)
        if client.next_token < client.tokens and not client.unsent:
            self._schedule(client, now + client.interval)

    def _send(self, client: Client, piece: bytes) -> None:
        client.unsent += piece
        self._flush(client)

    def _flush(self, client: Client) -> None:
        blocked = len(client.unsent)
        try:
            sent = client.sock.send(client.unsent) if client.unsent else 0
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            self._drop(client)
            return
        client.unsent = client.unsent[sent:]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        if self._selector.get_key(client.sock).events != events:
            self._selector.modify(client.sock, events, client)
            if blocked and not client.unsent and 0 < client.next_token < client.tokens:
                self._schedule(client, time.monotonic())

    def _drop(self, client: Client) -> None:
        self._selector.unregister(client.sock)
        client.sock.close()


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    Upstream(listener).run()


if __name__ == "__main__":
    main()
