"""Cuts a body into lines: one JSON value per LF, a CRLF tolerated, blank lines dropped, the last LF optional.

Nothing but LF ends a line. General line splitters also cut at U+2028, U+2029 and U+0085, which occur unescaped inside JSON.
"""

from typing import Final

from shared.errors import fail

LIMIT_BYTES: Final = 8 * 1024 * 1024
"""The longest line."""


class LineSplitter:
    """One body's splitter. Raises `protocol_error` when a line exceeds `limit_bytes`."""

    __slots__ = ("_limit", "_partial", "_partial_bytes")

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._partial: list[bytes] = []
        self._partial_bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that end within `piece`, without their ends."""
        lines = piece.split(b"\n")
        rest = lines.pop()
        if lines and self._partial:
            lines[0] = b"".join((*self._partial, lines[0]))
            self._partial.clear()
            self._partial_bytes = 0
        if rest:
            self._partial.append(rest)
            self._partial_bytes += len(rest)
            if self._partial_bytes > self._limit:
                raise fail("protocol_error", f"The upstream sent a line of more than {self._limit} bytes.")
        return [line for line in map(_without_cr, lines) if line.strip()]

    def end(self) -> list[bytes]:
        """The upstream closed: the last line, if it lacked its LF."""
        return self.feed(b"\n")


def _without_cr(line: bytes) -> bytes:
    return line.removesuffix(b"\r")
