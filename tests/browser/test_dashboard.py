"""The dashboard as a person sees it: signs in with a master key, shows what lives and what dies, moves while answers stream."""

import contextlib

import httpx2
import pytest
import trio

from tests.browser.conftest import sign_in
from tests.browser.devtools import Browser, Page
from tests.end_to_end.gateway import API_KEY, Gateway, gateway
from tests.redis_server import RedisServer
from tests.simulators.openai_compatible import OpenAICompatible

TILE = (
    "[...document.querySelectorAll('.tile')].find((tile) => tile.querySelector('dt').textContent === title)"
    ".querySelector('dd').textContent.replace(',', '')"
)
WORKERS = "document.querySelectorAll('[aria-labelledby=provider-echo] table:first-of-type tbody tr')"


async def figure(page: Page, title: str) -> float:
    """What a tile shows."""
    return float(await page.run(TILE, title=title))


@contextlib.asynccontextmanager
async def streaming(house: Gateway, words: str):
    """A caller that reads a stream as it comes, until the block ends."""
    body = {"model": "echo-slow", "stream": True, "messages": [{"role": "user", "content": words}]}
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            headers = {"authorization": f"Bearer {API_KEY}"}
            async with (
                httpx2.AsyncClient(timeout=60, headers=headers) as client,
                client.stream("POST", f"{house.base_url}/chat/completions", json=body) as answer,
            ):
                assert answer.status_code == 200
                async for _ in answer.aiter_raw():
                    pass

        nursery.start_soon(read)
        yield
        nursery.cancel_scope.cancel()


async def fail_until_left_alone(house: Gateway) -> None:
    """Ask for answers that break until the gateway asks the upstream no more."""
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello sim:fault=close_before_headers"}]}
    async with httpx2.AsyncClient(timeout=20, headers={"authorization": f"Bearer {API_KEY}"}) as client:
        with trio.fail_after(20):
            while (await client.post(f"{house.base_url}/chat/completions", json=body)).status_code != 503:
                pass


async def test_a_wrong_key_is_told_and_stays_outside(house: Gateway, page: Page):
    await sign_in(page, house, key="sk-wrong-0123456789")
    await page.until("document.getElementById('key-error').textContent.includes('does not know')")
    assert await page.run("document.getElementById('board').hidden")
    assert await page.run("sessionStorage.length + document.cookie.length") == 0
    await page.type("#key", "käse und brot")
    await page.press("Enter")
    await page.until("document.getElementById('key-error').textContent.includes('one word')")
    (complaint,) = page.complaints
    assert "401" in complaint
    page.complaints.clear()


async def test_signing_in_and_out(house: Gateway, page: Page):
    await sign_in(page, house)
    await page.until("document.getElementById('link').textContent === 'live'")
    assert not any(API_KEY in url for url in page.requests), "a key is never part of an address"
    assert await page.run("[location.href.includes('sk-'), document.cookie, localStorage.length]") == [False, "", 0]
    await page.open(f"{house.origin}/dashboard")
    await page.until("document.getElementById('link').textContent === 'live'")
    await page.click("#sign-out")
    await page.until("document.activeElement.id === 'key'")
    assert await page.run("sessionStorage.length") == 0


async def test_a_caller_s_own_key_opens_the_playground_and_not_the_dashboard(house: Gateway, page: Page):
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {API_KEY}"}) as client:
        made = await client.post(f"{house.origin}/admin/keys", json={"name": "somebody", "models": ["echo*"]})
    await sign_in(page, house, key=made.json()["key"])
    await page.until("document.getElementById('key-error').textContent.includes('master key')")
    assert "403" in page.complaints.pop()
    await sign_in(page, house, "/playground", key=made.json()["key"])
    await page.until("!document.getElementById('play').hidden")
    listed = await page.run("[...document.querySelectorAll('#models option')].map((one) => one.value)")
    assert "echo" in listed and "gpt-4o" not in listed


@pytest.mark.slow
async def test_workers_come_and_go_before_the_eyes(redis_server: RedisServer, browser: Browser):
    with gateway(redis_server) as running:
        running.frontend()
        running.worker("echo")
        await trio.to_thread.run_sync(running.wait_ready, "echo")
        async with browser.page() as page:
            await sign_in(page, running)
            await page.until(f"{WORKERS}.length === 1", 20)
            second = running.worker("echo")
            await page.until(f"{WORKERS}.length === 2", 20)
            assert "2 workers" in await page.text("[aria-labelledby=provider-echo] header")
            second.kill()
            await page.until(f"{WORKERS}.length === 1", 20)
            running.processes[1].stop()
            await page.until(
                "document.querySelector('[aria-labelledby=provider-echo] header').innerText.includes('no worker')", 20
            )
            assert page.complaints == []


async def test_the_numbers_move_while_an_answer_streams(house: Gateway, page: Page):
    await sign_in(page, house)
    await page.until("document.getElementById('link').textContent === 'live'")
    async with streaming(house, "word " * 2000):
        await page.until(f"Number({TILE}) >= 1", title="Open requests")
        await page.until(f"Number({TILE}) > 4", title="Tokens per second")
        assert await page.run("document.querySelector('[aria-labelledby=provider-echo] progress').value") >= 1
    await page.until("document.querySelector('.tile .aside').textContent.match(/[1-9]/)")
    await page.until("document.getElementById('usage').innerText.includes('echo-slow')", 15)


async def test_errors_stand_there_with_their_meaning(house: Gateway, page: Page):
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {API_KEY}"}) as client:
        body = {"model": "no-such-model", "messages": [{"role": "user", "content": "x"}]}
        assert (await client.post(f"{house.base_url}/chat/completions", json=body)).status_code == 404
    await sign_in(page, house)
    await page.until("document.getElementById('errors').innerText.includes('model_not_found')")
    assert "No provider serves this model." in await page.text("#errors")
    assert await figure(page, "Errors") >= 1


@pytest.mark.slow
async def test_credentials_show_their_state_and_no_secret(redis_server: RedisServer, browser: Browser):
    good, bad = "sk-good-0123456789", "sk-bad-0123456789"
    async with OpenAICompatible("openai", keys={good}).running() as upstream:
        settings = {"OPENAI_API_KEY": f"{bad},{good}", "OPENAI_BASE_URL": upstream.base_url, "SLUICE_CIRCUIT": "on"}
        with gateway(redis_server, **settings) as running:
            running.frontend()
            running.worker("openai")
            await trio.to_thread.run_sync(running.wait_ready, "gpt-4o-mini")
            async with httpx2.AsyncClient(timeout=20, headers={"authorization": f"Bearer {API_KEY}"}) as client:
                while not upstream.ledger.by_key(bad):
                    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
                    assert (await client.post(f"{running.base_url}/chat/completions", json=body)).status_code == 200
            async with browser.page() as page:
                await sign_in(page, running)
                shown = "(document.querySelector('[aria-labelledby=provider-openai]')?.innerText ?? '')"
                seen = await page.until(
                    f"/refused, usable in \\d+ (s|min)/.test({shown}) && /ready/.test({shown}) && {shown}"
                )
                assert "settings" in seen
                everything = await page.run("document.documentElement.outerHTML")
                assert good not in everything and bad not in everything
                overview = await page.run(
                    "fetch('/admin/overview', {headers: {authorization: 'Bearer ' + key}}).then((one) => one.text())",
                    key=API_KEY,
                )
                assert good not in overview and bad not in overview and good[-4:] not in overview
                await fail_until_left_alone(running)
                await page.until(f"/gpt-4o\\s+left alone after failures/.test({shown})")
                assert page.complaints == []


@pytest.mark.slow
async def test_what_is_old_says_so_and_comes_back(redis_server: RedisServer, browser: Browser):
    with gateway(redis_server) as running:
        frontend = running.frontend()
        running.worker("echo")
        await trio.to_thread.run_sync(running.wait_ready, "echo")
        async with browser.page() as page:
            await sign_in(page, running)
            await page.until("document.getElementById('link').textContent === 'live'")
            frontend.kill()
            warning = await page.until(
                "!document.getElementById('lost').hidden && document.getElementById('lost').textContent"
            )
            assert "Showing what was known at" in warning
            assert "echo" in await page.text("#providers"), "the last picture stays"
            running.start("frontend", "frontend", environment={"SLUICE_PORT": str(running.ports[0])})
            await page.until("document.getElementById('link').textContent === 'live'", 30)
            assert await page.run("document.getElementById('lost').hidden")


async def test_nobody_is_asked_while_nobody_looks(house: Gateway, page: Page):
    await sign_in(page, house)
    await page.until("document.getElementById('link').textContent === 'live'")
    assert sum(url.endswith("/admin/live") for url in page.requests) == 1, "one stream, and no polling beside it"
