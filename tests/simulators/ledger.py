"""What a simulator remembers: every call with its bytes and times, every connection, and a way to wait for any of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import trio


@dataclass(eq=False, slots=True)
class Call:
    """One request and what became of it. Times are `trio.current_time()` of the simulator's process.

    A call is *open* until `closed_at` is set. `finished` says whether the whole answer that the script asked for was
    written; `closed_by` says who ended it: `"client"` when the peer closed or reset the connection before that,
    `"us"` when the answer was complete or the simulator cut it on purpose.
    """

    number: int
    connection: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    started: float
    status: int | None = None
    head_at: float | None = None
    last_byte_at: float | None = None
    closed_at: float | None = None
    closed_by: Literal["client", "us"] | None = None
    finished: bool = False
    bytes_sent: int = 0
    frames_sent: int = 0
    client_port: int = 0
    """The client's end of the connection, which tells whose it is."""
    text: str = ""
    """The text that this call's answer is made of (choice 0), known before the first byte is sent."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the simulator found worth remembering, such as `refused` or `unsigned`."""

    @property
    def path(self) -> str:
        """Path of the request, percent-decoded, without the query."""
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))

    def header(self, name: str) -> str | None:
        """Value of the first header of that name, whatever its case; None if it was not sent."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)

    @property
    def key(self) -> str:
        """The credential: last word of the Authorization header, or an empty string."""
        words = (self.header("authorization") or "").split()
        return words[-1] if words else ""

    def json(self) -> Any:
        """The request body, parsed; raises ValueError if it is not JSON."""
        return json.loads(self.body)

    @property
    def open(self) -> bool:
        return self.closed_at is None


@dataclass(eq=False, slots=True)
class Ledger:
    """All calls of one simulator, in order of arrival; answers questions and wakes those who wait for something."""

    calls: list[Call] = field(default_factory=list)
    calls_seen: int = 0
    connections_open: int = 0
    connections_opened: int = 0
    open_by_key: Counter[str] = field(default_factory=Counter)
    peak_by_key: Counter[str] = field(default_factory=Counter)
    """The most calls that were open at the same moment with one credential."""
    _waiters: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    @property
    def open_calls(self) -> list[Call]:
        return [call for call in self.calls if call.open]

    def by_key(self, key: str) -> list[Call]:
        """Calls made with that credential."""
        return [call for call in self.calls if call.key == key]

    def by_path(self, path: str) -> list[Call]:
        """Calls whose decoded path ends with `path`."""
        return [call for call in self.calls if call.path.endswith(path)]

    async def wait_for(self, predicate: Callable[[Ledger], bool]) -> None:
        """Return as soon as the predicate holds; it is asked again after every change, a sent frame included.

        Waits for ever if it never does: use it inside `trio.fail_after`.
        """
        await trio.lowlevel.checkpoint()
        while not predicate(self):
            await self._waiters.park()

    async def wait_for_call(self, number: int = 1) -> Call:
        """The call with that number, counted from 1, as soon as its request has been read."""
        await self.wait_for(lambda ledger: ledger.calls_seen >= number)
        return next(call for call in self.calls if call.number == number)

    async def wait_closed(self, call: Call) -> Call:
        await self.wait_for(lambda _: not call.open)
        return call

    async def wait_until_idle(self) -> None:
        """Return when no call is open."""
        await self.wait_for(lambda ledger: not ledger.open_calls)

    def clear(self) -> None:
        """Forget closed calls; numbers go on counting."""
        self.calls = self.open_calls
        self.changed()

    def begin_again(self) -> None:
        """Forget everything and count from one again; only while no call is open."""
        self.calls = []
        self.calls_seen = 0
        self.peak_by_key.clear()
        self.changed()

    # The rest is for the server.

    def changed(self) -> None:
        if self._waiters:
            self._waiters.unpark_all()

    def connected(self) -> int:
        self.connections_opened += 1
        self.connections_open += 1
        self.changed()
        return self.connections_opened

    def disconnected(self) -> None:
        self.connections_open -= 1
        self.changed()

    def open(
        self, connection: int, method: str, target: str, headers: tuple[tuple[str, str], ...], body: bytes
    ) -> Call:
        self.calls_seen += 1
        call = Call(self.calls_seen, connection, method, target, headers, body, trio.current_time())
        self.calls.append(call)
        self.open_by_key[call.key] += 1
        self.peak_by_key[call.key] = max(self.peak_by_key[call.key], self.open_by_key[call.key])
        self.changed()
        return call

    def sent(self, call: Call, count: int) -> None:
        call.bytes_sent += count
        call.last_byte_at = trio.current_time()
        self.changed()

    def close(self, call: Call, by: Literal["client", "us"], *, finished: bool = False) -> None:
        """Close the call unless it is closed already: the first reason is the true one."""
        if call.closed_at is None:
            call.closed_at = trio.current_time()
            call.closed_by = by
            call.finished = finished
            self.open_by_key[call.key] -= 1
            self.changed()
