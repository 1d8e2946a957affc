"""The playground: a conversation streams, stops when told, explains errors, and shows itself as a program that runs."""

import subprocess
import sys

import pytest
import trio

from tests.browser.conftest import sign_in
from tests.browser.devtools import Page
from tests.end_to_end.gateway import API_KEY, Gateway
from tests.simulators.openai_compatible import OpenAICompatible

LAST = "[...document.querySelectorAll('.message')].at(-1)?.innerText ?? ''"


async def enter(page: Page, house: Gateway, model: str) -> None:
    await sign_in(page, house, "/playground")
    await page.until("!document.getElementById('play').hidden")
    await page.type("#model", model)


async def say(page: Page, words: str) -> None:
    await page.type("#message", words)
    await page.press("Enter")


async def test_a_conversation_streams_and_is_measured(house: Gateway, page: Page, upstream: OpenAICompatible):
    await enter(page, house, "gpt-4o-mini")
    await page.type("#system", "Be brief.")
    await page.type("#temperature", "0.5")
    await page.type("#max-tokens", "300")
    await say(page, "one two three")
    await page.until("/\\d+ \\+ \\d+/.test(document.getElementById('g-tokens').textContent)")
    first = upstream.ledger.calls[0]
    assert first.text in await page.run(LAST)
    assert first.json()["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one two three"},
    ]
    assert (first.json()["temperature"], first.json()["max_tokens"]) == (0.5, 300)
    assert (await page.text("#g-provider"), await page.text("#g-attempts")) == ("openai", "1")
    assert "ms" in await page.text("#g-first") or " s" in await page.text("#g-first")
    await say(page, "and four")
    await page.until("document.querySelectorAll('.message.assistant').length === 2 && !document.querySelector('.live')")
    assert [one["role"] for one in upstream.ledger.calls[1].json()["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    await page.click("#clear")
    assert await page.run("document.querySelectorAll('.message').length") == 0


async def test_stop_closes_the_upstream_call(house: Gateway, page: Page, upstream: OpenAICompatible):
    await enter(page, house, "gpt-4o-mini")
    await say(page, "go on for ever sim:fault=hang_mid sim:at=3")
    with trio.fail_after(10):
        call = await upstream.ledger.wait_for_call()
    await page.until("document.querySelector('.message.assistant .text').textContent.length > 0")
    await page.click("#stop")
    with trio.fail_after(5):
        await upstream.ledger.wait_closed(call)
    assert call.closed_by == "client"
    await page.until(f"({LAST}).includes('Stopped.')")
    assert await page.run("document.getElementById('stop').hidden")
    await say(page, "hello again")
    await page.until("document.querySelectorAll('.message.assistant').length === 2 && !document.querySelector('.live')")


async def test_errors_say_what_to_do(house: Gateway, page: Page):
    await enter(page, house, "echo-error-429")
    await say(page, "hello")
    shown = await page.until("document.querySelector('.failure')?.innerText")
    assert "429 rate_limit_exceeded" in shown and "retry-after" in shown and "req_" in shown
    assert "429" in page.complaints.pop()
    await page.type("#model", "echo-break")
    await say(page, "one two three four")
    shown = await page.until("document.querySelectorAll('.failure')[1]?.innerText")
    assert "upstream_error" in shown
    assert "one two" in await page.run(LAST), "what came before the error stays"


async def test_words_are_never_markup(house: Gateway, page: Page):
    await enter(page, house, "echo-think")
    await say(page, "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>")
    await page.until("document.querySelector('.message.assistant .text').textContent.includes('</script>')")
    assert await page.run("document.querySelectorAll('#log img, #log script').length") == 0
    assert await page.run("document.title") == "Playground · Sluice"
    assert "The caller said" in await page.text(".thought")


@pytest.mark.slow
async def test_the_program_beside_it_runs(house: Gateway, page: Page):
    await enter(page, house, "echo")
    await page.type("#system", 'It\'s "quoted"\nand new')
    await page.type("#message", "these very words")
    for tab, command in {"#tab-curl": ["bash", "-c"], "#tab-python": [sys.executable, "-c"]}.items():
        await page.click(tab)
        await page.until("document.getElementById('snippet').textContent.includes('these very words')")
        program = await page.run("document.getElementById('snippet').textContent")
        assert API_KEY not in program
        environment = {"SLUICE_API_KEY": API_KEY, "PATH": "/usr/bin:/bin"}
        done = await trio.run_process(
            [*command, program], env=environment, capture_stdout=True, stderr=subprocess.STDOUT
        )
        assert b"words" in done.stdout
    await page.click("#tab-js")
    assert "new OpenAI({ baseURL" in await page.run("document.getElementById('snippet').textContent")
