"""Sealing: what travels through or rests in Redis is readable and forgeable only with the deployment's secret key.

AES-256-GCM. Each process derives its own subkey (HKDF-SHA256 over a random salt), so that a counter can serve as nonce and
no two processes can repeat one. `context` is bound as associated data: a blob copied to another place does not open there.

Layout: version 1 (1 byte), key id (4), salt (16), counter (8), ciphertext with tag.
"""

import hmac
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_VERSION: Final = b"\x01"
_SALT_BYTES: Final = 16
_HEAD_BYTES: Final = 1 + 4 + _SALT_BYTES + 8
_CACHED_PEERS: Final = 4096


class SealBroken(Exception):
    """The blob is foreign, damaged, out of place, or sealed with a key that is not in our ring."""


class ForeignSeal(SealBroken):
    """The blob may well be good, but for a process with another secret key."""


class Seal:
    """Seals with the first key of the ring, opens with any. `fingerprint` names the first key without
    revealing it, `ring` all of them."""

    def __init__(self, ring: Sequence[str]) -> None:
        if not ring:
            raise ValueError("at least one secret key is needed")
        masters = [_derive(key.encode(), b"", b"sluice master") for key in ring]
        self._masters = {_derive(master, b"", b"sluice key id")[:4]: master for master in masters}
        key_id = next(iter(self._masters))
        self.fingerprint = key_id.hex()
        self.ring = tuple(known.hex() for known in self._masters)
        self._naming = _derive(masters[0], b"", b"sluice names")
        self._proving = [_derive(master, b"", b"sluice callers' keys") for master in self._masters.values()]
        salt = os.urandom(_SALT_BYTES)
        self._head = _VERSION + key_id + salt
        self._own = AESGCM(_derive(masters[0], salt, b"sluice seal"))
        self._counter = 0
        self._peers: dict[bytes, AESGCM] = {}

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        self._counter += 1
        counter = self._counter.to_bytes(8, "big")
        return self._head + counter + self._own.encrypt(b"\0\0\0\0" + counter, plaintext, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Raises `SealBroken`."""
        if len(sealed) < _HEAD_BYTES:
            raise SealBroken("too short to be sealed")
        head = sealed[: _HEAD_BYTES - 8]
        peer = self._peers.get(head) or self._meet(head)
        try:
            return peer.decrypt(b"\0\0\0\0" + sealed[_HEAD_BYTES - 8 : _HEAD_BYTES], sealed[_HEAD_BYTES:], context)
        except InvalidTag:
            raise SealBroken("the seal does not match its content or its place") from None

    def name(self, secret: bytes, purpose: bytes) -> str:
        """A name for a secret, 16 hex digits, that may be shown and logged: the same in every process that seals with the same
        key, and of no use to find or to check the secret without that key."""
        return hmac.digest(self._naming, purpose + b"\0" + secret, "sha256")[:8].hex()

    def digests(self, key: bytes) -> tuple[str, ...]:
        """What is kept of a caller's key: 64 hex digits for each key of the ring, the first's first. Whoever has no key of the
        ring can neither find a caller's key by them nor check a guess."""
        return tuple(hmac.digest(proving, key, "sha256").hex() for proving in self._proving)

    def _meet(self, head: bytes) -> AESGCM:
        master = self._masters.get(head[1:5])
        if head[:1] != _VERSION:
            raise SealBroken("not sealed at all")
        if master is None:
            raise ForeignSeal("sealed with a secret key that this process does not have")
        if len(self._peers) >= _CACHED_PEERS:
            self._peers.pop(next(iter(self._peers)))
        peer = self._peers[head] = AESGCM(_derive(master, head[5:], b"sluice seal"))
        return peer


def _derive(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=purpose).derive(secret)
