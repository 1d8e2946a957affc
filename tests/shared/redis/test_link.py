"""What the link does while all is well: replies to whom they belong, in order, in few system calls, whatever their size."""

import gc
import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from shared.redis.address import Address
from shared.redis.failures import LinkDown, Refused
from shared.redis.link import Link, Script
from shared.redis.wire import Reply
from tests.redis_server import RedisServer

MEGABYTE = 1_000_000


async def test_every_shape_of_reply(address: Address, nursery: trio.Nursery) -> None:
    link = Link(address)
    await nursery.start(link.run)
    assert await link.call("SET", "key", b"\x00\xff\r\n") == b"OK"
    assert await link.call("GET", "key") == b"\x00\xff\r\n"
    assert await link.call("GET", "nothing") is None
    assert await link.call("INCRBY", "n", 41) == 41
    assert await link.call("INCRBYFLOAT", "f", 1.5) == b"1.5"
    assert await link.call("SET", "view", memoryview(b"abc")) == b"OK"
    assert await link.call("MGET", "n", "nothing") == [b"41", None]
    assert await link.call("EVAL", "return {1, {'a', {}}}", 0) == [1, [b"a", []]]
    assert await link.call("EVAL", "return {redis.error_reply('ODD one'), 2}", 0) == [_refused("ODD one"), 2]


async def test_greets_with_name_and_database(redis_server: RedisServer, nursery: trio.Nursery) -> None:
    link = Link(Address(host="127.0.0.1", port=redis_server.port, db=5), name="someone")
    await nursery.start(link.run)
    await link.call("SET", "where", "here")
    ours = [client for client in redis_server.client.client_list() if client["name"] == "someone"]
    assert [client["db"] for client in ours] == ["5"]
    assert redis_server.client.get("where") is None


async def test_logs_in(redis_server: RedisServer, nursery: trio.Nursery) -> None:
    redis_server.client.execute_command("ACL", "SETUSER", "clerk", "on", ">p@ss", "~*", "+@all")
    link = Link(Address.parse(f"redis://clerk:p%40ss@127.0.0.1:{redis_server.port}"))
    await nursery.start(link.run)
    assert await link.call("ACL", "WHOAMI") == b"clerk"


async def test_rejects_what_is_no_command_before_anything_is_sent(link: Link) -> None:
    for command in ((), ("SET", "a", None), ("SET", "a", True), ("SET", "a", ["b"])):
        with pytest.raises((TypeError, ValueError)):
            await link.call(*command)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            await link.many([("PING",), command])  # type: ignore[list-item]
    assert await link.call("ECHO", "unharmed") == b"unharmed"


async def test_replies_belong_to_their_commands_and_order_is_kept(link: Link) -> None:
    replies: list[Reply] = []
    for i in range(5000):
        link.post("INCR", "counter", on_reply=replies.append)
        if i % 100 == 0:
            assert await link.call("ECHO", i) == str(i).encode()
    assert await link.call("PING") == b"PONG", "a barrier: everything before it has been answered"
    assert replies == list(range(1, 5001))


async def test_many_tasks_share_the_link(link: Link) -> None:
    async def talk(name: int) -> None:
        for i in range(50):
            word = f"{name}:{i}".encode()
            if i % 3:
                assert await link.call("ECHO", word) == word
            else:
                assert await link.many([("ECHO", word), ("GET", "nothing"), ("ECHO", i)]) == [word, None, b"%d" % i]

    async with trio.open_nursery() as tasks:
        for name in range(40):
            tasks.start_soon(talk, name)


async def test_a_lone_post_is_sent_at_once_and_company_gathers(redis_server: RedisServer, link: Link) -> None:
    before = link.statistics()
    link.post("SET", "lone", 1)
    assert link.statistics().sends == before.sends + 1, "no task switch was needed"
    for i in range(1000):
        link.post("INCRBY", "company", i)
    assert link.statistics().sends == before.sends + 1
    assert link.statistics().outstanding == 1001
    await link.call("PING")
    after = link.statistics()
    assert after.commands == before.commands + 1002
    assert after.sends - before.sends <= 3
    assert redis_server.client.get("company") == b"499500"


async def test_a_full_segment_does_not_wait_for_replies(link: Link) -> None:
    sends = link.statistics().sends
    for _ in range(10):
        link.post("SET", "key", bytes(50_000))
    assert link.statistics().sends > sends + 1, "the first, and the first full segment"


async def test_a_post_from_a_finally_of_a_cancelled_task_goes_out(redis_server: RedisServer, link: Link) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        finally:
            link.post("SET", "last", "words")
    await link.call("PING")
    assert redis_server.client.get("last") == b"words"


async def test_a_post_from_a_garbage_collected_generator_goes_out(redis_server: RedisServer, link: Link) -> None:
    def generator():
        try:
            yield
        finally:
            link.post("SET", "last", "words")

    abandoned = generator()
    next(abandoned)
    del abandoned
    gc.collect()
    await link.call("PING")
    assert redis_server.client.get("last") == b"words"


async def test_many_waits_for_all_before_it_raises(link: Link) -> None:
    with pytest.raises(Refused, match="WRONGTYPE"):
        await link.many([("SET", "s", 1), ("LPUSH", "s", 1), ("SET", "after", "done")])
    assert link.statistics().outstanding == 0
    assert await link.call("GET", "after") == b"done"
    replies = await link.many([("GET", "s"), ("LPUSH", "s", 1), ("GET", "s")], raise_refusals=False)
    assert replies == [b"1", _refused("WRONGTYPE Operation against a key holding the wrong kind of value"), b"1"]
    assert await link.many([]) == []


async def test_scripts_survive_being_forgotten(redis_server: RedisServer, link: Link) -> None:
    add = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert await link.script(add, ["n"], [2]) == 2
    redis_server.client.script_flush()
    assert await link.script(add, ["n"], [3]) == 5
    redis_server.client.script_flush()
    replies: list[Reply] = []
    link.post_script(add, ["n"], [4], on_reply=replies.append)
    await link.many([("PING",), ("PING",)])
    link.post_script(add, ["n"], [5], on_reply=replies.append)
    link.post_script(add, ["n"], [6])
    await link.call("PING")
    assert replies == [9, 14]
    assert redis_server.client.script_exists(add.digest) == [True]
    assert await link.call("GET", "n") == b"20"


async def test_what_a_script_refuses_is_raised(link: Link) -> None:
    broken = Script("return redis.error_reply('FULL no room')", "broken")
    for _ in range(2):
        with pytest.raises(Refused, match="no room") as refusal:
            await link.script(broken)
        assert refusal.value.code == "FULL"
    assert repr(broken) == f"Script(name='broken', digest='{broken.digest}')"


async def test_large_values_both_ways(address: Address, nursery: trio.Nursery) -> None:
    link = Link(address)
    await nursery.start(link.run)
    value = random.Random(1).randbytes(20 * MEGABYTE)
    with trio.fail_after(10):
        async with trio.open_nursery() as tasks:
            tasks.start_soon(link.call, "SET", "large", value)
            for i in range(20):
                tasks.start_soon(link.call, "APPEND", "small", i)
        assert await link.call("GET", "large") == value
    assert link.statistics().unsent_bytes == 0
    with trio.fail_after(2):
        await wait_all_tasks_blocked()


async def test_other_tasks_run_while_a_flood_of_replies_is_read(link: Link) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as tasks:
        tasks.start_soon(other)
        replies = await link.many([("PING",)] * 20_000)
        tasks.cancel_scope.cancel()
    assert replies == [b"PONG"] * 20_000
    assert turns >= 70


async def test_replies_in_pieces(impostor, nursery: trio.Nursery) -> None:
    wire_bytes = b"*2\r\n$3\r\na\r\n\r\n-ODD \r\n:7\r\n$0\r\n\r\n$-1\r\n"

    async def byte_by_byte(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        for i in range(len(wire_bytes)):
            await stream.send_all(wire_bytes[i : i + 1])
            await trio.lowlevel.checkpoint()
        await trio.sleep_forever()

    link = Link(await impostor(byte_by_byte))
    await nursery.start(link.run)
    replies = await link.many([("ANY",)] * 4, raise_refusals=False)
    assert replies == [[b"a\r\n", _refused("ODD ")], 7, b"", None]


async def test_a_server_that_does_not_read_fills_no_memory(impostor, nursery: trio.Nursery) -> None:
    async def deaf(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    link = Link(await impostor(deaf), max_unsent_bytes=5 * MEGABYTE, max_outstanding=1000, timeout_seconds=30)
    await nursery.start(link.run)
    replies: list[Reply] = []
    for _ in range(100):
        link.post("PUBLISH", "channel", bytes(MEGABYTE), on_reply=replies.append)
    assert link.statistics().unsent_bytes <= 5 * MEGABYTE
    assert len(replies) > 80
    assert all(isinstance(reply, LinkDown) and not reply.may_have_executed for reply in replies)
    with pytest.raises(LinkDown, match="too much"):
        await link.many([("SET", "a", bytes(MEGABYTE))] * 5)
    for _ in range(2000):
        link.post("PING")
    assert link.statistics().outstanding == 1000
    assert link.statistics().turned_away == len(replies) + 5 + 2000 - (1000 - (100 - len(replies)))


async def test_one_command_may_be_larger_than_the_bound(redis_server: RedisServer, nursery: trio.Nursery) -> None:
    link = Link(Address.parse(redis_server.url), max_unsent_bytes=1000)
    await nursery.start(link.run)
    assert await link.call("SET", "large", bytes(5 * MEGABYTE)) == b"OK"


async def test_a_receiver_that_fails_costs_nobody_else_anything(link: Link, caplog) -> None:
    def fail(_: Reply) -> None:
        raise RuntimeError("a mistake")

    replies: list[Reply] = []
    link.post("PING", on_reply=replies.append)
    link.post("PING", on_reply=fail)
    link.post("PING", on_reply=replies.append)
    assert await link.call("PING") == b"PONG"
    assert replies == [b"PONG", b"PONG"]
    assert link.statistics().callback_errors == 1
    assert "a mistake" in caplog.text


async def test_posting_from_a_receiver(link: Link) -> None:
    """As an outbox does: the next parcel leaves when the one before has arrived."""
    finished = trio.Event()

    def again(reply: Reply) -> None:
        if reply < 500:
            link.post("INCR", "chain", on_reply=again)
        else:
            finished.set()

    link.post("INCR", "chain", on_reply=again)
    with trio.fail_after(5):
        await finished.wait()


async def test_shows_what_it_is_doing(redis_server: RedisServer, link: Link) -> None:
    link.post("PING")
    assert repr(link) == f"<Link 'sluice' to unix://{redis_server.socket_path}, up, 1 outstanding>"
    assert repr(Link(Address.parse("redis://:hunter2@h"))) == "<Link 'sluice' to redis://:***@h:6379/0, down>"


class _refused:
    """Equal to a refusal with that text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refused) and str(other) == self.text

    def __repr__(self) -> str:
        return f"Refused({self.text!r})"


async def test_a_loss_and_its_end_are_in_the_log(redis_server: RedisServer, link: Link, caplog) -> None:
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    with trio.fail_after(5):
        while len(caplog.messages) < 2:  # noqa: ASYNC110 - a log has nothing to wait for
            await trio.sleep(0.01)
    assert caplog.messages[0].startswith(f"lost Redis at {Address.parse(redis_server.url)}: ")
    assert caplog.messages[1].startswith("Redis is back after 0.")
    assert await link.call("PING") == b"PONG"
