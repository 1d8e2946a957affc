"""Which connections are kept, for whom and for how long, and when a request is sent once more."""

import pytest
import trio

from tests.workers.transports.calls import fetch, get
from tests.workers.transports.upstream import OK, Peer, Script, answering, authority, chunk, serving, until, whole
from workers.exchange import (
    Disconnected,
)
from workers.transports.http import HttpTransport

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


async def test_a_hundred_requests_share_one_connection(transport: HttpTransport) -> None:
    async with serving(answering(whole(b"hello"), close=False)) as upstream:
        for _ in range(100):
            assert (await fetch(transport, upstream.url())).body == b"hello"
        assert upstream.accepted == 1
        assert transport.statistics() == (1, 99, 1, 1)


def numbered(proceed: trio.Event) -> Script:
    """Answers with the connection's number; answers do not end before `proceed`."""

    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.send(CHUNKED + chunk(b"%d" % peer.number))
            await proceed.wait()
            await peer.send(b"0\r\n\r\n")

    return script


async def test_connections_are_kept_apart_by_origin_and_youngest_first(transport: HttpTransport) -> None:
    proceed = trio.Event()
    async with serving(numbered(proceed)) as one, serving(numbered(proceed)) as other:
        first = await transport.stream(get(one.url()))
        second = await transport.stream(get(one.url()))
        assert transport.statistics() == (2, 0, 0, 2)
        proceed.set()
        assert (await first.read(10)).body == b"1"
        assert (await second.read(10)).body == b"2"
        assert (await fetch(transport, other.url())).body == b"1"
        assert (await fetch(transport, one.url())).body == b"2"
        assert transport.statistics() == (3, 1, 3, 3)


async def test_idle_connections_are_limited_in_number_and_in_time(nothing_left: None) -> None:
    transport = HttpTransport(connect_seconds=5, idle_connections=2, idle_seconds=0.05)
    proceed = trio.Event()
    async with serving(numbered(proceed)) as upstream:
        exchanges = [await transport.stream(get(upstream.url())) for _ in range(5)]
        proceed.set()
        for exchange in exchanges:
            await exchange.read(10)
        assert transport.statistics() == (5, 0, 2, 2)
        await until(lambda: upstream.open == 2)
        past = trio.current_time() + 0.06
        await until(lambda: trio.current_time() > past)
        assert (await fetch(transport, upstream.url())).body == b"6"
        assert transport.statistics() == (6, 0, 1, 1)
    await transport.aclose()


async def test_a_closed_transport_keeps_nothing_but_finishes_what_runs(nothing_left: None) -> None:
    transport = HttpTransport(connect_seconds=5, idle_connections=2, idle_seconds=30)
    proceed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"a"))
        await proceed.wait()
        await peer.send(b"0\r\n\r\n")
        await peer.gone()

    async with serving(script) as upstream:
        with await transport.stream(get(upstream.url())) as exchange:
            assert await exchange.receive() == b"a"
            await transport.aclose()
            proceed.set()
            assert await exchange.receive() == b""
        assert transport.statistics().open == 0


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("parting", [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
async def test_a_connection_that_the_peer_closed_meanwhile_is_not_used(
    transport: HttpTransport, tls: bool, parting: bytes
) -> None:
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole(b"%d" % peer.number))
        if peer.number == 1:
            if parting:
                await peer.send(parting)
            await peer.stream.aclose()
            closed.set()
        else:
            await peer.gone()

    async with serving(script, authority().server("localhost") if tls else None) as upstream:
        assert (await fetch(transport, upstream.url())).body == b"1"
        await closed.wait()
        assert (await fetch(transport, upstream.url())).body == b"2"
        assert transport.statistics().reused == 0
        assert upstream.accepted == 2


@pytest.mark.parametrize("reset", [False, True])
async def test_a_close_that_crosses_the_request_is_retried_once_on_a_fresh_connection(
    transport: HttpTransport, reset: bool
) -> None:
    proceed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"%d" % peer.number))
        await proceed.wait()
        await peer.send(b"0\r\n\r\n")
        if peer.number <= 2:
            await peer.request()
            if reset:
                peer.reset()

    async with serving(script) as upstream:
        # Two idle connections, both about to die: the retry must not try the second one.
        first, second = [await transport.stream(get(upstream.url())) for _ in range(2)]
        proceed.set()
        assert ((await first.read(10)).body, (await second.read(10)).body) == (b"1", b"2")
        assert (await fetch(transport, upstream.url(), method="POST")).body == b"3"
        assert upstream.accepted == 3


async def test_no_retry_once_a_byte_of_the_answer_has_come(transport: HttpTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(whole(b"x"))
        await peer.request()
        await peer.send(b"H")

    async with serving(script) as upstream:
        await fetch(transport, upstream.url())
        with pytest.raises(Disconnected) as caught:
            await fetch(transport, upstream.url())
        assert caught.value.response_started
        assert upstream.accepted == 1


@pytest.mark.parametrize("reset", [False, True])
async def test_no_retry_on_a_connection_of_its_own(transport: HttpTransport, reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if reset:
            peer.reset()

    async with serving(script) as upstream:
        with pytest.raises(Disconnected) as caught:
            await fetch(transport, upstream.url())
        assert not caught.value.response_started
        assert upstream.accepted == 1
