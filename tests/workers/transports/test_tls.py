"""TLS: verified, cut at any place, and no end that could be an attacker's."""

import socket
import ssl

import pytest
import trio

from tests.workers.transports.upstream import OK, Authority, Peer, answering, authority, serving, until, whole
from workers.exchange import ConnectFailed, Disconnected, HttpRequest
from workers.transports.connection import Origin, TlsConnection
from workers.transports.http import HttpTransport

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def get(url: str) -> HttpRequest:
    return HttpRequest(method="GET", url=url)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_requests_share_a_verified_connection(transport: HttpTransport, version: ssl.TLSVersion) -> None:
    context = authority().server("localhost")
    context.minimum_version = context.maximum_version = version
    large = bytes(range(256)) * 4000

    async def script(peer: Peer) -> None:
        while asked := await peer.request():
            await peer.send(whole(asked.body))

    async with serving(script, context) as upstream:
        for body in (b"", b"hello", large):
            request = HttpRequest(method="POST", url=upstream.url(), body=body)
            reply = await transport.fetch(request, limit_bytes=1 << 21, timeout_seconds=5)
            assert reply.body == body
        assert upstream.accepted == 1


async def test_names_and_addresses_are_verified_and_announced(nothing_left: None) -> None:
    announced: list[str | None] = []
    context = authority().server("localhost", "127.0.0.1")
    context.sni_callback = lambda _socket, name, _context: announced.append(name)
    transport = HttpTransport(connect_seconds=5, idle_connections=0, idle_seconds=1, authorities=authority().client())
    async with serving(answering(whole(b"x")), context) as upstream:
        for url in (upstream.url(), f"https://127.0.0.1:{upstream.port}/"):
            assert (await transport.fetch(get(url), limit_bytes=1, timeout_seconds=5)).body == b"x"
    assert announced == ["localhost", None]
    await transport.aclose()


@pytest.mark.parametrize("fault", ["stranger", "name", "expired"])
async def test_a_bad_certificate_is_refused(transport: HttpTransport, fault: str) -> None:
    context = {
        "stranger": lambda: Authority().server("localhost"),
        "name": lambda: authority().server("example.com"),
        "expired": lambda: authority().server("localhost", days=-1),
    }[fault]()
    heard = []

    async def script(peer: Peer) -> None:
        heard.append(await peer.request())

    async with serving(script, context) as upstream:
        with pytest.raises(ConnectFailed, match="certificate of localhost refused"):
            await transport.stream(get(upstream.url()))
    assert not any(heard)
    assert transport.statistics() == (0, 0, 0, 0)


async def test_the_systems_authorities_do_not_include_ours(nothing_left: None) -> None:
    transport = HttpTransport(connect_seconds=5, idle_connections=1, idle_seconds=1)
    async with serving(answering(whole(b"x")), authority().server("localhost")) as upstream:
        with pytest.raises(ConnectFailed, match="certificate"):
            await transport.stream(get(upstream.url()))


async def test_tls_to_a_plain_port(transport: HttpTransport) -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some(100)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.gone()

    async with serving(script) as upstream:
        await serves_no_tls(transport, upstream.port)


async def test_tls_to_a_port_that_closes(transport: HttpTransport) -> None:
    async def script(peer: Peer) -> None:
        pass

    async with serving(script) as upstream:
        await serves_no_tls(transport, upstream.port)


async def serves_no_tls(transport: HttpTransport, port: int) -> None:
    with pytest.raises(ConnectFailed, match="localhost"):
        await transport.stream(get(f"https://localhost:{port}/"))


async def test_a_plain_request_to_a_tls_port(transport: HttpTransport) -> None:
    async with serving(answering(whole(b"x")), authority().server("localhost")) as upstream:
        with pytest.raises(Exception) as caught:
            await transport.stream(get(f"http://localhost:{upstream.port}/"))
        assert type(caught.value).__name__ in ("ProtocolViolation", "Disconnected")


@pytest.mark.parametrize("ending", ["length", "close_notify", "cut"])
async def test_only_a_proper_end_ends_a_body_without_length(transport: HttpTransport, ending: str) -> None:
    received = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + (b"Content-Length: 5\r\n" if ending == "length" else b"") + b"\r\nhello")
        await received.wait()
        if ending == "close_notify":
            stream = peer.stream
            assert isinstance(stream, trio.SSLStream)
            stream._https_compatible = False  # speak TLS to the letter
            with trio.move_on_after(1):
                await stream.unwrap()

    async with serving(script, authority().server("localhost")) as upstream:
        with await transport.stream(get(upstream.url())) as exchange:
            assert await exchange.receive() == b"hello"
            received.set()
            if ending == "cut":
                with pytest.raises(Disconnected):
                    await exchange.receive()
            else:
                assert await exchange.receive() == b""


async def test_many_records_in_one_read_and_one_record_in_many(transport: HttpTransport) -> None:
    """The upstream's ciphertext passes through a relay that cuts it into every size."""
    body = bytes(range(256)) * 300
    sizes = [1, 2, 3, 5, 8, 13, 100, 1000, 20_000, 65_536]

    async with serving(answering(whole(body), close=False), authority().server("localhost")) as upstream:

        async def relay(peer: Peer) -> None:
            async with await trio.open_tcp_stream("127.0.0.1", upstream.port) as far, trio.open_nursery() as nursery:

                async def forward() -> None:
                    while data := await peer.stream.receive_some():
                        await far.send_all(data)
                    await far.send_eof()

                nursery.start_soon(forward)
                buffer = b""
                turn = 0
                while data := await far.receive_some():
                    buffer += data
                    while buffer:
                        size = sizes[turn % len(sizes)]
                        turn += 1
                        piece, buffer = buffer[:size], buffer[size:]
                        await peer.send(piece)
                        await trio.lowlevel.checkpoint()

        async with serving(relay) as relayed:
            for _ in range(3):
                url = f"https://localhost:{relayed.port}/"
                reply = await transport.fetch(get(url), limit_bytes=1 << 20, timeout_seconds=5)
                assert reply.body == body
            assert relayed.accepted == 1
            await transport.aclose()


async def test_what_openssl_answers_by_itself_is_sent(nothing_left: None) -> None:
    """A connection flushes what OpenSSL leaves behind after a read, also while a request is on its way."""
    heard = b""

    async def script(peer: Peer) -> None:
        nonlocal heard
        assert isinstance(peer.stream, trio.SSLStream)
        await peer.stream.do_handshake()
        await peer.send(b"hello")
        while data := await peer.stream.receive_some():
            heard += data

    async with serving(script, authority().server("localhost")) as upstream:
        stream = await trio.open_tcp_stream("localhost", upstream.port)
        sock = socket.socket(fileno=stream.socket.detach())
        connection = TlsConnection(sock, Origin("https", "localhost", upstream.port), authority().client())
        await connection.handshake()
        connection.offer(b"sent, ")
        connection._tls.write(b"left ")  # as if a key update had been answered
        assert await connection.receive() == b"hello"
        await until(lambda: heard == b"sent, left ")
        connection.offer(b"behind")
        await connection.flush()
        await until(lambda: heard == b"sent, left behind")
        connection.close()
        with pytest.raises(trio.ClosedResourceError):
            await connection.receive()
