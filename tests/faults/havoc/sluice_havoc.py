"""A provider that harms the worker that runs it: what somebody else's package may do, done on purpose.

    havoc         the words of the last user message, slowly
    havoc-die     kills the worker before it says anything
    havoc-block   blocks the event loop for eight seconds, then says the words
    havoc-eat     takes memory until there is none
    havoc-raise   raises what nobody expects

`after=N` as the first word has it happen after N pieces of the answer. With `HAVOC=no` in its environment a worker
does no harm.
"""

import os
import signal
import time
from collections.abc import Sequence

import msgspec

from shared.errors import Failure
from shared.sansio.sse import ServerSentEvent
from shared.schema.advertisement import Model
from workers.dialects import refusals
from workers.dialects.openai import ChatDecoder
from workers.dialects.refusal_rules import OPENAI
from workers.exchange import HttpReply
from workers.provider import Call, Plan, ScriptedStream, Step, Upstream

BLOCK_SECONDS = 8.0
MOUTHFUL_BYTES = 8 * 1024 * 1024
GAP_SECONDS = 0.05


class Havoc:
    """The provider."""

    name = "havoc"
    endpoints: Sequence[str] = ("chat",)
    credentials: Sequence[object] = ()
    accepts_any_model = False
    caller_credentials = False

    def __init__(self, upstream: Upstream) -> None:
        self.timeouts = upstream.timeouts
        self.models = [Model(name) for name in ("havoc", "havoc-die", "havoc-block", "havoc-eat", "havoc-raise")]

    def plan(self, call: Call) -> Plan:
        yield from ()
        words = msgspec.json.decode(call.body["messages"])[-1]["content"].split()
        after = int(words.pop(0).partition("=")[2]) if words[0].startswith("after=") else 0
        decoder = _Harmful(call.model, after)
        if not after:
            decoder.harm()
        return ScriptedStream([*_said(call, words), *_end(call)], decoder)

    def refusal(self, reply: HttpReply) -> Failure:
        return refusals.refusal(reply, OPENAI)


class _Harmful(ChatDecoder):
    """Decodes, and does harm after some pieces."""

    def __init__(self, model: str, after: int) -> None:
        super().__init__()
        self._model = model
        self._left = after or -1

    def feed(self, frame):  # type: ignore[no-untyped-def]
        if self._left == 0:
            self.harm()
        self._left -= 1
        return super().feed(frame)

    def harm(self) -> None:
        if os.environ.get("HAVOC") == "no":
            return
        if self._model == "havoc-die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._model == "havoc-block":
            time.sleep(BLOCK_SECONDS)
        elif self._model == "havoc-eat":
            eaten = []
            while True:
                eaten.append(b"\1" * MOUTHFUL_BYTES)
        elif self._model == "havoc-raise":
            raise LookupError("nobody expects sk-havoc-0123456789abcdef in a traceback")


def _said(call: Call, words: Sequence[str]) -> list[Step]:
    return [
        _event(call, {"content": (" " if place else "") + word}, None, GAP_SECONDS if place else 0.0)
        for place, word in enumerate(words)
    ]


def _end(call: Call) -> list[Step]:
    return [_event(call, {}, "stop", 0.0), Step(0.0, ServerSentEvent(b"[DONE]"))]


def _event(call: Call, delta: dict[str, str], finish: str | None, pause: float) -> Step:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {
        "id": f"chatcmpl-{call.nonce}", "object": "chat.completion.chunk", "created": int(call.now), "model": call.model,
        "choices": [choice],
    }  # fmt: skip
    return Step(pause, ServerSentEvent(msgspec.json.encode(chunk)))
