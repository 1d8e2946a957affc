"""Where a body ends, and what is unpacked on the way, over real sockets."""

import gzip
import zlib

import pytest
import trio

from tests.workers.transports.calls import fetch, get, pieces_of
from tests.workers.transports.upstream import OK, Peer, answering, chunk, serving, whole
from workers.exchange import (
    Disconnected,
    ProtocolViolation,
    TooLarge,
    TransportError,
)
from workers.transports.http import HttpTransport

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


async def test_chunks_split_at_every_byte(transport: HttpTransport) -> None:
    events = [b"data: one\n\n", b"data: \xe4\xbd\xa0\xe5\xa5\xbd\n\n", b"data: [DONE]\n\n"]
    wire = CHUNKED + b"".join(map(chunk, events)) + b"0\r\n\r\n"

    async def script(peer: Peer) -> None:
        for _ in range(2):
            await peer.request()
            for i in range(len(wire)):
                await peer.send(wire[i : i + 1])
                await trio.lowlevel.checkpoint()

    async with serving(script) as upstream:
        for _ in range(2):
            assert b"".join(await pieces_of(transport, upstream.url())) == b"".join(events)
        assert upstream.accepted == 1


async def test_one_read_gives_all_that_has_arrived(transport: HttpTransport) -> None:
    proceed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"a") + chunk(b"b"))
        await proceed.wait()
        await peer.send(chunk(b"c") + chunk(b"d") + b"0\r\n\r\n")

    async with serving(script) as upstream:
        with await transport.stream(get(upstream.url())) as exchange:
            assert await exchange.receive() == b"ab"
            proceed.set()
            assert await exchange.receive() == b"cd"
            assert await exchange.receive() == b""


async def test_until_close(transport: HttpTransport) -> None:
    async with serving(answering(OK + b"\r\nhel", b"lo")) as upstream:
        assert (await fetch(transport, upstream.url())).body == b"hello"
        assert transport.statistics().open == 0


@pytest.mark.parametrize("head", [OK + b"Content-Length: 6\r\n\r\n", CHUNKED + b"6\r\n", CHUNKED])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_cut_body(transport: HttpTransport, head: bytes, reset: bool) -> None:
    received = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head + (b"2\r\nab\r\n" if head == CHUNKED else b"ab"))
        await received.wait()
        if reset:
            peer.reset()

    async with serving(script) as upstream:
        with await transport.stream(get(upstream.url())) as exchange:
            assert await exchange.receive() == b"ab"
            received.set()
            with pytest.raises(Disconnected) as caught:
                await exchange.receive()
        assert caught.value.response_started
        assert transport.statistics().open == 0


async def test_an_answer_that_goes_on_behind_its_end_is_whole_but_its_connection_is_not_kept(
    transport: HttpTransport,
) -> None:
    async with serving(answering(whole(b"x") + b"more", close=False)) as upstream:
        assert (await fetch(transport, upstream.url())).body == b"x"
        assert transport.statistics().open == 0


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", OK + b"Content-Length: 5\r\n\r\n"),
        ("HEAD", CHUNKED),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Encoding: gzip\r\n\r\n"),
    ],
)
async def test_answers_without_a_body(transport: HttpTransport, method: str, answer: bytes) -> None:
    async with serving(answering(answer, close=False)) as upstream:
        for _ in range(2):
            assert (await fetch(transport, upstream.url(), method=method)).body == b""


async def test_interim_responses_are_skipped(transport: HttpTransport) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nX: 1\r\n\r\n"
    async with serving(answering(b"HTTP/1.1 100 Continue\r\n\r\n", early, whole(b"x"))) as upstream:
        reply = await fetch(transport, upstream.url())
        assert (reply.status, reply.body, "x" in reply.headers) == (200, b"x", False)


async def test_a_compressed_event_stream_is_unpacked_event_by_event(transport: HttpTransport) -> None:
    events = [b'data: {"n":%d}\n\n' % n for n in range(20)]
    received = trio.Semaphore(0)

    async def script(peer: Peer) -> None:
        packer = zlib.compressobj(wbits=31)
        await peer.request()
        await peer.send(OK + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events:
            await peer.send(chunk(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)))
            await received.acquire()
        await peer.send(chunk(packer.flush()) + b"0\r\n\r\n")
        await peer.request()

    async with serving(script) as upstream:
        with await transport.stream(get(upstream.url())) as exchange:
            for event in events:
                assert await exchange.receive() == event
                received.release()
            assert await exchange.receive() == b""
        assert transport.statistics().idle == 1


@pytest.mark.parametrize(
    ("coding", "body", "failure"),
    [
        (b"gzip", gzip.compress(bytes(50 << 20)), TooLarge),
        (b"gzip", gzip.compress(b"hello")[:-1], ProtocolViolation),
        (b"gzip", b"hello", ProtocolViolation),
        (b"br", b"hello", ProtocolViolation),
    ],
    ids=["too large", "cut", "no gzip", "another coding"],
)
async def test_compressed_bodies_that_are_refused(
    transport: HttpTransport, coding: bytes, body: bytes, failure: type[TransportError]
) -> None:
    wire = OK + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding, len(body)) + body
    async with serving(answering(wire)) as upstream:
        with pytest.raises(failure):
            await fetch(transport, upstream.url(), limit_bytes=1 << 30)
        with await transport.stream(get(upstream.url())) as exchange:
            assert exchange.status == 200  # the head is of use whatever the body is


async def test_a_damaged_stream_is_closed_at_once(transport: HttpTransport) -> None:
    wire = OK + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"not gzip")
    async with serving(answering(wire, close=False)) as upstream:
        exchange = await transport.stream(get(upstream.url()))
        with pytest.raises(ProtocolViolation, match="damaged"):
            await exchange.receive()
        assert transport.statistics().open == 0


async def test_a_large_unpacked_piece_lets_other_tasks_run(transport: HttpTransport) -> None:
    body = gzip.compress(bytes(1 << 20))
    wire = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with serving(answering(wire)) as upstream, trio.open_nursery() as nursery:
        with await transport.stream(get(upstream.url())) as exchange:
            nursery.start_soon(other)
            before = turns
            size = reads = 0
            while piece := await exchange.receive():
                size += len(piece)
                reads += 1
            assert (size, reads >= 16) == (1 << 20, True)
            assert turns - before > reads // 2
        nursery.cancel_scope.cancel()
