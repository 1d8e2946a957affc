"""Thousands of random steps of several workers, with deaths, lost replies and dead keepers, against the model.

The clock is the test's own, so hours pass in milliseconds. Every answer of the pool is checked at once: no credential is ever
leased too often, while it rests, is set aside, expired or was removed, or with an outdated secret; none is withheld without a
reason; sign-ups stay within their limits; and in the end every lease has come back.
"""

import random
from collections import Counter

import pytest
import trio

from shared.redis.address import Address
from shared.redis.credentials.pool import Pool
from shared.redis.link import Link
from shared.schema.credential import Chore, Granted, Minting, Nothing, Opened
from shared.sealing import Seal
from tests.redis_server import RedisServer
from tests.shared.redis.credentials.model import LIFE, Lease, Truth

WORKERS = ("w0", "w1", "w2", "w3")
MODELS = ("small", "large with a space")
CHORE_SECONDS = 30.0
VERDICTS = ("ok", "", "rest", "retire", "suspend")
CALM, STORMY = (80, 6, 10, 3, 1), (40, 5, 20, 25, 10)


class Scenario:
    """One random run. `seed` makes it again."""

    def __init__(self, seed: int, link: Link) -> None:
        self.random = random.Random(seed)
        self.now = 1_000_000
        calls = self.random.choice([0, 1, 2, 3])
        self.minting = Minting(
            self.random.randint(0, 2), self.random.randint(2, 5), self.random.choice([3, 8, 1000]), 5.0
        )
        if self.random.random() < 0.3:
            self.minting = Minting(0, 0, 0)
        self.pool = Pool(link, Seal(["a key for the simulation, 32 characters"]), f"sim{seed}", clock=lambda: self.now)
        self.truth = Truth(calls, self.minting, self.now)
        keys = self.random.choice([0, 1, 2] if self.minting.most else [1, 3, 20])
        self.weights = self.random.choice([CALM, STORMY])
        self.own = [(self.pool.name(opened), opened) for opened in (Opened(f"key {i}") for i in range(keys))]
        self.held: dict[str, dict[str, Lease]] = {worker: {} for worker in WORKERS}
        self.numbers = Counter[str]()
        self.seen = Counter[str]()
        self.chores: list[tuple[Chore, str]] = []

    async def run(self, steps: int) -> None:
        await self.renew(WORKERS[0])
        for _ in range(steps):
            self.wait(
                self.random.choices([0, 1, 10, 100, 400, 5_000, 40_000, 700_000], [10, 20, 20, 30, 15, 4, 1, 1])[0]
            )
            worker = self.random.choice(WORKERS)
            await self.random.choices(
                [self.lease, self.release, self.renew, self.keep, self.leave, self.die], [42, 32, 14, 18, 1, 1]
            )[0](worker)
        await self.everything_comes_back()

    def wait(self, milliseconds: int) -> None:
        """Time passes; mostly somebody vouches for the settings all the while."""
        end, vouching = self.now + milliseconds, self.random.random() < 0.9
        while milliseconds > LIFE and vouching and self.now < end - LIFE:
            self.now = self.truth.now = self.now + LIFE - 1
            self.pool.register(self.own)
            if self.own:
                self.truth.register((who, opened.secret) for who, opened in self.own)
        self.now = self.truth.now = end

    async def lease(self, worker: str) -> Granted | Nothing:
        self.numbers[worker] += 1
        model, known = self.random.choice(MODELS), list(self.truth.known)
        tried = (
            set(self.random.sample(known, self.random.randint(1, len(known))))
            if known and self.random.random() < 0.2
            else set()
        )
        name, calls = f"{worker}:{self.numbers[worker]}", self.truth.calls
        answer = await self.pool.lease(name, model, calls=calls, patience_seconds=1, minting=self.minting, tried=tried)
        if isinstance(answer, Nothing):
            self.seen["nothing"] += 1
            self.truth.nothing(answer, model, tried)
            return answer
        self.seen["granted"] += 1
        knows = self.random.random() > 0.05
        self.seen["reply lost"] += not knows
        self.truth.granted(answer, worker, model, tried, knows)
        if knows:
            self.held[worker][answer.name] = self.truth.leases[answer.name]
        return answer

    async def release(self, worker: str) -> None:
        if self.held[worker]:
            lease = self.held[worker].pop(self.random.choice(list(self.held[worker])))
            verdict = self.random.choices(VERDICTS, self.weights)[0]
            wait = self.random.choice([None, 2_000, 30_000, 99_999_999]) if verdict == "rest" else None
            self.pool.release(
                lease.granted, verdict, model=lease.model, wait_seconds=None if wait is None else wait / 1000
            )
            self.truth.release(lease, verdict, wait)
            self.seen[f"verdict {verdict}"] += 1

    async def renew(self, worker: str) -> None:
        """As a worker does: vouch, register what is not known, drop what is lost."""
        held, answered = list(self.held[worker].values()), trio.Event()
        replies: list[list[list[bytes]]] = []
        self.pool.renew(
            [lease.granted for lease in held],
            [who for who, _ in self.own],
            self.truth.calls,
            lambda reply: (replies.append(reply), answered.set()),
        )
        await answered.wait()
        lost, unknown = ([word.decode() for word in words] for words in replies[0][:2])
        self.truth.renewed(held, [who for who, _ in self.own], lost, unknown)
        for name in lost:
            self.seen["lost"] += 1
            del self.held[worker][name]
        if unknown:
            self.pool.register(self.own)
            self.truth.register((who, opened.secret) for who, opened in self.own)

    async def leave(self, worker: str) -> None:
        self.pool.leave(worker)
        self.truth.leave(worker)
        self.held[worker].clear()

    async def die(self, worker: str) -> None:
        """Nobody renews its leases any more."""
        self.seen["died"] += 1
        self.held[worker].clear()

    async def keep(self, _: str) -> None:
        """A keeper takes a chore, or ends one; it may also die over it."""
        if self.chores and self.random.random() < 0.6:
            await self.end_chore(*self.chores.pop(self.random.randrange(len(self.chores))))
            return
        self.numbers["keeper"] += 1
        token = f"signup{self.numbers['keeper']}"
        chore = await self.pool.upkeep(token, self.minting, validates=True, chore_seconds=CHORE_SECONDS)
        self.truth.advance()
        standing = await self.pool.standing()
        self.truth.swept({one.id for one in standing})
        for one in standing:
            self.truth.stands(one)
        if isinstance(chore, Chore):
            self.seen[f"chore {chore.kind}"] += 1
            if chore.kind == "mint":
                self.truth.signup_begins(token, CHORE_SECONDS)
            else:
                one = self.truth.known[chore.id]
                assert chore.stamp == one.stamp and chore.opened is not None and chore.opened.secret == one.secret
            if self.random.random() < 0.9:
                self.chores.append((chore, token))
        elif chore is not None:
            assert chore > 0

    async def end_chore(self, chore: Chore, token: str) -> None:
        well, life = self.random.random() < 0.7, self.random.choice([0, 8_000, 60_000])
        times = {"life_seconds": life / 1000 or None, "refresh_seconds": life * 0.8 / 1000}
        if chore.kind == "mint" and well:
            opened = Opened(f"minted {token}")
            renewable = self.random.random() < 0.5
            for _ in range(self.random.choice([1, 1, 2])):  # the reply may be lost, then it is repeated
                who = await self.pool.add(
                    opened, "minted", token=token, most=self.minting.most, renewable=renewable, **times
                )
                self.truth.added(who, opened.secret, token, life)
        elif chore.kind == "mint":
            pause = await self.pool.mint_failed(token, self.random.choice([0.0, 5.0, 120.0]), 1.0)
            if token == self.truth.signup:
                assert pause >= 30
                self.truth.signup, self.truth.signup_until = None, self.now + round(pause * 1000)
            else:
                assert pause == 0
        elif chore.kind == "refresh" and well:
            opened = Opened(f"refreshed {chore.id} {token}")
            accepted = await self.pool.refreshed(chore, opened, **times)
            self.truth.refreshed(chore.id, chore.stamp, opened.secret, life, accepted)
            assert not await self.pool.refreshed(chore, Opened("late"), **times), "a second one is too late"
        elif chore.kind == "refresh":
            await self.pool.not_refreshed(chore, self.random.choice([None, 3.0]))
        else:
            verdict = self.random.choice(["valid", "cleared"]) if well else "retire"
            await self.pool.judge(chore, verdict)
            self.truth.release(Lease(Granted(chore.id, "", chore.stamp, None), "", "", 0), verdict, None)

    async def everything_comes_back(self) -> None:
        """Long after everybody has gone, each credential that is left can be leased as often as it may."""
        self.now += 4 * 3_600_000
        self.truth.now = self.now
        self.truth.rests.clear()
        for worker in WORKERS:
            self.held[worker].clear()
        await self.renew(WORKERS[0])
        self.truth.advance()
        assert not self.truth.leases
        expected = sum(
            1 if one.state == "probation" else self.truth.calls or 2
            for one in self.truth.known.values()
            if one.state != "aside" and not 0 < one.expires <= self.now
        )
        for _ in range(expected):
            answer = await self.pool.lease("z:1", "m", calls=self.truth.calls, patience_seconds=0)
            assert isinstance(answer, Granted) or not self.truth.calls
            self.pool.release(answer, "") if not self.truth.calls and isinstance(answer, Granted) else None
        left = await self.pool.link.call("HGETALL", f"sluice:credentials:{{{self.pool.provider}}}:pool")
        assert self.truth.calls or not [word for word in left if word.startswith(b"load")]


async def simulate(redis_server: RedisServer, seeds: range, steps: int) -> Counter[str]:
    seen = Counter[str]()
    async with trio.open_nursery() as nursery:
        link = Link(Address.parse(redis_server.url))
        await nursery.start(link.run)
        for seed in seeds:
            scenario = Scenario(seed, link)
            try:
                await scenario.run(steps)
            except AssertionError as error:
                error.add_note(f"seed {seed}, at {scenario.now}")
                raise
            seen += scenario.seen
        nursery.cancel_scope.cancel()
    return seen


@pytest.mark.promise("P14")
async def test_random_scenarios(redis_server: RedisServer) -> None:
    seen = await simulate(redis_server, range(60), 150)
    for what in ("granted", "nothing", "reply lost", "died", "lost", "verdict retire", "verdict suspend", "chore mint"):
        assert seen[what], what
    assert seen["chore refresh"] and seen["chore validate"]


@pytest.mark.promise("P14")
@pytest.mark.slow
@pytest.mark.parametrize("first", range(1_000, 2_000, 250))
async def test_a_thousand_random_scenarios(redis_server: RedisServer, first: int) -> None:
    await simulate(redis_server, range(first, first + 250), 200)
