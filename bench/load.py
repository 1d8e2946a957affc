"""The callers: one process, one epoll, any number of streams, every one of them checked to the token.

    python -m bench.load '{"port": 8088, "key": "sk-…", "streams": 500, "tokens": 240, "rate": 20, "ramp": 2, "window": 8}'

Writes JSON lines: `{"mark": "start"|"end", "tokens": n}` at both ends of the measured window (so that its parent can read the
CPU times at these moments), and in the end the result: times to the first token, wrong and failed streams.
"""

import json
import re
import selectors
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_CONTENT = re.compile(rb'"content":"(w\d+ )"')
_WHOLE = re.compile(rb'"content":"((?:w\d+ )*)"')


@dataclass
class Plan:
    """`rate` 0: as fast as possible. `ramp`: seconds over which the streams start, evenly. `window`: seconds that are measured
    after the ramp, or 0 for everything until the last stream ends. `concurrent`: instead of a ramp, so many at any time."""

    port: int
    key: str
    streams: int
    tokens: int
    rate: int
    ramp: float = 0.0
    window: float = 0.0
    stream: bool = True
    concurrent: int = 0
    model: str = "bench"


@dataclass
class Caller:
    sock: socket.socket
    began: float
    first_token: float | None = None
    tokens: int = 0
    rest: bytes = b""
    texts: list[bytes] = field(default_factory=list)
    unsent: bytes = b""


class Load:
    """Runs a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        body = {
            "model": plan.model,
            "stream": plan.stream,
            "messages": [{"role": "user", "content": f"tokens={plan.tokens} rate={plan.rate}"}],
        }
        encoded = json.dumps(body).encode()
        self._request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {plan.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(encoded)}\r\n\r\n"
        ).encode() + encoded
        self._expected = b"".join(b"w%d " % number for number in range(plan.tokens))
        self._selector = selectors.EpollSelector()
        self._open = 0
        self._idle: list[socket.socket] = []
        self.tokens = 0
        self.wrong: list[str] = []
        self.first_tokens: list[float] = []
        self.ended_at = 0.0

    def run(self) -> dict[str, Any]:
        plan = self.plan
        began = time.monotonic()
        started = 0
        window_at = began + plan.ramp if plan.window else None
        end_at = began + plan.ramp + plan.window if plan.window else None
        if not plan.window:
            self._mark("start")
        while started < plan.streams or self._open:
            now = time.monotonic()
            due = plan.streams if not plan.ramp else int(plan.streams * min(1.0, (now - began) / plan.ramp))
            if plan.concurrent:
                due = min(plan.streams, started + plan.concurrent - self._open)
            while started < min(due, plan.streams):
                self._begin()
                started += 1
            if window_at is not None and now >= window_at:
                self._mark("start")
                window_at = None
            if end_at is not None and now >= end_at:
                self._mark("end")
                end_at = None
            for key, mask in self._selector.select(0.002 if started < plan.streams else 0.02):
                if mask & selectors.EVENT_WRITE:
                    self._write(key.data)
                if mask & selectors.EVENT_READ:
                    self._read(key.data)
        self.ended_at = time.monotonic()
        if not plan.window:
            self._mark("end")
        return {
            "first_tokens_ms": sorted(round(seconds * 1000, 3) for seconds in self.first_tokens),
            "wrong": self.wrong[:5],
            "wrong_count": len(self.wrong),
            "seconds": self.ended_at - began,
            "tokens": self.tokens,
        }

    def _mark(self, name: str) -> None:
        print(json.dumps({"mark": name, "tokens": self.tokens, "time": time.monotonic()}), flush=True)

    def _begin(self) -> None:
        if self._idle:
            sock = self._idle.pop()  # whole answers reuse connections, as SDKs do
        else:
            sock = socket.create_connection(("127.0.0.1", self.plan.port), timeout=10)
            sock.setblocking(False)
        caller = Caller(sock, time.monotonic(), unsent=self._request)
        self._open += 1
        self._selector.register(sock, selectors.EVENT_READ, caller)
        self._write(caller)

    def _write(self, caller: Caller) -> None:
        with suppress(BlockingIOError):
            caller.unsent = caller.unsent[caller.sock.send(caller.unsent) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if caller.unsent else 0)
        self._selector.modify(caller.sock, events, caller)

    def _read(self, caller: Caller) -> None:
        try:
            piece = caller.sock.recv(262144)
        except ConnectionError:
            piece = b""
        data = caller.rest + piece
        cut = data.rfind(b"}") + 1  # a token is never cut by a read, since its event ends with a brace
        found = (_CONTENT if self.plan.stream else _WHOLE).findall(data[:cut])
        caller.rest = data[cut:]
        if found and caller.first_token is None:
            caller.first_token = time.monotonic()
            self.first_tokens.append(caller.first_token - caller.began)
        if found:
            caller.texts += found
            self.tokens += len(found) if self.plan.stream else self.plan.tokens
        ended = b"[DONE]" in caller.rest or b"[DONE]" in piece if self.plan.stream else bool(found)
        if ended or not piece:
            self._end(caller, piece)

    def _end(self, caller: Caller, piece: bytes) -> None:
        self._open -= 1
        self._selector.unregister(caller.sock)
        if piece and not self.plan.stream:
            self._idle.append(caller.sock)
        else:
            caller.sock.close()
        if b"".join(caller.texts) != self._expected:
            self.wrong.append(f"{len(caller.texts)} tokens, then {piece[-200:]!r}")


if __name__ == "__main__":
    print(json.dumps(Load(Plan(**json.loads(sys.argv[1]))).run()), flush=True)
