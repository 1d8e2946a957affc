"""The transport against scripted upstreams: framing, keeping connections, retrying, limits."""

import gzip
import zlib

import httpx2
import pytest
import trio

from tests.workers.transports.upstream import OK, Peer, Script, answering, authority, chunk, serving, until, whole
from workers.exchange import (
    ConnectFailed,
    Disconnected,
    HttpReply,
    HttpRequest,
    ProtocolViolation,
    TooLarge,
    TransportError,
    TransportTimeout,
)
from workers.transports.http import HttpTransport
from workers.transports.lean import LeanTransport

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def get(url: str, *, method: str = "GET") -> HttpRequest:
    return HttpRequest(method=method, url=url)


async def fetch(transport: HttpTransport, url: str, *, method: str = "GET", limit_bytes: int = 1 << 20) -> HttpReply:
    return await transport.fetch(get(url, method=method), limit_bytes=limit_bytes, timeout_seconds=5)


async def pieces_of(transport: HttpTransport, url: str) -> list[bytes]:
    with await transport.stream(get(url)) as exchange:
        pieces = []
        while piece := await exchange.receive():
            pieces.append(piece)
        assert await exchange.receive() == b""  # an end stays an end
        return pieces


async def test_the_request_as_the_upstream_gets_it(transport: HttpTransport) -> None:
    seen = []

    async def script(peer: Peer) -> None:
        while asked := await peer.request():
            seen.append(asked)
            await peer.send(whole(b"{}"))

    async with serving(script) as upstream:
        headers = [("Authorization", "Bearer secret"), ("X-Twice", "1"), ("X-Twice", "2")]
        url = upstream.url("/v1/chat?q=a%20b")
        await transport.fetch(
            HttpRequest(method="POST", url=url, headers=headers, body=b'{"a":1}'), limit_bytes=10, timeout_seconds=5
        )
        await fetch(transport, url)
        compressed = [("accept-encoding", "gzip")]
        await transport.fetch(HttpRequest(method="GET", url=url, headers=compressed), limit_bytes=10, timeout_seconds=5)
    host = ("host", f"localhost:{upstream.port}")
    assert (seen[0].method, seen[0].target, seen[0].body) == ("POST", "/v1/chat?q=a%20b", b'{"a":1}')
    assert sorted(seen[0].headers) == sorted(
        [
            host,
            ("authorization", "Bearer secret"),
            ("x-twice", "1"),
            ("x-twice", "2"),
            ("accept-encoding", "identity"),
            ("content-length", "7"),
        ]
    )
    assert sorted(seen[1].headers) == sorted([host, ("accept-encoding", "identity")])
    assert sorted(seen[2].headers) == sorted([host, ("accept-encoding", "gzip")])


@pytest.mark.parametrize("field", [("X", "a\r\nY: b"), ("X", "a\nb"), ("X\r\n", "a"), ("X", "a\0b"), ("X", "é")])
async def test_a_request_cannot_be_split(transport: HttpTransport, field: tuple[str, str]) -> None:
    async with serving(answering(whole(b""))) as upstream:
        with pytest.raises(ValueError):
            await transport.stream(HttpRequest(method="GET", url=upstream.url(), headers=[field]))
        assert upstream.accepted == 0


@pytest.mark.parametrize("url", ["/relative", "ftp://localhost/", "http://", "file:///etc/passwd", "http://[::1", "x"])
async def test_only_absolute_http_addresses(transport: HttpTransport, url: str) -> None:
    with pytest.raises(ValueError):
        await transport.stream(get(url))


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


async def test_redirects_are_answers(transport: HttpTransport) -> None:
    async with serving(answering(whole(b"secret"))) as other:
        answer = b"HTTP/1.1 307 T\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % other.url().encode()
        async with serving(answering(answer)) as upstream:
            reply = await fetch(transport, upstream.url())
        assert (reply.status, reply.headers["location"]) == (307, other.url())
        assert other.accepted == 0


async def test_repeated_headers_are_joined(transport: HttpTransport) -> None:
    async with serving(answering(OK + b"X-A: 1\r\nx-a: 2\r\nY: \xe9\r\nContent-Length: 0\r\n\r\n")) as upstream:
        reply = await fetch(transport, upstream.url())
        assert reply.headers == {"x-a": "1, 2", "y": "é", "content-length": "0"}


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000,
        OK + b"A: 1\r\n" * 2_000 + b"\r\n",
        OK + b"A: " + b"x" * (1 << 20) + b"\r\n\r\n",
        b"<html>not http</html>",
    ],
)
async def test_hostile_heads_are_refused(transport: HttpTransport, wire: bytes) -> None:
    async with serving(answering(wire)) as upstream:
        with pytest.raises(ProtocolViolation):
            await transport.stream(get(upstream.url()))
        await until(lambda: upstream.open == 0)
        assert transport.statistics().open == 0


async def test_a_body_beyond_the_limit_is_refused_and_the_call_closed(transport: HttpTransport) -> None:
    ended = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        try:
            while True:
                await peer.send(chunk(b"x" * 10_000))
        finally:
            ended.set()

    async with serving(script) as upstream:
        with pytest.raises(TooLarge):
            await fetch(transport, upstream.url(), limit_bytes=100_000)
        with trio.fail_after(1):
            await ended.wait()


async def test_fetch_takes_no_longer_than_it_may(transport: HttpTransport) -> None:
    left = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"x"))
        await peer.gone()
        left.set()

    async with serving(script) as upstream:
        with pytest.raises(TransportTimeout):
            await transport.fetch(get(upstream.url()), limit_bytes=10, timeout_seconds=0.05)
        with trio.fail_after(1):
            await left.wait()


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


async def test_nobody_listens(transport: HttpTransport) -> None:
    async with serving(answering()) as upstream:
        pass
    with pytest.raises(ConnectFailed, match="localhost"):
        await fetch(transport, upstream.url("/secret?key=secret"))


async def test_connecting_takes_no_longer_than_it_may(nothing_left: None) -> None:
    transport = HttpTransport(connect_seconds=0.05, idle_connections=1, idle_seconds=1)

    async def silent(peer: Peer) -> None:
        await peer.gone()

    async with serving(silent) as upstream:  # accepts, but never answers the handshake
        with pytest.raises(ConnectFailed, match=r"within 0\.05 s"):
            await transport.stream(get(f"https://localhost:{upstream.port}/"))
        await until(lambda: upstream.accepted == 1 and upstream.open == 0)
    assert transport.statistics() == (0, 0, 0, 0)


async def test_five_hundred_streams_at_once_get_their_own_events(transport: HttpTransport) -> None:
    everyone_asked = trio.Event()
    count = 500

    async def script(peer: Peer) -> None:
        asked = await peer.request()
        assert asked is not None
        await peer.send(CHUNKED)
        if upstream.accepted == count:
            everyone_asked.set()
        await everyone_asked.wait()
        for n in range(10):
            await peer.send(chunk(b"%b:%d " % (asked.target.encode(), n)))
            await trio.lowlevel.checkpoint()
        await peer.send(b"0\r\n\r\n")
        await peer.gone()

    async def call(number: int) -> None:
        body = b"".join(await pieces_of(transport, upstream.url(f"/{number}")))
        assert body == b"".join(b"/%d:%d " % (number, n) for n in range(10))

    async with serving(script) as upstream:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(call, number)
        assert upstream.accepted == count
        assert transport.statistics() == (count, 0, 20, 20)


async def test_no_message_tells_a_secret(transport: HttpTransport) -> None:
    secret = "s3cret"
    messages = []
    wires = [
        b"garbage",
        b"",
        OK + b"Content-Length: 9\r\n\r\nx",
        OK + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
    ]
    for wire in wires:
        async with serving(answering(wire)) as upstream:
            request = HttpRequest(
                method="POST",
                url=f"http://{secret}@localhost:{upstream.port}/v1?key={secret}",
                headers=[("Authorization", f"Bearer {secret}")],
                body=secret.encode(),
            )
            messages.append(repr(request))
            with pytest.raises(TransportError) as caught:
                await transport.fetch(request, limit_bytes=100, timeout_seconds=5)
            messages += [
                str(caught.value),
                repr(caught.value),
                repr(caught.value.__cause__),
                str(caught.value.failure()),
            ]
    with pytest.raises(TransportError) as caught:
        await transport.fetch(request, limit_bytes=100, timeout_seconds=5)
    messages += [str(caught.value), repr(caught.value.failure())]
    assert len(messages) == 5 * len(wires) + 2
    assert all(messages)
    assert not [message for message in messages if secret in message]


async def test_it_is_a_transport_for_httpx_clients(nothing_left: None) -> None:
    lean = LeanTransport(context=authority().client(), connect_seconds=5, idle_connections=2, idle_seconds=5)
    async with (
        serving(answering(CHUNKED + chunk(b"a\n"), chunk(b"b\n") + b"0\r\n\r\n", close=False)) as upstream,
        serving(answering(CHUNKED + chunk(b"x"), close=False)) as endless,
        httpx2.AsyncClient(transport=lean, trust_env=False) as client,
    ):
        reply = await client.post(upstream.url(), json={"a": 1})
        assert (reply.status_code, reply.text) == (200, "a\nb\n")
        async with client.stream("GET", upstream.url()) as streamed:
            assert [line async for line in streamed.aiter_lines()] == ["a", "b"]
        assert lean.statistics() == (1, 1, 1, 1)
        async with client.stream("GET", endless.url()) as streamed:
            assert await anext(streamed.aiter_bytes()) == b"x"
        assert lean.statistics() == (2, 1, 1, 1)
