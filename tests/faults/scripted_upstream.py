"""An OpenAI simulator that a test can tell to say any bytes at all, so that it can break HTTP itself, not only OpenAI's words.

    upstream.script = answering(HEAD + b"data: …")          # or any `async def script(call, answer)`

Where no script is set, and for every other path, it is the usual simulator with its `sim:` words; its ledger counts both.
"""

from collections.abc import Awaitable, Callable, Sequence

import trio

from tests.simulators.http_server import Answer
from tests.simulators.ledger import Call
from tests.simulators.openai_compatible import OpenAICompatible
from tests.simulators.speech import encode

Script = Callable[[Call, Answer], Awaitable[None]]

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
UNTIL_CLOSE = STREAM + b"\r\n"
"""A head without length or chunks: the body ends with the connection (RFC 9112 section 6.3)."""


class ScriptedUpstream(OpenAICompatible):
    """`script` answers every call but the list of models; None: the simulator does, by its words."""

    def __init__(self, *, keys: Sequence[str] | None = None) -> None:
        super().__init__("openai", keys=keys)
        self.script: Script | None = None

    async def respond(self, call: Call, answer: Answer) -> None:
        if self.script is None or call.method == "GET":
            await super().respond(call, answer)
        else:
            answer.keep_alive = False
            await self.script(call, answer)


def answering(payload: bytes, *, pieces: int = 0, then: str = "close") -> Script:
    """Send these bytes, in one write or in pieces of so many bytes, and end: `close` (FIN), `reset`, or `hang`."""

    async def script(call: Call, answer: Answer) -> None:
        size = pieces or len(payload) or 1
        for start in range(0, len(payload), size):
            await answer.raw(payload[start : start + size])
            if pieces:
                await trio.lowlevel.checkpoint()
        if then == "hang":
            await trio.sleep_forever()
        answer.ledger.close(call, "us", finished=then == "close")
        answer.cut(reset=then == "reset")

    return script


def flooding(head: bytes, block: bytes, *, at_most: int) -> Script:
    """After `head` this block over and over, as fast as it is taken, until the client goes or so many bytes are out."""

    async def script(call: Call, answer: Answer) -> None:
        await answer.raw(head)
        for _ in range(max(1, at_most // len(block))):
            await answer.raw(block)
            await trio.lowlevel.checkpoint()
        await trio.sleep_forever()

    return script


def event(text: str | None = None, *, finish: str | None = None, **delta: object) -> bytes:
    """One chunk of OpenAI's stream as an event."""
    if text is not None:
        delta["content"] = text
    return b"data: " + encode(chunk(delta, finish)) + b"\n\n"


def chunk(delta: object, finish: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion.chunk",
        "created": 1760000000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [choice],
    }


def stream_of(*texts: str) -> bytes:
    """A whole, healthy event stream."""
    return b"".join(map(event, texts)) + event(finish="stop") + b"data: [DONE]\n\n"
