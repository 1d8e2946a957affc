"""Plays one answer on a connection: latency, pace, and every fault that does not depend on a vendor's shape.

A simulator makes the `Material` (what a healthy answer consists of); `perform` sends it as the script wants it.
`arrange` decides what goes out and how it ends, without touching the network; the rest only writes.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import trio

from tests.simulators.http_server import Answer
from tests.simulators.recordings import error_recording, recording
from tests.simulators.script import ODD_EVENTS, Script, ScriptError
from tests.simulators.speech import Frame

Ending = Literal["end", "drop", "reset", "hang", "comments", "endless", "line"]
COMMENT = b": keep-alive\n\n"
LONG_WRITE = b"x" * 65536
PATIENT_GAP = 0.02
"""Seconds between the bytes of `drip` and the comments of `comments` when the script sets no gap."""
HTML_TYPE = [("content-type", "text/html")]


@dataclass(slots=True)
class Material:
    """What a healthy answer consists of, and how this upstream words its errors."""

    headers: list[tuple[str, str]]
    frames: list[Frame]
    error: Callable[[int], bytes]
    """Status to the body of a plain error."""
    error_event: Callable[[int, Any, int], bytes]
    """Status, error object and number to an event of a stream."""
    error_headers: list[tuple[str, str]] = field(default_factory=lambda: [("content-type", "application/json")])
    comment: bytes = COMMENT
    odd_event: Callable[[bytes], bytes] = lambda payload: b"data: " + payload + b"\n\n"
    length: int | None = None
    """Content-Length of an answer that is not streamed."""
    silent_pieces: int = 0
    """How many pieces it took to make such an answer: so many gaps pass before its head."""
    gzip_if_offered: bool = False
    text: str = ""


def halves(payload: bytes) -> list[Frame]:
    """A body that is not streamed as two pieces, so that a fault can strike in its middle."""
    middle = len(payload) // 2
    return [Frame("piece", payload[:middle]), Frame("piece", payload[middle:])]


async def perform(answer: Answer, script: Script, material: Material) -> None:
    """Answer the call by the script. Returns when the answer has ended or the connection is cut."""
    answer.write_size = script.bytes
    answer.linger_seconds = script.linger
    answer.call.text = material.text
    if script.delay:
        await trio.sleep(script.delay)
    try:
        if script.fault in _INSTEAD:
            await _INSTEAD[script.fault](answer, script, material)
        elif script.play is not None:
            await _play_recording(answer, script)
        elif (script.error is not None or script.status is not None) and script.fault is None:
            await refuse(answer, script, material)
        else:
            await _play(answer, script, material)
    except ScriptError as problem:
        await answer.misused(problem)


def arrange(script: Script, material: Material) -> tuple[list[Frame], Ending]:
    """The frames that go out, in order, and how the answer ends after them."""
    frames = [Frame("comment", material.comment)] * script.comments + material.frames
    if script.insert is not None:
        odd = Frame("comment", material.odd_event(ODD_EVENTS[script.insert]))
        frames.insert(_position(script, frames), odd)
    match script.fault:
        case "truncate":
            return frames[: _position(script, frames)], "end"
        case "error_mid":
            spoken = frames[: _position(script, frames)]
            return [*spoken, Frame("error", _error_event(script, material, len(spoken) + 1))], "end"
        case "drop_mid":
            return frames[: _position(script, frames)], "drop"
        case "reset_mid_chunk":
            return frames[: _position(script, frames)], "reset"
        case "hang_mid":
            return frames[: _position(script, frames)], "hang"
        case "comments":
            return frames[: _position(script, frames)], "comments"
        case "reset_after_headers":
            return [], "reset"
        case "hang_after_headers":
            return [], "hang"
        case "endless":
            return [frame for frame in frames if frame.kind in ("open", "piece")], "endless"
        case "endless_line":
            return [], "line"
        case "no_finish":
            return [frame for frame in frames if frame.kind not in ("finish", "usage")], "end"
        case "no_done":
            return [frame for frame in frames if frame.kind != "done"], "end"
        case "after_done":
            return frames + [frame for frame in frames if frame.kind in ("piece", "done")], "end"
    return frames, "end"


def _position(script: Script, frames: list[Frame]) -> int:
    """Index of the frame before which the fault strikes: after `at` pieces, and after what opens the answer."""
    pieces = [index for index, frame in enumerate(frames) if frame.kind == "piece"]
    cut = script.cut_at(len(pieces))
    if cut < len(pieces):
        return pieces[cut]
    return pieces[-1] + 1 if pieces else len(frames)


async def _play(answer: Answer, script: Script, material: Material) -> None:
    frames, ending = arrange(script, material)
    headers, squeeze = material.headers, None
    offered = "gzip" in (answer.call.header("accept-encoding") or "")
    if offered and (material.gzip_if_offered if script.gzip is None else script.gzip):
        headers = [*headers, ("content-encoding", "gzip")]
        squeeze = zlib.compressobj(wbits=31)
    length = material.length
    if length is not None:
        await trio.sleep(script.gap * material.silent_pieces)
        if squeeze or script.comments or script.first or ending != "end" or len(frames) != len(material.frames):
            length = None
    await answer.head(200, headers, length=length)
    if script.first:
        await trio.sleep(script.first)
    dressed = _dress(script, frames)
    if script.fault == "drip":
        await _drip(answer, b"".join(frame.wire for frame in dressed), script.gap or PATIENT_GAP)
        return
    gap = 0.0 if material.length is not None else script.gap
    last = await _send_frames(answer, dressed, gap, script.burst, squeeze)
    if ending == "end":
        await answer.end(last + squeeze.flush() if squeeze else last)
    else:
        await answer.write(last)
        await _break_off(answer, script, material, dressed, ending)


def _dress(script: Script, frames: list[Frame]) -> list[Frame]:
    """The frames with this script's framing habits."""
    if script.nospace:
        frames = [Frame(kind, wire.replace(b"data: ", b"data:", 1)) for kind, wire in frames]
    if not script.blank:
        frames = [Frame(kind, wire.replace(b"\n\n", b"\n")) for kind, wire in frames]
    if script.crlf:
        frames = [Frame(kind, wire.replace(b"\n", b"\r\n")) for kind, wire in frames]
    return frames


async def _send_frames(answer: Answer, frames: list[Frame], gap: float, burst: int, squeeze: Any = None) -> bytes:
    """Send all frames at their pace but the last write, which is returned: it belongs to the answer's end."""
    start, paced, waiting = trio.current_time(), 0, b""
    for count, frame in enumerate(frames):
        if waiting and count % burst == 0:
            answer.call.frames_sent = count
            await answer.write(waiting)
            waiting = b""
        if frame.kind in ("piece", "comment"):
            if gap:
                await answer.metronome.sleep_until(start + paced * gap)
            else:
                await trio.lowlevel.checkpoint()
            paced += 1
        waiting += frame.wire if squeeze is None else squeeze.compress(frame.wire) + squeeze.flush(zlib.Z_SYNC_FLUSH)
    answer.call.frames_sent = len(frames)
    return waiting


async def _drip(answer: Answer, body: bytes, gap: float) -> None:
    for index in range(len(body)):
        await answer.write(body[index : index + 1])
        await trio.sleep(gap)
    await answer.end()


async def _break_off(answer: Answer, script: Script, material: Material, frames: list[Frame], ending: Ending) -> None:
    match ending:
        case "drop" | "reset":
            await answer.raw(b'400\r\ndata: {"id":' if answer.chunked else b"")
            answer.cut(reset=ending == "reset")
        case "hang":
            await trio.sleep_forever()
        case "comments":
            await _for_ever(answer, [material.comment], script.gap or PATIENT_GAP)
        case "endless":
            await _for_ever(answer, [frame.wire for frame in frames if frame.kind == "piece"], script.gap)
        case "line":
            await answer.write(b"data: ")
            await _for_ever(answer, [LONG_WRITE], script.gap)


async def _for_ever(answer: Answer, payloads: list[bytes], gap: float) -> None:
    while True:
        for payload in payloads:
            await trio.sleep(gap)
            await answer.write(payload)
            answer.call.frames_sent += 1


async def refuse(answer: Answer, script: Script, material: Material) -> None:
    """An error answer: a recorded one, or the vendor's shape with the script's status."""
    extra = [("retry-after", script.retry_after)] if script.retry_after is not None else []
    if script.error is not None:
        found = error_recording(script.error)
        kept = [header for header in found.headers if not (extra and header[0].startswith("retry-after"))]
        await answer.send(script.status or found.status, [*kept, *extra], found.body)
    else:
        status = script.status or 500
        await answer.send(status, [*material.error_headers, *extra], material.error(status))


async def _play_recording(answer: Answer, script: Script) -> None:
    found = recording(script.play or "")
    await answer.head(found.status, found.headers)
    for line in found.body.splitlines(keepends=True) if script.gap else ():
        await answer.write(line)
        await trio.sleep(script.gap)
    await answer.end(b"" if script.gap else found.body)


def _error_event(script: Script, material: Material, number: int) -> bytes:
    """The recorded error as an event if the script names one, else the vendor's shape."""
    if script.error is None:
        status = script.status or 500
        return material.error_event(status, json.loads(material.error(status)), number)
    found = error_recording(script.error)
    return material.error_event(found.status, json.loads(found.body), number)


# What is answered instead of the material.


async def _close_before_headers(answer: Answer, script: Script, material: Material) -> None:
    answer.cut()


async def _reset_before_headers(answer: Answer, script: Script, material: Material) -> None:
    answer.cut(reset=True)


async def _hang_before_headers(answer: Answer, script: Script, material: Material) -> None:
    await trio.sleep_forever()


async def _html(answer: Answer, script: Script, material: Material) -> None:
    body = error_recording("errors/generic_502.html").body
    await answer.send(script.status or 502, HTML_TYPE, body)


async def _empty(answer: Answer, script: Script, material: Material) -> None:
    await answer.send(script.status or 200, material.headers, b"")


async def _error_200(answer: Answer, script: Script, material: Material) -> None:
    body = error_recording(script.error).body if script.error else material.error(script.status or 500)
    await answer.send(200, material.error_headers, body)


async def _error_200_event(answer: Answer, script: Script, material: Material) -> None:
    await answer.head(200, material.headers)
    await answer.end(_error_event(script, material, 1))


async def _wrong_type(answer: Answer, script: Script, material: Material) -> None:
    others = [header for header in material.headers if header[0] != "content-type"]
    await answer.head(200, [*others, ("content-type", "text/plain; charset=utf-8")])
    await answer.end(await _send_frames(answer, material.frames, script.gap, script.burst))


async def _short_length(answer: Answer, script: Script, material: Material) -> None:
    body = b"".join(frame.wire for frame in material.frames)
    await answer.head(200, material.headers, length=len(body))
    await answer.write(body[: len(body) // 2])
    answer.cut()


async def _redirect(answer: Answer, script: Script, material: Material) -> None:
    port = answer.connection.sock.getsockname()[1]
    await answer.send(307, [("location", f"http://localhost:{port}{answer.call.target}")], b"")


async def _gzip_bomb(answer: Answer, script: Script, material: Material) -> None:
    await answer.send(200, [*material.headers, ("content-encoding", "gzip")], gzip.compress(bytes(10 * 1024 * 1024)))


async def _switching(answer: Answer, script: Script, material: Material) -> None:
    answer.keep_alive = False
    await answer.raw(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    await trio.sleep_forever()


async def _informational(answer: Answer, script: Script, material: Material) -> None:
    await answer.raw(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 1000)
    await _play(answer, script, material)


async def _many_headers(answer: Answer, script: Script, material: Material) -> None:
    material.headers = material.headers + [(f"x-filler-{number}", "x" * 16) for number in range(2000)]
    await _play(answer, script, material)


async def _big_header(answer: Answer, script: Script, material: Material) -> None:
    material.headers = [*material.headers, ("x-filler", "x" * 1024 * 1024)]
    await _play(answer, script, material)


async def _bad_status_line(answer: Answer, script: Script, material: Material) -> None:
    await answer.raw(b"220 mail.example ESMTP\r\n\r\n")
    answer.cut()


_INSTEAD = {
    "close_before_headers": _close_before_headers,
    "reset_before_headers": _reset_before_headers,
    "hang_before_headers": _hang_before_headers,
    "html": _html,
    "empty": _empty,
    "error_200": _error_200,
    "error_200_event": _error_200_event,
    "wrong_type": _wrong_type,
    "short_length": _short_length,
    "redirect": _redirect,
    "gzip_bomb": _gzip_bomb,
    "switching": _switching,
    "informational": _informational,
    "many_headers": _many_headers,
    "big_header": _big_header,
    "bad_status_line": _bad_status_line,
}

FAULTS_WITHOUT_BODY = frozenset(_INSTEAD)
"""Faults that replace the whole answer; the others strike in the middle of one."""
