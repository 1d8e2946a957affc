"""A call may be cancelled anywhere: its upstream learns at once, nobody else's answer suffers, nothing is left."""

from functools import partial

import pytest
import trio
import trio.testing

from tests.workers.transports.upstream import OK, Asked, Peer, Upstream, answering, authority, chunk, serving, until
from workers.exchange import HttpRequest
from workers.transports.http import HttpExchange, HttpTransport

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PROMPT_SECONDS = 0.25


class Slow:
    """An upstream that answers in many small steps, and notes which call was left when.

    Every answer repeats its request's target, so that bytes of another call's answer would be seen.
    """

    def __init__(self) -> None:
        self.left: dict[str, float] = {}

    async def __call__(self, peer: Peer) -> None:
        while asked := await peer.request():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, peer, asked, nursery.cancel_scope)
                await self._answer(peer, asked)
                nursery.cancel_scope.cancel()

    async def _watch(self, peer: Peer, asked: Asked, answering: trio.CancelScope) -> None:
        self.left[asked.target] = await peer.gone()
        answering.cancel()

    async def _answer(self, peer: Peer, asked: Asked) -> None:
        wire = CHUNKED + chunk(asked.target.encode()) + chunk(b" and more") + b"0\r\n\r\n"
        for start in range(0, len(wire), 4):
            try:
                await peer.send(wire[start : start + 4])
            except trio.BrokenResourceError:  # the watch sees it too, and says when
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("tls", [False, True])
async def test_at_every_scheduler_turn(transport: HttpTransport, tls: bool) -> None:
    slow = Slow()
    delays: list[float] = []
    completed = 0
    async with serving(slow, authority().server("localhost") if tls else None) as upstream:
        for turns in range(80):
            path = f"/left/{turns}"
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after, turns, scope)
                    assert await whole_body(transport, upstream.url(path)) == path.encode() + b" and more"
                    completed += 1
                    nursery.cancel_scope.cancel()
            cancelled_at = trio.current_time()
            idle = transport.statistics().idle
            assert transport.statistics().open == idle
            await until(partial(has_open, upstream, idle))
            if path in slow.left:
                delays.append(slow.left[path] - cancelled_at)
            # Whatever was left in the pool serves the next call with that call's answer.
            path = f"/kept/{turns}"
            assert await whole_body(transport, upstream.url(path)) == path.encode() + b" and more"
    assert len(delays) > 10
    assert completed > 10
    assert max(delays) < PROMPT_SECONDS


def has_open(upstream: Upstream, connections: int) -> bool:
    return upstream.open == connections


async def whole_body(transport: HttpTransport, url: str) -> bytes:
    with await transport.stream(HttpRequest(method="GET", url=url)) as exchange:
        body = b""
        while piece := await exchange.receive():
            body += piece
        return body


async def cancel_after(turns: int, scope: trio.CancelScope) -> None:
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("tls", [False, True])
async def test_close_is_synchronous_and_wakes_the_reader(transport: HttpTransport, tls: bool) -> None:
    left = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"x"))
        await peer.gone()
        left.set()

    woken = trio.Event()

    async def read(exchange: HttpExchange) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await exchange.receive()
        woken.set()

    async with serving(script, authority().server("localhost") if tls else None) as upstream:
        exchange = await transport.stream(HttpRequest(method="GET", url=upstream.url()))
        assert await exchange.receive() == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, exchange)
            await trio.testing.wait_all_tasks_blocked()
            exchange.close()
            assert transport.statistics().open == 0
            exchange.close()
            with trio.fail_after(PROMPT_SECONDS):
                await woken.wait()
                await left.wait()
        with pytest.raises(trio.ClosedResourceError):
            await exchange.receive()


async def test_a_cancelled_read_closes_before_anyone_closes_the_exchange(transport: HttpTransport) -> None:
    async with serving(answering(CHUNKED + chunk(b"x"), close=False)) as upstream:
        exchange = await transport.stream(HttpRequest(method="GET", url=upstream.url()))
        assert await exchange.receive() == b"x"
        with trio.CancelScope() as scope:
            scope.cancel()
            await exchange.receive()
        assert transport.statistics().open == 0
        with pytest.raises(trio.ClosedResourceError):
            await exchange.receive()


async def test_leaving_the_block_closes(transport: HttpTransport) -> None:
    async with serving(answering(CHUNKED + chunk(b"x"), close=False)) as upstream:
        with await transport.stream(HttpRequest(method="GET", url=upstream.url())) as exchange:
            assert transport.statistics().open == 1
        assert transport.statistics().open == 0
        with pytest.raises(trio.ClosedResourceError):
            await exchange.receive()
            await exchange.receive()


async def test_closing_after_the_end_leaves_the_next_call_alone(transport: HttpTransport) -> None:
    async with serving(Slow()) as upstream:
        first = await transport.stream(HttpRequest(method="GET", url=upstream.url("/first")))
        assert (await first.read(100)).body == b"/first and more"
        second = await transport.stream(HttpRequest(method="GET", url=upstream.url("/second")))
        first.close()
        assert await first.receive() == b""
        assert (await second.read(100)).body == b"/second and more"
        assert upstream.accepted == 1


async def test_a_crowd_that_leaves_at_once(transport: HttpTransport) -> None:
    count = 100
    times: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"x"))
        times.append(await peer.gone())

    started = trio.Semaphore(0)

    async def call(url: str) -> None:
        with await transport.stream(HttpRequest(method="GET", url=url)) as exchange:
            while await exchange.receive():
                started.release()

    async with serving(script) as upstream:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(call, upstream.url())
            for _ in range(count):
                await started.acquire()
            left = trio.current_time()
            nursery.cancel_scope.cancel()
        assert transport.statistics().open == 0
        await until(lambda: len(times) == count)
        assert max(times) - left < PROMPT_SECONDS
