"""Models that upstreams list are offered beside those that somebody has named, and stay when the list is gone."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, gateway, until
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

pytestmark = pytest.mark.slow

TOKEN = "hf_0123456789abcdef"


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAICompatible]:
    async with OpenAICompatible("huggingface", keys={TOKEN}).running() as simulator:
        yield simulator


@contextlib.contextmanager
def running(redis: RedisServer, upstream: OpenAICompatible, **environment: str) -> Iterator[Gateway]:
    settings = {"HF_TOKEN": TOKEN, "HF_BASE_URL": upstream.base_url, "SLUICE_DISCOVER_SECONDS": "0.3"}
    with gateway(redis, **(settings | environment)) as house:
        house.frontend()
        yield house


async def models(house: Gateway) -> dict[str, dict[str, object]]:
    async with httpx2.AsyncClient(timeout=20, headers={"authorization": f"Bearer {API_KEY}"}) as client:
        return {model["id"]: model for model in (await client.get(f"{house.base_url}/models")).json()["data"]}


async def test_listed_models_are_offered_and_served(redis_server: RedisServer, upstream: OpenAICompatible) -> None:
    with running(redis_server, upstream) as house:
        house.worker("huggingface")
        await trio.to_thread.run_sync(house.wait_ready, "openai/gpt-oss-120b:fireworks-ai", "Qwen/Qwen3-32B:groq")
        listed = await models(house)
        assert listed["Qwen/Qwen3-32B:groq"] == {
            "id": "Qwen/Qwen3-32B:groq",
            "object": "model",
            "created": 1745715600,
            "owned_by": "Qwen",
            "context_window": 131072,
        }
        assert "openai/gpt-oss-120b:nscale" not in listed, "not live"
        async with httpx2.AsyncClient(timeout=20, headers={"authorization": f"Bearer {API_KEY}"}) as client:
            body = {"model": "Qwen/Qwen3-32B:groq", "messages": [{"role": "user", "content": "hello"}]}
            assert (await client.post(f"{house.base_url}/chat/completions", json=body)).status_code == 200
        (call,) = upstream.ledger.by_path("/chat/completions")
        assert call.json()["model"] == "Qwen/Qwen3-32B:groq"


async def test_workers_take_turns_and_a_list_that_goes_away_takes_nothing_along(
    redis_server: RedisServer, upstream: OpenAICompatible
) -> None:
    with running(redis_server, upstream) as house:
        for _ in range(3):
            house.worker("huggingface")
        await trio.to_thread.run_sync(house.wait_ready, "Qwen/Qwen3-32B:groq")
        with trio.fail_after(10):
            before, began = len(upstream.ledger.by_path("/models")), trio.current_time()
            await until(lambda: len(upstream.ledger.by_path("/models")) >= before + 4)
            assert trio.current_time() - began >= 3 * 0.3, "together they ask no more often than one alone"
        upstream.gate.keys = set()
        redis_server.client.delete("sluice:models:{huggingface}")
        with trio.fail_after(20):
            refused = len(upstream.ledger.by_path("/models"))
            await until(lambda: len(upstream.ledger.by_path("/models")) >= refused + 3)
        assert "Qwen/Qwen3-32B:groq" in await models(house)
        logs = "".join(process.text() for process in house.processes)
        assert "the models of huggingface stay as they are" in logs and TOKEN not in logs


async def test_whoever_names_the_models_gets_these(redis_server: RedisServer, upstream: OpenAICompatible) -> None:
    with running(redis_server, upstream, HF_MODELS="fast=openai/gpt-oss-20b:groq") as house:
        house.worker("huggingface")
        await trio.to_thread.run_sync(house.wait_ready, "fast")
        assert list(await models(house)) == ["fast"]
        assert not redis_server.client.exists("sluice:models:{huggingface}:asked"), (
            "a worker asks before it says that it is there"
        )
