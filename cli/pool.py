"""What `sluice credentials` does, on the pool in Redis that the workers use: the same operations, the same link."""

import getpass
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.redis import keys
from shared.redis.address import Address
from shared.redis.credentials.pool import Pool
from shared.redis.failures import RedisError
from shared.redis.link import Link
from shared.redis.subscription import Subscription
from shared.schema.credential import ACCEPTED, Opened, Standing
from shared.sealing import Seal
from shared.settings import load_worker, process_environment
from shared.settings.providers import KEYLESS, canonical

Result = TypeVar("Result")

TEST_SECONDS: Final = 30.0
START_SECONDS: Final = 2.0
SHOWN_OF_A_SECRET: Final = 4
LONG_ENOUGH_TO_SHOW: Final = 16
_SOURCES: Final = {"settings": "settings", "minted": "signed up", "added": "added"}


class PoolTrouble(RuntimeError):
    """The pool cannot do what was asked; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Open:
    """A pool, and a bell that rings with its news."""

    pool: Pool
    news: "Bell"


class Bell:
    """Counts news, so that none slips through between a look and the wait for the next."""

    def __init__(self) -> None:
        self.rings = 0
        self._rung = trio.Event()

    def ring(self, *_: object) -> None:
        self.rings += 1
        self._rung.set()
        self._rung = trio.Event()

    async def wait(self, heard: int) -> None:
        """Until it has rung more often than `heard`."""
        while self.rings == heard:
            await self._rung.wait()


def show(provider: str) -> None:
    """Print the pool as a table.

    Raises:
        PoolTrouble: Redis does not answer. So do all that follow.
    """
    name = canonical(provider)
    standing = _with_pool(name, lambda opened: opened.pool.standing())
    if not standing:
        print(f"There are no credentials for {name} now. Those of the settings appear when a worker of it runs.")
        return
    table = Table(title=f"Credentials of {name}", title_justify="left")
    for title in ("Id", "Secret", "From", "State", "Calls", "Last test"):
        table.add_column(title, overflow="fold", no_wrap=title == "Id")
    for one in standing:
        usable = one.record.state == "ready" and not one.rests
        table.add_row(
            Text(one.id, style="" if usable else "bold"), masked(one.opened), _SOURCES[one.record.origin], state(one),
            str(one.calls), tested(one),
        )  # fmt: skip
    Console().print(table)


def add(provider: str, extra: Sequence[str]) -> None:
    """Add a credential whose secret is asked for, or stands on standard input.

    Raises:
        PoolTrouble: also if secret or extra are no good.
    """
    name = canonical(provider)
    pairs = dict(_pair(text) for text in extra)
    secret = (getpass.getpass("Secret: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise PoolTrouble("Expected a secret of printable ASCII characters without spaces.")
    made = _with_pool(name, lambda opened: opened.pool.add(Opened(secret, pairs), "added"))
    print(f"Added {made}; all workers of {name} use it from now on.")


def test(provider: str, beginning: str | None) -> int:
    """Have one or all credentials tested and print what was found; the exit status.

    Raises:
        PoolTrouble: also if no worker answers.
    """
    name = canonical(provider)
    found = _with_pool(name, partial(_test, beginning=beginning))
    if not found:
        raise PoolTrouble(f"There are no credentials for {name} any more.")
    for one in found:
        print(f"{one.id}: {one.record.tested}")
    return 0 if all(one.record.tested == ACCEPTED for one in found) else 1


async def _test(opened: Open, beginning: str | None) -> list[Standing]:
    standing = await opened.pool.standing()
    chosen = [_choose(standing, beginning)] if beginning else standing
    before = {one.id: one.record.tested_at for one in chosen}
    for one in chosen:
        await opened.pool.test(one.id)
    with trio.move_on_after(TEST_SECONDS):
        while True:
            heard = opened.news.rings
            left = [one for one in await opened.pool.standing() if one.id in before]
            if all(one.record.tested_at > before[one.id] for one in left):
                return left
            await opened.news.wait(heard)
    raise PoolTrouble(
        f"No worker of {opened.pool.provider} has answered within {TEST_SECONDS:g} s. Is one running? `sluice doctor` tells."
    )


def rest(provider: str, beginning: str, seconds: float, model: str) -> None:
    """Let a credential rest, or end all its rests."""
    chosen = _with_pool(canonical(provider), partial(_rest, beginning=beginning, seconds=seconds, model=model))
    print(f"{chosen} rests for {duration(seconds)}." if seconds else f"{chosen} does not rest any more.")


async def _rest(opened: Open, beginning: str, seconds: float, model: str) -> str:
    chosen = _choose(await opened.pool.standing(), beginning).id
    await opened.pool.rest(chosen, seconds, model)
    return chosen


def remove(provider: str, beginning: str) -> None:
    """Remove a credential.

    Raises:
        PoolTrouble: also if it comes from the settings of a running worker.
    """
    chosen = _with_pool(canonical(provider), partial(_remove, beginning=beginning))
    print(f"Removed {chosen}.")


async def _remove(opened: Open, beginning: str) -> str:
    chosen = _choose(await opened.pool.standing(), beginning).id
    if await opened.pool.remove(chosen) < 0:
        raise PoolTrouble(
            f"{chosen} comes from the settings of a running worker, which would bring it back: take it out of the settings "
            "and restart the workers, or let it rest."
        )
    return chosen


# Texts


def masked(opened: Opened | None) -> str:
    """Enough of a secret to tell it from others: its last signs, if it is long."""
    if opened is None:
        return "sealed with another key"
    if len(opened.secret) < LONG_ENOUGH_TO_SHOW:
        return "***"
    return f"***{opened.secret[-SHOWN_OF_A_SECRET:]}"


def state(one: Standing) -> str:
    """How a credential stands, in words."""
    parts = []
    if one.retired_seconds:
        parts.append(f"refused by the upstream, tried again in {duration(one.retired_seconds)}")
    if one.suspended_seconds:
        parts.append(f"unpaid or used up, tried again in {duration(one.suspended_seconds)}")
    if one.record.state == "probation":
        parts.append("on probation: one call at a time until one goes well")
    parts += [f"rests {duration(left)}{f' for {model}' if model else ''}" for model, left in sorted(one.rests.items())]
    if not parts:
        parts.append("ready")
    if one.expires_seconds is not None:
        parts.append(f"ends in {duration(max(0.0, one.expires_seconds))}")
    return "; ".join(parts)


def tested(one: Standing) -> str:
    """What the last test found, and how long ago."""
    if one.tested_seconds_ago is None:
        return "-"
    return f"{one.record.tested} ({duration(one.tested_seconds_ago)} ago)"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise PoolTrouble(f"Expected NAME=VALUE, got {name!r}.")
    return name, value


def _choose(standing: Sequence[Standing], beginning: str) -> Standing:
    chosen = [one for one in standing if one.id.startswith(beginning)]
    if len(chosen) == 1:
        return chosen[0]
    count = f"{len(chosen)} credentials have ids that begin" if chosen else "No credential has an id that begins"
    raise PoolTrouble(f"{count} with {beginning!r}. `sluice credentials list` shows them.")


# Redis


def _with_pool(provider: str, act: Callable[[Open], Awaitable[Result]]) -> Result:
    """What `act` returns, with a pool that is connected."""
    settings = load_worker(KEYLESS, process_environment())
    address = Address.parse(settings.redis_url.reveal())
    seal = Seal([key.reveal() for key in settings.secret_keys])
    outcome: list[Result] = []
    troubles: list[str] = []

    async def run() -> None:
        link = Link(address, name="sluice-credentials", start_seconds=START_SECONDS)
        news = Bell()
        ear = Subscription(address, [keys.pool_news(provider)], name="sluice-credentials-news")
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            await nursery.start(ear.run, news.ring)
            outcome.append(await act(Open(Pool(link, seal, provider), news)))
            nursery.cancel_scope.cancel()

    try:
        trio.run(run)
    except* RedisError as group:
        troubles.append(f"Redis does not do it: {group.exceptions[0]}. `sluice doctor` tells more.")
    except* PoolTrouble as group:
        troubles.append(str(group.exceptions[0]))
    if troubles:
        raise PoolTrouble(troubles[0])
    return outcome[0]
