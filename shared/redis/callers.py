"""Callers' keys in Redis: what each may do, and how one is known again without being kept.

* A record is one JSON text under its id in `sluice:callers`. Beside the fields of `CallerKey` it holds digests: a key is only
  ever kept as an HMAC under the deployment's secret key. The id is part of the key, so a key is found by it, with one question,
  and then proven by its digest.
* A change is decided here and stored by one script, if the record is still the one that was read; else it is decided again. The
  same script counts the revision up, notes it in `sluice:callers:revisions` (negative: revoked), which is what submissions are
  checked against, and tells all frontends.
* A new first key in the ring makes no caller's key invalid: digests under every key of the ring count, and one that was found
  under another than the first is added under the first, so that the old key of the ring may leave when every key was used once.
"""

import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from shared.redis import keys
from shared.redis.link import Link
from shared.redis.script import Script
from shared.schema import key_text
from shared.schema.caller import CallerKey
from shared.sealing import Seal

_log = logging.getLogger(__name__)

STORE: Final = Script(
    """
    -- KEYS: the records, the revisions.  ARGV: id, the record that was read ('' for none), the new record, its revision
    -- (negative: revoked), the channel of the news.
    -- Answers 1, or 0 when somebody else was faster.
    if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then
      return 0
    end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
    redis.call('PUBLISH', ARGV[5], ARGV[1])
    return 1
    """,
    name="callers-store",
)


class UnknownKey(LookupError):
    """There is no key with this id."""


class RevokedKey(Exception):
    """The key was revoked, which is for good."""


@dataclass(frozen=True)
class Proof:
    """That somebody has presented a key: its id, and its digest under each key of the ring. Opens nothing, and may be kept."""

    id: str
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """A key that was proven. `until`: Unix seconds when this text of it ends, because it was rotated; None: as long as the
    record says. `outdated`: it is not yet known under the first key of the ring."""

    key: CallerKey
    until: float | None = None
    outdated: bool = False


class _Kept(CallerKey, frozen=True, omit_defaults=True):
    """A record as it is kept. `digests`: of the key, and of its predecessors until the given Unix second."""

    digests: dict[str, float | None] = msgspec.field(default_factory=dict)


_NUMBER: Final = re.compile(rb"-?[0-9]{1,15}")
_decode = msgspec.json.Decoder(_Kept).decode
_encode = msgspec.json.Encoder().encode


class CallerStore:
    """All callers' keys. Every method raises `RedisError`; `clock` gives Unix seconds."""

    def __init__(self, link: Link, seal: Seal, *, clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._seal = seal
        self._clock = clock

    # --- for those who present keys

    def proof(self, key: str) -> Proof | None:
        """None for a text that cannot be one of our keys; nobody needs to be asked about that."""
        key_id = key_text.id_of(key)
        return Proof(key_id, self._seal.digests(key.encode())) if key_id is not None else None

    async def find(self, proofs: Sequence[Proof]) -> list[Found | None]:
        """What these proofs open, in their order, in one question; None for nothing (any more)."""
        texts = await self._link.call("HMGET", keys.CALLERS, *(proof.id for proof in proofs)) if proofs else []
        return [self._matches(proof, text) for proof, text in zip(proofs, texts, strict=True)]

    def _matches(self, proof: Proof, text: bytes | None) -> Found | None:
        kept = self._read(proof.id, text)
        if kept is None or kept.revoked_at is not None:
            return None
        for digest, until in kept.digests.items():
            if any([hmac.compare_digest(digest, theirs) for theirs in proof.digests]):
                if until is not None and until <= self._clock():
                    return None
                return Found(_without_digests(kept), until, outdated=proof.digests[0] not in kept.digests)
        return None

    async def adopt(self, proof: Proof) -> None:
        """Know an `outdated` key under the first key of the ring, too."""

        def add_digest(kept: _Kept) -> _Kept:
            ends = [until for digest, until in kept.digests.items() if digest in proof.digests]
            if not ends or proof.digests[0] in kept.digests:
                return kept
            return msgspec.structs.replace(kept, digests={**kept.digests, proof.digests[0]: ends[0]})

        try:
            await self._change(proof.id, add_digest)
        except (UnknownKey, RevokedKey):
            _log.debug("key %s was gone before it could be adopted", proof.id)

    async def revisions(self, ids: Sequence[str]) -> dict[str, int]:
        """The current revision of those that exist, negative for those that are revoked."""
        found = await self._link.call("HMGET", keys.CALLER_REVISIONS, *ids) if ids else []
        return {key_id: int(text) for key_id, text in zip(ids, found, strict=True) if text and _NUMBER.fullmatch(text)}

    # --- for those who administer them

    async def create(self, wanted: CallerKey) -> tuple[CallerKey, str]:
        """Make a key with these permissions and limits; id, revision and times of `wanted` do not matter. The second is the key
        itself, which is not kept and cannot be shown again."""
        while True:
            key_id = secrets.token_hex(4)
            text, digests = self._new_text(key_id)
            fields = _fields(wanted) | {"id": key_id, "revision": 1, "created_at": self._now(), "revoked_at": None}
            made = _Kept(**fields, digests=digests)
            if await self._store(made, b""):
                return _without_digests(made), text

    async def all(self) -> list[CallerKey]:
        """All of them, also revoked ones, the oldest first."""
        pairs = await self._link.call("HGETALL", keys.CALLERS)
        found = [self._read(key_id.decode("ascii", "replace"), text) for key_id, text in _pairs(pairs)]
        return sorted(
            (_without_digests(kept) for kept in found if kept is not None), key=lambda key: (key.created_at, key.id)
        )

    async def get(self, key_id: str) -> CallerKey:
        """Raises `UnknownKey`."""
        kept = self._read(key_id, await self._link.call("HGET", keys.CALLERS, key_id))
        if kept is None:
            raise UnknownKey(key_id)
        return _without_digests(kept)

    async def update(self, key_id: str, decide: Callable[[CallerKey], CallerKey]) -> CallerKey:
        """Change permissions and limits as `decide` says, which gets the record as it stands, and may be asked again.

        Raises `UnknownKey`, `RevokedKey`, and whatever `decide` raises.
        """

        def changed(kept: _Kept) -> _Kept:
            wanted = _fields(decide(_without_digests(kept)))
            fixed = {name: getattr(kept, name) for name in ("id", "revision", "created_at", "revoked_at")}
            return _Kept(**(wanted | fixed), digests=kept.digests)

        return _without_digests(await self._change(key_id, changed))

    async def revoke(self, key_id: str) -> CallerKey:
        """End a key for good; once more is harmless. Raises `UnknownKey`."""
        try:
            return _without_digests(
                await self._change(
                    key_id, lambda kept: msgspec.structs.replace(kept, revoked_at=self._now(), digests={})
                )
            )
        except RevokedKey:
            return await self.get(key_id)

    async def rotate(self, key_id: str, grace_seconds: float = 0.0) -> tuple[CallerKey, str]:
        """Give the record another key, which is returned as by `create`; the one before ends after `grace_seconds`.

        Raises `UnknownKey`, `RevokedKey`.
        """
        text, digests = self._new_text(key_id)

        def exchange(kept: _Kept) -> _Kept:
            ends = self._now() + grace_seconds
            leaving = {
                digest: ends if until is None else min(until, ends)
                for digest, until in kept.digests.items()
                if grace_seconds > 0 and (until is None or until > self._now())
            }
            return msgspec.structs.replace(kept, digests=leaving | digests)

        return _without_digests(await self._change(key_id, exchange)), text

    # --- one change

    async def _change(self, key_id: str, decide: Callable[[_Kept], _Kept]) -> _Kept:
        """Each round that fails is one in which somebody else succeeded, so this comes to an end."""
        while True:
            before = await self._link.call("HGET", keys.CALLERS, key_id)
            kept = self._read(key_id, before)
            if kept is None:
                raise UnknownKey(key_id)
            if kept.revoked_at is not None:
                raise RevokedKey(key_id)
            wanted = decide(kept)
            if wanted == kept:
                return kept
            changed = msgspec.structs.replace(wanted, revision=kept.revision + 1)
            if await self._store(changed, before):
                return changed

    async def _store(self, kept: _Kept, before: bytes) -> bool:
        revision = kept.revision if kept.revoked_at is None else -kept.revision
        stored = await self._link.script(
            STORE,
            (keys.CALLERS, keys.CALLER_REVISIONS),
            (kept.id, before, _encode(kept), str(revision), keys.CALLERS_NEWS),
        )
        return bool(stored)

    def _read(self, key_id: str, text: bytes | None) -> _Kept | None:
        """None for what is not there, and for what nobody of ours has written."""
        if text is None:
            return None
        try:
            kept = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            _log.error("the record of a caller's key cannot be read: %s", problem)
            return None
        return kept if kept.id == key_id else None

    def _new_text(self, key_id: str) -> tuple[str, dict[str, float | None]]:
        text = key_text.compose(key_id, secrets.token_bytes(key_text.SECRET_BYTES))
        return text, dict.fromkeys(self._seal.digests(text.encode()))

    def _now(self) -> float:
        return round(self._clock(), 3)


def _fields(key: CallerKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in CallerKey.__struct_fields__}


def _without_digests(kept: _Kept) -> CallerKey:
    return CallerKey(**_fields(kept))


def _pairs(flat: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
