"""Anonymous accounts as Supabase's auth service hands them out: signed tokens, single-use refresh tokens, a sign-up limit."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import uuid
from collections.abc import Callable
from typing import Any

from tests.simulators.recordings import recording

SECRET = b"the simulator's signing key"
TRICKY_NOTE = "ÿþ?>~~ÿ¿x"
"""A claim whose base64url form contains `-` and `_`: decoders that use the plain alphabet fail on it."""


def base64url(raw: bytes) -> str:
    """Without padding, as in tokens."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unbase64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def sign(claims: dict[str, Any]) -> str:
    """A JWT (HS256) of these claims."""
    header = base64url(b'{"alg":"HS256","typ":"JWT"}')
    payload = base64url(json.dumps(claims, separators=(",", ":"), ensure_ascii=False).encode())
    signed = f"{header}.{payload}"
    return f"{signed}.{base64url(hmac.digest(SECRET, signed.encode(), hashlib.sha256))}"


def claims_of(token: str) -> dict[str, Any] | None:
    """The claims of a token that `sign` made; None for anything else. Does not look at `exp`."""
    try:
        signed, _, signature = token.rpartition(".")
        good = hmac.compare_digest(unbase64url(signature), hmac.digest(SECRET, signed.encode(), hashlib.sha256))
        claims: dict[str, Any] = json.loads(unbase64url(signed.split(".")[1]))
    except (ValueError, IndexError):
        return None
    return claims if good else None


class Accounts:
    """Makes accounts and tokens; `clock` gives Unix time in seconds."""

    def __init__(self, clock: Callable[[], float], token_seconds: float) -> None:
        self.clock = clock
        self.token_seconds = token_seconds
        self.made = 0
        self._refresh_tokens: dict[str, str] = {}

    def sign_up(self, token_seconds: float | None = None) -> dict[str, Any]:
        """A new account, as the sign-up answer."""
        self.made += 1
        return self._session(str(uuid.uuid4()), token_seconds)

    def refresh(self, refresh_token: str, token_seconds: float | None = None) -> dict[str, Any] | None:
        """A new pair for the account of that refresh token, which is used up; None if it is not known."""
        sub = self._refresh_tokens.pop(refresh_token, None)
        return None if sub is None else self._session(sub, token_seconds)

    def subject(self, token: str) -> str | None:
        """`sub` of a token that is signed and not expired; None otherwise."""
        claims = claims_of(token)
        if claims is None or claims["exp"] <= self.clock():
            return None
        return str(claims["sub"])

    def _session(self, sub: str, token_seconds: float | None) -> dict[str, Any]:
        issued = int(self.clock())
        lifetime = int(self.token_seconds if token_seconds is None else token_seconds)
        claims = {
            "iss": "https://PROJECT.supabase.example/auth/v1",
            "sub": sub,
            "aud": "authenticated",
            "exp": issued + lifetime,
            "iat": issued,
            "email": "",
            "phone": "",
            "app_metadata": {},
            "user_metadata": {"note": TRICKY_NOTE},
            "role": "authenticated",
            "aal": "aal1",
            "amr": [{"method": "anonymous", "timestamp": issued}],
            "session_id": str(uuid.uuid4()),
            "is_anonymous": True,
        }
        session: dict[str, Any] = json.loads(recording("langfast_signup.json").body)
        refresh_token = base64url(uuid.uuid4().bytes)
        self._refresh_tokens[refresh_token] = sub
        session.update(
            access_token=sign(claims),
            expires_in=lifetime,
            expires_at=issued + lifetime,
            refresh_token=refresh_token,
        )
        session["user"]["id"] = sub
        return session
