"""A simulator of FlowGPT: a conversation is created, then a signed call streams JSON lines.

    async with FlowGPT(clock=lambda: 1_760_000_000).running() as upstream:
        upstream.base_url, upstream.tokens, upstream.prompt_ids          # the settings
        upstream.create.next(status=500)                                 # the next conversation
        upstream.control.next(fault="drop_mid")                          # the next chat; also by words of the question

Every header is compared to the letter. A wrong token is a 401; a missing or wrong header, a bad signature, a timestamp more
than `skew_seconds` away from `clock` and a nonce that was used before are a 403, and the call's note `refused` says which.
Answers carry a `Date` header from the same clock.

Options of a chat beside those of `script`: `preamble=1` puts an analysis that ends in `Response:**` before the answer;
`late=1` lets that marker turn up after more than 150 characters; `junk=1` mixes in lines that are not JSON, other events,
and a `data` that is no string; `no_event=1` leaves `event` out; `open_end=1` leaves out the last line end.
`call.text` is what a reader is meant to see in the end.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any

from tests.simulators.http_server import Answer, Simulator
from tests.simulators.ledger import Call
from tests.simulators.playback import Material, halves, perform
from tests.simulators.recordings import error_recording
from tests.simulators.script import Control, Script, ScriptError, Vocabulary, answer_pieces
from tests.simulators.speech import Frame, encode

JSON_TYPE = ("content-type", "application/json")
VOCABULARY = Vocabulary(options=frozenset({"preamble", "late", "junk", "no_event", "open_end"}))
SHIPPED_TEMPLATE = "{timestamp}{nonce}{device_id}"
FIXED_HEADERS = {
    "accept": "*/*",
    "accept-language": "en",
    "content-type": "application/json",
    "origin": "https://flowgpt.com",
    "referer": "https://flowgpt.com/",
    "x-flow-language": "en",
}
CHAT_FIELDS = {
    "model": str,
    "nsfw": bool,
    "question": str,
    "temperature": int | float,
    "userId": str,
    "promptId": str,
    "conversationId": str,
    "documentIds": list,
    "generateImage": bool,
    "generateAudio": bool,
}
PREAMBLE = ("**Analysis:** the user ", "asks. **Final Resp", "onse:**\n\n")
LATE = ("x" * 160, " The phrase Response:** appears late and must stay. ")
JUNK = (
    b"not json at all\n",
    b'{"event":"metadata","data":{"messageId":"m1"}}\n',
    b"\n",
    b'{"event":"ping"}\n',
    b'{"event":"text","data":null}\n',
    b"[1,2]\n",
)
_NONCE = re.compile(r"[0-9a-f]{32}")


def sign(template: str, *, timestamp: str, nonce: str, device_id: str, authorization: str) -> str:
    """MD5 of the filled-in template, in lower-case hex."""
    text = template.format(timestamp=timestamp, nonce=nonce, device_id=device_id, authorization=authorization)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class FlowGPT(Simulator):
    """`tokens` maps each bearer token to its device id; `prompt_ids` None accepts every prompt."""

    name = "flowgpt"

    def __init__(
        self,
        *,
        tokens: Mapping[str, str] | None = None,
        prompt_ids: frozenset[str] | None = None,
        template: str = SHIPPED_TEMPLATE,
        clock: Callable[[], float] = time.time,
        skew_seconds: float = 300,
    ) -> None:
        super().__init__()
        self.tokens = dict(tokens or {"simulated-token": "SIMULATED-DEVICE-0001"})
        self.prompt_ids = prompt_ids
        self.template = template
        self.clock = clock
        self.skew_seconds = skew_seconds
        self.create = Control()
        self.conversations: dict[str, dict[str, Any]] = {}
        self._nonces: set[str] = set()

    @property
    def settings(self) -> dict[str, str]:
        return {
            "FLOWGPT_BASE_URL": self.base_url,
            "FLOWGPT_BEARER_TOKEN": ",".join(self.tokens),
            "FLOWGPT_DEVICE_ID": ",".join(self.tokens.values()),
            "FLOWGPT_SIGNATURE_TEMPLATE": self.template,
        }

    async def respond(self, call: Call, answer: Answer) -> None:
        """Check the headers, then route."""
        routes = {"/conversation/create": self._create, "/v3/chat": self._chat}
        route = routes.get(call.path)
        if route is None or call.method != "POST":
            await self._refuse(answer, 404, "path")
        elif (refusal := self._wrong_headers(call, signed=call.path == "/v3/chat")) is not None:
            await self._refuse(answer, *refusal)
        else:
            try:
                await route(call, answer, call.json())
            except ScriptError as problem:
                await answer.misused(problem)
            except (ValueError, AttributeError):
                await self._refuse(answer, 400, "body")

    async def _refuse(self, answer: Answer, status: int, why: str) -> None:
        answer.call.notes["refused"] = why
        recorded = {401: "flowgpt_401", 403: "flowgpt_403_signature"}.get(status)
        body = error_recording(recorded).body if recorded else _error(status)
        await answer.send(status, [JSON_TYPE, *self._date()], body)

    def _date(self) -> list[tuple[str, str]]:
        return [("date", formatdate(self.clock(), usegmt=True))]

    def _wrong_headers(self, call: Call, *, signed: bool) -> tuple[int, str] | None:
        authorization = call.header("authorization") or ""
        device_id = self.tokens.get(authorization.removeprefix("Bearer "))
        if device_id is None or not authorization.startswith("Bearer "):
            return 401, "token"
        wrong = [name for name, value in FIXED_HEADERS.items() if call.header(name) != value]
        if call.header("x-flow-device-id") != device_id:
            wrong.append("x-flow-device-id")
        if wrong:
            return 403, f"headers: {', '.join(wrong)}"
        return self._wrong_signature(call, device_id, authorization) if signed else None

    def _wrong_signature(self, call: Call, device_id: str, authorization: str) -> tuple[int, str] | None:
        timestamp, nonce = call.header("x-timestamp") or "", call.header("x-nonce") or ""
        expected = sign(
            self.template, timestamp=timestamp, nonce=nonce, device_id=device_id, authorization=authorization
        )
        if not timestamp.isascii() or not timestamp.isdigit():
            return 403, "timestamp"
        if abs(int(timestamp) - self.clock()) > self.skew_seconds:
            return 403, "skew"
        if not _NONCE.fullmatch(nonce):
            return 403, "nonce"
        if call.header("x-signature") != expected:
            return 403, "signature"
        if nonce in self._nonces:
            return 403, "repeated nonce"
        self._nonces.add(nonce)
        return None

    async def _create(self, call: Call, answer: Answer, body: dict[str, Any]) -> None:
        script = self.create.script(call.key, "", "")
        prompt_id, messages = body.get("promptId"), body.get("messages")
        good_messages = bool(messages) and all(isinstance(entry.get("content"), str) for entry in messages or ())
        if self.prompt_ids is not None and prompt_id not in self.prompt_ids:
            await self._refuse(answer, 404, "prompt")
        elif not prompt_id or body.get("location") != "CHAT_PAGE" or not good_messages:
            await self._refuse(answer, 400, "body")
        else:
            conversation_id = f"conv-test-{len(self.conversations) + 1:04}"
            self.conversations[conversation_id] = {"prompt_id": prompt_id, "key": call.key, "messages": messages}
            created = {"id": conversation_id, "promptId": prompt_id, "location": "CHAT_PAGE"}
            await perform(answer, script, self._whole(encode(created)))

    async def _chat(self, call: Call, answer: Answer, body: dict[str, Any]) -> None:
        wrong = [name for name, kind in CHAT_FIELDS.items() if not isinstance(body.get(name), kind)]
        if wrong:
            await self._refuse(answer, 400, f"fields: {', '.join(wrong)}")
            return
        conversation = self.conversations.get(body["conversationId"])
        if conversation is None or (conversation["prompt_id"], conversation["key"]) != (body["promptId"], call.key):
            await self._refuse(answer, 404, "conversation")
            return
        script = self.control.script(call.key, "", body["question"], VOCABULARY)
        await perform(answer, script, self._streamed(body["question"], script))

    def _streamed(self, question: str, script: Script) -> Material:
        pieces = answer_pieces(question, script)
        text = "".join(pieces)
        if "preamble" in script.extra:
            pieces, text = [*PREAMBLE, *pieces], text.lstrip()
        elif "late" in script.extra:
            pieces = [*LATE, *pieces]
            text = "".join(pieces)
        return Material(
            headers=[("content-type", "application/octet-stream"), *self._date()],
            frames=lines(pieces, script.extra),
            error=_error,
            error_event=lambda status, error, number: encode({"event": "error", "data": error["message"]}) + b"\n",
            comment=b"\n",
            odd_event=lambda payload: payload + b"\n",
            text=text,
        )

    def _whole(self, payload: bytes) -> Material:
        return Material(
            headers=[JSON_TYPE, *self._date()],
            frames=halves(payload),
            error=_error,
            error_event=lambda status, error, number: encode(error),
            comment=b"\n",
            length=len(payload),
        )


def lines(pieces: list[str], options: Mapping[str, str]) -> list[Frame]:
    """One JSON line per piece, with whatever the options mix in."""
    frames = []
    if "junk" in options:
        frames.append(Frame("open", b'{"event":"start","data":"ignored"}\n'))
    for index, piece in enumerate(pieces):
        line = {"data": piece} if "no_event" in options else {"event": "text", "data": piece}
        frames.append(Frame("piece", encode(line) + b"\n"))
        if "junk" in options:
            frames.append(Frame("comment", JUNK[index % len(JUNK)]))
    if "junk" in options:
        frames.append(Frame("done", b'{"event":"end","data":""}\n'))
    if "open_end" in options:
        kind, wire = frames[-1]
        frames[-1] = Frame(kind, wire.removesuffix(b"\n"))
    return frames


def _error(status: int) -> bytes:
    return encode({"statusCode": status, "message": f"simulated error {status}"})
