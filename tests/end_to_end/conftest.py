"""One gateway for the tests that leave it as they found it; an upstream of their own for each of them."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, free_port, gateway
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

UPSTREAM_KEY = "sk-upstream-0123456789"
MODELS = "gpt-4o-mini,gpt-4o"


@pytest.fixture(scope="session")
def upstream_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def house(upstream_port: int) -> Iterator[Gateway]:
    """Redis, one frontend, a worker for an OpenAI simulator at `upstream_port`, an echo worker."""
    with contextlib.closing(RedisServer()) as redis, gateway(redis) as running:
        running.environment |= {
            "OPENAI_API_KEY": UPSTREAM_KEY,
            "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1",
            "OPENAI_MODELS": MODELS,
            "SLUICE_MODEL_ALIASES": "fast=openai/gpt-4o-mini",
            "SLUICE_DEFAULT_MODEL": "fast",
            "SLUICE_CORS_ORIGINS": "https://app.example",
        }
        running.frontend()
        running.worker("openai")
        running.worker("echo")
        running.wait_ready("gpt-4o-mini", "echo")
        yield running


@pytest.fixture
async def upstream(house: Gateway, upstream_port: int) -> AsyncIterator[OpenAICompatible]:
    """The OpenAI simulator of this test. Its ledger sees exactly what the gateway asks of it."""
    async with OpenAICompatible("openai", keys={UPSTREAM_KEY}).running(upstream_port) as simulator:
        yield simulator


@pytest.fixture
async def sdk(house: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client on trio, without retries, so that every error is seen."""
    client = openai.AsyncOpenAI(base_url=house.base_url, api_key=API_KEY, max_retries=0, timeout=20)
    yield client
    with trio.CancelScope(shield=True):
        await client.close()
