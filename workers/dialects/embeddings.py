"""OpenAI's embeddings: a list of vectors, as numbers or as base64 of little-endian 32-bit floats, whichever was asked for.

Clients decode the form that they asked for and nothing else, and not every server knows both: the other one is converted.
"""

import base64
import binascii
import struct
from typing import Any

import msgspec

from shared.errors import KINDS, Failure
from shared.schema.events import Complete, Event, Failed, Whole
from workers.dialects import refusals
from workers.dialects.openai import usage_of
from workers.dialects.refusal_rules import OPENAI, Rules

_encode = msgspec.json.Encoder().encode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_numbers = msgspec.json.Decoder(list[float]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_vectors = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


class EmbeddingsDecoder:
    """The decoder of one call. `as_base64`: which of the two forms the caller asked for."""

    def __init__(self, *, as_base64: bool, rules: Rules = OPENAI) -> None:
        self._as_base64 = as_base64
        self._rules = rules

    def feed(self, frame: bytes) -> list[Event]:
        """The events of the whole body."""
        try:
            answer = _decode_object(frame)
            if "data" not in answer:
                said: Any = msgspec.json.decode(frame)
                return [Failed(refusals.reported(said, self._rules))]
            answer["data"] = msgspec.Raw(_encode([self._converted(each) for each in _decode_vectors(answer["data"])]))
            usage = usage_of(msgspec.json.decode(answer.get("usage", msgspec.Raw(b"null"))))
        except (msgspec.MsgspecError, ValueError, RecursionError, struct.error, OverflowError):
            return [Failed(Failure("protocol_error", KINDS["protocol_error"].meaning))]
        return [*([usage] if usage else []), Whole(_encode(answer)), Complete()]

    def end(self) -> list[Event]:
        return []

    def _converted(self, entry: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
        vector = entry.get("embedding", msgspec.Raw(b"null"))
        is_base64 = bytes(vector).startswith(b'"')
        if is_base64 == self._as_base64:
            return entry
        return entry | {"embedding": msgspec.Raw(_encode(numbers(vector) if is_base64 else packed(vector)))}


def numbers(vector: msgspec.Raw) -> list[float]:
    """The vector that a base64 text holds. Raises `ValueError`."""
    try:
        data = base64.b64decode(_decode_text(vector), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    return [number for (number,) in struct.iter_unpack("<f", data)]


def packed(vector: msgspec.Raw) -> str:
    """A vector of numbers as base64."""
    values = _decode_numbers(vector)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
