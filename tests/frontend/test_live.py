"""One reading a second for all who watch, none while nobody does, and nobody who watches keeps a frontend from leaving."""

import time

import httpx2
import pytest
import trio
import trio.testing

from frontend.live import Live
from shared.redis.failures import LinkDown
from tests.end_to_end.gateway import API_KEY, gateway
from tests.redis_server import RedisServer


@pytest.fixture
async def live(nursery):
    """A `Live` whose overview is the time, or a failure while `broken`."""

    async def read():
        if live.broken:
            raise LinkDown("away")
        return {"time": trio.current_time()}

    live = Live(read)
    live.broken = False
    live.stop = trio.Event()
    nursery.start_soon(live.run, live.stop)
    await trio.testing.wait_all_tasks_blocked()
    return live


async def test_nobody_watches_nothing_is_read(live, autojump_clock):
    await trio.sleep(100)
    assert live.readings == 0


async def test_many_watch_one_reading(live, autojump_clock):
    watchers = [live.watch() for _ in range(20)]
    for _ in range(5):
        events = [await anext(watcher) for watcher in watchers]
        assert len(set(events)) == 1 and events[0].startswith(b"event: overview\ndata: {")
    assert live.readings == 5
    for _ in watchers:
        live.leave()
    await trio.sleep(100)
    assert live.readings <= 6
    late = live.watch()
    assert await anext(late) != events[0], "who comes later gets no old picture"


async def test_who_is_slow_gets_the_latest(live, autojump_clock):
    watcher = live.watch()
    first = await anext(watcher)
    await trio.sleep(10.5)
    second = await anext(watcher)
    assert live.readings == 11 and first != second


async def test_a_redis_that_is_away_is_told_and_its_return_too(live, autojump_clock):
    watcher = live.watch()
    assert (await anext(watcher)).startswith(b"event: overview\n")
    live.broken = True
    assert (await anext(watcher)).startswith(b"event: problem\n")
    live.broken = False
    assert (await anext(watcher)).startswith(b"event: overview\n")


async def test_all_streams_end_when_the_frontend_leaves(live, autojump_clock):
    watchers = [live.watch() for _ in range(3)]
    for watcher in watchers:
        await anext(watcher)
    live.stop.set()
    for watcher in watchers:
        with pytest.raises(StopAsyncIteration):
            await anext(watcher)


async def test_a_watcher_holds_up_nobody(redis_server: RedisServer):
    with gateway(redis_server, SLUICE_DRAIN_SECONDS="20") as running:
        frontend = running.frontend()
        await trio.to_thread.run_sync(running.wait_ready)
        headers = {"authorization": f"Bearer {API_KEY}"}
        async with (
            httpx2.AsyncClient(timeout=30, headers=headers) as client,
            client.stream("GET", f"{running.origin}/admin/live") as answer,
        ):
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            pieces = answer.aiter_raw()
            assert b"event: overview" in await anext(pieces)
            began = time.monotonic()
            frontend.popen.terminate()
            async for _ in pieces:
                pass
            assert await trio.to_thread.run_sync(frontend.popen.wait, 15) == 0
            assert time.monotonic() - began < 10
