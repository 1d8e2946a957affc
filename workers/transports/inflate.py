"""Unpacks compressed bodies piece by piece, so that no answer can fill the memory.

We ask for `identity` and mostly get it, but some gateways compress event streams whatever they are asked. zlib is
given a bound for every piece, and an answer that unpacks to far more than text does is refused: DEFLATE reaches
1032 to 1, event streams of near-identical chunks stay below 30 to 1.
"""

import zlib

from workers.exchange import ProtocolViolation, TooLarge

PIECE_BYTES = 64 * 1024
"""Most bytes of one piece."""
BOMB_RATIO = 100
"""How many bytes one compressed byte may stand for, once ..."""
BOMB_FLOOR_BYTES = 1024 * 1024
"""... that many bytes have been unpacked."""

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # the two formats that `gzip` and `deflate` name (RFC 9110 section 8.4.1)


class Inflater:
    """Body bytes in with `feed`, unpacked pieces out with `take`, until that gives b""."""

    __slots__ = ("_packed", "_packed_bytes", "_plain_bytes", "_supported", "_zlib")

    def __init__(self, coding: str) -> None:
        """An unknown coding is refused with the first byte of body, so that status and headers remain of use."""
        self._supported = coding in ("gzip", "x-gzip", "deflate")
        self._zlib = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._packed = b""
        self._packed_bytes = 0
        self._plain_bytes = 0

    def feed(self, data: bytes) -> None:
        """Raises ProtocolViolation for a coding that we do not know or bytes behind the end."""
        if not self._supported:
            raise ProtocolViolation("the answer has a content coding that was not asked for")
        if self._zlib.eof:
            raise ProtocolViolation("bytes behind the end of the compressed answer")
        self._packed += data
        self._packed_bytes += len(data)

    def take(self) -> bytes:
        """The next piece; b"" if more input is needed. Raises ProtocolViolation, TooLarge."""
        if self._zlib.eof:
            return b""
        try:
            piece = self._zlib.decompress(self._packed, PIECE_BYTES)
        except zlib.error as error:
            raise ProtocolViolation("the compressed answer is damaged") from error
        self._packed = self._zlib.unconsumed_tail
        if self._zlib.unused_data:
            raise ProtocolViolation("bytes behind the end of the compressed answer")
        self._plain_bytes += len(piece)
        if self._plain_bytes > max(BOMB_FLOOR_BYTES, BOMB_RATIO * self._packed_bytes):
            raise TooLarge("the compressed answer unpacks to far more than was sent")
        return piece

    def end(self) -> None:
        """The body has ended. Raises ProtocolViolation if it should have gone on."""
        if self._packed_bytes and not self._zlib.eof:
            raise ProtocolViolation("the compressed answer is cut")
