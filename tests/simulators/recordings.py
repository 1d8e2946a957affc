"""Reads the recordings and the error bodies of `tests/wire`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.simulators.script import ScriptError

WIRE = Path(__file__).parent.parent / "wire"


@dataclass(frozen=True, slots=True)
class Recording:
    """A response body exactly as sent, with its status, its headers, and what a correct decoder gets out of it."""

    file: str
    provider: str
    wire: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    request: dict[str, Any]
    expect: dict[str, Any]


@cache
def recordings() -> dict[str, Recording]:
    """All recordings by file name; error bodies as `errors/NAME`."""
    entries = json.loads((WIRE / "index.json").read_text())["fixtures"]
    entries += json.loads((WIRE / "errors" / "index.json").read_text())["errors"]
    return {entry["file"]: _recording(entry) for entry in entries}


def _recording(entry: dict[str, Any]) -> Recording:
    return Recording(
        file=entry["file"],
        provider=entry["provider"],
        wire=entry.get("wire", "error"),
        status=entry["status"],
        headers=tuple(entry.get("headers", {}).items()),
        body=(WIRE / entry["file"]).read_bytes(),
        request=entry.get("request", {}),
        expect=entry["expect"],
    )


def recording(name: str) -> Recording:
    """The recording of that file name. Raises ScriptError if there is none."""
    try:
        return recordings()[name]
    except KeyError:
        raise ScriptError(f"no recording {name!r}") from None


def error_recording(name: str) -> Recording:
    """The error body of that file name; `errors/` and `.json` may be left out. Raises ScriptError."""
    known = recordings()
    for candidate in (name, f"errors/{name}", f"errors/{name}.json"):
        if candidate in known:
            return known[candidate]
    raise ScriptError(f"no error body {name!r}")
