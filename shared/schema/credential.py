"""Credentials as they rest in the pool, are leased and are kept."""

from typing import Final

import msgspec

ACCEPTED: Final = "the upstream accepts it"
"""What a test finds if all is well; anything else is a reason."""


class Opened(msgspec.Struct, array_like=True, frozen=True):
    """What opens the upstream, and what lies sealed in Redis. `extra`: what belongs to the secret, such as a refresh token."""

    secret: str
    extra: dict[str, str] = {}

    def __repr__(self) -> str:
        return "Opened(***)"


class Minting(msgspec.Struct, frozen=True):
    """How many credentials a pool makes for itself by signing up.

    `least`: kept ready at any time. `most`: never more. `per_hour`: sign-ups that all workers together may try. A credential is
    not used in the last `margin_seconds` of its life, so that no call outlives it.
    """

    least: int = 1
    most: int = 10
    per_hour: int = 30
    margin_seconds: float = 300.0


class Granted(msgspec.Struct, frozen=True):
    """A credential for one call. `stamp` says with which secret and in which trial; a verdict is worth nothing without it.
    `opened` is None if this process cannot open the secret: it was sealed with a key that is not in our ring. `asked_at`: by
    the asker's own clock; the lease lives at least its time from then."""

    id: str
    name: str
    stamp: bytes
    opened: Opened | None
    asked_at: float = 0.0


class Nothing(msgspec.Struct, frozen=True):
    """No credential now. `coming`: that may change at any moment, the news will say so. `hope_seconds`: when it will have
    changed for sure, None if never by itself. `known`: credentials that the pool has at all."""

    coming: bool
    hope_seconds: float | None
    known: int


class Chore(msgspec.Struct, frozen=True):
    """What a keeper is to do now: `mint`, `refresh`, `validate` or `test`. Only `mint` has no credential."""

    kind: str
    id: str = ""
    stamp: bytes = b""
    opened: Opened | None = None


class Record(msgspec.Struct, frozen=True):
    """A credential in Redis, as JSON. Times in milliseconds of Redis' clock, 0: never.

    `state`: `ready`, `probation` or `aside`. `origin`: `settings`, `minted` or `added` (by an operator). `strikes`: how often
    in a row it was set aside; `reason`: `retired` or `suspended`, why the last time. `hits`: 429s in a row without a
    Retry-After, by model. `aging`: it serves to its end and is replaced. `renewable`: it can be refreshed; `refreshing`:
    until when a keeper is at it. `tested`: what a test found.
    """

    state: str
    origin: str
    generation: int
    trial: int
    strikes: int = 0
    reason: str = ""
    hits: dict[str, int] = {}
    expires: int = 0
    aging: bool = False
    renewable: bool = False
    refreshing: int = 0
    tested_at: int = 0
    tested: str = ""


class Standing(msgspec.Struct, frozen=True):
    """One credential as an operator sees it. Seconds from now; `rests`: by model, the empty one stands for all."""

    id: str
    record: Record
    opened: Opened | None
    calls: int = 0
    retired_seconds: float = 0.0
    suspended_seconds: float = 0.0
    rests: dict[str, float] = {}
    expires_seconds: float | None = None
    tested_seconds_ago: float | None = None
