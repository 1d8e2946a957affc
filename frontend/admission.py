"""Who is asking, and may they: the caller's key against the keys of the settings, then against those that were created.

The answer to a missing, malformed, unknown, doubled, expired or revoked key is always the same, and no part of a key is ever
repeated in it. Keys of the settings are compared by digest in constant time; they may everything, and only they administer.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from frontend.known_keys import KnownKeys
from shared.errors import GatewayError, fail
from shared.redis.callers import CallerStore, Proof
from shared.schema import key_text
from shared.schema.caller import ANYBODY, FOREIGN, MASTER, CallerKey

LONGEST_KEY: Final = 4096

_MASTER: Final = CallerKey(MASTER, name="master key")
_ANYBODY: Final = CallerKey(ANYBODY, name="anybody")
_FOREIGN: Final = CallerKey(FOREIGN, name="callers with an upstream key of their own")


@dataclass(frozen=True)
class Caller:
    """`fingerprint`: eight hex digits that name the key in logs: its id if it was created, else a digest that means nothing
    elsewhere. `known`: the key is one of ours. `presented`: a key that is not one of ours, for providers that take the caller's
    own upstream key; else empty. `key`: what the caller may do, and who is charged."""

    fingerprint: str
    known: bool
    presented: str
    key: CallerKey
    proof: Proof | None = field(default=None, repr=False)

    @property
    def administers(self) -> bool:
        return self.known and self.key.id == MASTER

    def allows(self, model: str, provider: str) -> bool:
        """Whether this caller may ask `provider` for `model`, one of its names; see `CallerKey.allows`."""
        return self.key.allows(provider, model)

    def __repr__(self) -> str:
        return f"Caller({self.fingerprint}, known={self.known})"


class Admission:
    """`keys`: the accepted keys of the settings; `pepper`: keys the fingerprints; `open_door`: nobody needs a key, asked for on
    purpose. `store` and `known`: the keys that were created."""

    def __init__(
        self, keys: Sequence[str], pepper: bytes, *, open_door: bool, store: CallerStore, known: KnownKeys
    ) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._pepper = pepper
        self._open_door = open_door
        self.store = store
        self._known = known

    async def identify(self, authorization: Sequence[str]) -> Caller:
        """Who presents these `Authorization` headers; a caller whose key is not ours is returned as not `known`.

        Raises `GatewayError` `queue_unavailable` if it takes Redis to tell, and Redis is away.
        """
        key = _key(authorization)
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        matches = [hmac.compare_digest(digest, ours) for ours in self._digests]
        fingerprint = hmac.new(self._pepper, digest, hashlib.sha256).hexdigest()[:8] if key else "none"
        if key and any(matches):
            return Caller(fingerprint, True, "", _MASTER)
        if key.startswith(key_text.PREFIX):
            proof = self.store.proof(key)
            record = await self._known.find(proof) if proof is not None else None
            if record is not None:
                return Caller(record.id, True, "", record, proof)
            key = ""  # a key of ours that opens nothing is no upstream's business
        presented = key if key.isascii() and key.isprintable() else ""
        return Caller(fingerprint, self._open_door, presented, _ANYBODY if self._open_door else _FOREIGN)

    async def renew(self, caller: Caller) -> Caller:
        """The caller as Redis knows it now; for a submission that was refused because the record has changed.

        Raises `GatewayError`: `invalid_api_key` for a key that is not valid any more, `queue_unavailable`.
        """
        if caller.proof is None:
            return caller
        record = await self._known.find_anew(caller.proof)
        if record is None:
            raise _not_admitted()
        return Caller(record.id, True, "", record, caller.proof)

    def require(self, caller: Caller) -> None:
        """Raises `GatewayError` `invalid_api_key` for a caller whose key is not ours."""
        if not caller.known:
            raise _not_admitted()

    def require_master(self, caller: Caller) -> None:
        """Raises `GatewayError` unless the caller may administer: `invalid_api_key`, `permission`."""
        self.require(caller)
        if not caller.administers:
            raise fail("permission", "This needs a key of the gateway's settings (SLUICE_API_KEY).")


def _not_admitted() -> GatewayError:
    return fail(
        "invalid_api_key",
        "Incorrect or missing API key. Send `Authorization: Bearer <key>` with a key of this gateway.",
    )


def _key(authorization: Sequence[str]) -> str:
    """The key itself. Some clients are set up with `Bearer sk-…` as the key and so send the word twice."""
    if len(authorization) != 1 or len(authorization[0]) > LONGEST_KEY:
        return ""
    words = authorization[0].split()
    if len(words) < 2 or any(word.lower() != "bearer" for word in words[:-1]):
        return ""
    return words[-1]
