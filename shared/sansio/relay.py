"""Answers that come in one piece and go on as they are: a body is gathered, looked at by its decoder, and handed on.

Only `model` is ours: the caller reads the name that it asked for.
"""

from typing import Final

import msgspec

from shared.errors import GatewayError, fail
from shared.schema.events import Complete, Event, Failed, Usage, Whole

LIMIT_BYTES: Final = 32 * 1024 * 1024
"""The largest body: more than the vectors that fit into one request of OpenAI's."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class BodyGatherer:
    """One body. `feed` has no frame for anybody before `end` has the only one; raises `protocol_error` beyond `limit_bytes`."""

    __slots__ = ("_limit", "_pieces", "_size")

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            self._pieces.clear()
            raise fail("protocol_error", f"The upstream sent an answer of more than {self._limit} bytes.")
        return []

    def end(self) -> list[bytes]:
        return [b"".join(self._pieces)]


class Relay:
    """Hands on one `Whole`. `usage`: what the upstream counted. `model`: the name that the caller used."""

    def __init__(self, *, model: str) -> None:
        self.usage: Usage | None = None
        self._model = model
        self._body: bytes | None = None
        self._ended = False

    def feed(self, event: Event) -> list[bytes]:
        """Raises the failure of a `Failed`, and on `Complete` what `end` raises."""
        if self._ended:
            return []
        if isinstance(event, Usage):
            self.usage = event
        elif isinstance(event, Whole):
            self._body = event.body
        elif isinstance(event, Failed):
            self._ended = True
            raise GatewayError(event.failure)
        elif isinstance(event, Complete):
            return self.end()
        return []

    def end(self) -> list[bytes]:
        """The one body. Raises `protocol_error` if there was none."""
        if self._ended:
            return []
        self._ended = True
        if self._body is None:
            raise fail("protocol_error", "The upstream's answer holds nothing.")
        return [_encode(_decode(self._body) | {"model": self._model})]
