"""FlowGPT: a "model" is a prompt of the site, an answer costs two calls, and the second one is signed.

    POST /conversation/create   the whole history; answers with the id of a new conversation
    POST /v3/chat               the last message again, as the question; answers with JSON lines, one for each piece of text

The stream has no end marker, no usage and no finish reason: a clean end of the body is the end. Some prompts make the model
write a preamble before its answer, which `PrefixCleaner` takes off. Temperature is the only parameter that has a counterpart.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from shared.errors import KINDS, Failure, GatewayError, fail
from shared.schema.advertisement import Model
from shared.schema.events import Complete, Delta, Event, Failed, Finish
from workers.dialects import refusals
from workers.dialects.messages import history, text_of, unsupported
from workers.dialects.parameters import left_out
from workers.dialects.reading import JsonReader
from workers.dialects.refusal_rules import FLOWGPT
from workers.exchange import HttpReply, HttpRequest
from workers.provider import Call, Credential, Factory, HttpStream, Plan, Timeouts, Upstream

PREAMBLE_END: Final = "Response:**"
LONGEST_PREAMBLE: Final = 150
"""Characters: a longer text without the mark has no preamble."""

USUAL_TEMPERATURE: Final = msgspec.Raw(b"0.7")

_encode = msgspec.json.Encoder().encode
_HTML: Final = re.compile(rb"\s*<")


class FlowGPT:
    """The provider. Each of its credentials is a token with the device id that belongs to it."""

    name = "flowgpt"
    endpoints: Sequence[str] = ("chat",)
    accepts_any_model = False
    caller_credentials = False

    def __init__(self, upstream: Upstream) -> None:
        options = upstream.options
        self.timeouts: Timeouts = upstream.timeouts
        self.models: Sequence[Model] = [Model(name, owned_by="flowgpt") for name in upstream.models]
        self.credentials: Sequence[Credential] = [
            Credential(one.id, one.secret, {"device_id": device_id})
            for one, device_id in zip(upstream.credentials, options.get("device_ids", ()), strict=True)
        ]
        self._prompt_ids = {name: upstream.spelled.get(name, name) for name in upstream.models}
        self._base_url = upstream.base_url
        self._template: str = options.get("signature_template", "{timestamp}{nonce}{device_id}")
        self._text_events = frozenset(options.get("text_events", ("text",)))
        self._engine: str = options.get("engine", "")
        self._drops_unsupported = upstream.drops_unsupported
        origin: str = options.get("origin", "")
        self._headers = (
            ("accept", "*/*"),
            ("accept-language", "en"),
            ("content-type", "application/json"),
            ("origin", origin),
            ("referer", f"{origin}/"),
            ("user-agent", upstream.user_agent),
            ("x-flow-language", "en"),
        )

    def plan(self, call: Call) -> Plan:
        prompt_id = self._prompt_ids.get(call.model)
        if prompt_id is None:
            raise fail("model_not_found", f"The model `{call.model[:128]}` does not exist.", param="model")
        if call.credential is None:
            raise fail("no_credential", "There is no token for this upstream.")
        dropped = left_out(call.body, {"temperature"}, drops=self._drops_unsupported)
        messages = [_plain(message, position) for position, message in enumerate(history(call.body))]
        headers = self._headers_for(call.credential)
        opening = {"promptId": prompt_id, "location": "CHAT_PAGE", "messages": messages}
        created = yield HttpRequest(
            method="POST", url=f"{self._base_url}/conversation/create", headers=headers, body=_encode(opening)
        )
        question = {
            "model": self._engine,
            "nsfw": False,
            "question": messages[-1]["content"],
            "temperature": _temperature(call.body),
            "userId": "",
            "promptId": prompt_id,
            "conversationId": self._conversation(created),
            "documentIds": [],
            "generateImage": False,
            "generateAudio": False,
        }
        request = HttpRequest(
            method="POST",
            url=f"{self._base_url}/v3/chat",
            headers=(*headers, *self._signed(call, call.credential)),
            body=_encode(question),
        )
        return HttpStream(request, LinesDecoder(self._text_events), "lines", dropped=dropped)

    def refusal(self, reply: HttpReply) -> Failure:
        if reply.status == 403 and ("x-amzn-waf-action" in reply.headers or _HTML.match(reply.body)):
            return Failure("blocked", KINDS["blocked"].meaning, upstream_status=403)
        return refusals.refusal(reply, FLOWGPT)

    def _headers_for(self, credential: Credential) -> tuple[tuple[str, str], ...]:
        return (
            ("authorization", f"Bearer {credential.secret}"),
            *self._headers,
            ("x-flow-device-id", credential.extra["device_id"]),
        )

    def _signed(self, call: Call, credential: Credential) -> tuple[tuple[str, str], ...]:
        """The three headers of a signed call: no two attempts have the same."""
        timestamp = str(int(call.now))
        text = self._template.format(
            timestamp=timestamp,
            nonce=call.nonce,
            device_id=credential.extra["device_id"],
            authorization=f"Bearer {credential.secret}",
        )
        signature = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        return (("x-timestamp", timestamp), ("x-nonce", call.nonce), ("x-signature", signature))

    def _conversation(self, reply: HttpReply) -> str:
        """The id of the conversation that was created."""
        if reply.status == 404:
            raise fail(
                "model_not_found",
                "The upstream does not know the prompt of this model; see FLOWGPT_MODELS.",
                param="model",
            )
        if reply.status not in (200, 201):
            raise GatewayError(self.refusal(reply))
        try:
            conversation = msgspec.json.decode(reply.body, type=_Conversation).id
        except (msgspec.DecodeError, ValueError, RecursionError):
            conversation = ""
        if not conversation:
            raise fail("protocol_error", "The upstream created a conversation without an id.")
        return conversation


PROVIDERS: Final[dict[str, Factory]] = {"flowgpt": FlowGPT}


class _Conversation(msgspec.Struct):
    id: str = ""


def _plain(message: Mapping[str, Any], position: int) -> dict[str, str]:
    """A message of the history as the upstream takes it: a role and a text."""
    if message.get("tool_calls") or message.get("function_call"):
        raise unsupported(position, "tool_calls", "tool calls are")
    role = str(message.get("role", "user"))
    return {"role": "system" if role == "developer" else role, "content": text_of(dict(message), position)}


def _temperature(fields: Mapping[str, msgspec.Raw]) -> msgspec.Raw:
    asked = fields.get("temperature", USUAL_TEMPERATURE)
    return USUAL_TEMPERATURE if bytes(asked) == b"null" else asked


class _Line(msgspec.Struct):
    event: Any = None
    data: Any = None
    statusCode: Any = None
    message: Any = None


_decode_line = msgspec.json.Decoder(_Line).decode


class LinesDecoder:
    """The decoder of one call. `text_events`: events whose `data` is text; a line that names none is text, too."""

    def __init__(self, text_events: frozenset[str] = frozenset({"text"})) -> None:
        self._text_events = text_events
        self._cleaner = PrefixCleaner()
        self._reader = JsonReader(_decode_line)
        self._over = False

    @property
    def malformed(self) -> int:
        return self._reader.malformed

    def feed(self, frame: bytes) -> list[Event]:
        if self._over:
            return []
        line = self._reader.read(frame)
        if line is None:
            self._reader.malformed += 1
            return []
        if line.event == "error" or (line.event is None and line.data is None and _is_error(line.statusCode)):
            return self._fail(line)
        if isinstance(line.data, str) and (line.event is None or line.event in self._text_events):
            return _said(self._cleaner.feed(line.data))
        return []

    def end(self) -> list[Event]:
        """The body ended cleanly: that is how this upstream says that it is done."""
        if self._over:
            return []
        self._over = True
        orphan = self._reader.orphans("data")
        last = self._cleaner.feed(orphan.data) if orphan else ""
        return [*_said(last + self._cleaner.end()), Finish("stop"), Complete()]

    def _fail(self, line: _Line) -> list[Event]:
        self._over = True
        said = line.message if isinstance(line.message, str) else line.data
        status = line.statusCode if _is_error(line.statusCode) else None
        return [Failed(refusals.reported({"message": said}, FLOWGPT, status))]


class PrefixCleaner:
    """Takes a preamble that ends in `Response:**` off one answer.

    Until it is decided whether there is one, text is held back: up to the mark, which goes with everything before it and the
    white space behind it, or up to `LONGEST_PREAMBLE` characters, which are then text like all that follows.
    """

    __slots__ = ("_decided", "_held", "_strips")

    def __init__(self) -> None:
        self._held = ""
        self._decided = False
        self._strips = False

    def feed(self, text: str) -> str:
        """What may be told now because of `text`; often nothing."""
        if not self._decided:
            self._held += text
            _, mark, text = self._held.partition(PREAMBLE_END)
            if mark:
                self._strips = True
            elif len(self._held) > LONGEST_PREAMBLE:
                text = self._held
            else:
                return ""
            self._decided, self._held = True, ""
        if self._strips:
            text = text.lstrip()
            self._strips = not text
        return text

    def end(self) -> str:
        """What is still held back when the answer is over."""
        held, self._held = self._held, ""
        return held


def _said(text: str) -> list[Event]:
    return [Delta({"content": text})] if text else []


def _is_error(status: Any) -> bool:
    return isinstance(status, int) and status >= 400
