"""What keeps a call out of a simulated upstream: unknown keys, and limits per key."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from tests.simulators.ledger import Ledger

MINUTE = 60.0
NO_LIMIT = 1_000_000


@dataclass(slots=True)
class TokenBucket:
    """Holds `capacity` tokens and gets one back every `refill_seconds`. Times in seconds of any one clock."""

    capacity: int
    refill_seconds: float
    _tokens: dict[str, float] = field(default_factory=dict)
    _seen: dict[str, float] = field(default_factory=dict)

    def level(self, key: str, now: float) -> float:
        """Tokens in the bucket of that key."""
        gained = (now - self._seen.get(key, now)) / self.refill_seconds
        return min(float(self.capacity), self._tokens.get(key, float(self.capacity)) + gained)

    def take(self, key: str, now: float) -> bool:
        """Take one token; False, and nothing taken, if there is none."""
        level = self.level(key, now)
        self._seen[key] = now
        self._tokens[key] = level - 1 if level >= 1 else level
        return level >= 1

    def wait_seconds(self, key: str, now: float) -> float:
        """Until the next token comes; 0 if there is one."""
        return max(0.0, (1 - self.level(key, now)) * self.refill_seconds)


class Gate:
    """Who gets in. Without `keys` every key is good; `concurrency` and `requests_per_minute` are per key."""

    def __init__(
        self,
        keys: Collection[str] | None = None,
        *,
        concurrency: int | None = None,
        requests_per_minute: int | None = None,
    ) -> None:
        self.keys = None if keys is None else set(keys)
        self.concurrency = concurrency or NO_LIMIT
        self.requests_per_minute = requests_per_minute or NO_LIMIT
        self.refill_seconds = MINUTE / self.requests_per_minute
        self.bucket = TokenBucket(self.requests_per_minute, self.refill_seconds)

    def knows(self, key: str) -> bool:
        return self.keys is None or key in self.keys

    def refuses(self, key: str, ledger: Ledger, now: float) -> Literal["concurrency", "rate"] | None:
        """Why a call that has just come in is turned away; None admits it and counts it."""
        if ledger.open_by_key[key] > self.concurrency:
            return "concurrency"
        return None if self.bucket.take(key, now) else "rate"
