"""Commands that block inside Redis, on a connection of their own."""

from functools import partial

import pytest
import trio

from shared.redis.address import Address
from shared.redis.blocking import BlockingLink
from shared.redis.failures import LinkDown, Refused
from tests.redis_server import RedisServer
from tests.waiting import until


async def test_waits_for_what_comes_and_for_what_does_not(address: Address, redis_server: RedisServer) -> None:
    redis_server.client.xgroup_create("jobs", "workers", "0", mkstream=True)
    read = ("XREADGROUP", "GROUP", "workers", "me", "COUNT", 5, "BLOCK", 50, "STREAMS", "jobs", ">")
    with BlockingLink(address) as link:
        started = trio.current_time()
        assert await link.call(*read, block_seconds=0.05) is None
        assert trio.current_time() - started >= 0.04
        redis_server.client.xadd("jobs", {"job": b"one"}, id="1-1")
        assert await link.call(*read, block_seconds=0.05) == [[b"jobs", [[b"1-1", [b"job", b"one"]]]]]
        assert link.connected
        assert "idle" in repr(link)
    assert not link.connected
    await until(lambda: len(redis_server.client.client_list()) == 1)


async def test_refusals_leave_the_connection_alone(redis_server: RedisServer) -> None:
    read = ("XREADGROUP", "GROUP", "g", "c", "BLOCK", 50, "STREAMS", "s", ">")
    with BlockingLink(Address.parse(redis_server.url)) as link:
        with pytest.raises(Refused, match="NOGROUP"):
            await link.call(*read, block_seconds=0.05)
        assert link.connected
        redis_server.client.xgroup_create("s", "g", "0", mkstream=True)
        assert await link.call(*read, block_seconds=0.05) is None


async def test_no_answer_in_time(redis_server: RedisServer) -> None:
    with BlockingLink(Address.parse(redis_server.url), margin_seconds=0.1) as link:
        assert await link.call("PING", block_seconds=0) == b"PONG"
        redis_server.pause()
        with trio.fail_after(2), pytest.raises(LinkDown, match=r"no answer within 0\.2 s") as failure:
            await link.call("BLPOP", "list", 0.1, block_seconds=0.1)
        assert failure.value.may_have_executed
        assert not link.connected
        redis_server.resume()
        assert await link.call("PING", block_seconds=0) == b"PONG"


async def test_a_server_that_dies_while_we_wait(redis_server: RedisServer) -> None:
    failures = []

    async def wait(link: BlockingLink) -> None:
        with pytest.raises(LinkDown, match=r"closed the connection|reset") as failure:
            await link.call("BLPOP", "list", 5, block_seconds=5)
        failures.append(failure.value)

    with BlockingLink(Address.parse(redis_server.url)) as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, link)
            await until(lambda: redis_server.client.info("clients")["blocked_clients"] == 1)
            redis_server.kill()
        assert failures[0].may_have_executed
        attempts = 0
        with trio.move_on_after(0.5):
            while True:
                with pytest.raises(LinkDown, match="refused") as failure:
                    await link.call("PING", block_seconds=0)
                assert not failure.value.may_have_executed
                attempts += 1
        assert 2 <= attempts <= 40, "a loop around a call is no storm"
        redis_server.restart()
        with trio.fail_after(5):
            assert await link.call("PING", block_seconds=0) == b"PONG"


async def test_one_call_at_a_time(redis_server: RedisServer) -> None:
    with BlockingLink(Address.parse(redis_server.url)) as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(link.call, "BLPOP", "list", 5, block_seconds=5))
            await until(lambda: redis_server.client.info("clients")["blocked_clients"] == 1)
            assert "waiting" in repr(link)
            with pytest.raises(trio.BusyResourceError):
                await link.call("PING", block_seconds=0)
            redis_server.client.rpush("list", "x")


async def test_cancelled_while_connecting(redis_server: RedisServer) -> None:
    redis_server.pause()
    with BlockingLink(Address.parse(redis_server.url)) as link:
        with trio.move_on_after(0.05) as scope:
            await link.call("PING", block_seconds=0)
        assert scope.cancelled_caught
        assert not link.connected
        redis_server.resume()
        assert await link.call("PING", block_seconds=0) == b"PONG"


async def test_a_demoted_server_is_left(redis_server: RedisServer) -> None:
    redis_server.client.xgroup_create("s", "g", "0", mkstream=True)
    with BlockingLink(Address.parse(redis_server.url)) as link:
        assert await link.call("PING", block_seconds=0) == b"PONG"
        redis_server.client.replicaof("127.0.0.1", "1")
        with pytest.raises(Refused, match="READONLY"):
            await link.call("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">", block_seconds=0)
        assert not link.connected
