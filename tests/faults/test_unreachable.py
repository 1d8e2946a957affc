"""C1: upstreams to which no connection comes about, each for another reason, and what is left of the others."""

import datetime
import ipaddress
import ssl
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.end_to_end.gateway import free_port
from tests.faults.house import House
from tests.faults.streams import raw

MOST_SECONDS = 8.0
"""Two tries and a pause between; a name that does not exist may take its resolver a while."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate in one file, which nobody has reason to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream of a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path: Path = tmp_path_factory.mktemp("tls") / "server.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    return path


@pytest.mark.fault("C1")
@pytest.mark.promise("P19")
async def test_no_connection_comes_about(house: House, certificate: Path) -> None:
    """Nobody listens; the name does not exist; the certificate is nobody's; TLS meets a server that has none."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def untrusted(stream: trio.SSLStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()

    async def plain(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    (without_tls,) = await house.nursery.start(partial(trio.serve_tcp, plain, 0, host="127.0.0.1"))
    serve = partial(trio.serve_ssl_over_tcp, untrusted, 0, context, host="127.0.0.1")
    (listener,) = await house.nursery.start(serve)
    await house.nursery.start(house.upstream.serve)
    addresses = {
        "refused": f"http://127.0.0.1:{free_port()}/v1",
        "nameless": "https://nowhere.invalid/v1",
        "untrusted": f"https://127.0.0.1:{listener.transport_listener.socket.getsockname()[1]}/v1",
        "plain": f"https://127.0.0.1:{without_tls.socket.getsockname()[1]}/v1",
    }
    for name, url in addresses.items():
        prefix = f"SLUICE_PROVIDER_{name.upper()}"
        house.gateway.environment |= {
            f"{prefix}_BASE_URL": url,
            f"{prefix}_MODELS": name,
            f"{prefix}_API_KEY": f"sk-{name}-01234567",
        }
    await house.open(workers=1)
    house.workers += [house.gateway.worker(name) for name in addresses]
    with trio.fail_after(30):
        await trio.to_thread.run_sync(lambda: house.gateway.wait_ready(*addresses))
    wrong: dict[str, object] = {}

    async def ask(name: str, stream: bool) -> None:
        began = trio.current_time()
        reply = await raw(house, "hello", stream=stream, model=name)
        error = reply.error or {}
        seen = (reply.status, error.get("code"), reply.headers.get("x-should-retry"))
        if seen != (502, "upstream_unreachable", "false") or trio.current_time() - began > MOST_SECONDS:
            wrong[name] = (*seen, trio.current_time() - began, reply.seen.body)
        assert (
            str(error["message"]).isascii() and "127.0.0.1" not in str(error) and "invalid" not in str(error["message"])
        )

    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            for name in addresses:
                nursery.start_soon(ask, name, True)
                nursery.start_soon(ask, name, False)
        assert wrong == {}
        assert (await raw(house, "others are well")).text == "others are well"
