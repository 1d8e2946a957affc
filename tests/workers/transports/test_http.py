"""The transport as a worker sees it: requests as they arrive, limits, failures, many streams at once."""

import httpx2
import pytest
import trio

from tests.workers.transports.calls import fetch, get, pieces_of
from tests.workers.transports.upstream import OK, Peer, answering, authority, chunk, serving, until, whole
from workers.exchange import (
    ConnectFailed,
    HttpRequest,
    ProtocolViolation,
    TooLarge,
    TransportError,
    TransportTimeout,
)
from workers.transports.http import HttpTransport
from workers.transports.lean import LeanTransport

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


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
