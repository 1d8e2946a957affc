"""Whoever waits may go away at any moment, and nobody else ever gets a reply that was not meant for them."""

import random
import sys
from functools import partial
from types import FrameType

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from shared.redis import pipeline, wire
from shared.redis.address import Address
from shared.redis.blocking import BlockingLink
from shared.redis.failures import LinkDown
from shared.redis.link import Link, Script
from shared.redis.wire import Reply
from tests.redis_server import RedisServer
from tests.waiting import until

ECHO = Script("return ARGV[1]")


async def test_a_task_that_is_cancelled_already_sends_nothing(redis_server: RedisServer, link: Link) -> None:
    commands = link.statistics().commands
    with trio.CancelScope() as scope:
        scope.cancel()
        for call in (
            partial(link.call, "INCR", "n"),
            partial(link.many, [("INCR", "n")]),
            partial(link.script, ECHO, (), ["x"]),
        ):
            with pytest.raises(trio.Cancelled):
                await call()
    assert scope.cancel_called
    assert link.statistics().commands == commands
    assert await link.call("GET", "n") is None


async def test_cancelled_while_the_command_waits_to_be_sent(redis_server: RedisServer, link: Link) -> None:
    """Nagle holds it back behind an outstanding one. It is sent all the same, and its reply is dropped."""
    redis_server.pause()
    async with trio.open_nursery() as tasks:
        tasks.start_soon(_expect_echo, link, b"outstanding")
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as doomed:
            doomed.start_soon(link.call, "INCR", "n")
            await wait_all_tasks_blocked()
            assert link.statistics().unsent_bytes > 0
            doomed.cancel_scope.cancel()
        assert link.statistics().unsent_bytes > 0
        tasks.start_soon(_expect_echo, link, b"behind")
        await wait_all_tasks_blocked()
        redis_server.resume()
    assert await link.call("GET", "n") == b"1"


async def test_cancelled_after_the_command_was_sent(redis_server: RedisServer, link: Link) -> None:
    redis_server.pause()
    async with trio.open_nursery() as tasks:
        tasks.start_soon(_expect_echo, link, b"in front")
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as doomed:
            for i in range(10):
                doomed.start_soon(link.call, "INCRBY", "n", i)
                doomed.start_soon(link.many, [("INCRBY", "n", i), ("INCRBY", "n", i)])
                doomed.start_soon(link.script, ECHO, (), [f"doomed {i}"])
                tasks.start_soon(_expect_echo, link, f"in the middle {i}".encode())
            await wait_all_tasks_blocked()
            doomed.cancel_scope.cancel()
        tasks.start_soon(_expect_echo, link, b"behind")
        await wait_all_tasks_blocked()
        redis_server.resume()
    assert await link.call("GET", "n") == b"135", "what was sent was executed"
    assert link.statistics().connections == 1


@pytest.mark.parametrize("steps", range(12))
async def test_cancelled_at_every_step(link: Link, steps: int) -> None:
    """The scope of the doomed ones is cancelled after that many turns of the event loop."""
    ended: list[int] = []

    async def doomed(i: int) -> None:
        try:
            if i % 4 == 3:
                words = [f"doomed {i} {j}".encode() for j in range(3)]
                assert await link.many([("ECHO", word) for word in words]) == words
            elif i % 4 == 2:
                assert await link.script(ECHO, (), [f"doomed {i}"]) == f"doomed {i}".encode()
            else:
                await _expect_echo(link, f"doomed {i}".encode())
        finally:
            ended.append(i)

    async with trio.open_nursery() as tasks:
        async with trio.open_nursery() as nursery:
            for i in range(20):
                nursery.start_soon(doomed, i)
                tasks.start_soon(_expect_echo, link, f"spared {i}".encode())
            await _turns(steps)
            nursery.cancel_scope.cancel()
        tasks.start_soon(_expect_echo, link, b"after all")
    assert sorted(ended) == list(range(20))
    assert await link.call("PING") == b"PONG"
    assert link.statistics().outstanding == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["call", "many", "script", "post", "turn"]), st.integers(0, 8)), max_size=40))
async def test_any_interleaving(redis_server: RedisServer, acts: list[tuple[str, int]]) -> None:
    """Each act starts something that is cancelled after that many turns of the event loop, or lets turns pass."""
    link = Link(Address.parse(redis_server.url))
    posted: list[bytes] = []
    async with trio.open_nursery() as owner:
        await owner.start(link.run)
        async with trio.open_nursery() as nursery:
            for number, (kind, turns) in enumerate(acts):
                if kind == "turn":
                    await _turns(turns)
                elif kind == "post":
                    link.post("ECHO", number, on_reply=posted.append)
                else:
                    nursery.start_soon(_act, link, kind, number, turns)
        assert await link.call("PING") == b"PONG"
        assert posted == [b"%d" % number for number, (kind, _) in enumerate(acts) if kind == "post"]
        assert link.statistics().outstanding == 0
        owner.cancel_scope.cancel()


async def _act(link: Link, kind: str, number: int, turns: int) -> None:
    words = [f"{kind} {number} {i}".encode() for i in range(3)]

    async def leave(scope: trio.CancelScope) -> None:
        await _turns(turns)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave, nursery.cancel_scope)
        if kind == "many":
            assert await link.many([("ECHO", word) for word in words]) == words
        elif kind == "script":
            assert await link.script(ECHO, (), [words[0]]) == words[0]
        else:
            assert await link.call("ECHO", words[0]) == words[0]


async def _turns(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def test_a_storm_of_deadlines(link: Link) -> None:
    """Short real deadlines, so that replies and cancellations meet in the same turn of the event loop."""
    chance = random.Random(7)
    kept = left = 0

    async def one(i: int) -> None:
        nonlocal kept, left
        for j in range(20):
            with trio.move_on_after(chance.expovariate(1 / 0.001)) as scope:
                await _expect_echo(link, f"{i} {j}".encode())
                kept += 1
            left += scope.cancelled_caught

    async with trio.open_nursery() as tasks:
        for i in range(50):
            tasks.start_soon(one, i)
    assert kept + left == 1000
    assert kept > 0
    assert left > 0
    assert await link.call("PING") == b"PONG"
    assert link.statistics().connections == 1


async def test_a_reply_and_a_cancellation_in_the_same_turn(redis_server: RedisServer, link: Link) -> None:
    """The reply came first, so it is not lost; the cancellation waits for the next opportunity."""
    replies: list[Reply] = []

    async def take() -> None:
        replies.append(await link.call("INCR", "n"))

    redis_server.pause()
    link.post("PING")  # what follows gathers behind it, and its replies come in one packet
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        link.post("PING", on_reply=lambda _: nursery.cancel_scope.cancel())
        redis_server.resume()
    assert replies == [1]
    assert nursery.cancel_scope.cancel_called


@pytest.mark.parametrize(
    ("within", "nth", "limit"), [(None, 1, 400), (None, 2, 400), (None, 11, 400), ("_flush", 1, 9)]
)
async def test_a_post_that_interrupts_at_any_line(link: Link, within: str | None, nth: int, limit: int) -> None:
    """The garbage collector closes an abandoned generator whenever it likes, and then the generator's `finally` posts."""
    posted: list[int] = []
    answered: list[int] = []
    lines = 0
    interrupting = False

    def interrupt(_frame: FrameType, event: str, _argument: object):
        nonlocal lines, interrupting
        lines += event == "line"
        if not interrupting and lines % nth == 0 and len(posted) < limit:
            interrupting = True
            number = len(posted)
            posted.append(number)
            link.post(
                "ECHO", number, on_reply=lambda reply: answered.append(number) if reply == b"%d" % number else None
            )
            interrupting = False
        return interrupt

    def trace(frame: FrameType, _event: str, _argument: object):
        ours = frame.f_code.co_filename in (pipeline.__file__, wire.__file__)
        return interrupt if ours and within in (None, frame.f_code.co_name) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        link.post("ECHO", "in front")
        await _expect_echo(link, b"behind it, and so held back and flushed")
        async with trio.open_nursery() as tasks:
            for i in range(10):
                tasks.start_soon(_expect_echo, link, b"%d" % i * 50_000)
                tasks.start_soon(_expect_echo, link, b"short %d" % i)
    finally:
        sys.settrace(before)
    await until(lambda: len(answered) == len(posted) > 0, seconds=1.5)  # not only when the watchdog asks
    assert answered == posted
    assert link.statistics().callback_errors == 0


async def test_closing_the_link_tells_everybody(redis_server: RedisServer) -> None:
    replies: list[Reply] = []
    downs: list[object] = []
    async with trio.open_nursery() as nursery:
        link = Link(Address.parse(redis_server.url))
        link.on_down.append(downs.append)
        async with trio.open_nursery() as owner:
            await owner.start(link.run)
            redis_server.pause()

            async def wait() -> None:
                with pytest.raises(LinkDown, match="closed") as failure:
                    await link.call("PING")
                assert failure.value.may_have_executed

            for _ in range(5):
                nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            link.post("PING", on_reply=replies.append)
            owner.cancel_scope.cancel()
    assert not link.up
    assert len(downs) == 1
    assert [str(reply) for reply in replies] == ["the link was closed"]
    link.post("PING", on_reply=replies.append)
    assert isinstance(replies[-1], LinkDown)
    assert not replies[-1].may_have_executed
    redis_server.resume()


async def test_closing_sends_what_has_gathered(redis_server: RedisServer) -> None:
    async with trio.open_nursery() as owner:
        link = Link(Address.parse(redis_server.url))
        await owner.start(link.run)
        for i in range(100):
            link.post("RPUSH", "list", i)
        assert link.statistics().unsent_bytes > 0
        owner.cancel_scope.cancel()
    await until(lambda: redis_server.client.llen("list") == 100)


async def test_a_cancelled_blocking_read_never_answers_the_next(redis_server: RedisServer) -> None:
    with BlockingLink(Address.parse(redis_server.url), name="blocked") as link:
        for i in range(5):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(link.call, "BLPOP", "list", 5, block_seconds=5))
                    await _until_blocked(redis_server)
                    scope.cancel()
            assert not link.connected
            await until(lambda: not _names(redis_server).count("blocked"))
            redis_server.client.rpush("list", i)
            assert await link.call("BLPOP", "list", 5, block_seconds=5) == [b"list", b"%d" % i]
            assert link.connected


async def _expect_echo(link: Link, word: bytes) -> None:
    assert await link.call("ECHO", word) == word


async def _until_blocked(server: RedisServer) -> None:
    await until(lambda: server.client.info("clients")["blocked_clients"] == 1)


def _names(server: RedisServer) -> list[str]:
    return [client["name"] for client in server.client.client_list()]
