"""Keepers against an upstream where one signs up: enough credentials, never too many, never too fast, none that is dead."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from shared.errors import Failure, GatewayError
from shared.redis.address import Address
from shared.redis.credentials.pool import Pool
from shared.redis.link import Link
from shared.schema.credential import Minting, Opened
from shared.sealing import Seal
from tests.redis_server import RedisServer
from tests.shared.redis.credentials.conftest import Clock
from tests.simulators.langfast import Langfast
from tests.workers.colleagues import SECRET_KEY, Colleague, Keyed, Office
from workers.exchange import HttpReply, HttpRequest
from workers.keeper import Keeper
from workers.provider import Call, Check, Credential, Mint, MintedCredential, Timeouts
from workers.transports.http import HttpTransport

HOUR = 3600
NEVER_ENDING_TRUST = Failure("credential_invalid", "The upstream refused the token.", upstream_status=401)


class Anonymous:
    """Signs up at the simulator as one does at the real service."""

    name = "anonymous"
    models: Sequence[Any] = ()
    endpoints: Sequence[str] = ("chat",)
    timeouts = Timeouts()
    credentials: Sequence[Credential] = ()
    accepts_any_model = caller_credentials = False

    def __init__(self, upstream: Langfast, minting: Minting) -> None:
        self._upstream = upstream
        self.minting = minting

    def mint(self, call: Call) -> Mint:
        assert call.credential is None
        return self._made((yield self._post("/auth/v1/signup", {})))

    def _post(self, path: str, body: dict[str, str]) -> HttpRequest:
        headers = [("apikey", self._upstream.anon_key), ("content-type", "application/json")]
        return HttpRequest(
            method="POST", url=self._upstream.origin + path, headers=headers, body=json.dumps(body).encode()
        )

    def _made(self, reply: HttpReply) -> MintedCredential:
        if reply.status == 429:
            wait = reply.headers.get("retry-after")
            raise GatewayError(
                Failure("rate_limit", "Too many sign-ups.", retry_after_seconds=float(wait) if wait else None)
            )
        if reply.status != 200:
            raise GatewayError(Failure("invalid_request" if reply.status == 400 else "upstream_error", "It said no."))
        session = json.loads(reply.body)  # garbage raises: a defect that the keeper must survive
        return MintedCredential(
            session["access_token"], {"refresh_token": session["refresh_token"]}, session["expires_at"]
        )


class Lasting(Anonymous):
    """The same with everything that a provider may offer."""

    def __init__(self, upstream: Langfast, minting: Minting) -> None:
        super().__init__(upstream, minting)
        self.trusted = True

    def refresh(self, call: Call) -> Mint:
        token = call.credential.extra["refresh_token"]
        return self._made((yield self._post("/auth/v1/token?grant_type=refresh_token", {"refresh_token": token})))

    def validate(self, call: Call) -> Check:
        yield self._post("/rest/v1/rpc/create_prompt", {})
        if not self.trusted or self._upstream.accounts.subject(call.credential.secret) is None:
            raise GatewayError(NEVER_ENDING_TRUST)


class Kept:
    """A pool with a clock of the test, and keepers that look at it when told."""

    def __init__(self, pool: Pool, clock: Clock, nursery: trio.Nursery) -> None:
        self.pool = pool
        self.clock = clock
        self.keepers: list[Keeper] = []
        self._nursery = nursery

    def keep(self, provider: Any, *, chore_seconds: float = 5.0) -> Keeper:
        transport = HttpTransport(connect_seconds=1, idle_connections=2, idle_seconds=1)
        self.keepers.append(
            Keeper(provider, self.pool, transport, f"w{len(self.keepers)}", chore_seconds=chore_seconds)
        )
        self._nursery.start_soon(self.keepers[-1].run)
        return self.keepers[-1]

    async def later(self, seconds: float) -> None:
        """Time passes, and the keepers notice."""
        self.clock.add(seconds)
        for keeper in self.keepers:
            keeper.look_again()
        await self.quiet()

    async def quiet(self) -> None:
        """Until no keeper has anything to do; a Redis on a busy machine may take its time to answer."""
        await wait_all_tasks_blocked(0.25)

    async def secrets(self) -> set[str]:
        return {one.opened.secret for one in await self.pool.standing()}


@pytest.fixture
async def upstream() -> AsyncIterator[Langfast]:
    with trio.fail_after(10):
        async with Langfast().running() as simulator:
            yield simulator


@pytest.fixture
async def kept(redis_server: RedisServer, nursery: trio.Nursery) -> Kept:
    clock = Clock()
    link = Link(Address.parse(redis_server.url))
    await nursery.start(link.run)
    return Kept(Pool(link, Seal([SECRET_KEY]), "anonymous", clock=clock), clock, nursery)


def signups(upstream: Langfast) -> int:
    return len(upstream.ledger.by_path("/auth/v1/signup"))


async def test_several_keepers_make_as_many_as_are_needed_one_at_a_time(kept: Kept, upstream: Langfast) -> None:
    upstream.signup.always(delay=0.02)
    for _ in range(3):
        kept.keep(Anonymous(upstream, Minting(least=4, most=5, margin_seconds=300)))
    await upstream.ledger.wait_for(lambda _: signups(upstream) == 4)
    await kept.quiet()
    assert signups(upstream) == 4
    assert upstream.ledger.peak_by_key[""] == 1, "never two at once"
    standing = await kept.pool.standing()
    assert {one.record.origin for one in standing} == {"minted"} and len(standing) == 4
    assert all(one.expires_seconds == pytest.approx(HOUR - 300, abs=2) for one in standing)


async def test_a_limit_of_the_upstream_is_heeded(kept: Kept, upstream: Langfast) -> None:
    provider = Anonymous(upstream, Minting(least=1, most=3, per_hour=1000))
    upstream.signup.next(status=429, retry_after="120")
    kept.keep(provider)
    kept.keep(provider)
    await kept.later(0)
    for seconds in (10, 60, 49):
        await kept.later(seconds)
        assert signups(upstream) == 1
    await kept.later(1)
    assert signups(upstream) == 2 and len(await kept.pool.standing()) == 1


async def test_sign_ups_in_an_hour_are_limited_over_all_keepers(kept: Kept, upstream: Langfast) -> None:
    for _ in range(2):
        kept.keep(Anonymous(upstream, Minting(least=10, most=10, per_hour=6)))
    await kept.later(0)
    assert signups(upstream) == 6
    await kept.later(HOUR / 2)
    assert signups(upstream) == 6
    await kept.later(HOUR / 2)
    assert signups(upstream) == 12, "another six, in place of those that have come to their end"


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 500}, {"fault": "html"}, {"fault": "empty"}, {"fault": "hang_before_headers"},
        {"fault": "hang_after_headers"}, {"fault": "reset_before_headers"}, {"fault": "truncate"},
        {"token_seconds": -10}, {"token_seconds": 200}, {"status": 422},
    ],
    ids=str,
)  # fmt: skip
async def test_a_sign_up_that_goes_wrong_is_followed_by_a_pause(
    kept: Kept, upstream: Langfast, trouble: dict[str, Any]
) -> None:
    provider = Anonymous(upstream, Minting(least=1, most=3, margin_seconds=300))
    upstream.signup.always(**trouble)
    keeper = kept.keep(provider, chore_seconds=0.2)
    pauses = []
    for number in range(1, 3):
        await upstream.ledger.wait_for(lambda _, number=number: signups(upstream) == number)
        while await kept.pool.link.call("HEXISTS", "sluice:credentials:{anonymous}:pool", "mint"):  # noqa: ASYNC110
            await trio.sleep(0.01)
        pause = await kept.pool.upkeep("", provider.minting, validates=False, chore_seconds=30)
        pauses.append(pause)
        assert await kept.pool.standing() == []
        kept.clock.add(pause)
        keeper.look_again()
    for pause, usual in zip(pauses, (30, 60), strict=True):
        assert usual * 0.8 <= pause <= usual * 1.2
    upstream.signup.always()
    await kept.later(300)
    assert len(await kept.pool.standing()) == 1


async def test_a_fresh_one_is_validated_before_it_is_used(kept: Kept, upstream: Langfast) -> None:
    provider = Lasting(upstream, Minting(least=1, most=1))
    provider.trusted = False
    kept.keep(provider)
    await kept.later(0)
    assert signups(upstream) == 1 and await kept.pool.standing() == []
    provider.trusted = True
    await kept.later(60)
    assert signups(upstream) == 2 and len(await kept.pool.standing()) == 1


async def test_refreshed_before_its_end_without_another_sign_up(kept: Kept, upstream: Langfast) -> None:
    for _ in range(2):
        kept.keep(Lasting(upstream, Minting(least=2, most=3)))
    await kept.later(0)
    first = await kept.secrets()
    await kept.later(0.7 * HOUR)
    assert await kept.secrets() == first
    upstream.accounts.clock = lambda: time.time() + 0.9 * HOUR
    await kept.later(0.2 * HOUR)
    second = await kept.secrets()
    assert len(second) == 2 and not second & first
    assert (signups(upstream), len(upstream.ledger.by_path("/auth/v1/token"))) == (2, 2), (
        "each refresh token works once"
    )


async def test_one_that_is_not_refreshed_any_more_is_replaced_in_time(kept: Kept, upstream: Langfast) -> None:
    kept.keep(Lasting(upstream, Minting(least=1, most=2)))
    await kept.later(0)
    (first,) = await kept.secrets()
    upstream.signup.next(status=500)
    await kept.later(0.86 * HOUR)  # just a hiccup: it is repeated
    assert await kept.secrets() == {first} and signups(upstream) == 1
    upstream.accounts._refresh_tokens.clear()
    await kept.later(40)
    assert signups(upstream) == 2
    assert len(await kept.secrets()) == 2, "it serves to its end"
    await kept.later(HOUR * 0.14)
    assert first not in await kept.secrets()


async def test_a_refused_one_is_refreshed_at_once(kept: Kept, upstream: Langfast) -> None:
    kept.keep(Lasting(upstream, Minting(least=1, most=1)))
    await kept.later(0)
    granted = await kept.pool.lease("x:1", "m", calls=1, patience_seconds=0)
    kept.pool.release(granted, "retire")
    await kept.later(0)
    again = await kept.pool.lease("x:2", "m", calls=1, patience_seconds=0)
    assert again.id == granted.id and again.opened.secret != granted.opened.secret
    assert signups(upstream) == 1


async def test_a_test_says_what_was_found(kept: Kept, upstream: Langfast) -> None:
    provider = Lasting(upstream, Minting(least=1, most=1))
    kept.keep(provider)
    await kept.later(0)
    (one,) = await kept.pool.standing()
    for trusted, found in (
        (True, "the upstream accepts it"),
        (False, "credential_invalid: The upstream refused the token."),
    ):
        provider.trusted = trusted
        await kept.pool.test(one.id)
        await kept.later(0)
        (seen,) = [seen for seen in await kept.pool.standing() if seen.id == one.id]
        assert (seen.record.tested, seen.tested_seconds_ago) == (found, 0)
    assert seen.record.strikes == 1


async def test_where_nothing_can_be_tested_the_answer_says_so(redis_server: RedisServer, kept: Kept) -> None:
    provider = Keyed("a")
    kept.keep(provider)
    kept.pool.register([(kept.pool.name(Opened("a")), Opened("a"))])
    (one,) = await kept.pool.standing()
    await kept.pool.test(one.id)
    await kept.later(0)
    (seen,) = await kept.pool.standing()
    assert "no way to test" in seen.record.tested and seen.record.state == "ready"


# With those who use the credentials


@pytest.fixture
async def staff(redis_server: RedisServer, nursery: trio.Nursery, upstream: Langfast) -> list[Colleague]:
    """Two workers with keepers of their own."""
    office, provider = Office(redis_server, nursery), Anonymous(upstream, Minting(least=0, most=2))
    return [await office.hire(provider, calls=1) for _ in range(2)]


async def test_an_empty_pool_is_filled_because_somebody_waits(staff: list[Colleague], upstream: Langfast) -> None:
    lease = await staff[0].lease()
    assert upstream.accounts.subject(lease.credential.secret)
    for _ in range(10):
        staff[0].give_back(lease)
        lease = await staff[0].lease()
    assert signups(upstream) == 1, "not one for each request"


async def test_a_rush_makes_as_many_as_allowed_and_the_rest_wait_their_turn(
    staff: list[Colleague], upstream: Langfast
) -> None:
    at_once, most = 0, 0

    async def call(worker: Colleague) -> None:
        nonlocal at_once, most
        lease = await worker.lease()
        at_once += 1
        most = max(most, at_once)
        await trio.sleep(0.01)
        at_once -= 1
        worker.give_back(lease)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(call, staff[number % 2])
    assert signups(upstream) == most == 2


async def test_when_signing_up_is_impossible_callers_are_told_when_to_come_again(
    staff: list[Colleague], upstream: Langfast
) -> None:
    upstream.signup.always(status=429, retry_after="300")
    with pytest.raises(GatewayError) as error:
        await staff[0].lease()
    assert error.value.failure.kind == "no_credential"
    assert error.value.failure.retry_after_seconds == pytest.approx(300, abs=2)
    with pytest.raises(GatewayError):
        await staff[1].lease()
    assert signups(upstream) == 1


async def test_what_was_signed_up_for_is_not_lost_with_a_connection(
    staff: list[Colleague], upstream: Langfast, redis_server: RedisServer
) -> None:
    upstream.signup.next(delay=0.1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(staff[0].lease)
        await upstream.ledger.wait_for_call()
        redis_server.client.client_kill_filter(_type="normal", skipme=True)
    assert signups(upstream) == 1
