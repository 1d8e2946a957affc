"""The contract of a provider: our file for one upstream.

A provider is a plan: pure facts and a generator. It does no I/O, reads no clock and keeps nothing between calls, so its test
is bytes in, events out. The attempt (`workers.attempt`) drives it:

1. `plan(call)` is a generator. It yields an `HttpRequest` for each question that must be asked first and is sent the
   `HttpReply`; it returns the exchange that streams the answer.
2. The attempt runs the exchange and feeds what arrives, piece by piece, to the exchange's `decoder`.
3. The decoder yields events. `Failed` or `Complete` ends it; `end()` is called when the upstream closed cleanly before that.
4. A reply with an unexpected status goes to `refusal(reply)`, which says the upstream's no in our words.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from shared.errors import Failure
from shared.sansio.socketio import DEFAULT_NAMESPACE, SocketEvent
from shared.schema.advertisement import Model
from shared.schema.credential import Minting
from shared.schema.events import Event
from workers.exchange import HttpReply, HttpRequest


class Credential(msgspec.Struct, frozen=True):
    """What opens the upstream. `id` is safe to log; `secret` is not, and neither are the values of `extra`."""

    id: str
    secret: str
    extra: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Credential({self.id})"


class Call(msgspec.Struct, frozen=True):
    """Everything that varies between two calls. `body`: the caller's fields, values untouched. `now`: wall time in Unix
    seconds. `nonce`: 32 random lower-case hex digits, fresh per attempt. `streaming`: what the caller asked for; the
    upstream is asked to stream either way where the endpoint can. `request_id`: by which name our caller knows the request."""

    endpoint: str
    model: str
    streaming: bool
    body: Mapping[str, msgspec.Raw]
    credential: Credential | None
    now: float
    nonce: str
    request_id: str = ""


class Decoder(Protocol):
    """Made for one call, dies with it. `feed` takes what the exchange's framing cut out: an `sse.ServerSentEvent`, or a line
    as bytes, or (framing `json`) the whole body as bytes, or a Socket.IO event. It may count in `malformed` what made no sense
    and name in `odd_finish_reasons` those that it had to guess the meaning of; both are logged at the end."""

    def feed(self, frame: Any) -> Iterable[Event]: ...
    def end(self) -> Iterable[Event]: ...


class HttpStream(msgspec.Struct, frozen=True):
    """An exchange over HTTP: send `request`, cut the 200's body by `framing`, feed the pieces to `decoder`.

    Framing `json` is for endpoints that answer in one piece: the decoder gets the whole body once. `dropped`: parameters that
    the request goes without, to tell the caller.
    """

    request: HttpRequest
    decoder: Decoder
    framing: Literal["sse", "sse-tolerant", "lines", "json"] = "sse"
    dropped: Sequence[str] = ()


class SocketIOSession(msgspec.Struct, frozen=True):
    """A long-lived Socket.IO session, which all jobs of one account share.

    `url`: ws, wss, http or https; the path, if it is not Socket.IO's usual one. `account`: whose session it is, as the upstream
    knows it. `auth`: what the server is shown when it lets us into `namespace`. `headers`: of the upgrade.
    """

    url: str
    account: str
    auth: Any = None
    namespace: str = DEFAULT_NAMESPACE
    headers: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"<SocketIOSession of {self.account}>"


class Belonging(msgspec.Struct, frozen=True):
    """Whose an event is. `execution`: the run that it names; None: it names none, and can only be meant for a run that is alone
    on its session. `last`: the run has nothing more to say."""

    execution: str | None
    last: bool = False


class SocketIOStream(msgspec.Struct, frozen=True):
    """An exchange whose answer comes as events of a session that other jobs use at the same time.

    1. The session is connected: what is said to nobody is lost.
    2. `start` is sent over HTTP. A status other than 200 goes to the provider's `refusal`, as do the session's own refusals.
    3. `execution` reads from the answer by which name the run will be known, or raises `GatewayError`.
    4. `owner` says whose an event is, None: nobody's. The decoder gets those of this run, also those that came before its name.
    """

    session: SocketIOSession
    start: HttpRequest
    execution: Callable[[HttpReply], str]
    owner: Callable[[SocketEvent], Belonging | None]
    decoder: Decoder
    dropped: Sequence[str] = ()


class Step(msgspec.Struct, frozen=True):
    """One event of a script: wait `delay_seconds`, then feed `frame` to the decoder."""

    delay_seconds: float
    frame: Any


class ScriptedStream(msgspec.Struct, frozen=True):
    """An exchange without a network: the attempt plays `steps` and feeds their frames to `decoder`."""

    steps: Sequence[Step]
    decoder: Decoder


Exchange = HttpStream | SocketIOStream | ScriptedStream

Plan = Generator[HttpRequest, HttpReply, Exchange]
"""Yields questions, returns the exchange. May raise `GatewayError` when an answer, or the call itself, allows no exchange."""


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds. `first_token`: from the claim to the first delta. `silence`: between two deltas. `total`: the whole answer."""

    connect: float = 10.0
    first_token: float = 60.0
    silence: float = 60.0
    total: float = 600.0


class Upstream(msgspec.Struct, frozen=True):
    """What the settings say about one upstream. `base_url` has no slash at its end. `models` are public names, and may be none:
    the provider's own; `spelled`: the upstream's names for those that it calls otherwise. `options`: the values of settings
    that concern this upstream only, by name. `user_agent`: how we introduce ourselves. `drops_unsupported`: what the upstream
    cannot honour is left out of a request and named, instead of refused. `takes_callers_keys`: callers may bring their own.
    `calls_per_credential`: how many may use one at once, over all workers; 0: any number.
    """

    name: str
    base_url: str = ""
    credentials: Sequence[Credential] = ()
    models: Sequence[str] = ()
    timeouts: Timeouts = Timeouts()
    options: Mapping[str, Any] = {}
    user_agent: str = "sluice"
    spelled: Mapping[str, str] = {}
    drops_unsupported: bool = False
    takes_callers_keys: bool = False
    calls_per_credential: int = 0


class Provider(Protocol):
    """`accepts_any_model`: a name that is not in `models` may be passed on. `caller_credentials`: the caller's key is used."""

    name: str
    models: Sequence[Model]
    endpoints: Sequence[str]
    timeouts: Timeouts
    credentials: Sequence[Credential]
    accepts_any_model: bool
    caller_credentials: bool

    def plan(self, call: Call) -> Plan: ...
    def refusal(self, reply: HttpReply) -> Failure: ...


class MintedCredential(msgspec.Struct, frozen=True):
    """What a sign-up or a refresh brought. `extra`: what belongs to the secret, such as a refresh token. `expires_at`: end of
    its life in Unix seconds, None: it has none."""

    secret: str
    extra: dict[str, str] = {}
    expires_at: float | None = None

    def __repr__(self) -> str:
        return f"MintedCredential(expires_at={self.expires_at})"


Mint = Generator[HttpRequest, HttpReply, MintedCredential]
"""A plan that brings a credential. Raises `GatewayError` when the upstream says no; a `rate_limit` with its wait is heeded."""

Check = Generator[HttpRequest, HttpReply, None]
"""A plan that ends well if the upstream accepts the credential, and raises `GatewayError` with its refusal if not."""


# What a provider may offer beyond `Provider`. Of the call that is handed in only `credential` (None for `mint`), `now` and
# `nonce` mean anything.


@runtime_checkable
class Minter(Protocol):
    """A provider whose credentials are made by signing up."""

    minting: Minting

    def mint(self, call: Call) -> Mint: ...


@runtime_checkable
class Refresher(Protocol):
    """A provider that can give a credential a new secret before the old one ends. Without it, it is replaced."""

    def refresh(self, call: Call) -> Mint: ...


@runtime_checkable
class Validator(Protocol):
    """A provider that can tell without costs whether a credential is accepted. Without it, the next call has to show it."""

    def validate(self, call: Call) -> Check: ...


@runtime_checkable
class Lister(Protocol):
    """A provider whose upstream lists its models. The plan raises `GatewayError` when it does not."""

    credentials: Sequence[Credential]

    def discover(self, call: Call) -> Generator[HttpRequest, HttpReply, list[Model]]: ...


@runtime_checkable
class SessionUser(Protocol):
    """A provider whose plans may return a `SocketIOStream`. A worker of another one does not even load what that takes."""

    uses_sessions: Literal[True]


Factory = Callable[[Upstream], Provider]
"""Makes a provider. A module in `workers/providers/` (or an installed package, through the entry-point group
`sluice.providers`) offers `PROVIDERS: dict[str, Factory]`, by the provider's name."""
