"""TLS with verification, against a relay that speaks it in front of the real server."""

import datetime
import ssl
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.redis.address import Address
from shared.redis.failures import LinkDown
from shared.redis.link import Link
from shared.redis.subscription import Subscription
from tests.redis_server import RedisServer
from tests.waiting import until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed, for 127.0.0.1; PEM with the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis of a test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def port(
    redis_server: RedisServer, certificate: Path, nursery: trio.Nursery, request: pytest.FixtureRequest
) -> int:
    """Where the relay listens."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.maximum_version = request.param
    context.load_cert_chain(certificate)

    async def copy(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(65536):
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()

    async def relay(client: trio.SSLStream) -> None:
        server = await trio.open_unix_socket(str(redis_server.socket_path))
        async with client, server, trio.open_nursery() as both:
            both.start_soon(copy, client, server, both.cancel_scope)
            both.start_soon(copy, server, client, both.cancel_scope)

    listeners = await nursery.start(
        partial(trio.serve_ssl_over_tcp, relay, 0, context, host="127.0.0.1", https_compatible=True)
    )
    return listeners[0].transport_listener.socket.getsockname()[1]


async def test_commands_and_large_values(
    redis_server: RedisServer, certificate: Path, port: int, nursery: trio.Nursery
) -> None:
    link = Link(Address.parse(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}"))
    await nursery.start(link.run)
    for i in range(500):
        link.post("RPUSH", "list", i)
    assert await link.call("LLEN", "list") == 500
    value = bytes(range(256)) * 20_000
    assert await link.call("SET", "large", value) == b"OK"
    assert await link.call("GET", "large") == value
    async with trio.open_nursery() as tasks:
        for i in range(30):
            tasks.start_soon(_expect_echo, link, bytes([i]) * 17_000)
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    await until(lambda: not link.up)
    await until(lambda: link.up)
    assert await link.call("PING") == b"PONG"


async def test_subscriptions(redis_server: RedisServer, certificate: Path, port: int, nursery: trio.Nursery) -> None:
    heard = []
    subscription = Subscription(Address.parse(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}"), ["a"])
    await nursery.start(subscription.run, lambda channel, message: heard.append(message))
    sent = [bytes([i % 256]) * (i * 97) for i in range(300)]
    for message in sent:
        redis_server.client.publish("a", message)
    await until(lambda: len(heard) == 300)
    assert heard == sent


async def test_a_certificate_that_nobody_vouches_for(port: int) -> None:
    with pytest.raises(LinkDown, match=r"certificate verify failed|CERTIFICATE_VERIFY_FAILED"):
        await Link(Address.parse(f"rediss://127.0.0.1:{port}"), start_seconds=1).run()


async def test_a_certificate_for_somebody_else(certificate: Path, port: int) -> None:
    with pytest.raises(LinkDown, match=r"(?i)hostname mismatch|not valid for"):
        await Link(Address.parse(f"rediss://localhost:{port}?ssl_ca_certs={certificate}"), start_seconds=1).run()


async def test_a_server_without_tls(redis_server: RedisServer) -> None:
    with pytest.raises(LinkDown, match="no Redis at rediss://"):
        await Link(
            Address.parse(f"rediss://127.0.0.1:{redis_server.port}"), timeout_seconds=0.2, start_seconds=0.5
        ).run()


async def _expect_echo(link: Link, word: bytes) -> None:
    assert await link.call("ECHO", word) == word
