"""A pool whose clock a test sets, and what tests do with it all the time."""

from dataclasses import dataclass, field

import pytest

from shared.redis.credentials.pool import NO_MINTING, Pool
from shared.redis.link import Link
from shared.schema.credential import Granted, Minting, Nothing, Opened
from shared.sealing import Seal

SECRET_KEY = "a secret key of a test, 32 characters"


@dataclass
class Clock:
    """Milliseconds; tests add seconds."""

    now: int = 1_000_000

    def __call__(self) -> int:
        return self.now

    def add(self, seconds: float) -> None:
        self.now += round(seconds * 1000)


@dataclass
class Tried:
    """One worker at one pool."""

    pool: Pool
    clock: Clock
    calls: int = 0
    minting: Minting = NO_MINTING
    leases: int = 0
    own: list[tuple[str, Opened]] = field(default_factory=list)

    def register(self, *secrets: str) -> list[str]:
        """Settings with these secrets; their ids."""
        self.own = [(self.pool.name(opened), opened) for opened in map(Opened, secrets)]
        self.pool.register(self.own)
        return [who for who, _ in self.own]

    def wait(self, seconds: float) -> None:
        """Time passes, and a worker vouches for its settings all the while."""
        end = self.clock.now + round(seconds * 1000)
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 9_000)
            self.pool.register(self.own)

    async def ask(self, model: str = "m", tried: set[str] = frozenset()) -> Granted | Nothing:  # type: ignore[assignment]
        self.leases += 1
        return await self.pool.lease(
            f"w:{self.leases}", model, calls=self.calls, patience_seconds=1, minting=self.minting, tried=tried
        )

    async def lease(self, model: str = "m", tried: set[str] = frozenset()) -> Granted:  # type: ignore[assignment]
        answer = await self.ask(model, tried)
        assert isinstance(answer, Granted), answer
        return answer

    async def none(self, model: str = "m", tried: set[str] = frozenset()) -> Nothing:  # type: ignore[assignment]
        answer = await self.ask(model, tried)
        assert isinstance(answer, Nothing), answer
        return answer

    async def call(self, verdict: str, model: str = "m", wait_seconds: float | None = None) -> Granted:
        """A whole call with this verdict."""
        granted = await self.lease(model)
        self.pool.release(granted, verdict, model=model, wait_seconds=wait_seconds)
        return granted

    def upkeep(self, token: str = "token", *, validates: bool = False):
        return self.pool.upkeep(token, self.minting, validates=validates, chore_seconds=30)


@pytest.fixture
def seal() -> Seal:
    return Seal([SECRET_KEY])


@pytest.fixture
async def user(link: Link, seal: Seal) -> Tried:
    clock = Clock()
    return Tried(Pool(link, seal, "openai", clock=clock), clock)
