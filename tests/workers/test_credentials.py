"""Credentials as attempts see them: several workers, one pool, and all that can happen to either."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from shared.errors import Failure, GatewayError
from shared.redis.credentials import pool as pool_module
from tests.redis_server import RedisServer
from tests.workers.colleagues import Colleague, Keyed, Office, job
from workers import credentials as credentials_module

LEASE_SECONDS = 0.6


@pytest.fixture
def office(redis_server: RedisServer, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Office:
    """Where a lease lives for 0.6 s, so that a test can wait for its end."""
    monkeypatch.setattr(pool_module, "LEASE_SECONDS", LEASE_SECONDS)
    monkeypatch.setattr(credentials_module, "LEASE_SECONDS", LEASE_SECONDS)
    monkeypatch.setattr(credentials_module, "RENEW_SECONDS", 0.2)
    return Office(redis_server, nursery)


@pytest.fixture(autouse=True)
async def patience():
    with trio.fail_after(5):
        yield


async def refusal(colleague: Colleague, **asked: object) -> Failure:
    with pytest.raises(GatewayError) as error:
        await colleague.lease(**asked)
    return error.value.failure


# Whose credential


async def test_a_provider_without_keys_needs_no_lease_and_no_redis(office: Office, redis_server: RedisServer) -> None:
    worker = await office.hire(Keyed())
    lease = await worker.lease()
    assert lease.credential is None
    worker.give_back(lease)
    assert list(redis_server.client.scan_iter()) == []


async def test_a_callers_own_credential_is_used_and_goes_nowhere(office: Office, redis_server: RedisServer) -> None:
    worker = await office.hire(Keyed(caller_credentials=True))
    own = job(credential="sk-of-the-caller")
    lease = await worker.credentials.lease(own, set(), [])
    assert lease.credential.secret == "sk-of-the-caller"
    worker.give_back(lease, Failure("credential_invalid", "no"), accepted=False)
    assert list(redis_server.client.scan_iter()) == []
    for kind, told in (
        ("credential_invalid", "invalid_api_key"),
        ("billing", "insufficient_quota"),
        ("rate_limit", "rate_limit"),
    ):
        with pytest.raises(GatewayError) as error:
            await worker.credentials.lease(own, {"caller"}, [Failure(kind, "no", retry_after_seconds=7)])
        assert (error.value.failure.kind, error.value.failure.retry_after_seconds) == (told, 7)
    assert (await refusal(worker)).kind == "invalid_api_key"


async def test_ids_are_the_same_everywhere_and_tell_nothing(office: Office) -> None:
    first, second = await office.hire(Keyed("sk-one")), await office.hire(Keyed("sk-one"))
    a, b = await first.lease(), await second.lease()
    assert a.credential.id == b.credential.id and len(a.credential.id) == 16
    assert a.credential.secret == "sk-one"
    assert len(await first.pool.standing()) == 1


# Verdicts


async def test_a_refused_credential_gives_way_to_the_next_until_none_is_left(office: Office) -> None:
    worker = await office.hire(Keyed("a", "b"))
    tried, refused = set[str](), [Failure("credential_invalid", "wrong key", upstream_status=401)]
    for _ in range(2):
        lease = await worker.lease(tried=tried, refused=refused)
        tried.add(lease.credential.id)
        worker.give_back(lease, refused[0], accepted=False)
    assert len(tried) == 2
    last = await refusal(worker, tried=tried, refused=refused)
    assert (last.kind, last.row.status) == ("credential_invalid", 503)
    assert "wrong key" not in last.message
    later = await refusal(worker)
    assert later.kind == "no_credential" and later.retry_after_seconds == pytest.approx(600, abs=5)


async def test_a_rate_limit_is_for_one_model_and_reaches_the_caller_with_its_wait(office: Office) -> None:
    worker = await office.hire(Keyed("a"))
    lease = await worker.lease("large")
    limit = Failure("rate_limit", "Slow down.", retry_after_seconds=30)
    worker.give_back(lease, limit, accepted=False)
    last = await refusal(worker, model="large", tried={lease.credential.id}, refused=[limit])
    assert (last.kind, last.message, last.retry_after_seconds) == ("rate_limit", "Slow down.", 30)
    others = await refusal(worker, model="large")
    assert others.kind == "no_credential" and others.retry_after_seconds == pytest.approx(30, abs=1)
    assert (await worker.lease("small")).credential


async def test_what_says_nothing_about_a_credential_changes_nothing(office: Office) -> None:
    worker = await office.hire(Keyed("a"))
    for failure, accepted in (
        (Failure("upstream_error", "500"), False),
        (Failure("truncated", ""), True),
        (None, False),
    ):
        worker.give_back(await worker.lease(), failure, accepted=accepted)
    await worker.settled()
    (seen,) = await worker.pool.standing()
    assert (seen.record.state, seen.calls, seen.rests) == ("ready", 0, {})


async def test_a_call_that_was_cancelled_on_probation_proves_nothing(office: Office) -> None:
    worker = await office.hire(Keyed("a"))
    worker.give_back(await worker.lease(), Failure("credential_invalid", "no"), accepted=False)
    (who,) = [one.id for one in await worker.pool.standing()]
    await worker.link.call("ZADD", "sluice:credentials:{openai}:timers", 1, f"retired {who}")  # its time is over
    worker.give_back(await worker.lease(), None, accepted=False)
    (seen,) = await worker.pool.standing()
    assert seen.record.state == "probation"
    worker.give_back(await worker.lease(), None, accepted=True)
    (seen,) = await worker.pool.standing()
    assert seen.record.state == "ready"


# Several workers


async def test_who_finds_all_busy_waits_for_whoever_gives_back(office: Office) -> None:
    one, other = await office.hire(Keyed("a"), calls=1), await office.hire(Keyed("a"), calls=1)
    held = await one.lease()
    async with trio.open_nursery() as nursery:
        leased: list[int] = []

        async def wait(number: int) -> None:
            lease = await other.lease()
            leased.append(number)
            other.give_back(lease)

        for number in range(3):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
            await other.settled()
            await wait_all_tasks_blocked()
        assert leased == [] and other.starved == [True]
        one.give_back(held)
    assert leased == [0, 1, 2], "in the order in which they came"
    assert other.starved == [True, False]


async def test_who_goes_away_passes_the_turn_on(office: Office) -> None:
    worker = await office.hire(Keyed("a"), calls=1)
    held = await worker.lease()
    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(3)]
        served: list[int] = []

        async def wait(number: int) -> None:
            with scopes[number]:
                worker.give_back(await worker.lease())
                served.append(number)

        for number in range(3):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
            await worker.settled()
            await wait_all_tasks_blocked()
        worker.credentials.look_again()
        scopes[0].cancel()  # in the moment in which it was its turn
        worker.give_back(held)
    assert served == [1, 2]


async def test_a_killed_workers_leases_come_back_within_their_life(office: Office) -> None:
    keys = Keyed("a", "b", "c")
    victim, heir = await office.hire(keys, calls=1), await office.hire(keys, calls=1)
    for _ in range(3):
        await victim.lease()
    await trio.sleep(2 * LEASE_SECONDS)  # they are renewed all the while
    assert {one.calls for one in await heir.pool.standing()} == {1}
    began = trio.current_time()
    await office.kill(victim)
    leases = [await heir.lease() for _ in range(3)]
    assert len({lease.credential.id for lease in leases}) == 3
    assert LEASE_SECONDS / 2 < trio.current_time() - began < LEASE_SECONDS + 1


async def test_a_worker_that_leaves_gives_back_at_once(office: Office) -> None:
    one, other = await office.hire(Keyed("a"), calls=1), await office.hire(Keyed("a"), calls=1)
    await one.lease()
    began = trio.current_time()
    one.scope.cancel()
    await other.lease()
    assert trio.current_time() - began < LEASE_SECONDS / 2


async def test_a_worker_that_is_cut_off_gives_up_before_another_takes_over(office: Office) -> None:
    one, other = await office.hire(Keyed("a"), calls=1), await office.hire(Keyed("a"), calls=1)
    lost = trio.Event()
    held = await one.lease(lost=lost.set)
    one.cable.cancel()
    order: list[str] = []
    async with trio.open_nursery() as nursery:

        async def notice() -> None:
            await lost.wait()
            order.append("lost")

        nursery.start_soon(notice)
        await other.lease()
        order.append("taken over")
    assert order == ["lost", "taken over"]
    one.give_back(held)


async def test_without_a_limit_nobody_has_to_give_up(office: Office) -> None:
    worker = await office.hire(Keyed("a"))
    held = await worker.lease(lost=lambda: pytest.fail("there was no need"))
    worker.cable.cancel()
    await trio.sleep(1.5 * LEASE_SECONDS)
    worker.give_back(held)


async def test_workers_with_different_keys_use_those_of_all_and_only_as_long_as_anybody_has_them(
    office: Office,
) -> None:
    old, new = await office.hire(Keyed("a", "b")), await office.hire(Keyed("b", "c"))
    assert {(await old.lease()).credential.secret for _ in range(3)} == {"a", "b", "c"}
    old.scope.cancel()
    await trio.sleep(1.5 * LEASE_SECONDS)
    assert {(await new.lease()).credential.secret for _ in range(4)} == {"b", "c"}


async def test_what_cannot_be_opened_is_left_to_others(office: Office) -> None:
    ours, theirs = (
        await office.hire(Keyed("a")),
        await office.hire(Keyed("b"), secret_key="another key, also of 32 characters"),
    )
    tried = set[str]()
    for _ in range(4):
        lease = await ours.lease(tried=tried)
        assert lease.credential.secret == "a"
        ours.give_back(lease)
        tried -= {lease.credential.id}
    assert {(await theirs.lease()).credential.secret for _ in range(4)} == {"b"}


# Redis


async def test_a_redis_that_returns_empty_gets_everything_back(office: Office, redis_server: RedisServer) -> None:
    one, other = await office.hire(Keyed("a"), calls=1), await office.hire(Keyed("a"), calls=1)
    held = await one.lease(lost=lambda: pytest.fail("nobody else had it"))
    redis_server.restart()
    await one.settled()
    await other.settled()
    with trio.move_on_after(LEASE_SECONDS) as scope:
        await other.lease()
    assert scope.cancelled_caught, "the call goes on, and still counts"
    one.give_back(held)
    await other.lease()


async def test_a_redis_that_was_emptied_unnoticed_is_told_again(office: Office, redis_server: RedisServer) -> None:
    worker = await office.hire(Keyed("a"))
    redis_server.client.flushall()
    assert (await worker.lease()).credential.secret == "a"


async def test_a_redis_that_is_away_is_waited_for_but_not_for_ever(
    office: Office, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await office.hire(Keyed("a"))
    redis_server.kill()
    monkeypatch.setattr(credentials_module, "PATIENCE_SECONDS", 0.4)
    assert (await refusal(worker)).kind == "queue_unavailable"
    monkeypatch.setattr(credentials_module, "PATIENCE_SECONDS", 4.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.lease)
        await wait_all_tasks_blocked()
        redis_server.restart()


async def test_waiting_has_an_end(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await office.hire(Keyed("a"), calls=1)
    await worker.lease()
    monkeypatch.setattr(credentials_module, "PATIENCE_SECONDS", 0.3)
    began = trio.current_time()
    assert (await refusal(worker)).kind == "no_credential"
    assert 0.3 <= trio.current_time() - began < 1
