"""D and P16: many at once, and what a well-behaved stream notices of it."""

import json
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise

import psutil
import pytest
import trio

from tests.end_to_end.gateway import API_KEY
from tests.faults.house import House
from tests.faults.standing import bounded
from tests.faults.streams import raw
from tests.simulators.raw_client import receive_message, request_bytes

MIB, KIB = 1024 * 1024, 1024
GAP_SECONDS = 0.05
MOST_GROWTH, JITTER_SECONDS = 1.5, 0.35
"""P16: how much the canary's 99th percentile may grow; and what is not the gateway's: the canary, its upstream and the crowd
all live in the process of the test, on a machine that tests other things at the same time."""
ABUSE_SECONDS = 3.0
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Canary:
    """A stream of one piece every 50 ms; when each of them came."""

    times: list[float] = field(default_factory=list)
    text: str = ""
    ended: bool = False

    def gap(self, since: float, until: float) -> float:
        """The 99th percentile of the pauses within this time, in seconds."""
        seen = [at for at in self.times if since <= at <= until]
        gaps = sorted(later - earlier for earlier, later in pairwise(seen))
        assert len(gaps) >= 20, f"only {len(gaps)} pieces"
        return gaps[min(len(gaps) - 1, len(gaps) * 99 // 100)]


@asynccontextmanager
async def canary(house: House) -> AsyncIterator[Canary]:
    """Sings while the block runs."""
    bird = Canary()
    payload = request_bytes(
        {
            "model": house.model, "stream": True,
            "messages": [{"role": "user", "content": f"sing sim:fault=endless sim:gap={GAP_SECONDS}"}],
        },
        Authorization=f"Bearer {API_KEY}", Content_Type="application/json",
    )  # fmt: skip

    async def sing() -> None:
        async with await connect(house) as stream:
            await stream.send_all(payload)
            while piece := await stream.receive_some(65536):
                bird.times += [trio.current_time()] * (b'"content"' in piece)
                assert b'"error"' not in piece, piece
            bird.ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sing)
        with trio.fail_after(10):
            while len(bird.times) < 3:  # noqa: ASYNC110
                await trio.sleep(0.01)
        yield bird
        assert not bird.ended
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def unharmed(house: House, record_property) -> AsyncIterator[Canary]:
    """The block is an abuse; the canary's pauses before it and during it are compared."""
    async with canary(house) as bird:
        began = trio.current_time()
        await trio.sleep(3)
        abuse = trio.current_time()
        yield bird
        await trio.sleep_until(abuse + ABUSE_SECONDS)
        before, during = bird.gap(began, abuse), bird.gap(abuse, trio.current_time())
    record_property("p99 gap", f"{before * 1000:.0f} ms before, {during * 1000:.0f} ms during")
    assert during <= MOST_GROWTH * before + JITTER_SECONDS, (before, during)


async def connect(house: House) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", house.gateway.ports[0])


async def connect_all(house: House, count: int, request: bytes = b"", *, answered: bool = False) -> list[socket.socket]:
    """That many connections on which `request` was sent, and its answer read if it is `answered`. By a thread, for speed."""

    def connect() -> list[socket.socket]:
        opened: list[socket.socket] = []
        while len(opened) < count:
            sock = socket.create_connection(("127.0.0.1", house.gateway.ports[0]), 20)
            opened.append(sock)
            if request:
                sock.sendall(request)
            if answered:
                assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        for sock in opened:
            sock.setblocking(False)
        return opened

    return await trio.to_thread.run_sync(connect)


def streams(sockets: list[socket.socket]) -> list[trio.SocketStream]:
    return [trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in sockets]


async def closed_within(streams: list[trio.SocketStream], seconds: float) -> list[bytes]:
    """What each of them heard before the server closed it; TooSlowError if it does not."""
    heard: list[bytes] = []

    async def listen(stream: trio.SocketStream) -> None:
        words = b""
        with suppress(trio.BrokenResourceError):
            while piece := await stream.receive_some(4096):
                words += piece
        heard.append(words)
        await trio.aclose_forcefully(stream)

    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(listen, stream)
    return heard


@pytest.mark.fault("D4", "S13")
@pytest.mark.promise("P16")
async def test_those_who_dawdle_are_shown_out(house: House, record_property) -> None:
    """500 connections that say nothing, 500 whose head trickles in, 200 whose body does."""
    await house.open(workers=1)
    body = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nAuthorization: Bearer "
    body += API_KEY.encode() + b"\r\nContent-Type: application/json\r\n\r\n{"
    async with unharmed(house, record_property):
        idle = streams(await connect_all(house, 500))
        heads = streams(await connect_all(house, 500, b"GET / HTTP/1.1\r\nX: "))
        bodies = streams(await connect_all(house, 200, body))

        async def trickle(dawdlers: list[trio.SocketStream], seconds: float) -> None:
            while True:
                for stream in dawdlers:
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await stream.send_all(b"x")
                await trio.sleep(seconds)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle, heads, 1)
            nursery.start_soon(trickle, bodies, 3)
            assert set(await closed_within(idle + heads, 15)) == {b""}, "5 s for a head"
            late = await closed_within(bodies, 40)
            nursery.cancel_scope.cancel()
    assert all(words.startswith(b"HTTP/1.1 408") for words in late), "30 s for a body, and a word about it"
    await bounded(house, 1200 * 40 * KIB)


@pytest.mark.fault("D5", "S13")
async def test_no_file_descriptors_are_left(house: House, record_property) -> None:
    """The process may open no more files: new callers wait, who is inside is served; then it may again."""
    await house.open(workers=1)
    process = psutil.Process(house.frontend.pid)
    _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    async with unharmed(house, record_property):
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 20, hard))
        crowd = streams(await connect_all(house, 100, HEALTH))
        heard: list[bytes] = []

        async def answered(stream: trio.SocketStream) -> None:
            heard.append((await stream.receive_some(4096))[:12])

        with trio.fail_after(10):
            while "cannot accept connections" not in house.frontend.text():  # noqa: ASYNC110
                await trio.sleep(0.05)
        process.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for stream in crowd:
                    nursery.start_soon(answered, stream)
        assert heard == [b"HTTP/1.1 200"] * 100, "who had to wait is answered"
        for stream in crowd:
            await trio.aclose_forcefully(stream)
        with trio.fail_after(10):
            assert (await raw(house, "hello again")).text == "hello again"


@pytest.mark.fault("D5", "D4")
async def test_ten_thousand_connections(house: House, record_property) -> None:
    """10,000 callers stay connected after a request; the next one is told that there is no room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, hard - 600)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    await house.open(workers=1, SLUICE_MAX_CONNECTIONS=str(count))
    process = psutil.Process(house.frontend.pid)
    resident = process.memory_info().rss
    crowd: list[socket.socket] = []
    try:
        crowd = await connect_all(house, count - 2, HEALTH, answered=True)
        each = (process.memory_info().rss - resident) / count
        record_property("connections", f"{count}, {each / KIB:.1f} KiB each")
        assert each < 40 * KIB
        reply = await raw(house, "there is room for one")
        assert reply.text == "there is room for one", reply.seen.raw
        crowd += await connect_all(house, 2, HEALTH, answered=True)
        async with await connect(house) as late:
            await late.send_all(HEALTH)
            seen = await receive_message(late)
        assert (seen.status, json.loads(seen.body)["error"]["code"]) == (503, "server_is_overloaded")
        idle_since, used = time.monotonic(), sum(process.cpu_times()[:2])
        await trio.sleep(1)
        assert sum(process.cpu_times()[:2]) - used < 0.5 * (time.monotonic() - idle_since), "who is idle costs nothing"
    finally:
        for sock in crowd:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with trio.fail_after(20):
        while (await house.held(house.frontend)).files > house.before["frontend"].files:  # noqa: ASYNC110
            await trio.sleep(0.1)
    await bounded(house, count * 40 * KIB)


@pytest.mark.fault("D12", "S2")
@pytest.mark.promise("P16")
async def test_a_flood_of_wrong_keys(house: House, record_property) -> None:
    """As many requests with wrong keys as eight connections can carry, for three seconds."""
    await house.open(workers=1)
    counts = [0]

    async def flood(number: int) -> None:
        async with await connect(house) as stream:
            unread = b""
            wrong = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-wrong-{number}\r\n\r\n".encode()
            while True:
                await stream.send_all(wrong * 4)
                answered = 0
                while answered < 4:
                    unread += await stream.receive_some(65536)
                    found = unread.count(b"HTTP/1.1 401")
                    assert found == unread.count(b"HTTP/1.1 ")
                    answered += found
                    unread = unread[-11:] if found else unread
                counts[0] += answered

    async with unharmed(house, record_property), trio.open_nursery() as nursery:
        names = set(house.redis.client.keys("*"))
        for number in range(8):
            nursery.start_soon(flood, number)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    record_property("refused", f"{counts[0] / 3:.0f} a second")
    assert counts[0] > 300
    assert {name for name in set(house.redis.client.keys("*")) - names if b"alive" not in name} == set()


@pytest.mark.fault("C23")
@pytest.mark.promise("P16")
async def test_a_torrent_beside_a_canary(house: House, record_property) -> None:
    """Four upstream answers as fast as they are taken, two read and two not, beside a stream of twenty pieces a second."""
    await house.open(workers=1, SLUICE_STALL_SECONDS="2")
    payload = request_bytes(
        {"model": house.model, "stream": True, "messages": [{"role": "user", "content": "x sim:fault=endless sim:burst=64"}]},
        Authorization=f"Bearer {API_KEY}", Content_Type="application/json",
    )  # fmt: skip
    peak = 0

    async def drink(thirsty: bool) -> None:
        async with await connect(house) as stream:
            await stream.send_all(payload)
            with suppress(trio.BrokenResourceError):
                while thirsty and await stream.receive_some(65536):
                    pass
                await trio.sleep_forever()

    async with canary(house), trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(drink, number % 2 == 0)
        for _ in range(30):
            await trio.sleep(0.1)
            peak = max(peak, *(psutil.Process(one.pid).memory_info().rss for one in house.processes))
        nursery.cancel_scope.cancel()
    record_property("peak", f"{peak / MIB:.0f} MiB")
    assert peak < 160 * MIB
    await bounded(house, 100 * MIB)


@pytest.mark.fault("D3", "A13")
async def test_who_does_not_read_delays_no_stop(house: House) -> None:
    """SIGTERM while a caller holds a stream without end and does not read: the process ends when the drain is over."""
    await house.open(workers=1)
    payload = request_bytes(
        {"model": house.model, "stream": True, "messages": [{"role": "user", "content": "x sim:fault=endless sim:burst=64"}]},
        Authorization=f"Bearer {API_KEY}", Content_Type="application/json",
    )  # fmt: skip
    async with await connect(house) as stream:
        await stream.send_all(payload)
        with trio.fail_after(20):
            call = await house.ledger.wait_for_call()
            await house.ledger.wait_for(lambda _: call.bytes_sent > MIB)
            began = trio.current_time()
            assert await trio.to_thread.run_sync(house.frontend.stop, 15) == 0
            assert trio.current_time() - began < 6, "two seconds of drain, one for last words"
            await house.ledger.wait_closed(call)
