"""Connections to Redis are cut, stall, are refused or overflow, on either side: a pause, or an error in words."""

import time

import pytest
import trio

from tests.faults.house import House
from tests.faults.roads import build_roads, under_streams
from tests.faults.streams import raw, stream, whole
from tests.redis_server import RedisServer
from tests.waiting import until


async def keep_killing(house: House, kind: str) -> None:
    """`CLIENT KILL TYPE kind`, five times a second."""
    while True:
        house.redis.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        await trio.sleep(0.2)


@pytest.mark.fault("B1")
@pytest.mark.promise("P2")
async def test_subscribers_are_cut_off_all_the_time(audited: House) -> None:
    """CLIENT KILL TYPE pubsub five times a second under twenty streams: nothing is lost, doubled or out of order."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def fault() -> None:
                nursery.start_soon(keep_killing, audited, "pubsub")

            streams = await under_streams(audited, fault, count=20, chunks=150)
            nursery.cancel_scope.cancel()
        streams.assert_complete()
        assert sum([int((await audited.state(worker))["resends"]) for worker in audited.workers]) > 0


@pytest.mark.fault("B2")
async def test_command_connections_are_cut_off_all_the_time(audited: House) -> None:
    """CLIENT KILL TYPE normal five times a second under twenty streams: nothing is lost, doubled or out of order."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def fault() -> None:
                nursery.start_soon(keep_killing, audited, "normal")

            streams = await under_streams(audited, fault, count=20, chunks=150)
            nursery.cancel_scope.cancel()
        streams.assert_complete()


@pytest.mark.fault("B3")
@pytest.mark.promise("P9")
@pytest.mark.parametrize(("side", "seconds"), [("front", 1), ("front", 9), ("back", 1), ("back", 9), ("both", 5)])
async def test_a_side_is_cut_off_and_comes_back(house: House, side: str, seconds: int) -> None:
    """One side's connections to Redis are cut, and refused for up to 9 s: a pause, and not a byte is lost."""
    with trio.fail_after(90):
        roads = await build_roads(house)

        async def fault() -> None:
            for proxy in roads.of(side):
                proxy.away(by_rst=seconds == 5)
            await trio.sleep(seconds)
            for proxy in roads.of(side):
                proxy.back()

        streams = await under_streams(house, fault, chunks=20 * (seconds + 2), gap=0.05)
        streams.assert_complete()


@pytest.mark.fault("B4")
@pytest.mark.promise("P9")
@pytest.mark.parametrize("side", ["front", "back", "both"])
async def test_connections_are_half_open_for_five_seconds(house: House, side: str) -> None:
    """Nothing passes to Redis for 5 s, and nobody is told: given up after 2 s, a pause, and not a byte is lost."""
    with trio.fail_after(90):
        roads = await build_roads(house)

        async def fault() -> None:
            for proxy in roads.of(side):
                proxy.hole()
            await trio.sleep(5)
            for proxy in roads.of(side):
                proxy.hole(False)

        streams = await under_streams(house, fault, chunks=140, gap=0.05)
        streams.assert_complete()


@pytest.mark.fault("B5")
@pytest.mark.promise("P10")
async def test_redis_is_away_for_longer_than_anybody_waits(house: House) -> None:
    """Nothing passes to Redis for 15 s: an error event after 10 s, upstream calls closed, 503 at once, then all is well."""
    with trio.fail_after(90):
        roads = await build_roads(house)
        took: list[float] = []

        async def fault() -> None:
            roads.front.hole()
            roads.back.hole()
            began = trio.current_time()
            await trio.sleep(4)
            for _ in range(5):
                asked = time.monotonic()
                refused = await raw(house, "now")
                took.append(time.monotonic() - asked)
                assert (refused.status, refused.error["code"]) == (503, "queue_unavailable")
                assert 1 <= int(refused.headers["retry-after"]) <= 60
                await trio.sleep(0.2)
            await house.ledger.wait_until_idle()
            assert trio.current_time() - began < 15
            await trio.sleep_until(began + 15)
            roads.front.hole(False)
            roads.back.hole(False)

        streams = await under_streams(house, fault, chunks=400, gap=0.05)
        assert streams.assert_exact() == {"queue_unavailable": 5}
        assert sorted(took)[2] < 0.3, took
        await ready(house)
        assert (await whole(house, "and now")).text == "and now"


@pytest.mark.fault("B5")
@pytest.mark.promise("P10")
@pytest.mark.parametrize(("side", "code"), [("front", "queue_unavailable"), ("back", "worker_lost")])
async def test_one_side_is_half_open_for_too_long(house: House, side: str, code: str) -> None:
    """Redis takes a side for connected that hears nothing and says nothing for 15 s: an error event, upstreams closed."""
    with trio.fail_after(90):
        roads = await build_roads(house)
        (proxy,) = roads.of(side)

        async def fault() -> None:
            proxy.hole()
            began = trio.current_time()
            await house.ledger.wait_until_idle()
            assert trio.current_time() - began < 15
            await trio.sleep_until(began + 15)
            proxy.hole(False)

        streams = await under_streams(house, fault, chunks=400, gap=0.05)
        assert streams.assert_exact() == {code: 5}
        await house.ready()


@pytest.mark.fault("B13")
@pytest.mark.promise("P9")
async def test_another_server_becomes_the_master(house: House) -> None:
    """The master becomes a replica of its replica, whose address the name now leads to: a pause, and not a byte is lost."""
    second = RedisServer()
    try:
        with trio.fail_after(90):
            roads = await build_roads(house)
            second.client.execute_command("REPLICAOF", "127.0.0.1", str(house.redis.port))
            await until(lambda: second.client.info("replication")["master_link_status"] == "up", 20)
            await ready(house)

            async def fault() -> None:
                second.client.execute_command("REPLICAOF", "NO", "ONE")
                for proxy in (roads.front, roads.back):
                    proxy.target = ("127.0.0.1", second.port)
                house.redis.client.execute_command("REPLICAOF", "127.0.0.1", str(second.port))
                # Nobody is cut off: that the old one refuses to write is all there is to see.

            streams = await under_streams(house, fault, chunks=300)
            streams.assert_complete()
            assert second.client.pubsub_numsub(*second.client.pubsub_channels("sluice:worker:*"))
            assert not house.redis.client.pubsub_channels("sluice:worker:*")
            assert (await whole(house, "and now")).text == "and now"
            house.redis.client.execute_command("REPLICAOF", "NO", "ONE")
            house.redis.client.flushall()  # nobody uses it any more; the audit looks here
    finally:
        await house.close_clients()
        for process in house.processes:
            await trio.to_thread.run_sync(process.stop)
        second.close()


@pytest.mark.fault("B13")
async def test_the_server_refuses_to_write_for_a_while(audited: House) -> None:
    """REPLICAOF nowhere, 3 s later NO ONE: everything that writes is refused, streams pause, new requests wait."""
    redis = audited.redis.client
    with trio.fail_after(60):
        late = []

        async def fault() -> None:
            redis.execute_command("CONFIG", "SET", "repl-ping-replica-period", "1")
            redis.execute_command("REPLICAOF", "127.0.0.1", "1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: ask_into(late, audited))
                await trio.sleep(3)
                redis.execute_command("REPLICAOF", "NO", "ONE")

        streams = await under_streams(audited, fault, chunks=300)
        assert [told.ended for told in streams.told] == ["complete"] * 5
        assert [(told.outcome, told.text) for told in late] in (
            [("complete", "late")],
            [("queue_unavailable", "")],  # asked in the moment without a connection
        )


async def ask_into(told: list, house: House) -> None:
    told.append(await stream(house, "late"))


@pytest.mark.fault("B15")
async def test_redis_takes_no_more_clients(house: House) -> None:
    """maxclients, and all are cut off: not ready, 503 at once, few attempts to connect, then all is well."""
    with trio.fail_after(90):
        await house.open()
        redis = house.redis.client
        redis.ping()
        redis.config_set("maxclients", 1)
        for kind in ("pubsub", "normal"):
            redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        began, rejected = trio.current_time(), redis.info("stats")["rejected_connections"]
        await trio.sleep(4)
        refused = await raw(house, "now")
        assert (refused.status, refused.error["code"]) == (503, "queue_unavailable")
        assert await ready_status(house) == 503
        attempts = redis.info("stats")["rejected_connections"] - rejected
        seconds = trio.current_time() - began
        assert attempts / seconds / len(house.processes) <= 5, f"{attempts} attempts in {seconds:.1f} s"
        redis.config_set("maxclients", 1000)
        await ready(house)
        assert (await whole(house, "and now")).text == "and now"


async def ready(house: House) -> None:
    """Until the frontend says so, and everybody is advertised."""
    with trio.fail_after(20):
        while await ready_status(house) != 200:  # noqa: ASYNC110 - there is no event: it is another process
            await trio.sleep(0.05)
    await house.ready()


async def ready_status(house: House) -> int:
    connection = await trio.open_tcp_stream("127.0.0.1", house.gateway.ports[0])
    async with connection:
        await connection.send_all(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        return int((await connection.receive_some()).split()[1])


@pytest.mark.fault("B17")
async def test_a_subscriber_that_does_not_read_is_dropped_by_redis(audited: House) -> None:
    """A frontend is stopped while more comes for it than Redis buffers, which hangs up: nothing is lost once it goes on."""
    audited.redis.client.config_set("client-output-buffer-limit", "pubsub 262144 131072 1")
    with trio.fail_after(60):

        async def fault() -> None:
            audited.frontend.freeze()
            await until(lambda: not listening(audited), 10)
            audited.frontend.thaw()

        streams = await under_streams(audited, fault, count=3, chunks=3000, gap=0.001)
        streams.assert_complete()


def listening(house: House) -> int:
    """How many frontends hear what is said to them."""
    client = house.redis.client
    return sum(listeners for _, listeners in client.pubsub_numsub(*client.pubsub_channels("sluice:frontend:*:own")))


@pytest.mark.fault("B3", "E2")
@pytest.mark.parametrize(("delay_seconds", "bytes_per_second"), [(0.06, 0), (0, 128 * 1024)])
async def test_a_slow_or_a_thin_line_to_redis(house: House, delay_seconds: float, bytes_per_second: float) -> None:
    """60 ms of delay, or 1 Mbit/s, each way between the frontend and Redis: slower, and not a byte is lost."""
    with trio.fail_after(90):
        roads = await build_roads(house)
        for direction in (roads.front.up, roads.front.down):
            direction.delay_seconds = delay_seconds
            direction.bytes_per_second = bytes_per_second
        (await under_streams(house, trio.lowlevel.checkpoint, count=3, chunks=100, gap=0.04)).assert_complete()


@pytest.mark.fault("B3")
async def test_bytes_are_garbled_on_the_way_from_redis(house: House) -> None:
    """What comes from Redis makes no sense for a moment: connections are replaced, no caller is told a wrong word."""
    with trio.fail_after(90):
        roads = await build_roads(house)

        async def fault() -> None:
            for proxy in (roads.front, roads.back):
                proxy.down.garble = lambda piece: bytes(byte ^ 0x55 for byte in piece)
            await trio.sleep(0.5)
            for proxy in (roads.front, roads.back):
                proxy.down.garble = None
                proxy.rst()

        (await under_streams(house, fault, count=5, chunks=200)).assert_complete()
