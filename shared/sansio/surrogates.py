"""Mends JSON whose strings hold half a character: an escaped UTF-16 surrogate without its partner.

Upstreams written in JavaScript may cut a text between the two halves of an emoji: one chunk ends with `"\\ud83d"`, the next
begins with `"\\udc4b"`. Each half alone is no Unicode: strict parsers refuse it, UTF-8 cannot carry it. A half at the end of a
string is therefore held back until the same place of a later document brings the other half; an orphan becomes U+FFFD.
"""

import json
import re
from typing import Any

import msgspec

Path = tuple[str | int, ...]
"""A place in a document: object keys, and positions in arrays (an element's own `index` where it has one)."""

_HIGH_AT_END = re.compile("[\ud800-\udbff]\\Z")
_LONE = re.compile("[\ud800-\udfff]")


class SurrogateJoiner:
    """The halves of one stream of documents that add up to texts."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[Path, str] = {}

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def mend(self, document: bytes) -> bytes:
        """`document` without halves, compact. Raises `ValueError` or `RecursionError` when it is not JSON."""
        return msgspec.json.encode(self._walk(json.loads(document), ()))

    def give_up(self, *path: str | int) -> bytes | None:
        """A document that holds U+FFFD at every place under `path` where a half waits in vain; None if there is none."""
        orphans = [held for held in self._held if held[: len(path)] == path]
        document: Any = None
        for orphan in orphans:
            del self._held[orphan]
            document = _with("\ufffd", orphan, document)
        return msgspec.json.encode(document) if orphans else None

    def _walk(self, value: Any, path: Path) -> Any:
        if isinstance(value, str):
            return self._joined(value, path)
        if isinstance(value, dict):
            return {_whole(name): self._walk(member, (*path, name)) for name, member in value.items()}
        if isinstance(value, list):
            return [self._walk(member, (*path, _place(member, position))) for position, member in enumerate(value)]
        return value

    def _joined(self, text: str, path: Path) -> str:
        if not text:
            return text
        half = self._held.pop(path, "")
        if half:
            # The two escapes come from different documents, so nobody has put them together yet.
            text = (half + text).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if _HIGH_AT_END.search(text):
            self._held[path] = text[-1]
            text = text[:-1]
        return _whole(text)


def _whole(text: str) -> str:
    return _LONE.sub("\ufffd", text)


def _place(member: Any, position: int) -> int:
    index = member.get("index") if isinstance(member, dict) else None
    return index if isinstance(index, int) else position


def _with(text: str, path: Path, document: Any) -> Any:
    """`document` (None: a new one) with `text` at `path`."""
    if not path:
        return text
    first, rest = path[0], path[1:]
    if isinstance(first, str):
        members: dict[str, Any] = document or {}
        members[first] = _with(text, rest, members.get(first))
        return members
    elements: list[Any] = document or []
    known = next((element for element in elements if isinstance(element, dict) and element["index"] == first), None)
    changed = _with(text, rest, known or {"index": first}) if rest else text
    return elements if known else [*elements, changed]
