"""A Redis that keeps its data over an end of the whole gateway: keys go on, what was in flight does no harm."""

from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import trio
from redis import Redis as Client

from cli.embedded import EmbeddedRedis
from tests.end_to_end.gateway import API_KEY, Gateway, free_port, gateway, until
from tests.simulators.openai_compatible import OpenAICompatible

UPSTREAM_KEY = "sk-upstream-0123456789"


async def ask(house: Gateway, key: str, words: str) -> httpx2.Response:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": words}]}
    async with httpx2.AsyncClient(timeout=30, headers={"authorization": f"Bearer {key}"}) as client:
        return await client.post(f"{house.base_url}/chat/completions", json=body)


@pytest.mark.slow
async def test_after_an_end_of_everything_keys_serve_and_old_jobs_never_start(tmp_path: Path) -> None:
    port = free_port()
    settings = {
        "OPENAI_API_KEY": UPSTREAM_KEY, "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_MODELS": "gpt-4o",
    }  # fmt: skip

    async with OpenAICompatible("openai", keys={UPSTREAM_KEY}).running(port) as upstream:
        with EmbeddedRedis(data=tmp_path) as redis, gateway(SimpleNamespace(url=redis.url), **settings) as house:
            frontend, worker = house.frontend(), house.worker("openai")
            house.wait_ready("gpt-4o")
            headers = {"authorization": f"Bearer {API_KEY}"}
            made = httpx2.post(f"{house.origin}/admin/keys", headers=headers, json={"name": "Ada"}).json()
            worker.freeze()
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:

                    async def lose() -> None:
                        with pytest.raises(httpx2.HTTPError):
                            await ask(house, made["key"], "from another life")

                    nursery.start_soon(lose)
                    await until(lambda: queued(redis) == 1)
                    frontend.kill()
                worker.kill()
        assert not upstream.ledger.calls

        with EmbeddedRedis(data=tmp_path) as redis, gateway(SimpleNamespace(url=redis.url), **settings) as house:
            assert queued(redis) == 1, "it came back with the rest"
            house.frontend()
            house.worker("openai")
            house.wait_ready("gpt-4o")
            with trio.fail_after(30):
                assert (await ask(house, made["key"], "hello")).status_code == 200
                await until(lambda: queued(redis) == 0)
                await trio.sleep(4)  # a worker waits three seconds for an owner that may only be slow
                assert (await ask(house, made["key"], "hello again")).status_code == 200
            assert [call.json()["messages"][0]["content"] for call in upstream.ledger.calls] == ["hello", "hello again"]


def queued(redis: EmbeddedRedis) -> int:
    with Client.from_url(redis.url) as client:
        return int(client.xlen("sluice:jobs:{openai}"))
