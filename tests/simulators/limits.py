"""Limits of simulated upstreams: a token bucket per key."""

from __future__ import annotations

from dataclasses import dataclass, field


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
