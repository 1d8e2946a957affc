"""A Redis that refuses, stalls or holds what somebody else put there: no process ends, no job is lost, no caller is misled."""

import httpx2
import openai
import pytest
import trio

from tests.end_to_end.gateway import API_KEY, Gateway, gateway, until
from tests.redis_server import RedisServer

pytestmark = pytest.mark.slow

ECHO = {"model": "echo", "messages": [{"role": "user", "content": "still here"}]}


async def ask(house: Gateway) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=20, headers={"authorization": f"Bearer {API_KEY}"}) as client:
        return await client.post(f"{house.base_url}/chat/completions", json=ECHO)


async def test_refusals_and_odd_members_end_nobody(redis_server: RedisServer) -> None:
    with gateway(redis_server) as house:
        processes = [house.frontend(), house.worker("echo")]
        await trio.to_thread.run_sync(house.wait_ready, "echo")
        redis = house.redis.client
        redis.sadd("sluice:alive", b"worker:\xff\xfe", b"worker:", b"nonsense")
        redis.xadd("sluice:jobs:{echo}", {"job": "garbage"})
        redis.xadd("sluice:jobs:{echo}", {"other": b"\xff"})
        with trio.fail_after(20):
            await until(lambda: redis.xlen("sluice:jobs:{echo}") == 0)
            assert (await ask(house)).status_code == 200
            redis.config_set("maxmemory", 1)
            redis.delete("sluice:jobs:{echo}")
            full = await ask(house)
            assert (full.status_code, full.json()["error"]["code"]) == (503, "server_is_overloaded")
            await until(lambda: "cannot claim jobs" in processes[1].text())
            redis.config_set("maxmemory", 0)
            await until(lambda: redis.exists("sluice:jobs:{echo}"))
            assert (await ask(house)).json()["choices"][0]["message"]["content"] == "still here"
        assert [process.popen.poll() for process in processes] == [None, None]


async def test_a_worker_with_another_secret_key_leaves_the_jobs_to_those_who_can_open_them(
    redis_server: RedisServer,
) -> None:
    with gateway(redis_server) as house:
        house.frontend()
        stranger = house.worker("echo", SLUICE_SECRET_KEY="another-secret-key-0123456789abcdef0123456789")
        with trio.fail_after(30):
            await until(lambda: "is ready" in stranger.text())
            house.worker("echo")
            await trio.to_thread.run_sync(house.wait_ready, "echo")
            for _ in range(6):
                assert (await ask(house)).status_code == 200
        assert stranger.text().count("SLUICE_SECRET_KEY must be the same") <= 2


async def test_a_stall_that_outlives_the_advertisements_makes_no_model_vanish(redis_server: RedisServer) -> None:
    with gateway(redis_server) as house:
        house.frontend()
        house.worker("echo")
        await trio.to_thread.run_sync(house.wait_ready, "echo")
        house.redis.client.delete("sluice:alive")
        house.redis.pause()
        await trio.sleep(6)  # longer than an advertisement lives
        house.redis.resume()
        with trio.fail_after(15):
            codes = {(await ask(house)).json().get("error", {}).get("code") for _ in range(40)}
    assert codes <= {None, "queue_unavailable"}


async def test_a_drain_that_is_over_ends_streams_in_words(redis_server: RedisServer) -> None:
    with gateway(redis_server, SLUICE_DRAIN_SECONDS="0.5") as house:
        frontend = house.frontend()
        house.worker("echo")
        await trio.to_thread.run_sync(house.wait_ready, "echo")
        words = [{"role": "user", "content": " ".join(["word"] * 400)}]
        async with openai.AsyncOpenAI(base_url=house.base_url, api_key=API_KEY, max_retries=0) as sdk:
            with trio.fail_after(15), pytest.raises(openai.APIError) as ended:
                stream = await sdk.chat.completions.create(model="echo-slow", messages=words, stream=True)
                frontend.popen.terminate()
                async for _ in stream:
                    pass
        assert ended.value.code == "shutting_down"
        assert await trio.to_thread.run_sync(frontend.popen.wait, 5) == 0


async def test_a_doubled_slash_leads_nowhere(redis_server: RedisServer) -> None:
    with gateway(redis_server) as house:
        house.frontend()
        await trio.to_thread.run_sync(house.wait_ready)
        async with httpx2.AsyncClient(headers={"authorization": f"Bearer {API_KEY}", "host": "evil.example"}) as client:
            reply = await client.get(f"{house.origin}/v1//models")
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")
