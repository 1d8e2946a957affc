"""Who is asking, and may they: the caller's key against the keys of the settings.

Keys are compared by digest in constant time. The answer to a missing, malformed, unknown or doubled key is always the same,
and no part of a key is ever repeated in it.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import fail

LONGEST_KEY = 4096


@dataclass(frozen=True)
class Caller:
    """`fingerprint`: eight hex digits that name the key in logs and mean nothing elsewhere. `known`: the key is one of ours.
    `presented`: a key that is not one of ours, for providers that take the caller's own upstream key; else empty."""

    fingerprint: str
    known: bool
    presented: str

    def __repr__(self) -> str:
        return f"Caller({self.fingerprint}, known={self.known})"


class Admission:
    """`keys`: the accepted keys; `pepper`: keys the fingerprints; `open_door`: nobody needs a key, asked for on purpose."""

    def __init__(self, keys: Sequence[str], pepper: bytes, *, open_door: bool) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._pepper = pepper
        self._open_door = open_door

    def identify(self, authorization: Sequence[str]) -> Caller:
        """Who presents these `Authorization` headers; a caller whose key is not ours is returned as not `known`."""
        key = _key(authorization)
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        matches = [hmac.compare_digest(digest, ours) for ours in self._digests]
        ours = bool(key) and any(matches)
        fingerprint = hmac.new(self._pepper, digest, hashlib.sha256).hexdigest()[:8] if key else "none"
        presented = "" if ours or not (key.isascii() and key.isprintable()) else key
        return Caller(fingerprint, self._open_door or ours, presented)

    def require(self, caller: Caller) -> None:
        """Raises `GatewayError` `invalid_api_key` for a caller whose key is not ours."""
        if not caller.known:
            raise fail(
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
