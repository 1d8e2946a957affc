"""Cuts an event stream (`text/event-stream`) into its events, on bytes, wherever the network happens to cut it.

The rules are those of the WHATWG standard: one BOM at the start is dropped; a line ends with LF, CRLF or CR, and nothing else
does (U+2028 occurs unescaped inside JSON); a line that begins with `:` is a comment; a field's value loses one leading space;
the `data` lines of an event are joined by LF; a blank line dispatches, except where there is no data.

Upstreams need four things beyond the standard:

* DashScope writes the real HTTP status into a comment, `:HTTP_STATUS/400`; it is handed out with the event.
* The last event may lack its blank line; it counts if it is whole: JSON, or `[DONE]`.
* `tolerant`: an `id:` or `event:` line that arrives while data is pending begins a new event (DashScope without blank lines).
* A body that is no event stream at all (a JSON answer, an error object, a firewall's page) is handed out whole, as bytes, at
  the end: no line of an event stream begins with `{`, `[` or `<`.
"""

import json
from typing import Final

import msgspec

from shared.errors import fail

LIMIT_BYTES: Final = 8 * 1024 * 1024
"""The largest event, and the largest body that is no event stream."""

_BOM: Final = b"\xef\xbb\xbf"
_STATUS: Final = b":HTTP_STATUS/"


class ServerSentEvent(msgspec.Struct, frozen=True, gc=False):
    """One event. `event` is the `event:` field; `status` an HTTP status that the upstream put beside the event."""

    data: bytes
    event: str = "message"
    status: int | None = None


Frame = ServerSentEvent | bytes
"""What a decoder is fed: an event, or (from `Splitter.end` only) a whole body that was no event stream."""


class Splitter:
    """One stream's splitter. `feed` and `end` raise `protocol_error` when an event exceeds `limit_bytes`."""

    __slots__ = (
        "_after_cr", "_begun", "_body", "_event", "_first", "_limit", "_partial", "_partial_bytes", "_pending",
        "_pending_bytes", "_plain", "_status", "_tolerant",
    )  # fmt: skip

    def __init__(self, tolerant: bool = False, limit_bytes: int = LIMIT_BYTES) -> None:
        self._tolerant = tolerant
        self._limit = limit_bytes
        self._begun = False
        self._first = True  # the first line of all, the only one that may begin with a byte order mark
        self._after_cr = False  # the last byte was a CR: an LF that follows belongs to it
        self._partial: list[bytes] = []  # pieces of a line whose end has not come
        self._partial_bytes = 0
        self._pending: list[bytes] = []  # the data lines of an event whose end has not come
        self._pending_bytes = 0
        self._event = ""
        self._status: int | None = None
        self._plain = True  # the pending event has no line but one `data: `
        self._body: list[bytes] | None = None  # the lines of a body that is no event stream

    def feed(self, piece: bytes) -> list[Frame]:
        """The events that end within `piece`."""
        if self._after_cr or b"\r" in piece:
            piece = self._with_one_line_end(piece)
        if not piece:
            return []
        if self._body is not None:
            self._keep(piece)
            return []
        lines = piece.split(b"\n")
        rest = lines.pop()
        events: list[Frame] = []
        if lines:
            self._take(lines, events)
        if rest:
            self._keep(rest)
        return events

    def end(self) -> list[Frame]:
        """The upstream closed: the event that is still pending, if it is whole; or the body that was no event stream."""
        events: list[Frame] = []
        if self._partial and self._body is None:
            self._take([b""], events)
        if self._body is not None:
            return [b"\n".join((*self._body, b"".join(self._partial))).strip()]
        if self._pending and _is_whole(b"\n".join(self._pending)):
            self._dispatch(events)
        return events

    def _take(self, lines: list[bytes], events: list[Frame]) -> None:
        """Go through complete lines. The hot loop: nearly all are `data: …` with a blank line after it."""
        if self._partial:
            lines[0] = b"".join((*self._partial, lines[0]))
            self._partial.clear()
            self._partial_bytes = 0
        if not self._begun and not self._begins(lines):
            return
        pending = self._pending
        for line in lines:
            if not line:
                if len(pending) == 1 and self._plain and pending[0]:
                    events.append(ServerSentEvent(pending.pop()))
                else:
                    self._dispatch(events)
            elif line[:6] == b"data: " and not pending:
                pending.append(line[6:])
            else:
                self._field(line, events)

    def _begins(self, lines: list[bytes]) -> bool:
        """Look at the first line that is not blank: does an event stream begin here?"""
        if self._first:
            self._first = False
            lines[0] = lines[0].removeprefix(_BOM)
        first = next((line for line in lines if line.strip()), None)
        if first is None:
            return False
        self._begun = True
        if first.lstrip().startswith((b"{", b"[", b"<")):
            self._body = lines
            self._pending_bytes = sum(map(len, lines))
        return self._body is None

    def _field(self, line: bytes, events: list[Frame]) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._plain = False
            self._pending.append(value)
            self._pending_bytes += len(value) + 1
            self._check_size()
        elif line.startswith(_STATUS):
            if (digits := line[len(_STATUS) :].strip()[:9]).isdigit():
                self._plain = False
                self._status = int(digits)
        elif name in (b"event", b"id"):
            if self._tolerant and self._pending:
                self._dispatch(events)
            if name == b"event":
                self._plain = False
                self._event = value.decode("utf-8", "replace")

    def _dispatch(self, events: list[Frame]) -> None:
        if data := b"\n".join(self._pending):
            events.append(ServerSentEvent(data, self._event or "message", self._status))
        self._pending.clear()
        self._pending_bytes = 0
        self._event, self._status, self._plain = "", None, True

    def _with_one_line_end(self, piece: bytes) -> bytes:
        """CRLF and CR as LF. A CR at the end of `piece` counts at once, so that no event waits for the next read."""
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        if piece:
            self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _keep(self, rest: bytes) -> None:
        self._partial.append(rest)
        self._partial_bytes += len(rest)
        self._check_size()

    def _check_size(self) -> None:
        if self._partial_bytes + self._pending_bytes > self._limit:
            self._partial.clear()
            self._pending.clear()
            self._body = None
            raise fail("protocol_error", f"The upstream sent an event of more than {self._limit} bytes.")


def _is_whole(data: bytes) -> bool:
    if data.strip() == b"[DONE]":
        return True
    try:
        json.loads(data)  # accepts lone surrogates, which a decoder may be able to mend
    except (ValueError, RecursionError):
        return False
    return True
