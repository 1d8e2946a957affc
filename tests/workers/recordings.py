"""The recordings of `tests/wire` played to a decoder, and what came out of it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import GatewayError
from shared.sansio.completion import AnswerAssembler, ChunkRenderer
from shared.sansio.lines import LineSplitter
from shared.sansio.sse import Splitter
from shared.schema.events import Complete, Failed, Usage

WIRE = Path(__file__).parents[1] / "wire"
STREAMS = {entry["file"]: entry for entry in json.loads((WIRE / "index.json").read_text())["fixtures"]}
ERRORS = {entry["file"]: entry for entry in json.loads((WIRE / "errors" / "index.json").read_text())["errors"]}

NAMES = {"fallback_id": "chatcmpl-ours", "created": 1, "model": "asked"}


@dataclass
class Told:
    """What a caller was told in the end. `answer` is the JSON body, `chunks` the stream; `error` the class that ended it."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    answer: dict[str, Any] | None = None
    error: str | None = None
    usage: Usage | None = None

    def text(self, name: str = "content", choice: int = 0) -> str:
        """The texts of one field of one choice, strung together."""
        deltas = [each["delta"] for chunk in self.chunks for each in chunk["choices"] if each["index"] == choice]
        return "".join(delta.get(name) or "" for delta in deltas)

    def finish_reasons(self) -> dict[int, str]:
        return {
            choice["index"]: choice["finish_reason"]
            for chunk in self.chunks
            for choice in chunk["choices"]
            if choice["finish_reason"] is not None
        }


def body(name: str) -> bytes:
    return (WIRE / name).read_bytes()


def framed(framing: str, pieces: list[bytes]) -> list[Any]:
    """The frames that a decoder is fed when a body arrives in these pieces."""
    if framing == "json":
        return [b"".join(pieces)]
    splitter = LineSplitter() if framing == "lines" else Splitter(tolerant=framing == "sse-tolerant")
    frames = [frame for piece in pieces for frame in splitter.feed(piece)]
    return frames + splitter.end()


def decoded(decoder: Any, frames: list[Any]) -> list[Any]:
    """All events; after the end the decoder must be silent."""
    events = [event for frame in frames for event in decoder.feed(frame)]
    if not any(isinstance(event, Failed | Complete) for event in events):
        events += decoder.end()
    ends = [position for position, event in enumerate(events) if isinstance(event, Failed | Complete)]
    assert ends in ([], [len(events) - 1]), "something followed the end"
    return events


def told(events: list[Any]) -> Told:
    """What callers are told because of these events: the stream, and the whole answer, which must agree."""
    result = Told()
    renderer, assembler = ChunkRenderer(**NAMES, include_usage=True), AnswerAssembler(**NAMES)
    for machine in (renderer, assembler):
        rendered: list[bytes] = []
        result.error = None
        try:
            for event in events:
                rendered += machine.feed(event)
            rendered += machine.end()
        except GatewayError as error:
            result.error = error.failure.kind
        if machine is renderer:
            result.chunks = [json.loads(chunk) for chunk in rendered]
            assert not any(b"\n" in chunk or b"\r" in chunk for chunk in rendered)
        elif rendered:
            result.answer = json.loads(rendered[0])
    result.usage = renderer.usage
    return result
