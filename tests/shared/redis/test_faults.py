"""A server that freezes, dies, restarts empty, refuses, lies or is not there: what the link says, and that it comes back."""

import time

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from shared.redis.address import Address
from shared.redis.failures import LinkDown, RedisError, RefusalKind, Refused
from shared.redis.link import Link, Script
from shared.redis.wire import Reply
from tests.redis_server import RedisServer
from tests.waiting import until


async def test_a_frozen_server_is_given_up_at_the_deadline(redis_server: RedisServer, impatient: Link) -> None:
    redis_server.pause()
    replies: list[Reply] = []
    started = trio.current_time()
    for _ in range(100):
        impatient.post("INCR", "n", on_reply=replies.append)
    with pytest.raises(LinkDown, match=r"no answer within 0\.25 s") as failure:
        await impatient.call("INCR", "n")
    assert 0.25 <= trio.current_time() - started < 1
    assert failure.value.may_have_executed
    assert len(replies) == 100
    assert all(isinstance(reply, LinkDown) and reply.may_have_executed for reply in replies)

    assert not impatient.up
    assert impatient.down_since is not None
    assert started < impatient.down_since <= trio.current_time()
    assert "no answer" in repr(impatient)
    failing_since = trio.current_time()
    with pytest.raises(LinkDown, match="not connected") as failure:
        await impatient.call("PING")
    with pytest.raises(LinkDown):
        await impatient.many([("PING",), ("PING",)])
    assert not failure.value.may_have_executed
    assert trio.current_time() - failing_since < 0.05, "fails at once"

    redis_server.resume()
    with trio.fail_after(5):
        await impatient.wait_up()
    assert impatient.down_since is None
    assert await impatient.call("PING") == b"PONG"
    # Commands that had reached the kernel were executed after all. That is what may_have_executed says.
    assert int(await impatient.call("GET", "n")) >= 1


async def test_a_deadline_is_not_measured_from_the_last_reply(impostor, nursery: trio.Nursery) -> None:
    """A server that answers every command late, but always something, is too slow all the same."""

    async def ever_later(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        while True:
            await trio.sleep(0.08)
            await stream.send_all(b"+OK\r\n")

    link = Link(await impostor(ever_later), timeout_seconds=0.25)
    await nursery.start(link.run)
    replies: list[Reply] = []
    for _ in range(20):
        link.post("ANY", on_reply=replies.append)
    with trio.fail_after(2):
        with pytest.raises(LinkDown, match="no answer"):
            await link.call("ANY")
    answered = replies.count(b"OK")
    assert 1 <= answered <= 4
    assert len(replies) == 20


async def test_an_idle_link_notices_too(redis_server: RedisServer, impatient: Link) -> None:
    await impatient.call("PING")
    redis_server.pause()
    await until(lambda: not impatient.up)
    redis_server.resume()
    with trio.fail_after(3):
        await impatient.wait_up()


async def test_a_stall_of_our_own_is_not_blamed_on_the_server(redis_server: RedisServer, nursery) -> None:
    link = Link(Address.parse(redis_server.url), timeout_seconds=0.2)
    await nursery.start(link.run)
    for _ in range(5):  # whether the reader or the watchdog wakes first is left to chance
        replies: list[Reply] = []
        link.post("PING", on_reply=replies.append)
        time.sleep(0.25)  # noqa: ASYNC251 - the stall
        # While the watchdog has its doubts about the first command, another one takes its time, within its own deadline.
        assert await link.call("DEBUG", "SLEEP", "0.1") == b"OK"
        assert replies == [b"PONG"]
    assert link.statistics().connections == 1


async def test_a_slow_command_executes_although_nobody_waits_any_more(
    redis_server: RedisServer, impatient: Link
) -> None:
    with pytest.raises(LinkDown) as failure:
        await impatient.many([("DEBUG", "SLEEP", "0.4"), ("SET", "late", "yes")])
    assert failure.value.may_have_executed
    with trio.fail_after(5):
        await impatient.wait_up()
    assert await impatient.call("GET", "late") == b"yes"


async def test_a_pause_within_the_deadline_is_only_a_pause(link: Link) -> None:
    assert await link.many([("DEBUG", "SLEEP", "0.2"), ("PING",)]) == [b"OK", b"PONG"]
    assert link.statistics().connections == 1


@pytest.mark.parametrize("transport", ["unix", "tcp"])
async def test_a_killed_server_that_restarts_empty(
    redis_server: RedisServer, nursery: trio.Nursery, transport: str
) -> None:
    link = Link(Address.parse(redis_server.url if transport == "unix" else redis_server.tcp_url))
    happened: list[str] = []
    link.on_up.append(lambda: happened.append("up"))
    link.on_down.append(lambda why: happened.append("down"))
    await nursery.start(link.run)
    script = Script("return redis.call('INCR', KEYS[1])")
    assert await link.script(script, ["n"]) == 1

    redis_server.pause()
    failures: list[RedisError] = []

    async def wait() -> None:
        with pytest.raises(LinkDown) as failure:
            await link.call("PING")
        assert happened[-1] == "down", "listeners learn of it first"
        failures.append(failure.value)

    async with trio.open_nursery() as waiters:
        for _ in range(3):
            waiters.start_soon(wait)
        await wait_all_tasks_blocked()
        redis_server.kill()
    assert len(failures) == 3
    assert all(failure.may_have_executed for failure in failures)
    assert not link.up

    redis_server.restart()
    with trio.fail_after(5):
        await link.wait_up()
    assert await link.script(script, ["n"]) == 1, "data and scripts were lost"
    assert happened == ["up", "down", "up"]
    assert link.statistics().connections == 2
    assert link.failure is None


async def test_killed_by_an_operator_again_and_again(redis_server: RedisServer, link: Link) -> None:
    for _ in range(5):
        redis_server.client.client_kill_filter(_type="normal", skipme=True)
        with trio.fail_after(5):
            while link.up:
                await trio.lowlevel.checkpoint()
            await link.wait_up()
        assert await link.call("ECHO", "back") == b"back"
    assert link.statistics().connections == 6


async def test_comes_back_soon_after_a_good_connection(redis_server: RedisServer, link: Link) -> None:
    await trio.sleep(0.11)  # long enough to count as good
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    while link.up:
        await trio.lowlevel.checkpoint()
    lost = trio.current_time()
    await link.wait_up()
    assert trio.current_time() - lost < 0.1


async def test_no_server_is_said_clearly(redis_server: RedisServer) -> None:
    address = Address(path=str(redis_server.socket_path), password="hunter2")
    redis_server.kill()
    with pytest.raises(LinkDown) as failure:
        await _start(Link(address, start_seconds=0.3))
    text = str(failure.value)
    assert "no Redis at unix://:***@" in text
    assert "within 0.3 s" in text
    assert "Connection refused" in text
    assert "hunter2" not in text
    with pytest.raises(LinkDown, match="No such file"):
        await _start(Link(Address(path="/nonexistent/redis.sock"), start_seconds=0.05))
    with pytest.raises(LinkDown, match="Connection refused"):
        await _start(Link(Address(host="127.0.0.1", port=redis_server.port), start_seconds=0.05))


async def test_a_frozen_server_at_the_start(redis_server: RedisServer) -> None:
    redis_server.pause()
    with trio.fail_after(2), pytest.raises(LinkDown, match=r"no answer within 0\.1 s"):
        await _start(Link(Address.parse(redis_server.tcp_url), timeout_seconds=0.1, start_seconds=0.3))
    redis_server.resume()


async def test_a_server_that_comes_later(redis_server: RedisServer, nursery: trio.Nursery) -> None:
    redis_server.kill()
    link = Link(Address.parse(redis_server.url))
    assert link.down_since is None
    async with trio.open_nursery() as starting:

        async def start() -> None:
            await nursery.start(link.run)

        starting.start_soon(start)
        await wait_all_tasks_blocked()
        assert link.down_since is not None
        with pytest.raises(LinkDown):
            await link.call("PING")
        redis_server.restart()
    assert await link.call("PING") == b"PONG"


@pytest.mark.parametrize(
    ("login", "expected"),
    [
        ({"username": "clerk", "password": "wrong"}, "WRONGPASS"),
        ({"username": "nobody", "password": "wrong"}, "WRONGPASS"),
        ({"password": "wrong"}, "called without any password"),
        ({"username": "clerk", "password": "right"}, "NOPERM.*ping"),
        ({"db": 99}, "DB index is out of range"),
    ],
)
async def test_mistakes_in_the_configuration_end_the_start(
    redis_server: RedisServer, login: dict[str, object], expected: str
) -> None:
    redis_server.client.execute_command("ACL", "SETUSER", "clerk", "on", ">right", "~*", "+@all", "-ping")
    link = Link(Address(path=str(redis_server.socket_path), **login), start_seconds=10)  # type: ignore[arg-type]
    with trio.fail_after(2), pytest.raises(Refused, match=expected) as refusal:
        await _start(link)
    assert refusal.value.kind is RefusalKind.CONFIGURATION
    assert not link.up


async def test_a_missing_password_ends_the_start(redis_server: RedisServer) -> None:
    redis_server.client.config_set("requirepass", "secret")
    with trio.fail_after(2), pytest.raises(Refused, match="NOAUTH"):
        await _start(Link(Address.parse(redis_server.url)))
    redis_server.client.execute_command("AUTH", "secret")


async def test_a_password_that_changes_at_run_time_is_no_storm(redis_server: RedisServer, link: Link) -> None:
    redis_server.client.config_set("requirepass", "secret")
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    await until(lambda: isinstance(link.failure, Refused))
    assert "NOAUTH" in str(link.failure)
    assert not link.up
    redis_server.client.config_resetstat()
    await trio.sleep(0.3)
    attempts = redis_server.client.info("stats")["total_connections_received"]
    assert attempts <= 1
    redis_server.client.config_set("requirepass", "")
    with trio.fail_after(5):
        await link.wait_up()
    assert link.failure is None


async def test_a_demoted_server_is_left(redis_server: RedisServer, link: Link) -> None:
    redis_server.client.replicaof("127.0.0.1", "1")
    with pytest.raises(Refused) as refusal:
        await link.call("EVAL", "return redis.call('SET', 'a', 'b')", 0)
    assert refusal.value.kind is RefusalKind.WRONG_NODE
    assert not link.up
    assert link.failure is refusal.value
    redis_server.client.replicaof("NO", "ONE")
    with trio.fail_after(5):
        await link.wait_up()
    assert link.statistics().connections == 2
    assert await link.call("SET", "a", "b") == b"OK"


async def test_too_many_clients(redis_server: RedisServer) -> None:
    redis_server.client.ping()
    redis_server.client.config_set("maxclients", 1)
    with pytest.raises(LinkDown, match="max number of clients"):
        await _start(Link(Address.parse(redis_server.url), start_seconds=0.2))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol error"),
        (b"+OK\r\n+OK\r\n+OK\r\n", "nobody had asked for"),
        (b"$100\r\nhalf of", "closed the connection"),
        (b"", "closed the connection"),
    ],
)
async def test_nonsense_ends_the_connection(impostor, nursery: trio.Nursery, answer: bytes, reason: str) -> None:
    async def nonsense(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if answer:
            await stream.send_all(answer)

    link = Link(await impostor(nonsense))
    downs: list[RedisError] = []
    link.on_down.append(downs.append)
    await nursery.start(link.run)
    link.post("ANY")
    await until(lambda: downs)
    assert reason in str(downs[0])
    with trio.fail_after(2):
        await link.wait_up()


async def test_a_listener_that_fails_does_no_harm(redis_server: RedisServer, nursery: trio.Nursery, caplog) -> None:
    link = Link(Address.parse(redis_server.url))

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    link.on_up.append(fail)
    link.on_down.append(fail)
    await nursery.start(link.run)
    redis_server.restart()
    await until(lambda: link.statistics().callback_errors >= 3)
    assert await link.call("PING") == b"PONG"
    assert caplog.text.count("a mistake") >= 3


async def test_a_receiver_may_post_while_the_link_goes_down(redis_server: RedisServer, link: Link) -> None:
    replies: list[Reply] = []

    def again(reply: Reply) -> None:
        replies.append(reply)
        link.post("PING", on_reply=replies.append)

    redis_server.pause()
    link.post("PING", on_reply=again)
    link.post("PING", on_reply=again)
    redis_server.kill()
    await until(lambda: len(replies) == 4)
    assert [reply.may_have_executed for reply in replies] == [True, False, True, False]


async def test_the_first_to_notice_may_be_somebody_who_posts(redis_server: RedisServer, link: Link) -> None:
    replies: list[Reply] = []
    redis_server.kill()
    link.post("PING", on_reply=replies.append)  # the loop has had no opportunity yet to see the end of the connection
    assert not link.up
    assert [reply.may_have_executed for reply in replies] == [True]
    with pytest.raises(LinkDown):
        await link.call("PING")
    redis_server.restart()
    with trio.fail_after(5):
        await link.wait_up()


async def _start(link: Link) -> None:
    """Start the link, and stop it again if that succeeds."""
    failure = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(link.run)
        except RedisError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
