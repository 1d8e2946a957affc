"""Who has used what since midnight (UTC), the busiest first: read now and then for those who watch."""

from datetime import UTC, datetime
from typing import Final

import msgspec
import trio

from shared.redis.callers import CallerStore
from shared.redis.link import Link
from shared.redis.usage import read_usage

FRESH_SECONDS: Final = 5.0
"""A day's usage can be thousands of rows; who watches gets them this often."""
MOST_SHOWN: Final = 50


class UsageShown(msgspec.Struct, frozen=True):
    """What one key has used of one model at one provider today. `key`: its id; `name`: what it is called, if it is."""

    key: str
    name: str
    provider: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


class UsageToday:
    """Remembers what it read for a few seconds."""

    def __init__(self, link: Link, callers: CallerStore) -> None:
        self._link = link
        self._callers = callers
        self._rows: list[UsageShown] = []
        self._total = 0
        self._stale_at = 0.0

    async def read(self) -> tuple[list[UsageShown], int]:
        """The busiest rows, and how many there are at all. Raises `RedisError`."""
        now = trio.current_time()
        if now >= self._stale_at:
            today = datetime.now(UTC).date()
            rows = await read_usage(self._link, today, today)
            rows.sort(
                key=lambda row: (-row.prompt_tokens - row.completion_tokens, -row.requests, row.caller, row.model)
            )
            names = {key.id: key.name for key in await self._callers.all()} if rows else {}
            self._total = len(rows)
            self._rows = [
                UsageShown(
                    row.caller, names.get(row.caller, ""), row.provider, row.model, row.requests, row.prompt_tokens,
                    row.completion_tokens,
                )
                for row in rows[:MOST_SHOWN]
            ]  # fmt: skip
            self._stale_at = now + FRESH_SECONDS
        return self._rows, self._total
