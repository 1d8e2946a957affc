"""Long request bodies: slow readers, early answers, connections that die while we send."""

import errno
import socket

import pytest
import trio
import trio.testing

from tests.workers.transports.upstream import OK, Peer, authority, serving, until, whole
from workers.exchange import Disconnected, HttpRequest
from workers.transports.http import HttpTransport

BODY = bytes(range(256)) * 20_000
"""Five megabytes: more than the buffers of a loopback connection take."""


def post(url: str) -> HttpRequest:
    return HttpRequest(method="POST", url=url, body=BODY)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_slow_reader_gets_every_byte(transport: HttpTransport, tls: bool) -> None:
    got = b""

    async def script(peer: Peer) -> None:
        nonlocal got
        while b"\r\n\r\n" not in got:
            got += await peer.stream.receive_some(10)
        pieces = [got.partition(b"\r\n\r\n")[2]]
        while sum(map(len, pieces)) < len(BODY):
            pieces.append(await peer.stream.receive_some(16_384))
            await trio.lowlevel.checkpoint()
        got = b"".join(pieces)
        await peer.send(whole(b"thanks"))
        assert await peer.request() is not None
        await peer.send(whole(b"again"))

    async with serving(script, authority().server("localhost") if tls else None) as upstream:
        reply = await transport.fetch(post(upstream.url()), limit_bytes=10, timeout_seconds=10)
        assert reply.body == b"thanks"
        assert got == BODY
        again = HttpRequest(method="GET", url=upstream.url())
        assert (await transport.fetch(again, limit_bytes=10, timeout_seconds=5)).body == b"again"
        assert upstream.accepted == 1


@pytest.mark.parametrize("tls", [False, True])
async def test_an_early_refusal_ends_the_sending(transport: HttpTransport, tls: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some(100)
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\n")
        await trio.lowlevel.checkpoint()
        await peer.send(b"long")
        await trio.sleep_forever()  # reads no more, closes nothing

    async with serving(script, authority().server("localhost") if tls else None) as upstream:
        reply = await transport.fetch(post(upstream.url()), limit_bytes=10, timeout_seconds=5)
        assert (reply.status, reply.body) == (413, b"long")
        assert transport.statistics().open == 0  # half a request is no state to reuse


@pytest.mark.parametrize("tls", [False, True])
async def test_an_early_success_does_not(transport: HttpTransport, tls: bool) -> None:
    async def script(peer: Peer) -> None:
        first = await peer.stream.receive_some(100)
        await peer.send(OK + b"Content-Length: 8\r\n\r\n")
        size = len(first)
        while size < len(BODY):
            size += len(await peer.stream.receive_some(65_536))
        await peer.send(b"%8d" % len(BODY))
        await peer.gone()

    async with serving(script, authority().server("localhost") if tls else None) as upstream:
        reply = await transport.fetch(post(upstream.url()), limit_bytes=10, timeout_seconds=5)
        assert reply.body == b"%8d" % len(BODY)
        assert transport.statistics().idle == 1


async def test_a_refusal_with_a_close_is_read(transport: HttpTransport) -> None:
    """The upstream answers, reads on until the answer has certainly been read, and closes."""

    async def script(peer: Peer) -> None:
        await peer.stream.receive_some(100)
        await peer.send(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\nno key")
        stream = peer.stream
        assert isinstance(stream, trio.SocketStream)
        await stream.send_eof()
        await peer.gone()

    async with serving(script) as upstream:
        reply = await transport.fetch(post(upstream.url()), limit_bytes=10, timeout_seconds=5)
        assert (reply.status, reply.body) == (401, b"no key")


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_dies_meanwhile(transport: HttpTransport, reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some(100)
        if reset:
            peer.reset()

    async with serving(script) as upstream:
        with pytest.raises(Disconnected) as caught:
            await transport.fetch(post(upstream.url()), limit_bytes=10, timeout_seconds=5)
        assert not caught.value.response_started
        assert transport.statistics().open == 0


async def test_an_upstream_that_does_not_read_learns_at_once_that_we_gave_up(transport: HttpTransport) -> None:
    """A FIN would wait behind all that the upstream has not read; a reset does not."""
    reset = trio.Event()

    async def script(peer: Peer) -> None:
        await until(lambda: peer.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET)
        reset.set()

    async with serving(script) as upstream:
        with trio.move_on_after(0.05):
            await transport.stream(post(upstream.url()))
        assert transport.statistics().open == 0
        with trio.fail_after(0.25):
            await reset.wait()


async def test_giving_up_behind_an_early_success_closes_too(transport: HttpTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some(100)
        await peer.send(OK + b"Content-Length: 8\r\n\r\n")
        answered.set()
        await trio.sleep_forever()

    answered = trio.Event()
    async with serving(script) as upstream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.stream, post(upstream.url()))
            await answered.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)  # the head has been read, the body fills the buffers
            assert transport.statistics().open == 1
            nursery.cancel_scope.cancel()
        assert transport.statistics().open == 0
