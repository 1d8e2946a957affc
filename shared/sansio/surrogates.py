"""JSON that strict parsers refuse because of its text: an upstream's is mended, a caller's is refused in clear words.

Upstreams written in JavaScript may cut a text between the two halves of an emoji: one chunk ends with the escaped UTF-16
surrogate `"\\ud83d"`, the next begins with `"\\udc4b"`. Each half alone is no Unicode: strict parsers refuse it, UTF-8 cannot
carry it. A half at the end of a string is therefore held back until the same place of a later document brings the other half;
an orphan becomes U+FFFD.

A caller's request goes on to the upstream as it came, so what no parser looks at must be sound as well: UTF-8 throughout, no
half characters, no nesting that overruns somebody's stack. The checks are searches in C over the whole body that build none
of its values, so that ten hostile megabytes cost milliseconds and little memory.
"""

import json
import re
from itertools import accumulate
from typing import Any, Final

import msgspec

from shared.errors import GatewayError, fail

DEEPEST: Final = 200
"""Levels of arrays and objects in a request."""

MOST_CONTAINERS: Final = 100_000
"""Arrays and objects in a request, and strings with brackets in them: each costs a parser much more than its two bytes."""

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


_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
_skim = msgspec.json.Decoder(msgspec.Raw).decode
_STEP = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


def check_request_text(body: bytes) -> None:
    """Raises `invalid_request` unless `body` is UTF-8, not nested too deeply and without half characters. Whether it is JSON
    is for the parser to say."""
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise _refused(f"it is not UTF-8 at byte {error.start}") from None
    if body.count(b"[") + body.count(b"{") > DEEPEST:
        _check_nesting(body)
    if b"\\ud" in body or b"\\uD" in body:
        _check_halves(body)


def _check_halves(body: bytes) -> None:
    try:
        _skim(body)
    except msgspec.DecodeError as error:
        text = str(error)
        about_halves = "surrogate" in text or "hex escape" in text
        raise _refused(f"half of a surrogate pair is no character ({text})" if about_halves else text) from None


def _check_nesting(body: bytes) -> None:
    # Brackets and the quotes of the strings. Two quotes side by side can go: what follows stays inside or outside a string.
    skeleton = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    if skeleton.count(b'"') > 2 * MOST_CONTAINERS:
        raise _refused(f"it has more than {MOST_CONTAINERS} strings with brackets in them")
    brackets = b"".join(skeleton.split(b'"')[::2])
    if brackets.count(b"[") + brackets.count(b"{") > MOST_CONTAINERS:
        raise _refused(f"it has more than {MOST_CONTAINERS} arrays and objects")
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > DEEPEST:
        raise _refused(f"it is nested more than {DEEPEST} levels deep")


def _refused(reason: str) -> GatewayError:
    return fail("invalid_request", f"We could not parse the JSON body of your request: {reason}.", code="invalid_json")
