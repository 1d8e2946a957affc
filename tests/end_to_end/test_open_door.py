"""A gateway that asks nobody for a key is still not there for every web page, and keeps apart what each caller pays for."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from tests.end_to_end.gateway import Gateway, free_port, gateway
from tests.redis_server import RedisServer
from tests.simulators.dashscope_native import DashScopeNative

pytestmark = pytest.mark.slow

OURS, THEIRS = "sk-upstream-of-the-gateway", "sk-upstream-of-a-caller"
QUESTION = b'{"model": "farui-plus", "messages": [{"role": "user", "content": "who pays?"}]}'


@pytest.fixture(scope="module")
def upstream_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def house(upstream_port: int) -> Iterator[Gateway]:
    with contextlib.closing(RedisServer()) as redis, gateway(redis, SLUICE_AUTH="off") as running:
        running.environment |= {
            "DASHSCOPE_NATIVE_API_KEY": OURS,
            "DASHSCOPE_NATIVE_CALLER_KEYS": "on",
            "DASHSCOPE_NATIVE_BASE_URL": f"http://127.0.0.1:{upstream_port}",
        }
        running.frontend()
        running.worker("dashscope-native")
        running.wait_ready("farui-plus")
        yield running


@pytest.fixture
async def upstream(house: Gateway, upstream_port: int) -> AsyncIterator[DashScopeNative]:
    async with DashScopeNative(keys={OURS, THEIRS}).running(upstream_port) as simulator:
        yield simulator


async def ask(house: Gateway, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        return await client.post(f"{house.base_url}/chat/completions", content=QUESTION, headers=named)


async def test_what_a_caller_s_own_account_answered_is_nobody_else_s(house: Gateway, upstream: DashScopeNative) -> None:
    for _ in range(2):
        own = await ask(house, content_type="application/json", authorization=f"Bearer {THEIRS}", x_sluice_cache="60")
        assert (own.status_code, own.headers.get("x-sluice-cache")) == (200, None)
    others = [await ask(house, content_type="application/json", x_sluice_cache="60") for _ in range(2)]
    assert [reply.headers["x-sluice-cache"] for reply in others] == ["miss", "hit"]
    assert [call.key for call in upstream.ledger.calls] == [THEIRS, THEIRS, OURS]


async def test_a_web_page_cannot_ask_without_being_asked_itself(house: Gateway, upstream: DashScopeNative) -> None:
    """What a page may send anywhere without a preflight: a body of no type, or of one of three that are not JSON."""
    page = {"origin": "https://evil.example"}
    assert (await ask(house, **page)).status_code == 415
    assert (await ask(house, **page, content_type="text/plain")).status_code == 415
    assert not upstream.ledger.calls
    assert (await ask(house)).status_code == 200, "whoever is no page may leave it out"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8088", "127.0.0.1.evil.example"])
async def test_a_name_that_a_web_page_leads_here_is_none_of_ours(
    house: Gateway, upstream: DashScopeNative, host: str
) -> None:
    reply = await ask(house, content_type="application/json", host=host)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "permission_denied")
    assert not upstream.ledger.calls


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8088", "127.1.2.3"])
async def test_every_name_of_this_machine_is(house: Gateway, upstream: DashScopeNative, host: str) -> None:
    assert (await ask(house, content_type="application/json", host=host)).status_code == 200
