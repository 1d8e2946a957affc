"""A whole gateway over TLS, as Redis users that may only what their side needs; and processes whose user may less."""

import re
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import httpx2
import openai
import pytest
import trio

from shared.redis.rights import FRONTEND, WORKER, Side, acl_line
from tests.end_to_end.gateway import API_KEY, Gateway, Process, gateway
from tests.redis_server import RedisServer
from tests.shared.redis.test_tls import certificate
from tests.simulators.openai_compatible import OpenAICompatible
from tests.waiting import until

__all__ = ["certificate"]

PASSWORD = "a-password/with:signs"
QUOTED = "a-password%2Fwith%3Asigns"


def make_user(redis: RedisServer, side: Side, without: str = "") -> None:
    line = acl_line(side, PASSWORD)
    redis.client.execute_command(*(line.replace(f" {without}", "", 1) if without else line).split())


@pytest.fixture
async def tls_port(redis_server: RedisServer, certificate: Path, nursery: trio.Nursery) -> int:
    """Where Redis is reached over TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def copy(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(65536):
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    async def relay(client: trio.SSLStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", redis_server.port)
        async with client, server, trio.open_nursery() as both:
            both.start_soon(copy, client, server, both.cancel_scope)
            both.start_soon(copy, server, client, both.cancel_scope)

    serve = partial(trio.serve_ssl_over_tcp, relay, 0, context, host="127.0.0.1", https_compatible=True)
    (listener,) = await nursery.start(serve)
    port: int = listener.transport_listener.socket.getsockname()[1]
    return port


@pytest.fixture
async def house(
    redis_server: RedisServer, certificate: Path, tls_port: int, nursery: trio.Nursery
) -> AsyncIterator[Gateway]:
    """A frontend, a worker for a simulated upstream, an echo worker; each side with its user."""

    def url(side: Side) -> str:
        return f"rediss://sluice-{side.name}:{QUOTED}@127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}"

    for side in (FRONTEND, WORKER):
        make_user(redis_server, side)
    with gateway(redis_server) as running:
        async with OpenAICompatible("openai", keys={"sk-upstream-0123456789"}).running() as upstream:
            running.environment |= {"OPENAI_API_KEY": "sk-upstream-0123456789", "OPENAI_BASE_URL": upstream.base_url}
            running.frontend(REDIS_URL=url(FRONTEND))
            running.worker("openai", REDIS_URL=url(WORKER), SLUICE_DISCOVER_SECONDS="1")
            running.worker("echo", REDIS_URL=url(WORKER))
            await trio.to_thread.run_sync(lambda: running.wait_ready("echo"))
            await trio.to_thread.run_sync(lambda: running.wait_ready("gpt-4o-mini"))
            yield running
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(running.close)


@pytest.mark.fault("S16")
async def test_everything_works_with_the_rights_of_the_list(house: Gateway) -> None:
    said = [{"role": "user", "content": "one two three"}]
    with trio.fail_after(60):
        async with openai.AsyncOpenAI(base_url=house.base_url, api_key=API_KEY, max_retries=0) as sdk:
            for model in ("echo", "gpt-4o-mini"):
                whole = await sdk.chat.completions.create(model=model, messages=said)
                assert whole.choices[0].message.content == "one two three"
                stream = await sdk.chat.completions.create(model=model, messages=said, stream=True)
                assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "one two three"
            leaving = await sdk.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "sim:fault=endless"}], stream=True
            )
            async for _ in leaving:
                break
            await leaving.close()
        headers = {"authorization": f"Bearer {API_KEY}"}
        async with httpx2.AsyncClient(base_url=house.origin, headers=headers) as admin:
            made = await admin.post(
                "/admin/keys", json={"name": "Ada", "requests_per_minute": 60, "daily_tokens": 1000}
            )
            assert made.status_code in (200, 201), made.text
            key = re.search(r'"(sk-[^"]+)"', made.text)
            assert key is not None
            async with openai.AsyncOpenAI(base_url=house.base_url, api_key=key[1], max_retries=0) as ada:
                answer = await ada.chat.completions.create(model="echo", messages=said)
                assert answer.choices[0].message.content == "one two three"
            for path in ("/admin/keys", "/admin/usage", "/admin/overview", "/metrics", "/health/ready"):
                assert (await admin.get(path)).status_code == 200, path
        await trio.sleep(3)  # leases are renewed, upstreams asked for their models, the overview read
    assert [process.popen.poll() for process in house.processes] == [None] * 3
    denied = house.redis.client.acl_log()
    assert not denied, f"refused for lack of rights: {denied}"
    assert "NOPERM" not in "".join(process.text() for process in house.processes)


@pytest.fixture
def starting(redis_server: RedisServer) -> Iterator[Gateway]:
    with gateway(redis_server) as running:
        yield running


def start(house: Gateway, side: Side, login: str) -> Process:
    url = f"redis://{login}@127.0.0.1:{house.redis.port}/0"
    return house.frontend(REDIS_URL=url) if side is FRONTEND else house.worker("echo", REDIS_URL=url)


@pytest.mark.fault("B21")
@pytest.mark.parametrize("side", [FRONTEND, WORKER], ids=lambda side: side.name)
async def test_a_process_whose_user_lacks_one_command_names_it_and_does_not_start(
    starting: Gateway, side: Side
) -> None:
    """An ACL without one command that the process needs: it ends with status 1 and a sentence that names the command."""
    lacks = "+xrange" if side is FRONTEND else "+xautoclaim"
    make_user(starting.redis, side, lacks)
    process = start(starting, side, f"sluice-{side.name}:{QUOTED}")
    await until(lambda: process.popen.poll() is not None, 20)
    assert process.popen.returncode == 1
    (sentence,) = [line for line in process.text().splitlines() if line.startswith("Redis: ")]
    assert f"lacks rights: {lacks[1:]} (" in sentence
    assert "Traceback" not in process.text()


@pytest.mark.fault("B21")
@pytest.mark.parametrize("side", [FRONTEND, WORKER], ids=lambda side: side.name)
async def test_a_process_with_a_wrong_password_does_not_start(starting: Gateway, side: Side) -> None:
    """A wrong password: it ends at once with status 1 and a sentence that says so, without the password."""
    make_user(starting.redis, side)
    process = start(starting, side, f"sluice-{side.name}:wrong-password")
    await until(lambda: process.popen.poll() is not None, 20)
    assert process.popen.returncode == 1
    assert re.search(r"^Redis: .*(WRONGPASS|password)", process.text(), re.MULTILINE)
    assert "wrong-password" not in process.text()
