"""Who gets which credential, what verdicts do to it, and how it comes back."""

import itertools
from collections import Counter
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from shared.redis.address import Address
from shared.redis.credentials.pool import LEASE_SECONDS, Pool
from shared.redis.failures import RefusalKind, Refused
from shared.redis.link import Link
from shared.schema.credential import Granted, Nothing, Opened
from shared.sealing import Seal
from tests.redis_server import RedisServer
from tests.shared.redis.credentials.conftest import Clock, Tried

MINUTE, HOUR = 60, 3600


async def test_the_least_busy_one_that_has_not_been_used_for_longest(user: Tried) -> None:
    ids = user.register("a", "b", "c")
    first = [await user.lease() for _ in range(3)]
    assert sorted(one.id for one in first) == sorted(ids)
    user.clock.add(1)
    user.pool.release(first[1], "ok")
    assert (await user.lease()).id == first[1].id
    assert {(await user.lease()).id for _ in range(3)} == set(ids)


async def test_use_is_fair_over_eight_credentials(user: Tried) -> None:
    user.calls = 2
    user.register(*"abcdefgh")
    random, uses, running = Random(1), Counter[str](), []
    for _ in range(1500):
        user.wait(0.005)
        if isinstance(granted := await user.ask(), Granted):
            uses[granted.id] += 1
            running.append((user.clock.now + random.choice([10, 40, 70]), granted))
        for end, one in [entry for entry in running if entry[0] <= user.clock.now]:
            user.pool.release(one, "ok")
            running.remove((end, one))
    assert len(uses) == 8
    assert max(uses.values()) < 1.2 * min(uses.values())


async def test_no_more_calls_than_allowed_and_a_lease_that_nobody_renews_ends(user: Tried) -> None:
    user.calls = 2
    user.register("a")
    held = [await user.lease(), await user.lease()]
    assert (await user.none()) == Nothing(coming=True, hope_seconds=None, known=1)
    user.clock.add(LEASE_SECONDS - 0.001)
    await user.none()
    renewed: list[object] = []
    user.pool.renew(held[:1], [held[0].id], user.calls, renewed.append)
    user.clock.add(0.001)
    await user.lease()
    await user.none()
    assert renewed == [[[], [], 1, 1]]
    user.pool.release(held[1], "ok")  # it is over: that must not free the place of another
    await user.none()


async def test_a_lease_that_was_lost_is_taken_again_only_while_there_is_room(user: Tried) -> None:
    user.calls = 1
    ids = user.register("a", "b")
    held = [await user.lease(), await user.lease()]
    user.clock.add(60)  # the worker was stopped for a minute
    user.register("a", "b")
    thief = await user.lease()
    lost = next(one for one in held if one.id == thief.id)
    replies: list[object] = []
    user.pool.renew(held, ids, user.calls, replies.append)
    assert isinstance(await user.ask(), Nothing), "the other one has its place again"
    assert replies == [[[lost.name.encode()], [], 2, 2]]


async def test_a_worker_that_leaves_gives_everything_back(user: Tried) -> None:
    user.calls = 1
    user.register("a", "b")
    mine = await user.lease()
    others = await user.pool.lease("w2:1", "m", calls=1, patience_seconds=0)
    assert isinstance(others, Granted)
    user.pool.leave("w")
    assert (await user.lease()).id == mine.id
    await user.none()


async def test_the_whole_pool_is_walked_before_giving_up(user: Tried) -> None:
    ids = set(user.register(*(f"key {i}" for i in range(40))))
    tried: set[str] = set()
    while isinstance(granted := await user.ask(tried=tried), Granted):
        assert granted.id not in tried
        tried.add(granted.id)
        user.pool.release(granted, "retire")
    assert tried == ids


async def test_a_credential_rests_for_one_model_as_long_as_the_upstream_says(user: Tried) -> None:
    user.register("a")
    await user.call("rest", "large", wait_seconds=20)
    assert (await user.none("large")) == Nothing(coming=False, hope_seconds=20, known=1)
    late = await user.lease("small")
    user.pool.release(late, "rest", model="large", wait_seconds=5)
    assert (await user.none("large")).hope_seconds == 20, "a second hint only ever lengthens"
    user.wait(19.999)
    await user.none("large")
    user.wait(0.001)
    await user.call("rest", "large", wait_seconds=99999)
    assert (await user.none("large")).hope_seconds == HOUR


async def test_without_a_hint_rests_double_until_a_call_succeeds(user: Tried) -> None:
    user.register("a")
    lengths = []
    for _ in range(8):
        together = [await user.lease(), await user.lease()]
        for granted in together:  # refused at the same time: that is one refusal
            user.pool.release(granted, "rest", model="m")
        lengths.append((await user.none()).hope_seconds)
        user.wait(lengths[-1])
    assert lengths == [1, 2, 4, 8, 16, 32, 60, 60]
    await user.call("ok")
    await user.call("rest")
    assert (await user.none()).hope_seconds == 1


@pytest.mark.parametrize("verdict", ["retire", "suspend"])
async def test_set_aside_then_one_call_on_probation_then_full_use(user: Tried, verdict: str) -> None:
    user.register("a")
    await user.call(verdict)
    assert (await user.none()).hope_seconds == 10 * MINUTE
    user.wait(10 * MINUTE)
    probe = await user.lease()
    assert (await user.none()).coming, "one at a time"
    user.pool.release(probe, verdict)
    assert (await user.none()).hope_seconds == HOUR, "the second time it takes longer"
    user.wait(HOUR)
    user.pool.release(await user.lease(), "")  # the call said nothing about it: still on probation
    probe = await user.lease()
    await user.none()
    user.pool.release(probe, "ok")
    assert isinstance(await user.ask(), Granted) and isinstance(await user.ask(), Granted)


async def test_reasons_are_kept_apart(user: Tried) -> None:
    user.register("a")
    first, second, third = await user.lease(), await user.lease(), await user.lease()
    user.pool.release(first, "suspend")
    user.wait(300)
    user.pool.release(second, "retire")
    user.pool.release(third, "rest", model="m", wait_seconds=2 * HOUR)
    (seen,) = await user.pool.standing()
    assert (seen.suspended_seconds, seen.retired_seconds, seen.rests) == (300, 600, {"m": HOUR})
    user.wait(300)
    await user.none("other")
    user.wait(300)
    await user.none("m")
    user.pool.release(await user.lease("other"), "ok", model="other")
    assert (await user.none("m")).hope_seconds == HOUR - 600


async def test_a_verdict_from_before_says_nothing(user: Tried) -> None:
    user.register("a")
    early = [await user.lease() for _ in range(3)]
    user.pool.release(early[0], "retire")
    user.pool.release(early[1], "ok")
    await user.none()
    user.wait(10 * MINUTE)
    probe = await user.lease()
    user.pool.release(early[2], "ok")
    (seen,) = await user.pool.standing()
    assert seen.record.state == "probation"
    user.pool.release(probe, "ok")
    (seen,) = await user.pool.standing()
    assert (seen.record.state, seen.record.strikes) == ("ready", 0)


async def test_a_caller_that_was_refused_does_not_have_to_probe(user: Tried) -> None:
    a, b, c = user.register("a", "b", "c")
    for _ in range(3):
        user.wait(0.001)
        if (granted := await user.lease()).id == b:
            user.pool.release(granted, "retire")
        else:
            user.pool.release(granted, "ok")
    user.wait(10 * MINUTE)
    assert (await user.lease(tried={a})).id == c
    assert (await user.lease(tried={a, c})).id == b, "but rather that than nothing"


async def test_a_key_that_no_worker_vouches_for_is_gone_but_not_its_history(
    user: Tried, redis_server: RedisServer
) -> None:
    a, _ = user.register("a", "b")
    while (granted := await user.lease()).id != a:
        pass
    user.pool.release(granted, "rest", model="m", wait_seconds=100)
    user.clock.add(5)
    replies: list[object] = []
    user.pool.renew([], [a, "feedfeedfeedfeed"], 0, replies.append)
    user.clock.add(5)
    assert [one.id for one in await user.pool.standing()] == [a]
    assert replies == [[[], [b"feedfeedfeedfeed"], 2, 2]]
    assert redis_server.client.hkeys("sluice:credentials:{openai}:secrets") == [a.encode()]
    user.clock.add(5)
    assert (await user.none()).known == 0
    user.register("a")
    assert (await user.none()).hope_seconds == 85
    assert await user.lease("other")


async def test_a_lease_for_somebody_who_has_gone_is_given_back_at_once(user: Tried, redis_server: RedisServer) -> None:
    user.calls = 1
    user.register("a")
    await user.pool.link.call("PING")
    redis_server.pause()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(user.lease)
            await wait_all_tasks_blocked()
            scope.cancel()
    redis_server.resume()
    await user.pool.link.call("PING")
    await user.lease()


async def test_scripts_are_told_again_to_a_server_that_forgot_them(user: Tried, redis_server: RedisServer) -> None:
    user.register("a")
    granted = await user.lease()
    redis_server.client.script_flush()
    user.pool.release(granted, "ok")
    await user.lease()


async def test_a_rewound_server_costs_nothing_but_time(user: Tried, redis_server: RedisServer) -> None:
    client = redis_server.client
    user.calls = 2
    ids = user.register("a", "b")
    before = [await user.lease() for _ in range(3)]
    snapshot = {name: client.dump(name) for name in client.scan_iter()}
    user.pool.release(before[0], "ok")
    user.pool.release(before[1], "ok")
    after = [await user.lease() for _ in range(3)]
    for name, content in snapshot.items():
        client.restore(name, 0, content, replace=True)
    replies: list[object] = []
    user.pool.renew([before[2], *after], ids, user.calls, replies.append)
    for granted in (before[0], before[2], *after):  # one of them twice: released before the rewind already
        user.pool.release(granted, "ok")
    loads = {one.id: one.calls for one in await user.pool.standing()}
    assert sum(loads.values()) == 1 and loads[before[1].id] == 1, "what Redis thinks is held, and nobody renews"
    assert len(replies[0][0]) == 2, "there was no room for two of them"
    user.wait(LEASE_SECONDS)
    assert Counter([(await user.lease()).id for _ in range(4)]) == dict.fromkeys(ids, 2)
    await user.none()


async def test_when_memory_is_full_nothing_is_leased_but_everything_is_kept_and_given_back(
    user: Tried, redis_server: RedisServer
) -> None:
    ids = user.register("a")
    user.calls = 2
    held = [await user.lease(), await user.lease()]
    redis_server.client.config_set("maxmemory", 1)
    with pytest.raises(Refused) as refusal:
        await user.ask()
    assert refusal.value.kind is RefusalKind.CAPACITY
    user.clock.add(9)
    replies: list[object] = []
    user.pool.renew(held, ids, user.calls, replies.append)
    user.clock.add(9)
    user.pool.release(held[0], "ok")
    user.pool.renew(held[1:], ids, user.calls, replies.append)
    (seen,) = await user.pool.standing()
    assert seen.calls == 1
    assert replies == [[[], [], 1, 1]] * 2


async def test_no_secret_is_readable_in_redis(user: Tried, redis_server: RedisServer) -> None:
    canary = "sk-canary-3f9a1c"
    user.register(canary)
    await user.pool.add(Opened(canary + "-added", {"refresh_token": canary}), "added")
    await user.call("rest")
    await user.call("retire")
    client = redis_server.client
    names = [name.decode() for name in client.scan_iter()]
    parts = ("", ":secrets", ":order", ":timers", ":tasks", ":pool", ":signups")
    assert set(names) <= {f"sluice:credentials:{{openai}}{part}" for part in parts}
    everything = b"".join(client.dump(name) for name in names)
    assert len(everything) > 300
    for piece in (canary, canary[3:], "refresh_token"):
        assert piece.encode() not in everything
    readers = {"hash": client.hgetall, "zset": lambda name: client.zrange(name, 0, -1, withscores=True)}
    for name in names:
        assert canary not in str(readers[client.type(name).decode()](name))


async def test_a_sealed_secret_opens_only_in_its_place(user: Tried, redis_server: RedisServer) -> None:
    a, b = user.register("a", "b")
    fresh = Pool(user.pool.link, Seal(["a secret key of a test, 32 characters"]), "openai", clock=user.clock)
    seen = {one.id: one.opened for one in await fresh.standing()}
    assert seen == {a: Opened("a"), b: Opened("b")}
    secrets = "sluice:credentials:{openai}:secrets"
    redis_server.client.hset(secrets, a, redis_server.client.hget(secrets, b))
    stranger = Pool(user.pool.link, Seal(["another key, also of 32 characters"]), "openai", clock=user.clock)
    again = Pool(user.pool.link, Seal(["a secret key of a test, 32 characters"]), "openai", clock=user.clock)
    assert {one.id: one.opened for one in await again.standing()} == {a: None, b: Opened("b")}
    assert {one.opened for one in await stranger.standing()} == {None}
    assert stranger.name(Opened("a")) != user.pool.name(Opened("a"))


async def test_without_a_test_clock_that_of_redis_counts(redis_server: RedisServer, seal: Seal, link: Link) -> None:
    user = Tried(Pool(link, seal, "openai"), Clock())
    user.register("a")
    await user.call("rest", wait_seconds=0.05)
    assert 0 < (await user.none()).hope_seconds <= 0.05
    await trio.sleep(0.06)
    await user.lease()


async def test_two_processes_never_exceed_a_credential_together(redis_server: RedisServer, seal: Seal) -> None:
    at_once, most, served = Counter[str](), Counter[str](), Counter[str]()

    async def use(pool: Pool, worker: str, random: Random) -> None:
        for number in itertools.count():
            granted = await pool.lease(f"{worker}:{number}", "m", calls=2, patience_seconds=0)
            if isinstance(granted, Granted):
                at_once[granted.id] += 1
                most[granted.id] = max(most[granted.id], at_once[granted.id])
                await trio.sleep(random.random() / 500)
                at_once[granted.id] -= 1
                pool.release(granted, "ok")
                served[worker[:2]] += 1
            if min(served["w0"], served["w1"]) >= 100:
                return
            await trio.sleep(random.random() / 500)

    async with trio.open_nursery() as nursery:
        pools = []
        for _ in range(2):
            link = Link(Address.parse(redis_server.url))
            await nursery.start(link.run)
            pools.append(Pool(link, seal, "openai"))
            pools[-1].register([(pools[-1].name(opened), opened) for opened in map(Opened, "abc")])
        async with trio.open_nursery() as users:
            for number, pool in enumerate(pools):
                for task in range(8):
                    users.start_soon(use, pool, f"w{number}-{task}", Random(10 * number + task))
        nursery.cancel_scope.cancel()
    assert set(most.values()) == {2} and len(most) == 3
