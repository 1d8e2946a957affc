"""Redis forgets, is rewound, stalls, is full, or holds what others put there: what runs goes on, what waits is done once."""

import contextlib
import resource
import threading
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
import redis
import trio

from shared.redis import keys
from shared.schema.job import PROTOCOL, Job
from shared.sealing import Seal
from tests.end_to_end.gateway import SECRET_KEY
from tests.faults.house import House
from tests.faults.roads import Streams, under_streams
from tests.faults.streams import Told, raw, stream, whole
from tests.redis_server import RedisServer
from tests.waiting import until

JOBS = "sluice:jobs:{openai}"
ENDLESS = "while true do end"


@contextlib.asynccontextmanager
async def waiting_jobs(house: House, count: int) -> AsyncIterator[list[Told]]:
    """All workers are stopped and so many jobs wait, when the block begins. What became of them is there when it has ended."""
    told = [Told() for _ in range(count)]
    for worker in house.workers:
        worker.freeze()
    async with trio.open_nursery() as nursery:
        for number, one in enumerate(told):
            nursery.start_soon(lambda number=number, one=one: stream(house, f"waits{number}", told=one))
        await until(lambda: queued(house) >= count, 10)
        yield told
        for worker in house.workers:
            worker.thaw()


def queued(house: House) -> int:
    """Jobs that Redis holds: in the stream, and in its waiting room."""
    return house.redis.client.hlen(keys.places("openai"))


def assert_answered(told: list[Told]) -> None:
    assert [(one.ended, one.text) for one in told] == [("complete", f"waits{number}") for number in range(len(told))]


# --- it forgets


@pytest.mark.fault("B7")
@pytest.mark.promise("P9")
async def test_it_restarts_empty_under_streams(audited: House) -> None:
    """SIGKILL, two seconds of nothing, and an empty server: running streams go on without loss."""

    async def fault() -> None:
        audited.redis.kill()
        await trio.sleep(2)
        await trio.to_thread.run_sync(audited.redis.restart)

    with trio.fail_after(60):
        (await under_streams(audited, fault, count=10, chunks=300)).assert_complete()
        await audited.ready()
        assert (await whole(audited, "and now")).text == "and now"


@pytest.mark.fault("B7")
@pytest.mark.promise("P9")
async def test_it_restarts_empty_under_waiting_jobs(audited: House) -> None:
    """The queue, its group and all scripts are lost while jobs wait: their owner queues them again, each runs once."""
    with trio.fail_after(60):
        async with waiting_jobs(audited, 8) as told:
            await trio.to_thread.run_sync(audited.redis.restart)
        assert_answered(told)


@pytest.mark.fault("B8")
@pytest.mark.promise("P9")
async def test_it_is_killed_and_comes_back_with_its_log(audited: House) -> None:
    """kill -9 of a Redis that appends to a file every second: running streams go on, waiting jobs run once."""
    audited.redis.client.config_set("appendonly", "yes")
    await until(lambda: not audited.redis.client.info("persistence")["aof_rewrite_in_progress"], 10)

    async def fault() -> None:
        audited.redis.kill()
        await trio.sleep(1)
        await trio.to_thread.run_sync(lambda: audited.redis.restart("appendonly yes\nappendfsync everysec"))

    with trio.fail_after(60):
        (await under_streams(audited, fault, count=10, chunks=200)).assert_complete()
        assert audited.redis.client.config_get("appendonly")["appendonly"] == "yes"


@pytest.mark.fault("B9")
@pytest.mark.promise("P2")
async def test_it_is_rewound(audited: House) -> None:
    """Restarted from a snapshot in which jobs wait that have long been answered: nobody's text is mixed with another's."""
    with trio.fail_after(60):
        async with waiting_jobs(audited, 5) as told:
            audited.redis.client.save()
            assert queued(audited) == 5
        assert_answered(told)
        audited.ledger.begin_again()

        async def fault() -> None:
            await trio.to_thread.run_sync(audited.redis.restart)

        streams = await under_streams(audited, fault, count=10, chunks=200)
        assert [one.outcome for one in streams.told] == ["complete"] * 10
        streams.assert_exact()
        await until(lambda: queued(audited) == 0, 20)


@pytest.mark.fault("B10")
async def test_it_forgets_all_scripts_under_load(audited: House) -> None:
    """SCRIPT FLUSH every 20 ms while 60 requests come in: nobody notices."""

    async def flush() -> None:
        while True:
            audited.redis.client.script_flush()
            await trio.sleep(0.02)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            for _ in range(3):
                streams = await under_streams(audited, trio.lowlevel.checkpoint, count=20, chunks=10)
                streams.assert_complete()
                audited.ledger.begin_again()
            nursery.cancel_scope.cancel()


# --- it stalls


@pytest.mark.promise("P11")
@pytest.mark.parametrize(
    "stall",
    [
        pytest.param("DEBUG SLEEP 3", marks=pytest.mark.fault("B6")),
        pytest.param("DEBUG SLEEP 5", marks=pytest.mark.fault("B6")),
        pytest.param("CLIENT PAUSE 3000 WRITE", marks=pytest.mark.fault("B14")),
        pytest.param("EVAL", marks=pytest.mark.fault("B16")),
    ],
)
async def test_it_stalls(audited: House, stall: str) -> None:
    """Redis answers nobody, nobody who writes, or only BUSY, for seconds: a pause, and nobody is taken for dead."""
    client = audited.redis.client
    late: list[Told] = []

    async def ask_in_between() -> None:
        await trio.sleep(0.5)
        late.append(await stream(audited, "late"))

    async def fault() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_in_between)
            await trio.to_thread.run_sync(stalled)

    def stalled() -> None:
        with redis.Redis(unix_socket_path=str(audited.redis.socket_path), socket_timeout=10) as other:
            if stall == "EVAL":
                client.config_set("lua-time-limit", 300)
                with contextlib.suppress(redis.ResponseError), kill_script_later(audited.redis, 3.0):
                    other.eval(ENDLESS, 0)
            else:
                other.execute_command(*stall.split())

    with trio.fail_after(60):
        streams = await under_streams(audited, fault, count=8, chunks=300)
        assert [one.outcome for one in streams.told] == ["complete"] * 8
        streams.assert_exact()
        # What was on its way waits for the answer; what comes while the link is known to be down is told at once.
        assert [(one.outcome, one.text) for one in late] in ([("complete", "late")], [("queue_unavailable", "")])
        assert audited.ledger.calls_seen == 8 + len(late[0].text) // 4, "somebody was taken for dead"


@contextlib.contextmanager
def kill_script_later(server: RedisServer, seconds: float) -> Iterator[None]:
    """From another thread, since the client that runs the script waits for it."""

    def kill() -> None:
        with redis.Redis(unix_socket_path=str(server.socket_path)) as client:
            client.script_kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    yield
    timer.join()


# --- it is full


@pytest.mark.fault("B11")
async def test_its_memory_is_full(audited: House) -> None:
    """maxmemory is reached for longer than an advertisement lives: 503 for new requests, streams go on, nobody is dead."""
    client = audited.redis.client
    caller = trio.CancelScope()

    async def reads_until_it_leaves() -> None:
        with caller:
            await stream(audited, "endless sim:fault=endless sim:gap=0.05")

    async def fault() -> None:
        client.set("sluice-filler", bytes(8 << 20))
        client.config_set("maxmemory", 4 << 20)
        caller.cancel()
        await until(lambda: endless.closed_at is not None, 3)
        for _ in range(keys.ALIVE_SECONDS + 3):
            refused = await raw(audited, "now")
            assert (refused.status, refused.error["code"]) == (503, "server_is_overloaded")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            await trio.sleep(1)
        client.delete("sluice-filler")
        client.config_set("maxmemory", 512 << 20)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reads_until_it_leaves)
            endless = await audited.ledger.wait_for_call()
            streams = await under_streams(audited, fault, chunks=500)
        assert [one.outcome for one in streams.told] == ["complete"] * 5
        streams.assert_exact()
        assert audited.ledger.calls_seen == 6
        assert (await whole(audited, "and now")).text == "and now"
        assert not any("is lost" in process.text() for process in audited.processes)


@pytest.mark.fault("B12")
async def test_its_disk_is_full(audited: House) -> None:
    """The append-only file cannot grow for 7 s (MISCONF): 503 for new requests, streams go on, then all is well."""
    client = audited.redis.client
    client.config_set("appendonly", "yes")
    await until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 10)

    async def fault() -> None:
        _, hard = resource.prlimit(audited.redis.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(audited.redis.pid, resource.RLIMIT_FSIZE, (64 * 1024, hard))
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            for _ in range(1000):
                client.set("sluice-filler", bytes(8192))
                await trio.sleep(0.005)
        for _ in range(7):
            refused = await raw(audited, "now")
            assert refused.status == 503
            assert refused.error["code"] in ("server_is_overloaded", "provider_unavailable")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            await trio.sleep(1)
        resource.prlimit(audited.redis.pid, resource.RLIMIT_FSIZE, (hard, hard))

    with trio.fail_after(60):
        streams = await under_streams(audited, fault, chunks=500)
        assert [one.outcome for one in streams.told] == ["complete"] * 5
        streams.assert_exact()
        await until(lambda: not full(client), 10)
        client.delete("sluice-filler")
        await audited.ready()
        assert (await whole(audited, "and now")).text == "and now"


def full(client: redis.Redis) -> bool:
    try:
        return not client.ping()
    except redis.ResponseError:
        return True


# --- somebody else was at it


@pytest.mark.fault("B18")
async def test_somebody_deletes_what_waits(audited: House) -> None:
    """The job stream and all that belongs to the queue are deleted by hand: the owner queues its jobs again."""
    with trio.fail_after(60):
        async with waiting_jobs(audited, 8) as told:
            audited.redis.client.delete(*keys.queue("openai"))
        assert_answered(told)


@pytest.mark.fault("B18")
async def test_somebody_deletes_single_entries(audited: House) -> None:
    """XDEL of every entry in the stream, and nothing else: the owner queues its jobs again."""
    with trio.fail_after(60):
        async with waiting_jobs(audited, 3) as told:
            for entry, _ in audited.redis.client.xrange(JOBS):
                audited.redis.client.xdel(JOBS, entry)
        assert_answered(told)


@pytest.mark.fault("B19")
async def test_garbage_lies_everywhere(audited: House) -> None:
    """Garbage in the stream and in all channels, jobs under a foreign key and of another protocol: others are unharmed."""
    client = audited.redis.client
    stream_key = keys.jobs("openai")
    good = Job(99, bytes(16), 1, "f-nobody", "chat", "openai", "m", "m", True, False, 60.0, b"{}", "req_other")
    foreign = Seal(["another-secret-key-0123456789abcdef0123456789"])
    ours = Seal([SECRET_KEY])

    async def fault() -> None:
        for rubbish in (b"", b"garbage", bytes(range(256)) * 40, ours.seal(b"\x93nothing", stream_key)):
            client.xadd(stream_key, {"job": rubbish})
            client.xadd(stream_key, {b"\xff": rubbish})
            for channel in client.pubsub_channels("sluice:*"):
                client.publish(channel, rubbish)
                client.publish(channel, ours.seal(rubbish, channel))
        client.xadd(stream_key, {"job": ours.seal(msgspec.msgpack.encode(good), stream_key)})
        client.sadd("sluice:alive", b"worker:\xff\xfe", b"worker:", b"nonsense")
        await until(lambda: client.xlen(stream_key) == 0, 20)
        client.xadd(stream_key, {"job": foreign.seal(msgspec.msgpack.encode(good), stream_key)})
        await trio.sleep(0.5)
        client.delete(stream_key)

    with trio.fail_after(60):
        (await under_streams(audited, fault, chunks=200)).assert_complete()
        assert all(process.lives for process in audited.processes)
        assert f"speaks {PROTOCOL}" in "".join(worker.text() for worker in audited.workers)
        await trio.sleep(10)  # workers that have met a foreign key keep their hands off the queue for as long
        client.srem("sluice:alive", b"worker:\xff\xfe", b"worker:", b"nonsense")


@pytest.mark.fault("B20")
async def test_the_consumer_group_is_deleted(audited: House) -> None:
    """XGROUP DESTROY while jobs wait, and then under load: it is made anew, and every job runs once."""
    client = audited.redis.client
    with trio.fail_after(60):
        async with waiting_jobs(audited, 5) as told:
            client.xgroup_destroy(JOBS, "workers")
        assert_answered(told)
        audited.ledger.begin_again()

        async def fault() -> None:
            client.xgroup_destroy(JOBS, "workers")

        for _ in range(3):
            streams: Streams = await under_streams(audited, fault, count=10, chunks=10)
            streams.assert_complete()
            audited.ledger.begin_again()
