"""Every upstream that speaks OpenAI's chat dialect: one class, and a row for each vendor that says how it differs.

Addresses, usual models and deadlines are settings; what stands here is the wire. A request goes through as the caller sent it,
known and unknown fields alike, numbers to the last digit; only `model`, `stream` and `stream_options.include_usage` are
ours, because every upstream is asked to stream and to count.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Final

import msgspec

from shared.errors import Failure, GatewayError, fail
from shared.schema.advertisement import Model
from workers.dialects import refusals
from workers.dialects.embeddings import EmbeddingsDecoder
from workers.dialects.model_lists import listed_models
from workers.dialects.openai import ChatDecoder
from workers.dialects.quirks import (
    Fields,
    Quirk,
    known_message_fields_only,
    reasoning_only_with_tools,
    temperature_up_to_one,
    text_parts_as_text,
)
from workers.dialects.refusal_rules import CEREBRAS, DASHSCOPE, DEEPSEEK, HUGGING_FACE, KIMI, OPENAI, Rules
from workers.exchange import HttpReply, HttpRequest
from workers.provider import Call, Check, Credential, Factory, HttpStream, Plan, Timeouts, Upstream

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_TRUE: Final = msgspec.Raw(b"true")


PATHS: Final = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
_ALL: Final = tuple(PATHS)


class Row(msgspec.Struct, frozen=True):
    """How one vendor differs.

    `rules`: what its errors mean. `quirks`: what must be changed in a request. `aliases`: public model names that the vendor
    spells differently. `variants`: what may follow a model's name behind a colon, and the fields that it stands for where the
    caller does not say otherwise. `headers`: header names by the option of the settings that fills them. `asks_usage`: whether
    `stream_options` is understood. `endpoints`: those of `PATHS` that it has. `public_list`: anybody may ask for the list of
    models, so it says nothing about a key. `names_request`: the header that may tell the vendor our name for the request.
    """

    rules: Rules = OPENAI
    quirks: Sequence[Quirk] = ()
    aliases: Mapping[str, str] = {}
    variants: Mapping[str, Mapping[str, msgspec.Raw]] = {}
    headers: Mapping[str, str] = {}
    asks_usage: bool = True
    endpoints: Sequence[str] = ("chat",)
    public_list: bool = False
    owner: str = ""
    names_request: str = ""


ROWS: Final[dict[str, Row]] = {
    "openai": Row(endpoints=_ALL, owner="openai", names_request="x-client-request-id"),
    "deepseek": Row(
        DEEPSEEK,
        [reasoning_only_with_tools],
        variants={
            "thinking": {"thinking": msgspec.Raw(b'{"type":"enabled"}')},
            "no-thinking": {"thinking": msgspec.Raw(b'{"type":"disabled"}')},
        },
        endpoints=("chat", "completions"),
        owner="deepseek",
    ),
    "cerebras": Row(CEREBRAS, [known_message_fields_only], endpoints=("chat", "completions"), owner="cerebras"),
    "kimi": Row(KIMI, [text_parts_as_text, temperature_up_to_one], owner="moonshot"),
    "dashscope": Row(
        DASHSCOPE,
        aliases={
            "qwen-3-235b-a22b-thinking-2507": "qwen3-235b-a22b-thinking-2507",
            "qwen-3-32b": "qwen3-32b",
            "qwen-3-14b": "qwen3-14b",
            "qwen-2.5-coder-32b-instruct": "qwen2.5-coder-32b-instruct",
        },
        endpoints=_ALL,
        owner="alibaba",
    ),
    "huggingface": Row(HUGGING_FACE, headers={"bill_to": "x-hf-bill-to"}, public_list=True, owner="huggingface"),
}


class OpenAICompatible:
    """One OpenAI-compatible upstream."""

    accepts_any_model = True
    caller_credentials = False

    def __init__(self, upstream: Upstream, row: Row) -> None:
        self.name = upstream.name
        self.endpoints: Sequence[str] = row.endpoints
        self.timeouts: Timeouts = upstream.timeouts
        self.credentials: Sequence[Credential] = upstream.credentials
        self.models: Sequence[Model] = [Model(name, owned_by=row.owner or upstream.name) for name in upstream.models]
        self._base_url = upstream.base_url.rstrip("/")
        self._row = row
        self._spelled = upstream.spelled
        self._headers = (
            ("content-type", "application/json"),
            ("accept", "text/event-stream"),
            ("accept-encoding", "identity"),
            ("user-agent", upstream.user_agent),
            *((name, upstream.options[option]) for option, name in row.headers.items() if upstream.options.get(option)),
        )

    def plan(self, call: Call) -> Plan:
        yield from ()
        streams = call.endpoint != "embeddings" and not (call.endpoint == "completions" and _picks_the_best(call))
        request = HttpRequest(
            method="POST",
            url=self._base_url + PATHS[call.endpoint],
            headers=(*_authorization(call), *self._headers, *self._name(call)),
            body=self._body(call, streams=streams),
        )
        if call.endpoint == "embeddings":
            as_base64 = bytes(call.body.get("encoding_format", b"")) == b'"base64"'
            return HttpStream(request, EmbeddingsDecoder(as_base64=as_base64, rules=self._row.rules), "json")
        return HttpStream(request, ChatDecoder(self._row.rules), "sse" if streams else "json")

    def _name(self, call: Call) -> list[tuple[str, str]]:
        """Found again in the vendor's logs when it is asked why a call failed."""
        return [(self._row.names_request, call.request_id)] if self._row.names_request and call.request_id else []

    def refusal(self, reply: HttpReply) -> Failure:
        return refusals.refusal(reply, self._row.rules)

    def discover(self, call: Call) -> Generator[HttpRequest, HttpReply, list[Model]]:
        models = listed_models((yield from self._list(call)).body)
        if models is None:
            raise fail("protocol_error", "The upstream's list of models is none.")
        return models

    def _list(self, call: Call) -> Generator[HttpRequest, HttpReply, HttpReply]:
        """The upstream's list of models. Raises its refusal."""
        headers = [(name, value) for name, value in self._headers if name not in ("content-type", "accept")]
        reply = yield HttpRequest(
            method="GET", url=f"{self._base_url}/models", headers=(*_authorization(call), *headers)
        )
        if reply.status != 200:
            raise GatewayError(self.refusal(reply))
        return reply

    def _body(self, call: Call, *, streams: bool) -> bytes:
        fields = dict(call.body)
        fields["model"] = msgspec.Raw(_encode(self._model(call.model, fields)))
        if streams:
            fields["stream"] = _TRUE
        if streams and self._row.asks_usage:
            fields["stream_options"] = _with_usage(fields.get("stream_options"))
        else:
            fields.pop("stream_options", None)
        for quirk in self._row.quirks:
            quirk(fields)
        return _encode(fields)

    def _model(self, public: str, fields: Fields) -> str:
        """The upstream's name of a model, and in `fields` what its variant stands for."""
        name = self._spelled.get(public) or self._row.aliases.get(public, public)
        base, _, variant = name.rpartition(":")
        if not base or variant not in self._row.variants:
            return name
        for field, value in self._row.variants[variant].items():
            fields.setdefault(field, value)
        return base


class WithGuardedList(OpenAICompatible):
    """One that shows its list of models to those with a key only: to ask for it tests the key, and costs nothing."""

    def validate(self, call: Call) -> Check:
        yield from self._list(call)


def row(upstream: Upstream) -> OpenAICompatible:
    """A provider for an upstream that is known from the settings alone."""
    found = ROWS.get(upstream.name, Row(endpoints=_ALL))
    return OpenAICompatible(upstream, found) if found.public_list else WithGuardedList(upstream, found)


PROVIDERS: Final[dict[str, Factory]] = dict.fromkeys(ROWS, row)


def _picks_the_best(call: Call) -> bool:
    """Whether the upstream is to choose among several texts, which it cannot do while it streams them."""
    return not call.streaming and bytes(call.body.get("best_of", b"null")) not in (b"null", b"1")


def _authorization(call: Call) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {call.credential.secret}")] if call.credential else []


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    try:
        asked = (_decode_fields(options) if options is not None else None) or {}
    except msgspec.MsgspecError:
        asked = {}
    return msgspec.Raw(_encode({**asked, "include_usage": True}))
