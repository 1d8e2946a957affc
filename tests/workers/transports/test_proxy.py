"""Through a proxy: a tunnel for https, absolute form for http, the same promptness."""

import base64

import pytest
import trio

from tests.workers.transports.upstream import OK, Peer, Script, answering, authority, chunk, serving, whole
from workers.exchange import ConnectFailed, HttpRequest
from workers.transports.http import HttpTransport

CREDENTIALS = "Basic " + base64.b64encode(b"user:p@ss").decode()


def through(port: int, *, userinfo: str = "user:p%40ss@") -> HttpTransport:
    return HttpTransport(
        connect_seconds=5,
        idle_connections=2,
        idle_seconds=5,
        authorities=authority().client(),
        proxy=f"http://{userinfo}localhost:{port}",
    )


def proxy(seen: list[str]) -> Script:
    """A proxy that knows CONNECT and absolute form, and asks for credentials."""

    async def script(peer: Peer) -> None:
        while asked := await peer.request():
            seen.append(f"{asked.method} {asked.target}")
            if asked.header("proxy-authorization") != CREDENTIALS:
                await peer.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            elif asked.method == "CONNECT":
                await tunnel(peer, int(asked.target.rpartition(":")[2]))
                return
            else:
                await peer.send(whole(f"{asked.header('host')} {asked.target}".encode()))

    return script


async def tunnel(peer: Peer, port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as far, trio.open_nursery() as nursery:
        await peer.send(b"HTTP/1.1 200 Connection established\r\nX-Proxy: 1\r\n\r\n")

        async def forward(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
            try:
                while data := await source.receive_some():
                    await target.send_all(data)
            except trio.BrokenResourceError:
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(forward, peer.stream, far)
        nursery.start_soon(forward, far, peer.stream)


async def test_https_goes_through_a_tunnel_that_is_reused(nothing_left: None) -> None:
    seen: list[str] = []
    asked = []

    async def script(peer: Peer) -> None:
        while request := await peer.request():
            asked.append(request)
            await peer.send(whole(b"hello"))

    async with serving(script, authority().server("localhost")) as upstream, serving(proxy(seen)) as gate:
        transport = through(gate.port)
        for _ in range(3):
            request = HttpRequest(method="GET", url=upstream.url("/a?b"))
            assert (await transport.fetch(request, limit_bytes=10, timeout_seconds=5)).body == b"hello"
        assert seen == [f"CONNECT localhost:{upstream.port}"]
        assert [request.target for request in asked] == ["/a?b"] * 3
        assert not [request for request in asked if request.header("proxy-authorization")]
        assert transport.statistics() == (1, 2, 1, 1)
        await transport.aclose()


async def test_http_goes_to_the_proxy_in_absolute_form(nothing_left: None) -> None:
    seen: list[str] = []
    async with serving(proxy(seen)) as gate:
        transport = through(gate.port)
        for _ in range(2):
            request = HttpRequest(method="GET", url="http://upstream.test:81/a?b")
            reply = await transport.fetch(request, limit_bytes=100, timeout_seconds=5)
            assert reply.body == b"upstream.test:81 http://upstream.test:81/a?b"
        assert seen == ["GET http://upstream.test:81/a?b"] * 2
        assert gate.accepted == 1
        await transport.aclose()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (proxy([]), "status 407"),
        (answering(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nsome"), "status 502"),
        (answering(b"garbage"), "malformed"),
        (answering(b""), "closed the connection"),
        (answering(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000), "without any body"),
    ],
)
async def test_a_tunnel_that_does_not_come_about(nothing_left: None, script: Script, words: str) -> None:
    async with serving(script) as gate:
        transport = through(gate.port, userinfo="")
        with pytest.raises(ConnectFailed, match=words):
            await transport.stream(HttpRequest(method="GET", url="https://upstream.test/"))
        assert transport.statistics() == (0, 0, 0, 0)


async def test_a_cancelled_call_closes_the_tunnel(nothing_left: None) -> None:
    left = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"x"))
        await peer.gone()
        left.set()

    async with serving(script, authority().server("localhost")) as upstream, serving(proxy([])) as gate:
        transport = through(gate.port)
        request = HttpRequest(method="GET", url=upstream.url())
        with trio.CancelScope() as scope, await transport.stream(request) as exchange:
            while await exchange.receive():
                scope.cancel()
        with trio.fail_after(0.25):
            await left.wait()
        assert transport.statistics().open == 0


async def test_cancelled_while_the_tunnel_is_made(nothing_left: None) -> None:
    left = trio.Event()

    async def silent(peer: Peer) -> None:
        await peer.request()
        scope.cancel()
        await peer.gone()
        left.set()

    async with serving(silent) as gate:
        transport = through(gate.port)
        with trio.CancelScope() as scope:
            await transport.stream(HttpRequest(method="GET", url="https://upstream.test/"))
        with trio.fail_after(0.25):
            await left.wait()


@pytest.mark.parametrize("address", ["https://proxy", "socks5://proxy:1", "proxy:8080", "http://", "http://[::1", "é"])
def test_addresses_that_are_no_http_proxy(address: str) -> None:
    with pytest.raises(ValueError, match="proxy"):
        HttpTransport(connect_seconds=1, idle_connections=1, idle_seconds=1, proxy=address)


async def test_the_environment_is_not_asked(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    async with serving(proxy(seen)) as gate, serving(answering(whole(b"direct"))) as upstream:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://localhost:{gate.port}")
        transport = HttpTransport(connect_seconds=5, idle_connections=0, idle_seconds=1)
        request = HttpRequest(method="GET", url=upstream.url())
        assert (await transport.fetch(request, limit_bytes=10, timeout_seconds=5)).body == b"direct"
        assert gate.accepted == 0
