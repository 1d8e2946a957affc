"""Puts the fragments of tool calls into OpenAI's order: `id`, `type` and name once, then only more of the arguments.

On the wire a call is a sequence of fragments with the same `index`. Upstreams differ: some repeat `type` or an empty `id`
with every fragment (which would overwrite the real one in a client that takes the last), some leave `index` out and send
whole calls.
"""

from typing import Any, Final

import msgspec

MOST_CALLS: Final = 4096
"""An index from here on is none, nor is a negative one."""

_decode = msgspec.json.Decoder(list[dict[str, Any]]).decode


class ToolCalls:
    """The tool calls of one choice. `text_bytes` counts names and arguments, for estimates."""

    __slots__ = ("_seen", "text_bytes")

    def __init__(self) -> None:
        self._seen: dict[int, set[str]] = {}  # what the caller knows of each call
        self.text_bytes = 0

    def fragments(self, value: msgspec.Raw | list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`value`, the `tool_calls` of one delta, with each fragment reduced to what is new. Raises
        `msgspec.MsgspecError` when `value` is no list of objects."""
        return [self._reduced(call) for call in (_decode(value) if isinstance(value, msgspec.Raw) else value)]

    def _reduced(self, call: dict[str, Any]) -> dict[str, Any]:
        index = self._index(call)
        seen = self._seen.setdefault(index, set())
        reduced: dict[str, Any] = {"index": index}
        for name, value in call.items():
            if name in ("index", "function") or value is None or value == "":
                continue
            if name not in ("id", "type") or name not in seen:
                reduced[name] = value
        if "type" not in seen:
            reduced.setdefault("type", "function")
        seen.update(reduced)
        function = call.get("function")
        if isinstance(function, dict):
            reduced["function"] = self._reduced_function(function, seen)
        return reduced

    def _reduced_function(self, function: dict[str, Any], seen: set[str]) -> dict[str, Any]:
        reduced = {name: value for name, value in function.items() if value is not None}
        name = reduced.pop("name", "")
        if name and isinstance(name, str) and "name" not in seen:
            seen.add("name")
            reduced = {"name": name, **reduced}
            self.text_bytes += len(name)
        arguments = reduced.setdefault("arguments", "")
        if not isinstance(arguments, str):  # an object where OpenAI has its text
            reduced["arguments"] = arguments = msgspec.json.encode(arguments).decode()
        self.text_bytes += len(arguments)
        return reduced

    def _index(self, call: dict[str, Any]) -> int:
        index = call.get("index")
        if type(index) is int and 0 <= index < MOST_CALLS:
            return index
        last = max(self._seen, default=-1)
        return last + 1 if call.get("id") or last < 0 else last
