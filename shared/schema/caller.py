"""Callers' keys as they are kept in Redis, without the key: what one is called and what it may do."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

import msgspec

MASTER: Final = "master"
"""The id under which callers with a key of the settings are counted. They may everything, and they administer the others."""
ANYBODY: Final = "anybody"
"""The id of callers without a key, where the door is open."""
FOREIGN: Final = "foreign"
"""The id of all callers who bring their own upstream key instead of one of ours."""

Priority = Literal["normal", "low"]


class CallerKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key. Times in Unix seconds; None: no limit.

    `id`: eight hex digits, the readable part of the key. `revision`: counts changes, so that an outdated copy shows. Tokens are
    prompt and answer together. `models`, `providers`: what may be asked for, as names or patterns with `*`; empty: everything.
    `priority`: "low" waits behind everybody's normal requests. `cache_seconds`: how long identical requests are answered from
    memory, 0 for never.
    """

    id: str
    name: str = ""
    revision: int = 1
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    models: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    daily_tokens: int | None = None
    monthly_tokens: int | None = None
    priority: Priority = "normal"
    cache_seconds: float = 0.0

    def allows(self, provider: str, *names: str) -> bool:
        """Whether this key may ask `provider` for a model that goes by these names; one that is allowed is enough. The name
        with the provider before it, `provider/model`, is always among them."""
        if self.providers and not _one_of(self.providers).fullmatch(provider):
            return False
        if not self.models:
            return True
        allowed = _one_of(self.models)
        return any(allowed.fullmatch(name) or allowed.fullmatch(f"{provider}/{name}") for name in names)

    def has_expired(self, now: float) -> bool:
        """`now` in Unix seconds."""
        return self.expires_at is not None and now >= self.expires_at


@lru_cache(maxsize=4096)
def _one_of(patterns: Sequence[str]) -> re.Pattern[str]:
    """Matches what one of the patterns stands for, in which `*` is any text and everything else itself."""
    return re.compile("|".join(".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns), re.DOTALL)
