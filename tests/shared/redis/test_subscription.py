"""The ear: hears everything while it is connected, knows when it does not, and comes back."""

import time
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from shared.redis.address import Address
from shared.redis.failures import LinkDown, RedisError, Refused
from shared.redis.link import Link
from shared.redis.subscription import Subscription
from tests.redis_server import RedisServer
from tests.waiting import until

Heard = list[tuple[bytes, bytes]]


class Ear:
    """A subscription that writes down what happens to it."""

    def __init__(self, address: Address, *channels: str, **settings: float) -> None:
        self.heard: Heard = []
        self.lost: list[RedisError] = []
        self.resubscribed = 0
        self.subscription = Subscription(
            address, channels, on_lost=self.lost.append, on_resubscribed=self._count, **settings
        )

    def deliver(self, channel: bytes, message: bytes) -> None:
        self.heard.append((channel, message))

    def _count(self) -> None:
        self.resubscribed += 1


@pytest.fixture
def open_ear(redis_server: RedisServer, nursery: trio.Nursery) -> Callable:
    async def open_ear(*channels: str, **settings: float) -> Ear:
        ear = Ear(Address.parse(redis_server.url), *channels, **settings)
        await nursery.start(ear.subscription.run, ear.deliver)
        return ear

    return open_ear


async def test_hears_what_is_published_in_order(address: Address, redis_server: RedisServer, nursery) -> None:
    ear = Ear(address, "a", "b")
    await nursery.start(ear.subscription.run, ear.deliver)
    assert ear.subscription.subscribed
    assert redis_server.client.pubsub_numsub("a", "b", "c") == [(b"a", 1), (b"b", 1), (b"c", 0)]
    sent = [(b"ab"[i % 2 : i % 2 + 1], b"%d\r\n\x00" % i) for i in range(500)]
    with redis_server.client.pipeline(transaction=False) as pipeline:
        for channel, message in sent:
            pipeline.publish(channel, message)
        pipeline.publish("c", "not for us")
        pipeline.execute()
    await until(lambda: len(ear.heard) >= 500)
    assert ear.heard == sent
    assert ear.subscription.messages == 500
    assert ear.resubscribed == 0


async def test_large_messages(redis_server: RedisServer, open_ear) -> None:
    ear = await open_ear("a")
    large = bytes(range(256)) * 40_000
    redis_server.client.publish("a", large)
    redis_server.client.publish("a", b"small")
    await until(lambda: len(ear.heard) == 2)
    assert ear.heard == [(b"a", large), (b"a", b"small")]


async def test_listens_to_more_channels_later(redis_server: RedisServer, open_ear) -> None:
    ear = await open_ear("a")
    ear.subscription.extend("b", b"c", "a")
    assert not ear.subscription.subscribed, "not to all of them, yet"
    with trio.fail_after(2):
        await ear.subscription.wait_subscribed()
    assert ear.subscription.channels == [b"a", b"b", b"c"]
    redis_server.client.publish("c", "hello")
    await until(lambda: ear.heard)
    assert ear.heard == [(b"c", b"hello")]

    redis_server.client.client_kill_filter(_type="pubsub")
    await until(lambda: ear.resubscribed)
    assert dict(redis_server.client.pubsub_numsub("a", "b", "c")) == {b"a": 1, b"b": 1, b"c": 1}
    assert ear.resubscribed == 1


async def test_comes_back_and_says_so(redis_server: RedisServer, open_ear) -> None:
    ear = await open_ear("a", "b")
    for round_ in range(1, 6):
        redis_server.client.client_kill_filter(_type="pubsub")
        await until(lambda wanted=round_: ear.resubscribed == wanted)
        assert ear.subscription.subscribed
        assert redis_server.client.publish("a", str(round_)) == 1
        await until(lambda wanted=round_: len(ear.heard) == wanted)
    assert [message for _, message in ear.heard] == [b"1", b"2", b"3", b"4", b"5"]
    assert ear.subscription.losses == len(ear.lost) == 5
    assert all("closed the connection" in str(why) for why in ear.lost)


async def test_never_lost_without_notice(redis_server: RedisServer, open_ear) -> None:
    """Whatever is missing was published before the notice that something may be missing."""
    ear = await open_ear("a")
    published = 0
    for burst in range(20):
        for _ in range(20):
            redis_server.client.publish("a", published)
            published += 1
        if burst % 2:
            redis_server.client.client_kill_filter(_type="pubsub")
        await trio.lowlevel.checkpoint()
    await until(lambda: redis_server.client.pubsub_numsub("a") == [(b"a", 1)])
    complete_from = published
    for _ in range(100):
        redis_server.client.publish("a", published)
        published += 1
    await until(lambda: ear.heard and ear.heard[-1][1] == b"%d" % (published - 1))
    numbers = [int(message) for _, message in ear.heard]
    assert numbers == sorted(set(numbers)), "nothing is doubled or out of order"
    assert set(range(complete_from, published)) <= set(numbers)
    assert ear.resubscribed == len(ear.lost) > 0


async def test_a_frozen_server_is_noticed(redis_server: RedisServer, open_ear) -> None:
    ear = await open_ear("a", ping_seconds=0.05, silence_seconds=0.3)
    await until(lambda: ear.subscription.last_ping)
    redis_server.pause()
    frozen = trio.current_time()
    await until(lambda: not ear.subscription.subscribed)
    assert 0.2 < trio.current_time() - frozen < 1
    assert ear.subscription.last_ping is None
    assert "nothing heard for 0.3 s" in str(ear.lost[0])
    assert "not subscribed: nothing heard" in repr(ear.subscription)
    assert ear.subscription.failure is ear.lost[0]
    redis_server.resume()
    await until(lambda: ear.resubscribed == 1)
    assert ear.subscription.failure is None


async def test_a_restarted_server(redis_server: RedisServer, open_ear) -> None:
    ear = await open_ear("a")
    redis_server.kill()
    await until(lambda: ear.lost)
    redis_server.restart()
    await until(lambda: ear.resubscribed == 1)
    redis_server.client.publish("a", "anew")
    await until(lambda: ear.heard == [(b"a", b"anew")])


async def test_a_stall_of_our_own_is_not_blamed_on_the_server(redis_server: RedisServer, open_ear) -> None:
    ear = await open_ear("a", ping_seconds=0.05, silence_seconds=0.2)
    await until(lambda: ear.subscription.last_ping)
    for i in range(2):
        time.sleep(0.3)  # noqa: ASYNC251 - the stall
        redis_server.client.publish("a", i)
        await until(lambda wanted=i: len(ear.heard) == wanted + 1)
        await trio.sleep(0.1)
    assert ear.lost == []


async def test_pings_are_evidence(link: Link, open_ear) -> None:
    ear = await open_ear("a", ping_seconds=0.02)
    await until(lambda: ear.subscription.last_ping)
    first = ear.subscription.last_ping
    assert 0 < first.round_trip_seconds < 0.2
    assert first.answered_at <= trio.current_time()
    await until(lambda: ear.subscription.last_ping.sent_at > first.sent_at)
    link.post("DEBUG", "SLEEP", "0.3")
    await until(lambda: ear.subscription.last_ping.round_trip_seconds > 0.2)
    assert ear.lost == []


async def test_messages_keep_a_connection_alive_as_well(impostor, nursery) -> None:
    """A pong may be stuck behind a flood; bytes are bytes."""

    async def never_pong(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
        while True:
            await trio.sleep(0.05)
            await stream.send_all(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n")

    ear = Ear(await impostor(never_pong), "a", ping_seconds=0.05, silence_seconds=0.2)
    await nursery.start(ear.subscription.run, ear.deliver)
    await until(lambda: len(ear.heard) > 10)
    assert ear.lost == []
    assert ear.subscription.last_ping is None


async def test_a_flood_does_not_starve_others(redis_server: RedisServer, open_ear) -> None:
    ear = await open_ear("a")
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = len(ear.heard)
            await trio.lowlevel.checkpoint()
            longest = max(longest, len(ear.heard) - before)

    with redis_server.client.pipeline(transaction=False) as pipeline:
        for i in range(5000):
            pipeline.publish("a", i)
        pipeline.execute()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await until(lambda: len(ear.heard) == 5000)
        nursery.cancel_scope.cancel()
    assert 0 < longest <= 64


async def test_a_receiver_that_fails_costs_one_message(redis_server: RedisServer, nursery, caplog) -> None:
    heard = []

    def deliver(_: bytes, message: bytes) -> None:
        heard.append(message)
        if message == b"poison":
            raise ValueError("cannot digest this")

    subscription = Subscription(Address.parse(redis_server.url), ["a"])
    await nursery.start(subscription.run, deliver)
    for message in (b"good", b"poison", b"good too"):
        redis_server.client.publish("a", message)
    await until(lambda: len(heard) == 3)
    assert subscription.subscribed
    assert "cannot digest this" in caplog.text


async def test_a_channel_that_is_not_allowed_ends_the_start(redis_server: RedisServer) -> None:
    redis_server.client.execute_command("ACL", "SETUSER", "clerk", "on", ">pw", "+@all", "resetchannels", "&ours*")
    address = Address(path=str(redis_server.socket_path), username="clerk", password="pw")
    with trio.fail_after(2), pytest.raises(Refused, match=r"NOPERM.*channel"):
        await _start(Subscription(address, ["theirs"]))
    await _start(Subscription(address, ["ours:1"]))


async def test_no_server_is_said_clearly(redis_server: RedisServer) -> None:
    redis_server.kill()
    with pytest.raises(LinkDown, match=r"no Redis at unix://.* within 0\.05 s"):
        await _start(Subscription(Address.parse(redis_server.url), ["a"], start_seconds=0.05))


async def test_a_server_that_never_confirms_ends_the_start(impostor) -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    with trio.fail_after(3), pytest.raises(LinkDown, match="no Redis at"):
        await _start(
            Subscription(await impostor(silent), ["a"], silence_seconds=0.1, ping_seconds=0.05, start_seconds=0.3)
        )


async def test_cancelling_closes_the_connection(redis_server: RedisServer) -> None:
    subscription = Subscription(Address.parse(redis_server.url), ["a"])
    async with trio.open_nursery() as nursery:
        await nursery.start(subscription.run, lambda channel, message: None)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not subscription.subscribed
    await until(lambda: redis_server.client.pubsub_numsub("a") == [(b"a", 0)])


def test_needs_a_channel() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Subscription(Address(), [])


async def _start(subscription: Subscription) -> None:
    """Start it, and stop it again if that succeeds."""
    failure = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(subscription.run, lambda channel, message: None)
        except RedisError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
