"""langfast: anonymous accounts, runs that are started over HTTP, answers that are pushed to the account's socket.

    POST {supabase}/auth/v1/signup                        an account: a token that lives for an hour, and one to renew it once
    Socket.IO {socket}, auth {token}                      chunks come to the connected account; what is said to nobody is lost
    POST {supabase}/functions/v1/initiate-prompt-run      starts a run; answers with the execution that its chunks will name

A chunk (`execution:chunk`) holds everything that was said so far, as an object or as a string with that object in it; one whose
`status` says so, or `completion_finished`, ends the run. A run cannot be stopped. The upstream documents none of this.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from shared.errors import Failure, GatewayError, fail
from shared.sansio.socketio import SocketEvent
from shared.schema.advertisement import Model
from shared.schema.credential import Minting
from shared.schema.events import Complete, Delta, Event, Failed, Finish
from workers.dialects import refusals
from workers.dialects.families import Family, family_of, instructed
from workers.dialects.messages import Message, history, text_of, unsupported
from workers.dialects.openai import FINISH_REASONS
from workers.dialects.parameters import left_out
from workers.dialects.refusal_rules import LANGFAST
from workers.exchange import HttpReply, HttpRequest
from workers.provider import (
    Belonging,
    Call,
    Check,
    Credential,
    Factory,
    Mint,
    MintedCredential,
    Plan,
    SocketIOSession,
    SocketIOStream,
    Timeouts,
    Upstream,
)

DEFAULT: Final = "langfast"
"""The model name that stands for the one that the settings call the default."""
CHUNK: Final = "execution:chunk"
FINISHED: Final = "completion_finished"

_encode = msgspec.json.Encoder().encode
_LENGTHS: Final = ("max_completion_tokens", "max_tokens")
_HALF: Final = re.compile("[\ud800-\udfff]")


class Langfast:
    """The provider. A credential's secret is the account's token; `extra` has the one that renews it."""

    name = "langfast"
    endpoints: Sequence[str] = ("chat",)
    credentials: Sequence[Credential] = ()
    accepts_any_model = False
    caller_credentials = False
    uses_sessions: Literal[True] = True

    def __init__(self, upstream: Upstream) -> None:
        options = upstream.options
        self.timeouts: Timeouts = upstream.timeouts
        self.models: Sequence[Model] = [Model(name, owned_by="langfast") for name in (*upstream.models, DEFAULT)]
        self.minting = Minting(
            least=options["min_credentials"],
            most=options["max_credentials"],
            per_hour=options["signups_per_hour"],
            margin_seconds=upstream.timeouts.total,
        )
        self._names = {name: upstream.spelled.get(name, name) for name in upstream.models}
        default: str = options["default_model"]
        self._names[DEFAULT] = self._names.get(default, default)
        self._supabase = upstream.base_url
        self._socket_url: str = options["socket_url"]
        self._prompt_id: str = options["prompt_id"]
        self._drops_unsupported = upstream.drops_unsupported
        # With several runs at once, a nameless event may belong to one that another worker started.
        self._owner = owner if upstream.calls_per_credential == 1 else named_owner
        self._user_agent = ("user-agent", upstream.user_agent)
        self._headers = (("apikey", options["anon_key"]), ("content-type", "application/json"), self._user_agent)

    # --- calls

    def plan(self, call: Call) -> Plan:
        yield from ()
        model = self._names.get(call.model)
        if model is None:
            raise fail("model_not_found", f"The model `{call.model[:128]}` does not exist.", param="model")
        if call.credential is None:
            raise fail("no_credential", "There is no account for this upstream.")
        meta, dropped = prompt(model, call.body, drops=self._drops_unsupported)
        token, account = call.credential.secret, _account(call.credential)
        run = {
            "run_id": _uuid(call.nonce),
            "prompt_id": self._prompt_id,
            "prompt_meta": meta,
            "test_cases": [],
            "created_by": account,
        }
        start = HttpRequest(
            method="POST",
            url=f"{self._supabase}/functions/v1/initiate-prompt-run",
            headers=(("authorization", f"Bearer {token}"), *self._headers),
            body=_encode(run),
        )
        session = SocketIOSession(self._socket_url, account, {"token": token}, headers=(self._user_agent,))
        return SocketIOStream(session, start, _execution, self._owner, ChunkDecoder(), dropped)

    def refusal(self, reply: HttpReply) -> Failure:
        return refusals.refusal(reply, LANGFAST)

    # --- accounts

    def mint(self, call: Call) -> Mint:
        return self._minted((yield self._ask("signup", {})))

    def refresh(self, call: Call) -> Mint:
        """A new token for the account; the old one that renews works once."""
        assert call.credential is not None
        renewing = call.credential.extra.get("refresh_token", "")
        return self._minted((yield self._ask("token?grant_type=refresh_token", {"refresh_token": renewing})))

    def validate(self, call: Call) -> Check:
        assert call.credential is not None
        authorization = ("authorization", f"Bearer {call.credential.secret}")
        url = f"{self._supabase}/auth/v1/user"
        reply = yield HttpRequest(method="GET", url=url, headers=(authorization, *self._headers))
        if reply.status not in (
            200,
            404,
        ):  # a gateway in front that does not know the path says nothing about the token
            raise GatewayError(self.refusal(reply))

    def _ask(self, path: str, body: dict[str, str]) -> HttpRequest:
        return HttpRequest(
            method="POST", url=f"{self._supabase}/auth/v1/{path}", headers=self._headers, body=_encode(body)
        )

    def _minted(self, reply: HttpReply) -> MintedCredential:
        if reply.status != 200:
            raise GatewayError(self.refusal(reply))
        try:
            session = msgspec.json.decode(reply.body, type=_Session)
            claims = claims_of(session.access_token)
        except (ValueError, RecursionError):
            raise fail("protocol_error", "The upstream's account makes no sense.") from None
        extra = {"refresh_token": session.refresh_token} if session.refresh_token else {}
        return MintedCredential(session.access_token, extra, claims.exp)


PROVIDERS: Final[dict[str, Factory]] = {"langfast": Langfast}


class _Session(msgspec.Struct):
    """What signing up and renewing answer with, as far as it matters."""

    access_token: str
    refresh_token: str | None = None


class Claims(msgspec.Struct, frozen=True):
    """What a token says of itself: whose it is, and its end in Unix seconds."""

    sub: str
    exp: float | None = None


def claims_of(token: str) -> Claims:
    """The claims of a JSON web token (RFC 7519); its signature is its maker's business. Raises ValueError.

    Its parts are base64url without padding (RFC 7515 section 2): `-` and `_` occur, `=` does not.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("not a JSON web token")
    payload = parts[1]
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=Claims)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def _account(credential: Credential) -> str:
    """Whose token it is, by the token's own word: the upstream compares."""
    try:
        return claims_of(credential.secret).sub
    except (ValueError, RecursionError):
        raise fail("credential_invalid", "The token of the upstream's account makes no sense.") from None


class _Job(msgspec.Struct):
    job_id: str


class _Started(msgspec.Struct):
    jobs: list[_Job]


def _execution(reply: HttpReply) -> str:
    """The id that the chunks of the run will carry."""
    try:
        started = msgspec.json.decode(reply.body, type=_Started)
        execution = started.jobs[0].job_id
    except (msgspec.DecodeError, ValueError, RecursionError, IndexError):
        execution = ""
    if not execution:
        raise fail("protocol_error", "The upstream started a run without a name.")
    return execution


def _uuid(nonce: str) -> str:
    """32 random hex digits as a UUID of version 4 (RFC 9562 section 5.4)."""
    variant = "89ab"[int(nonce[16], 16) % 4]
    return f"{nonce[:8]}-{nonce[8:12]}-4{nonce[13:16]}-{variant}{nonce[17:20]}-{nonce[20:]}"


# --- what is asked for


def prompt(model: str, fields: Mapping[str, msgspec.Raw], *, drops: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The `prompt_meta` of a run, and the parameters that it goes without.

    Raises `GatewayError`: `unsupported_parameter` for what the model cannot honour (unless `drops`), `invalid_request`.
    """
    family = family_of(model)
    honoured = {*family.honoured, *_LENGTHS}
    wanted_format, effort = _format(fields), _value(fields, "reasoning_effort")
    if _kind(wanted_format) in family.formats:
        honoured.add("response_format")
    if effort in family.efforts:
        honoured.add("reasoning_effort")
    dropped = left_out(fields, honoured, drops=drops)
    plain = [_plain(message, position) for position, message in enumerate(history(fields))]
    meta: dict[str, Any] = {"model": model, "messages": instructed(plain, family)}
    meta |= {name: fields[name] for name in sorted(family.honoured & fields.keys()) if bytes(fields[name]) != b"null"}
    meta["max_completion_tokens"] = _most_tokens(fields, family)
    if effort in family.efforts:
        meta["reasoning_effort"] = effort
    if family.formats:
        meta["response_format"] = "text" if "response_format" in dropped else wanted_format
    meta["stream"] = True
    return meta, dropped


def _value(fields: Mapping[str, msgspec.Raw], name: str) -> Any:
    try:
        return msgspec.json.decode(fields.get(name, msgspec.Raw(b"null")))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _format(fields: Mapping[str, msgspec.Raw]) -> Any:
    """langfast calls formats by their names; a schema goes along as OpenAI has it."""
    wanted = _value(fields, "response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    return wanted if kind == "json_schema" else kind or "text"


def _kind(wanted: Any) -> Any:
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    return kind if isinstance(kind, str) else None


def _most_tokens(fields: Mapping[str, msgspec.Raw], family: Family) -> int:
    """What the caller asks for, as far as the model goes; without a wish, as far as the model goes."""
    for name in _LENGTHS:
        asked = _value(fields, name)
        if asked is None:
            continue
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
            raise fail("invalid_request", f"Invalid '{name}': expected a whole number, 1 or more.", param=name)
        return min(asked, family.most_tokens)
    return family.most_tokens


def _plain(message: Message, position: int) -> dict[str, str]:
    """A message as a role and a text."""
    if message.get("tool_calls") or message.get("function_call"):
        raise unsupported(position, "tool_calls", "tool calls are")
    role = message.get("role", "user")
    if role not in ("system", "developer", "user", "assistant"):
        raise unsupported(position, "role", f"the role '{str(role)[:50]}' is")
    return {"role": role, "content": text_of(message, position)}


# --- what comes over the socket


def owner(event: SocketEvent) -> Belonging | None:
    """Whose an event is; `completion_finished` is the last that is heard of a run."""
    if event.name not in (CHUNK, FINISHED):
        return None
    execution = _payload(event).get("executionId")
    return Belonging(execution if isinstance(execution, str) and execution else None, event.name == FINISHED)


def named_owner(event: SocketEvent) -> Belonging | None:
    """The same where events that name no run are nobody's."""
    belonging = owner(event)
    return belonging if belonging is not None and belonging.execution is not None else None


def _payload(event: SocketEvent) -> dict[str, Any]:
    """What an event says. A string holds the same as JSON, or else is the text so far."""
    payload = event.arguments[0] if event.arguments else None
    if isinstance(payload, str):
        try:
            inner = json.loads(payload)  # unlike stricter parsers it takes half characters, which do occur
        except (ValueError, RecursionError):
            inner = None
        known = isinstance(inner, dict) and inner.keys() & {"executionId", "status", "content", "error"}
        payload = inner if known else {"content": payload}
    return payload if isinstance(payload, dict) else {}


class ChunkDecoder:
    """The decoder of one run. `malformed` and `odd_finish_reasons`: see `Decoder`."""

    def __init__(self) -> None:
        self.malformed = 0
        self.odd_finish_reasons: list[str] = []
        self._said = ""
        self._half = False
        self._reason: str | None = None
        self._over = False

    def feed(self, frame: SocketEvent) -> list[Event]:
        if self._over or frame.name not in (CHUNK, FINISHED):
            return []
        payload = _payload(frame)
        status = str(payload.get("status") or "").lower()
        over = frame.name == FINISHED or status in ("completed", "done")
        if isinstance(reason := payload.get("finish_reason"), str) and reason:
            self._reason = reason
        try:
            events = self._text(payload.get("content"), final=over)
        except GatewayError as error:
            return self._fail(error.failure)
        if payload.get("error") or "fail" in status or "error" in status:
            return [*events, *self._fail(refusals.reported({"message": _words(payload.get("error"))}, LANGFAST))]
        return [*events, *self._finish()] if over else events

    def end(self) -> list[Event]:
        """The server has said goodbye. Whether it was too early shows in the finish reason."""
        return []

    def _text(self, content: Any, *, final: bool) -> list[Event]:
        """What is new in everything that was said so far."""
        if not isinstance(content, str) or not content:
            self.malformed += content is not None and not isinstance(content, str)
            return []
        half = not final and "\ud800" <= content[-1] <= "\udbff"  # the other one comes with the next chunk
        said = content[:-1] if half else content
        if said.startswith(self._said):
            new, self._said, self._half = said[len(self._said) :], said, half
            return [Delta({"content": _HALF.sub("\ufffd", new)})] if new else []
        if not final and self._said.startswith(said):
            return []  # an earlier chunk again
        raise fail("protocol_error", "The upstream changed what it had already said.")

    def _finish(self) -> list[Event]:
        self._over = True
        reason = FINISH_REASONS.get(self._reason or "stop")
        if reason is None:
            self.odd_finish_reasons.append(self._reason or "")
        rest: list[Event] = [Delta({"content": "\ufffd"})] if self._half else []
        return [*rest, Finish(reason or "stop"), Complete()]

    def _fail(self, failure: Failure) -> list[Event]:
        self._over = True
        return [Failed(failure)]


def _words(error: Any) -> str:
    """What an error says, be it a text or an object with a message."""
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""
