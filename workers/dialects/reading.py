"""Reading the JSON documents of one stream as upstreams really send them: half characters, bad UTF-8, garbage in between."""

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from shared.sansio.surrogates import SurrogateJoiner

T = TypeVar("T")


class JsonReader(Generic[T]):
    """The reader of one stream. `decode` makes a document of its bytes, and may be exchanged in between.

    `malformed`: how many documents made no sense, in whole or in part. `joins`: a half character at the end of a text is held
    back until the next document brings the other half; else (where each document repeats the whole text) it is left out.
    """

    __slots__ = ("_joiner", "_joins", "decode", "malformed")

    def __init__(self, decode: Callable[[bytes], T], *, joins: bool = True) -> None:
        self.decode = decode
        self.malformed = 0
        self._joins = joins
        self._joiner: SurrogateJoiner | None = None

    def read(self, data: bytes) -> T | None:
        """The document, None if it makes no sense; whether that counts is for the caller to say. Never holds a line end."""
        try:
            if not data.isascii():
                data = self._utf8(data)
            if b"\n" in data:  # no line end may reach the caller's event stream
                data = msgspec.json.format(data, indent=-1)
            if self._joiner is not None and self._joiner.holding:
                data = self._joiner.mend(data)
            return self.decode(data)
        except msgspec.ValidationError:
            return None
        except msgspec.DecodeError:
            return self._mended(data)
        except (ValueError, RecursionError):
            return None

    def orphans(self, *path: str | int) -> T | None:
        """A document of the half characters under `path` that wait in vain; None if there are none."""
        document = self._joiner and self._joiner.give_up(*path)
        return self.decode(document) if document else None

    def _mended(self, data: bytes) -> T | None:
        """Not JSON by the letter: perhaps because of half a character."""
        if self._joiner is None or not self._joins:
            self._joiner = SurrogateJoiner()
        try:
            mended = self._joiner.mend(data)
            if not self._joins:
                self._joiner = None
            return self.decode(mended)
        except (ValueError, RecursionError):
            return None

    def _utf8(self, data: bytes) -> bytes:
        try:
            data.decode()
        except UnicodeDecodeError:
            self.malformed += 1
            return data.decode("utf-8", "replace").encode()
        return data
