"""After any number of clients of any kind, nothing of them is left: no task, no file descriptor, no app call."""

import os
import random

import pytest
import trio

from tests.frontend.server.apps import demo
from tests.frontend.server.wire import Cut, get, post, running

BEHAVIOURS = [
    get("/a"),
    get("/a") + get("/stream/30") + b"\r\n" + get("/b"),
    post("/echo", bytes(100_000)),
    b"POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nabc",
    b"POST /refuse HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000\r\n\r\n" + bytes(50_000),
    get("/stream/1000"),
    get("/a", version="1.0"),
    get("/a", headers="Connection: close\r\n") + b"more",
    b"GET / HT",
    b"nonsense\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"",
]


def footprint():
    return len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living


@pytest.mark.parametrize("seed", range(2))
async def test_nothing_is_left_of_clients_of_any_kind(seed):
    rng = random.Random(seed)
    clocks = dict.fromkeys(("header_seconds", "body_seconds", "keep_alive_seconds", "linger_seconds"), 0.2)
    async with running(demo, **clocks) as server:
        before = footprint()

        async def misbehave(pieces, how, reads):
            client = await server.connect(receive_buffer=rng.choice([None, 4096]))
            try:
                for piece in pieces:
                    await client.send(piece)
                    await trio.lowlevel.checkpoint()
                if reads:
                    await client.answer()
                if how is None:
                    await client.closed()
                else:
                    await client.leave(how)
            except (Cut, trio.BrokenResourceError):
                pass  # the server was faster
            await trio.aclose_forcefully(client.stream)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(150):
                    request_bytes = rng.choice(BEHAVIOURS)
                    at = rng.randint(0, len(request_bytes))
                    reads = request_bytes in BEHAVIOURS[:4] and rng.random() < 0.5
                    how = rng.choice(["fin", "rst", "half-close", None])
                    pieces = [request_bytes[:at], request_bytes[at:]]
                    nursery.start_soon(misbehave, pieces, how, reads)
            while footprint() != before:  # noqa: ASYNC110 (nobody is left who could tell)
                await trio.sleep(0.01)
        assert (await server.ask(get("/still-here"))).body == b"GET /still-here"
