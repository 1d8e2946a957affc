"""Plays a recorded scene of Socket.IO frames to whoever connects: the server's frames verbatim, the client's awaited."""

from __future__ import annotations

from functools import cache
from itertools import groupby

from tests.simulators.recordings import recording
from tests.simulators.script import ScriptError

RECORDED_JOB_ID = "00000000-0000-4000-8000-0000000000b1"

Scene = tuple[tuple[str, str], ...]
"""Direction (`C` or `S`) and frame."""


@cache
def scenes(file: str) -> tuple[Scene, ...]:
    """The scenes of a recording, in order; a comment that begins with `scene` starts one. Raises ScriptError."""
    lines = recording(file).body.decode().splitlines()
    number = 0
    numbered: list[tuple[int, str]] = []
    for line in lines:
        number += line.startswith("# scene")
        if line and not line.startswith("#"):
            numbered.append((number, line))
    return tuple(
        tuple((line[0], line[2:]) for _, line in group) for _, group in groupby(numbered, lambda entry: entry[0])
    )


def scene(file: str, number: int) -> Scene:
    """One scene, counted from 1. Raises ScriptError if it does not exist."""
    found = scenes(file)
    if not 1 <= number <= len(found):
        raise ScriptError(f"{file} has {len(found)} scenes, not {number}")
    return found[number - 1]
