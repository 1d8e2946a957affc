"""The chaos proxy does to a connection what it says, and nothing else."""

from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from tests.faults.chaos_proxy import ChaosProxy
from tests.waiting import until

CLOSED = (trio.BrokenResourceError, trio.ClosedResourceError)


@pytest.fixture
async def proxy(nursery: trio.Nursery) -> AsyncIterator[ChaosProxy]:
    """In front of a server that sends back what it gets."""

    async def echo(stream: trio.SocketStream) -> None:
        try:
            async for piece in stream:
                await stream.send_all(piece)
        except CLOSED:
            pass

    (listener,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
    proxy = ChaosProxy(("127.0.0.1", listener.socket.getsockname()[1]))
    await nursery.start(proxy.run)
    with trio.fail_after(10):
        yield proxy
    nursery.cancel_scope.cancel()


async def connect(proxy: ChaosProxy) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", proxy.port)


async def asked(stream: trio.SocketStream, words: bytes) -> bytes:
    await stream.send_all(words)
    return await read(stream, len(words))


async def read(stream: trio.SocketStream, size: int) -> bytes:
    got = b""
    while len(got) < size and (piece := await stream.receive_some()):
        got += piece
    return got


async def test_bytes_pass_and_are_counted(proxy: ChaosProxy) -> None:
    words = bytes(range(256)) * 2000
    async with await connect(proxy) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, words)
        assert await read(stream, len(words)) == words
        await stream.send_eof()
        assert await stream.receive_some() == b""
    await until(lambda: not proxy.statistics.open)
    counted = proxy.statistics
    assert (counted.connections, counted.up_bytes, counted.down_bytes, counted.cut) == (1, 512_000, 512_000, 0)


async def test_a_cut_is_an_end_and_a_reset_is_none(proxy: ChaosProxy) -> None:
    async with await connect(proxy) as first:
        assert await asked(first, b"one") == b"one"
        assert proxy.cut() == 1
        assert await first.receive_some() == b""
    async with await connect(proxy) as second:
        assert await asked(second, b"two") == b"two"
        assert proxy.rst() == 1
        with pytest.raises(trio.BrokenResourceError):
            await second.receive_some()


async def test_who_connects_while_it_is_away_is_refused(proxy: ChaosProxy) -> None:
    async with await connect(proxy) as stream:
        assert await asked(stream, b"one") == b"one"
        proxy.away()
        assert await stream.receive_some() == b""
    with pytest.raises(OSError, match=r"refused|all attempts"):
        await connect(proxy)
    proxy.back()
    async with await connect(proxy) as stream:
        assert await asked(stream, b"two") == b"two"


async def test_a_hole_delays_everything_also_an_end(proxy: ChaosProxy) -> None:
    async with await connect(proxy) as stream:
        assert await asked(stream, b"one") == b"one"
        proxy.hole()
        await stream.send_all(b"two")
        await stream.send_eof()
        with trio.move_on_after(0.1) as waiting:
            await stream.receive_some()
        assert waiting.cancelled_caught
        async with await connect(proxy) as late:  # the kernel takes it, nobody answers
            await late.send_all(b"late")
            proxy.hole(False)
            assert await read(late, 4) == b"late"
        assert await read(stream, 3) == b"two"
        assert await stream.receive_some() == b""


async def test_one_direction_ends_and_the_other_goes_on(proxy: ChaosProxy) -> None:
    async with await connect(proxy) as stream:
        assert await asked(stream, b"one") == b"one"
        proxy.half(proxy.down)
        assert await stream.receive_some() == b""
        passed = proxy.up.bytes
        await stream.send_all(b"two")
        await until(lambda: proxy.up.bytes == passed + 3)


async def test_a_connection_is_cut_after_so_many_bytes(proxy: ChaosProxy) -> None:
    proxy.down.cut_after = 5
    async with await connect(proxy) as stream:
        await stream.send_all(b"0123456789")
        assert await read(stream, 10) == b"01234"
    assert proxy.statistics.cut == 1


async def test_delay_and_thin_line(proxy: ChaosProxy) -> None:
    async with await connect(proxy) as stream:
        proxy.up.delay_seconds = 0.1
        began = trio.current_time()
        assert await asked(stream, b"one") == b"one"
        assert trio.current_time() - began >= 0.1
        proxy.up.delay_seconds = 0
        proxy.down.bytes_per_second = 10_000
        began = trio.current_time()
        assert await asked(stream, bytes(2000)) == bytes(2000)
        assert trio.current_time() - began >= 0.15


async def test_garble(proxy: ChaosProxy) -> None:
    proxy.up.garble = lambda piece: piece[::-1]
    async with await connect(proxy) as stream:
        assert await asked(stream, b"abc") == b"cba"


async def test_a_target_that_refuses_is_a_reset(proxy: ChaosProxy) -> None:
    proxy.target = ("127.0.0.1", 1)
    async with await connect(proxy) as stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    assert proxy.statistics.refused == 1
